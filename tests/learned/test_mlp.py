import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, networks
from l2ljax.core import CoordinatewiseTransformation
from l2ljax.learned import _coordinates

SHAPES = {"empty": (0, 3), "scale": (), "weight": (2, 3)}
ANCESTOR = {
    "hidden": (32, 32),
    "decays": (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    "second_moment_decay": None,
}


def tree(seed, *leading, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(*leading, *shape)), dtype)
        for name, shape in SHAPES.items()
    }


@functools.cache
def weights(dtype="float32", **settings):
    """Meta-parameters in which none is zero, so large that every feature matters."""
    with jax.ensure_compile_time_eval():
        shapes = jax.eval_shape(learned.mlp(**settings).init, jax.random.key(0))
        leaves, structure = jax.tree.flatten(shapes)
        rng = np.random.default_rng(0)
        drawn = [jnp.asarray(rng.normal(size=leaf.shape), dtype) for leaf in leaves]
        return jax.tree.unflatten(structure, drawn)


@jax.jit
def run(tx, params, gradients):
    """The updates of each step and the last state; params stay where they are."""

    def step(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, tx.init(params), gradients)
    return updates, state


def by_hand(phi, params, gradients, *, decays, square_decay, output_scale, exp_scale):
    """The formula in numpy, leaf by leaf, with features last."""
    layers = [phi[f"dense_{i}"] for i in range(len(phi))]
    results = {}
    for name, w in params.items():
        w, updates = np.asarray(w), []
        momenta, square = [np.zeros_like(w) for _ in decays], np.zeros_like(w)
        for t, g in enumerate(np.asarray(gradients[name])):
            momenta = [b * m + (1 - b) * g for b, m in zip(decays, momenta, strict=True)]
            features = [g, w, *momenta]
            if square_decay is not None:
                square = square_decay * square + (1 - square_decay) * g**2
                root = np.sqrt(square + 1e-6)
                features += [square, *(m / root for m in momenta), 1 / root]
            if w.size:
                features = [x / np.sqrt(1e-5 + np.mean(x**2)) for x in features]
            scales = [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5]
            features += [np.full_like(w, np.tanh(t / scale - 1)) for scale in scales]
            x = np.stack(features, axis=-1)
            for i, layer in enumerate(layers):
                x = (np.maximum(x, 0) if i else x) @ layer["kernel"] + layer["bias"]
            updates.append(-output_scale * x[..., 0] * np.exp(exp_scale * x[..., 1]))
        results[name] = np.stack(updates)
    return results


@pytest.mark.parametrize(
    ("hidden", "decays", "square_decay"),
    [((3, 2), (0.5, 0.9), 0.99), ((), (0.9,), None), ((2,), (), 0.9)],
    ids=str,
)
def test_updates_are_the_formula_in_numpy(x64, hidden, decays, square_decay):
    settings = {"hidden": hidden, "decays": decays, "second_moment_decay": square_decay}
    scales = {"output_scale": 0.5, "exp_scale": 0.3}
    phi = weights("float64", **settings)
    params, gradients = tree(1, dtype=np.float64), tree(2, 4, dtype=np.float64)
    updates, state = run(learned.mlp(**settings, **scales).bind(phi), params, gradients)
    expected = by_hand(phi, params, gradients, decays=decays, square_decay=square_decay, **scales)
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-10)
    assert int(state.count) == 4


def test_the_network_of_many_coordinates_is_vmap_of_the_network_of_one():
    phi, x = weights(), jnp.asarray(np.random.default_rng(1).normal(size=(21, 2, 3)), np.float32)
    mapped = networks.coordinate_mlp_apply
    for _ in range(2):
        mapped = jax.vmap(mapped, in_axes=(None, -1), out_axes=-1)
    np.testing.assert_allclose(
        networks.coordinate_mlp_apply(phi, x), mapped(phi, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "inputs", "weights"), [({}, 21, 98), (ANCESTOR, 19, 1762)], ids=str
)
def test_the_numbers_of_inputs_and_weights_are_those_documented(settings, inputs, weights):
    phi = jax.eval_shape(learned.mlp(**settings).init, jax.random.key(0))
    assert phi["dense_0"]["kernel"].shape[0] == inputs
    assert sum(leaf.size for leaf in jax.tree.leaves(phi)) == weights


