"""Large leaves keep their shape in an optimizer's state, and with it their place on devices."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from l2ljax import learned
from l2ljax.learned import _coordinates
from l2ljax.learned._mlp import _unit_mean_square

KEY = jax.random.key(0)
SPLIT = {"bias": P(), "down": P("model", None), "up": P(None, "model")}
MAKE = {
    "lstm": lambda **layout: learned.lstm((3, 2), **layout),
    "adaptive_lstm": lambda **layout: learned.adaptive_lstm((3,), b1=(0.5, 0.9), **layout),
    "rnnprop": lambda **layout: learned.rnnprop((3,), encoder=2, **layout),
    "mlp": lambda **layout: learned.mlp(**layout),
    "partition": lambda **layout: learned.partition(
        {"a": learned.lstm((3,), **layout), "b": learned.mlp(**layout)}, {"down": "a", "*": "b"}
    ),
}


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (5,), "down": (8, 4), "up": (4, 8)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


@pytest.fixture
def large_from_thirty_two(monkeypatch):
    monkeypatch.setitem(_coordinates.LAYOUTS, "auto", 32)


def shardings(kind):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(kind,))
    return {name: NamedSharding(mesh, spec) for name, spec in SPLIT.items()}


def two_steps(tx, params, gradients):
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(gradients, state, params)
    return updates, state


# The partition has lstm and mlp.
@pytest.mark.parametrize("name", ["adaptive_lstm", "rnnprop", "partition"])
def test_every_layout_has_the_same_updates_on_any_devices(name, large_from_thirty_two):
    phi = MAKE[name]().init(KEY)
    params, gradients = tree(0), tree(1)
    expected, _ = two_steps(MAKE[name](layout="flat").bind(phi), params, gradients)
    tx = MAKE[name]().bind(phi)
    for kind, entered in [
        (AxisType.Auto, False),
        (AxisType.Explicit, False),
        (AxisType.Explicit, True),
    ]:
        placed = jax.device_put((params, gradients), (shardings(kind),) * 2)
        mesh = placed[0]["up"].sharding.mesh
        with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
            updates, state = two_steps(tx, *placed)
        for leaf, update in updates.items():
            np.testing.assert_allclose(update, expected[leaf], rtol=1e-5, atol=1e-7)
            assert update.sharding.is_equivalent_to(placed[0][leaf].sharding, update.ndim)
        for leaf in jax.tree.leaves(state):
            for which in ("down", "up"):
                shape = params[which].shape
                if leaf.shape[-2:] == shape:
                    rows = [None] * (leaf.ndim - 2)
                    split = NamedSharding(mesh, P(*rows, *SPLIT[which]))
                    assert leaf.sharding.is_equivalent_to(split, leaf.ndim)


def test_large_leaves_keep_their_shape_and_small_ones_share_an_array(large_from_thirty_two):
    opt = MAKE["lstm"]()
    tx = opt.bind(opt.init(KEY))
    state = jax.eval_shape(tx.init, tree(0))
    assert [cell.shape for cell, _ in state.layers] == [(3, 5), (2, 5)]
    assert [[cell.shape for cell, _ in layers] for layers in state.large] == [
        [(3, 8, 4), (2, 8, 4)],
        [(3, 4, 8), (2, 4, 8)],
    ]


def test_a_compiled_update_moves_no_state_between_devices(large_from_thirty_two):
    opt = MAKE["adaptive_lstm"]()
    tx = opt.bind(opt.init(KEY))
    params = jax.device_put(tree(0), shardings(AxisType.Auto))
    state = jax.jit(tx.init)(params)
    program = jax.jit(tx.update).lower(params, state, params).compile()
    exchanged = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    assert re.search(exchanged, program.as_text()) is None
    # A flat state is there to see that the words are the right ones.
    flat = MAKE["adaptive_lstm"](layout="flat").bind(opt.init(KEY))
    program = jax.jit(flat.update).lower(params, flat.init(params), params).compile()
    assert re.search(exchanged, program.as_text()) is not None


def test_a_state_of_other_params_is_refused():
    opt = learned.lstm((2,))
    tx = opt.bind(opt.init(KEY))
    state = tx.init({"w": jnp.zeros(1000)})
    for params in ({"w": jnp.zeros(2000)}, {"w": jnp.zeros(999)}, {"w": jnp.zeros((2**9, 2**9))}):
        with pytest.raises(ValueError, match="state must be what `init` made of params like these"):
            tx.update(params, state)


def test_many_leaves_may_all_be_empty():
    opt = learned.lstm((2,))
    tx = opt.bind(opt.init(KEY))
    params = [jnp.zeros((0, 3))] * 40
    updates, _ = jax.jit(tx.update)(params, tx.init(params))
    assert [leaf.shape for leaf in updates] == [(0, 3)] * 40


def test_leaves_of_one_shape_are_traced_once(large_from_thirty_two):
    shapes = []

    def features(gradient):
        shapes.append(gradient.shape)
        return gradient[None]

    opt = learned.lstm((2,), preprocess=features)
    tx = opt.bind(opt.init(KEY))
    shapes.clear()
    params = {str(i): jnp.ones((8, 4)) for i in range(5)} | {"other": jnp.ones((4, 8))}
    jax.eval_shape(lambda params: tx.update(params, tx.init(params)), params)
    assert sorted(shapes) == [(0,), (4, 8), (8, 4)]


def test_hundreds_of_leaves_are_split_as_a_few_are():
    sizes = [7, 3, 7, 1] * 10
    flat = jax.random.normal(KEY, (sum(sizes),))
    shapes = tuple((size,) for size in sizes)
    expected = np.split(np.asarray(flat), np.cumsum(sizes)[:-1])
    for split in (_coordinates._split, jax.jit(_coordinates._split, static_argnums=1)):
        for part, same in zip(split(flat, shapes), expected, strict=True):
            np.testing.assert_array_equal(part, same)

    def weighted(flat):
        parts = _coordinates._split(flat, shapes)
        return sum(i * jnp.sum(part) for i, part in enumerate(parts))

    rows = np.repeat(np.arange(len(sizes), dtype=np.float32), sizes)
    np.testing.assert_array_equal(jax.jit(jax.grad(weighted))(flat), rows)
    _, tangent = jax.jit(lambda x: jax.jvp(weighted, (x,), (x,)))(flat)
    np.testing.assert_allclose(tangent, rows @ np.asarray(flat), rtol=1e-5)
    mapped = jax.jit(jax.vmap(weighted))(jnp.stack([flat, -flat]))
    np.testing.assert_allclose(mapped, [weighted(flat), -weighted(flat)], rtol=1e-5)


def test_small_leaves_in_hundreds_have_the_updates_of_one_leaf():
    opt = MAKE["lstm"]()
    tx = opt.bind(opt.init(KEY))
    whole = jax.random.normal(KEY, (80,))
    parts = dict(enumerate(jnp.split(whole, 40)))
    updates, state = two_steps(tx, parts, parts)
    expected, same = two_steps(tx, whole, whole)
    np.testing.assert_allclose(np.concatenate([*updates.values()]), expected, rtol=1e-5, atol=1e-7)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), state, same))


def test_a_mean_over_a_large_leaf_does_not_stand_still():
    scaled = jax.jit(lambda rows: _unit_mean_square(rows, None)[0, 0])
    np.testing.assert_allclose(scaled(jnp.full((1, 2**24), 0.1)), 1 / np.sqrt(1.001), rtol=1e-5)


@pytest.mark.parametrize("make", [*MAKE.values()][:4], ids=[*MAKE][:4])
def test_an_unknown_layout_is_refused(make):
    with pytest.raises(ValueError, match="layout must be one of .* got 'leafs'.*did you mean"):
        make(layout="leafs")


def test_averaging_cells_have_a_flat_state():
    with pytest.raises(ValueError, match="layout must be 'auto' or 'flat' with averaging"):
        learned.lstm(averaging=2, layout="leaves")


def test_shipped_weights_take_settings_beside_their_own():
    opt, phi, card = learned.restore("lstm-quadratic", state_dtype="bfloat16", layout="leaves")
    state = jax.eval_shape(opt.bind(phi).init, jnp.ones((2, 3)))
    assert state.large[0][0][0].shape == (20, 2, 3)
    assert state.large[0][0][0].dtype == jnp.bfloat16
    assert "state_dtype" not in card["optimizer"]["arguments"]
    assert isinstance(learned.load("lstm-quadratic", layout="flat"), optax.GradientTransformation)
    with pytest.raises(ValueError, match="arguments that lstm does not take.*'state'"):
        learned.load("lstm-quadratic", state="bfloat16")
