"""Step sizes of learned optimizers: a factor, a ramp to zero, weight decay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import core, evaluate, learned, tasks

SHAPES = {"b": (), "w": (2, 3)}


@functools.cache
def plain(name="general"):
    return learned.load(name)


def tree(seed, *leading, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=(*leading, *s)), dtype) for k, s in SHAPES.items()}


def run(tx, params, gradients):
    """The updates for gradients with a leading axis of steps; params stay where they are."""
    return compiled(core.as_pytree(tx), params, gradients)


@jax.jit
def compiled(tx, params, gradients):
    def step(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, updates

    return jax.lax.scan(step, tx.init(params), gradients)[1]


def assert_updates(found, expected, **tolerance):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **{"rtol": 1e-5, "atol": 1e-8, **tolerance}),
        found,
        expected,
    )


@jax.jit
def update(tx, *args, **extra):
    return tx.update(*args, **extra)


def times(factors, updates):
    return jax.tree.map(lambda u: np.reshape(factors, (-1,) + (1,) * (u.ndim - 1)) * u, updates)


# The ramp.


def test_the_ramp_is_one_for_seventy_percent_and_then_linear_to_zero():
    gradients = tree(1, 25)
    found = run(learned.load("general", num_steps=20), tree(0), gradients)
    # 1 up to t = 14, then 5/6 ... 1/6; beyond 20 steps it stays at the last.
    factors = [1.0] * 15 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6] + [1 / 6] * 5
    assert_updates(found, times(factors, run(plain(), tree(0), gradients)))


@pytest.mark.parametrize(
    ("num_steps", "factors"), [(1, [1, 1, 1]), (4, [1, 1, 1, 1 / 1.2, 1 / 1.2])]
)
def test_the_last_of_few_steps_still_moves(num_steps, factors):
    gradients = tree(1, len(factors))
    found = run(learned.load("general", num_steps=num_steps), tree(0), gradients)
    assert_updates(found, times(factors, run(plain(), tree(0), gradients)))


def test_the_longest_run_has_no_overflow():
    tx = learned.scaled(optax.sgd(1.0), num_steps=2**31 - 1)
    state = tx.init(jnp.ones(()))
    for count, factor in [(0, -1.0), (2**31 - 2, -1 / (0.3 * 2**31))]:
        state = state._replace(count=jnp.int32(count))
        update, state = tx.update(jnp.ones(()), state)
        np.testing.assert_allclose(update, factor, rtol=1e-6)
    update, _ = tx.update(jnp.ones(()), state)
    assert np.isfinite(update) and update < 0


def test_an_optimizer_that_knows_its_steps_gets_them_and_no_ramp(tmp_path):
    opt = learned.celo_adam(num_steps=100)
    phi = jax.jit(opt.init)(jax.random.key(0))
    learned.save(tmp_path / "mine", opt, phi, {})
    found = learned.load(tmp_path / "mine", num_steps=5, scale=0.5)
    expected = learned.scaled(learned.celo_adam(num_steps=5).bind(phi), scale=0.5)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1, got 0"):
        learned.load(tmp_path / "mine", num_steps=0)


# The factor and the decay.


@pytest.mark.parametrize("scale", [0.25, 0, np.float32(0.25), jnp.array(2.0)], ids=repr)
def test_every_update_is_multiplied(scale):
    gradients = tree(1, 3)
    found = run(learned.load("general", scale=scale), tree(0), gradients)
    assert_updates(found, times([float(scale)] * 3, run(plain(), tree(0), gradients)))


def test_a_schedule_counts_from_zero_and_multiplies_the_ramp():
    gradients = tree(1, 4)
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    found = run(learned.load("general", scale=schedule, num_steps=4), tree(0), gradients)
    assert_updates(found, times([0, 0.5, 1, 1 / 1.2], run(plain(), tree(0), gradients)))


@pytest.mark.parametrize("name", ["lstm-quadratic", "general"])
def test_decay_is_that_of_optax_behind_it_with_the_sign_of_updates(name):
    params, gradients = tree(0), tree(1, 10)
    found = run(learned.load(name, weight_decay=0.01, scale=0.5, num_steps=10), params, gradients)
    schedule = [0.5] * 8 + [0.5 * 2 / 3, 0.5 / 3]
    chain = optax.chain(plain(name), optax.add_decayed_weights(-0.01))
    expected = times(schedule, run(chain, params, gradients))
    assert_updates(found, expected, rtol=1e-5, atol=1e-7)


def test_weights_decay_as_those_of_adamw_at_the_rate_times_its_decay():
    params, gradients = tree(0), tree(1, 5)
    tx = learned.scaled(optax.adam(1e-3), weight_decay=1e-4)
    rival = optax.adamw(1e-3, weight_decay=0.1)
    assert_updates(*(run(x, params, gradients) for x in (tx, rival)))


class Module(dict):
    """A tree of booleans that can be called."""

    def __call__(self):
        raise AssertionError


jax.tree_util.register_pytree_node(
    Module, lambda m: (tuple(m.values()), tuple(m)), lambda k, v: Module(zip(k, v, strict=True))
)


@pytest.mark.parametrize(
    "mask",
    [{"b": False, "w": True}, {"b": np.bool_(0), "w": np.bool_(1)}, "function", "module"],
    ids=str,
)
def test_a_mask_says_which_params_decay(mask):
    params, gradients = tree(0), tree(1, 2)
    if mask == "function":
        mask = functools.partial(jax.tree.map, lambda leaf: leaf.ndim == 2)
    elif mask == "module":
        params, gradients = Module(params), Module(gradients)
        mask = Module(b=False, w=True)
    found = run(learned.load("general", weight_decay=0.1, mask=mask), params, gradients)
    expected = dict(run(plain(), params, gradients))
    expected["w"] -= 0.1 * params["w"]
    assert_updates(dict(found), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_are_kept(dtype, strict_promotion):
    with jax.enable_x64(dtype == "float64"):
        params, gradients = tree(0, dtype=dtype), tree(1, 3, dtype=dtype)
        tx = learned.load("general", num_steps=4, scale=0.3, weight_decay=0.1)
        found = run(tx, params, gradients)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {dtype}
        update = run(plain(), params, gradients)["w"].astype(float)
        expected = 0.3 * (update - 0.1 * params["w"].astype(float)[None])
        np.testing.assert_allclose(
            found["w"].astype(float), expected, rtol=1e-2 if dtype == "bfloat16" else 1e-6
        )


# What becomes of the transformation.


def test_without_arguments_nothing_is_wrapped():
    tx = optax.sgd(0.1)
    assert learned.scaled(tx) is tx


@pytest.mark.parametrize("name", [n for n in learned.shipped() if not n.startswith("surrogate")])
def test_all_that_ships_takes_them_and_passes_jit(name):
    tx = learned.load(name, num_steps=10, scale=0.5, weight_decay=1e-4)
    dim = 2 if name == "black-box-2d" else 3 if name == "black-box-3d" else 6
    params = jnp.linspace(-0.5, 0.5, dim)
    extra = {"value": jnp.ones(())} if name.startswith("black-box") else {}
    updates, state = update(tx, params, tx.init(params), params, **extra)
    without = learned.load(name)
    expected, inner = update(without, params, without.init(params), params, **extra)
    np.testing.assert_allclose(updates, 0.5 * (expected - 1e-4 * params), rtol=1e-5, atol=1e-7)
    assert int(state.count) == 1
    jax.tree.map(np.testing.assert_array_equal, state.inner, inner)


def test_arrays_of_another_value_use_the_same_program():
    compiled.clear_cache()
    for num_steps, scale in [(10, 0.5), (20, jnp.array(0.25))]:
        run(learned.load("general", num_steps=num_steps, scale=scale), tree(0), tree(1, 3))
    assert compiled._cache_size() == 1


def test_a_batch_of_problems_stays_one_bigger_problem():
    tx = learned.load("general", num_steps=5, weight_decay=1e-3, mask=True)
    assert isinstance(tx, core.CoordinatewiseTransformation)
    by_function = learned.load("general", weight_decay=1e-3, mask=lambda p: jax.tree.map(bool, p))
    assert type(by_function) is optax.GradientTransformation
    assert all(jax.tree.leaves(x) == [] for x in (tx, by_function))  # as Flax NNX has to have it
    assert type(learned.scaled(optax.lbfgs(), scale=0.5)) is optax.GradientTransformationExtraArgs
    task, key = tasks.quadratic(dim=3), jax.random.key(0)
    mapped = optax.GradientTransformation(*tx)
    found, expected = (evaluate.curves(x, task, key=key, steps=5, problems=3) for x in (tx, mapped))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_works_inside_the_wrappers_of_optax():
    params, gradients = tree(0), tree(1, 8)
    tx = learned.load("general", num_steps=4, weight_decay=0.1, mask={"b": False, "w": True})
    wrapped = optax.chain(optax.clip_by_global_norm(1.0), tx)
    clipped = [
        optax.clip_by_global_norm(1.0).update(jax.tree.map(lambda g, t=t: g[t], gradients), ())[0]
        for t in range(8)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clipped)
    assert_updates(run(wrapped, params, gradients), run(tx, params, stacked), rtol=1e-5)
    # Accumulation: 8 minibatches are 4 updates.
    accumulated = optax.MultiSteps(tx, 2).gradient_transformation()
    means = jax.tree.map(lambda g: g.reshape(4, 2, *g.shape[1:]).mean(1), gradients)
    found = run(accumulated, params, gradients)
    assert_updates(jax.tree.map(lambda u: u[1::2], found), run(tx, params, means), rtol=1e-4)
    part = optax.masked(tx, {"b": False, "w": True})
    alone = run(learned.load("general", num_steps=4, weight_decay=0.1), params["w"], gradients["w"])
    assert_updates(run(part, params, gradients)["w"], alone)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "^num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 10.0}, r"^num_steps must be a whole number of at least 1, got 10\.0"),
        ({"num_steps": True}, "^num_steps must be a whole number of at least 1, got True"),
        ({"num_steps": 2**31}, r"^num_steps must be less than 2\*\*31, got 2147483648"),
        ({"scale": -0.1}, r"^scale must be a non-negative number, got -0\.1"),
        ({"scale": jnp.nan}, "^scale must be a non-negative number, got nan"),
        ({"scale": np.inf}, "^scale must be a non-negative number, got inf"),
        ({"scale": None}, "^scale must be a non-negative number, got None"),
        ({"scale": jnp.ones(2)}, r"^scale must be a scalar, got the shape \(2,\)"),
        ({"weight_decay": -1e-3}, r"^weight_decay must be a non-negative number, got -0\.001"),
        ({"weight_decay": np.ones(1)}, r"^weight_decay must be a scalar, got the shape \(1,\)"),
        ({"mask": True}, "^mask must be left out without weight_decay"),
        ({"mask": {"w": 1}, "weight_decay": 0.1}, "^mask must have booleans as leaves, got 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        learned.load("general", **arguments)


def test_decay_needs_params():
    tx = learned.load("general", weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^weight_decay needs params: call tx\.update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_integer_params_are_refused_by_name():
    with pytest.raises(ValueError, match="params must have real floating-point.*int32.*steps"):
        learned.load("general", num_steps=5, weight_decay=0.1).init({"steps": jnp.arange(2)})