def test_kernels_have_variance_one_over_fan_in_and_biases_are_zero():
    init = functools.partial(networks.coordinate_mlp_init, features=50, hidden=(60,), outputs=40)
    phi = jax.jit(init)(jax.random.key(0))
    for layer, fan_in in (("dense_0", 50), ("dense_1", 60)):
        np.testing.assert_allclose(np.std(phi[layer]["kernel"]), fan_in**-0.5, rtol=0.1)
        np.testing.assert_array_equal(phi[layer]["bias"], 0)


def test_the_meta_gradient_equals_a_finite_difference(x64):
    settings = {"hidden": (3,), "decays": (0.9,)}
    phi, direction = weights("float64", **settings), weights("float64", **settings)
    direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), direction)
    params, gradients = tree(1, dtype=np.float64), tree(2, 4, dtype=np.float64)
    opt = learned.mlp(**settings, output_scale=1.0, exp_scale=0.3)

    @jax.jit
    @jax.value_and_grad
    def loss(phi):
        updates, _ = run(opt.bind(phi), params, gradients)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(updates))

    def along(t):
        return loss(jax.tree.map(lambda p, d: p + t * d, phi, direction))

    slope = optax.tree.vdot(along(0.0)[1], direction)
    difference = (along(1e-6)[0] - along(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_leaves_do_not_see_each_other_but_the_coordinates_of_a_leaf_do():
    tx, params, gradients = learned.mlp().bind(weights()), tree(1), tree(2, 2)
    (before, _), louder = run(tx, params, gradients), dict(gradients)
    louder["scale"] = 1e3 * gradients["scale"]
    louder["weight"] = gradients["weight"].at[:, 0, 0].set(9.0)
    after, _ = run(tx, params, {**gradients, "scale": louder["scale"]})
    np.testing.assert_array_equal(after["weight"], before["weight"])
    after, _ = run(tx, params, {**gradients, "weight": louder["weight"]})
    np.testing.assert_array_equal(after["scale"], before["scale"])
    assert np.all(after["weight"][0, 1] != before["weight"][0, 1])


def test_the_scale_of_the_loss_hardly_matters():
    tx = learned.mlp(decays=(0.9,), second_moment_decay=None).bind(
        weights(decays=(0.9,), second_moment_decay=None)
    )
    params, gradients = tree(1), jax.tree.map(lambda g: 100 * g, tree(2, 3))
    updates, _ = run(tx, params, gradients)
    scaled, _ = run(tx, params, jax.tree.map(lambda g: 1000 * g, gradients))
    for name in SHAPES:
        np.testing.assert_allclose(scaled[name], updates[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", ["flat", "leaves"])
@pytest.mark.parametrize("settings", [{}, ANCESTOR], ids=["default", "ancestor"])
def test_gradients_whose_squares_overflow_have_finite_updates(settings, layout):
    tx = learned.mlp(**settings, layout=layout).bind(weights(**settings))
    params, largest = tree(1), np.finfo(np.float32).max
    gradients = jax.tree.map(lambda g: g.at[1].multiply(1e20), tree(2, 3))
    gradients["weight"] = gradients["weight"].at[1, 0, 0].set(-largest)
    updates, state = run(tx, params, gradients)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
    gradients["weight"] = gradients["weight"].at[2, 0, 0].set(jnp.inf)
    updates, _ = run(tx, params, gradients)
    assert not np.isfinite(updates["weight"][2]).all()
    assert np.isfinite(updates["scale"]).all()


def test_means_over_long_leaves_are_exact_to_single_precision():
    rng = np.random.default_rng(0)
    leaves = [rng.uniform(size=size).astype(np.float32) for size in (200_000, 0, 1024, 1, 1500)]
    rows = np.stack([np.concatenate(leaves), 3 * np.concatenate(leaves)])
    means = _coordinates.leaf_means(jnp.asarray(rows), leaves)
    expected = [leaf.mean(dtype=np.float64) if leaf.size else 0 for leaf in leaves]
    np.testing.assert_allclose(means, [expected, np.multiply(3, expected)], rtol=2e-6)
    spread = _coordinates.at_coordinates(means, leaves)
    sizes = [leaf.size for leaf in leaves]
    np.testing.assert_array_equal(spread, np.repeat(np.asarray(means), sizes, axis=1))


def test_it_is_an_ordinary_transformation():
    tx = learned.mlp().bind(weights())
    assert isinstance(tx, optax.GradientTransformation)
    assert not isinstance(tx, CoordinatewiseTransformation)


def test_an_update_without_params_is_refused():
    tx, params = learned.mlp().bind(weights()), tree(1)
    with pytest.raises(ValueError, match=r"mlp needs params.*tx\.update\(gradients, state, params"):
        tx.update(params, tx.init(params))


def test_the_state_has_a_column_a_coordinate():
    params = {**tree(1), "weight": jnp.ones((2, 3), jnp.bfloat16)}
    state = learned.mlp().bind(weights()).init(params)
    assert isinstance(state, learned.MLPState)
    assert [(x.shape, x.dtype.name) for x in jax.tree.leaves(state)] == [
        ((), "int32"),
        ((3, 7), "float32"),
        ((7,), "float32"),
    ]
    without = learned.mlp(**ANCESTOR).bind(weights(**ANCESTOR)).init(params)
    assert without.mean_square is None
    assert without.momenta.shape == (6, 7)


def test_bfloat16_params_have_the_updates_of_float32():
    tx = learned.mlp().bind(weights())
    params, gradients = tree(1, dtype=jnp.bfloat16), tree(2, 2, dtype=jnp.bfloat16)
    updates, state = run(tx, params, gradients)
    assert state.momenta.dtype == jnp.float32
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradients))
    expected, _ = run(tx, *wide)
    for name in SHAPES:
        np.testing.assert_array_equal(updates[name], expected[name].astype(jnp.bfloat16))


def test_the_network_runs_once_whatever_the_number_of_leaves():
    def operations(leaves):
        tx, params = learned.mlp().bind(weights()), [jnp.ones(2)] * leaves
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        return [equation.primitive.name for equation in jaxpr.eqns]

    few, many = operations(2), operations(42)
    assert few.count("dot_general") == many.count("dot_general") > 0
    assert few.count("tanh") == many.count("tanh") == 1
    # Two trees are flattened, and one is taken apart again.
    assert len(many) - len(few) <= 5 * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": (4, 0)}, "hidden.*at least 1, got 0"),
        ({"hidden": 3}, "hidden must be a sequence of whole numbers, got 3"),
        ({"decays": 0.9}, r"decays must be a sequence of numbers in \[0, 1\), got 0.9"),
        ({"decays": (0.9, 1.0)}, r"decays.*\[0, 1\), got 1.0"),
        ({"decays": (-0.1,)}, r"decays.*\[0, 1\), got -0.1"),
        ({"second_moment_decay": 1.5}, r"second_moment_decay.*\[0, 1\), got 1.5"),
        ({"output_scale": 0.0}, "output_scale.*positive.*0.0"),
        ({"exp_scale": -1.0}, "exp_scale.*non-negative.*-1.0"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        learned.mlp(**arguments)


@pytest.mark.parametrize("settings", [{}, ANCESTOR], ids=["default", "ancestor"])
def test_what_was_saved_is_restored(tmp_path, settings):
    opt = learned.mlp(**settings, output_scale=1, exp_scale=0)
    phi = weights(**settings)
    learned.save(tmp_path, opt, phi, {})
    restored, again, card = learned.restore(tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(opt)
    assert card["optimizer"] == json.loads(json.dumps(opt.spec))
    jax.tree.map(np.testing.assert_array_equal, again, phi)
