"""Laws that every optimizer keeps, whatever its formula; the rows are in `methods_table.py`.

`optax` promotes dtypes loosely in its own code, so promotion is strict in those laws only where
nothing of optax computes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods_table import ADAPTIVE, FIRST_ORDER, LEARNED, METHODS, VARIANTS

# With the oldest dependencies laws are tested of these.
FEW = [FIRST_ORDER[0], ADAPTIVE[0], LEARNED[0], *(m for m in ADAPTIVE if str(m) == "adam")]


def each(methods):
    """A test for each of these rows."""
    rows = [pytest.param(m, marks=[pytest.mark.slow] * (m not in FEW)) for m in methods]
    return pytest.mark.parametrize("method", rows, ids=str)


every_method = each(METHODS)
# What wraps a transformation does not see its formula.
every_transformation = each([m for m in METHODS if m not in VARIANTS])
with_hyperparameters = each([m for m in METHODS if m.factory is not None])
with_rate = each([m for m in METHODS if "learning_rate" in m.hyperparameters])

STEPS = 3
SHAPES = {"empty": (0, 3), "scale": (), "weight": (2, 3)}


def random_tree(seed, *leading, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(*leading, *shape)), dtype)
        for name, shape in SHAPES.items()
    }


def objective(params):
    """A convex function of any tree, for methods that ask for values."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    leaves = [leaf.astype(dtype) for leaf in jax.tree.leaves(params)]
    return sum((jnp.sum(w**2 / 2 + w**4 / 20) for w in leaves), jnp.zeros((), dtype))


def update(tx, g, state, params, objective=objective):
    """One update; a method that takes values and closures gets them."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs | optax.MultiSteps):
        return tx.update(g, state, params)
    value, grad = jax.value_and_grad(objective)(params)
    return tx.update(g, state, params, value=value, grad=grad, value_fn=objective)


def unroll(tx, params, gradients, objective=objective):
    """All updates and the last state, for gradients with a leading axis of steps."""

    def step(carry, g):
        params, state = carry
        updates, state = update(tx, g, state, params, objective)
        # Not `optax.apply_updates`, which promotes dtypes.
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        return (params, state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), gradients)
    return updates, state


def assert_same(actual, expected, rtol=1e-5, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def avals(tree):
    """Shapes and dtypes; also whether a dtype is weak, for that would compile a second time."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_method
@pytest.mark.parametrize(
    ("dtype", "x64"),
    [
        ("float32", False),
        ("bfloat16", False),
        ("float32", True),
        ("bfloat16", True),
        ("float64", True),
        ("mixed", True),
    ],
)
def test_updates_and_state_keep_structure_shapes_and_dtypes(method, dtype, x64, strict_promotion):
    with jax.enable_x64(x64):
        params = random_tree(0, dtype=jnp.float32 if dtype == "mixed" else dtype)
        if dtype == "mixed":
            params["scale"] = params["scale"].astype(jnp.bfloat16)
            params["weight"] = params["weight"].astype(jnp.float64)
        tx = method.make()
        state = jax.eval_shape(tx.init, params)
        updates, new_state = jax.eval_shape(lambda s, p: update(tx, p, s, p), state, params)
        assert avals(updates) == avals(jax.eval_shape(lambda x: x, params))
        assert avals(new_state) == avals(state)


@every_transformation
def test_init_needs_shapes_only(method):
    params, tx = random_tree(0), method.make()
    assert avals(jax.eval_shape(tx.init, params)) == avals(tx.init(params))


@every_method
def test_jit_computes_the_same_and_compiles_once(method, strict_promotion):
    params, gradients, tx = random_tree(0), random_tree(1), method.make()
    traces = []

    @jax.jit
    def jitted(updates, state, params):
        traces.append(None)
        return update(tx, updates, state, params)

    state = jitted_state = tx.init(params)
    for _ in range(STEPS):
        updates, state = update(tx, gradients, state, params)
        jitted_updates, jitted_state = jitted(gradients, jitted_state, params)
        assert_same(jitted_updates, updates, rtol=method.rounding)
    assert_same(jitted_state, state, rtol=method.rounding)
    assert len(traces) == 1


@every_transformation
def test_params_and_a_fresh_state_can_be_donated(method):
    params, gradients, tx = random_tree(0), random_tree(1), method.make()
    state = tx.init(params)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
    assert len(buffers) == len(set(buffers))
    jax.jit(functools.partial(update, tx), donate_argnums=1)(gradients, state, params)


@every_method
def test_scan_computes_the_same_as_a_loop(method):
    params, gradients, tx = random_tree(0), random_tree(1, STEPS), method.make()
    updates, last = jax.jit(lambda p, g: unroll(tx, p, g))(params, gradients)
    jitted, state = jax.jit(functools.partial(update, tx)), tx.init(params)
    for t in range(STEPS):
        expected, state = jitted(jax.tree.map(lambda g, t=t: g[t], gradients), state, params)
        params = optax.apply_updates(params, expected)
        assert_same(jax.tree.map(lambda u, t=t: u[t], updates), expected, rtol=method.rounding)
    assert_same(last, state, rtol=method.rounding)


@every_method
def test_vmap_over_problems_computes_each_alone(method):
    tx, problems = method.make(), 2
    params, gradients = random_tree(0, problems), random_tree(1, problems, STEPS)
    run = jax.jit(lambda p, g: unroll(tx, p, g))
    batched = jax.jit(jax.vmap(run))(params, gradients)
    for i in range(problems):
        alone = run(*jax.tree.map(lambda x, i=i: x[i], (params, gradients)))
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), alone, rtol=method.rounding)


@with_rate
def test_vmap_over_rates_computes_each_alone(method):
    params, gradients = random_tree(0), random_tree(1, STEPS)
    others = {k: v for k, v in method.hyperparameters.items() if k != "learning_rate"}

    @jax.jit
    def run(rate):
        return unroll(method.factory(learning_rate=rate, **others), params, gradients)

    rates = jnp.array([1e-3, 1e-1])
    batched = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), run(rate))


@with_rate
def test_a_schedule_is_the_rate_of_each_step_and_starts_at_zero(method):
    params, gradients = random_tree(0), random_tree(1)
    others = {k: v for k, v in method.hyperparameters.items() if k != "learning_rate"}
    scheduled = method.factory(learning_rate=lambda count: 0.1 / (1.0 + count), **others)

    @jax.jit
    def constant(state, rate):
        return update(method.factory(learning_rate=rate, **others), gradients, state, params)

    jitted, state = jax.jit(functools.partial(update, scheduled)), scheduled.init(params)
    for t in range(STEPS):
        expected, _ = constant(state, 0.1 / (1 + t))
        updates, state = jitted(gradients, state, params)
        assert_same(updates, expected)


@every_transformation
def test_extra_arguments_are_taken_with_optax_support(method):
    params, gradients, tx = random_tree(0), random_tree(1), method.make()
    supporting = optax.with_extra_args_support(tx)
    updates, _ = update(supporting, gradients, tx.init(params), params)
    assert_same(updates, update(tx, gradients, tx.init(params), params)[0], rtol=method.rounding)
    value, grad = jax.value_and_grad(objective)(params)
    others = {"value": value, "grad": grad, "value_fn": objective, "unknown": None}
    supporting.update(gradients, tx.init(params), params, **others)


@every_transformation
def test_chain_passes_the_updates_on(method):
    params, gradients, tx = random_tree(0), random_tree(1, STEPS), method.make()
    first = jax.tree.map(lambda g: g[0], gradients)
    chain = optax.chain(tx, optax.scale(0.5))
    halved, _ = update(chain, first, chain.init(params), params)
    updates, _ = update(tx, first, tx.init(params), params)
    assert_same(halved, jax.tree.map(lambda u: 0.5 * u, updates), rtol=method.rounding)


@every_transformation
@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_on_part_of_the_params_it_works_as_on_that_part_alone(method, wrapper):
    params, gradients, tx = random_tree(0), random_tree(1, STEPS), method.make()
    mine = {name: name in ("empty", "weight") for name in SHAPES}
    if wrapper == "masked":
        wrapped = optax.masked(tx, mine)
    else:
        wrapped = optax.partition({True: tx, False: optax.identity()}, mine)

    def part(tree):
        return {name: tree[name] for name in SHAPES if mine[name]}

    # A method that sees values sees the same ones alone.
    def of_part(params):
        return objective(part(params))

    if method.whole:
        with pytest.raises(ValueError, match=r"^grad must be a tree like the params.*masked"):
            unroll(wrapped, params, gradients)
        return
    updates, _ = unroll(wrapped, params, gradients, of_part)
    alone, _ = unroll(tx, part(params), part(gradients))
    assert_same(part(updates), alone, rtol=method.rounding)
    assert_same(updates["scale"], gradients["scale"])


@with_hyperparameters
def test_injected_hyperparameters_compute_the_same_and_can_be_changed(method):
    params, gradients, tx = random_tree(0), random_tree(1, STEPS), method.make()
    injected = optax.inject_hyperparams(method.factory, method.static)(**method.hyperparameters)
    updates, state = unroll(injected, params, gradients)
    assert_same(updates, unroll(tx, params, gradients)[0], rtol=1e-4)
    if "learning_rate" in state.hyperparams:
        first = jax.tree.map(lambda g: g[0], gradients)
        jitted = jax.jit(functools.partial(update, injected))
        before, _ = jitted(first, injected.init(params), params)
        state = injected.init(params)
        state.hyperparams["learning_rate"] *= 2
        after, _ = jitted(first, state, params)
        if "decay_alone" not in method.name:
            assert_same(after, jax.tree.map(lambda u: 2 * u, before))


@every_transformation
def test_multi_steps_updates_with_the_mean_gradient(method):
    params, gradients, tx = random_tree(0), random_tree(1, 2), method.make()
    updates, _ = unroll(optax.MultiSteps(tx, every_k_schedule=2), params, gradients)
    mean = jax.tree.map(lambda g: g.mean(0, keepdims=True), gradients)
    expected, _ = unroll(tx, params, mean)
    zeros = jax.tree.map(jnp.zeros_like, expected)
    assert_same(
        updates,
        jax.tree.map(lambda *x: jnp.concatenate(x), zeros, expected),
        rtol=max(1e-4, method.rounding),
        atol=1e-6,
    )


@every_transformation
def test_apply_if_finite_keeps_a_nan_out_of_params_and_state(method):
    params, gradients, tx = random_tree(0), random_tree(1), method.make()
    wrapped = optax.apply_if_finite(tx, max_consecutive_errors=STEPS)
    jitted, state = jax.jit(functools.partial(update, wrapped)), wrapped.init(params)
    broken = {**gradients, "scale": jnp.array(jnp.nan)}
    updates, state = jitted(broken, state, params)
    assert_same(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same(state.inner_state, tx.init(params))
    updates, _ = jitted(gradients, state, params)
    assert_same(updates, update(tx, gradients, tx.init(params), params)[0], rtol=method.rounding)


@every_method
@pytest.mark.parametrize(
    "params", [{}, jnp.ones(()), jnp.ones((0, 3)), (jnp.ones(2), None)], ids=str
)
def test_params_may_be_empty_or_one_leaf(method, params):
    tx = method.make()
    updates, state = update(tx, params, tx.init(params), params)
    assert avals(updates) == avals(params)
    assert avals(state) == avals(tx.init(params))


@every_transformation
def test_integer_params_are_refused_by_name(method):
    with pytest.raises(ValueError, match=r"int32.*steps|steps.*int32"):
        method.make().init({"steps": jnp.arange(2), "weight": jnp.ones(2)})


def meta_loss(method, params, gradients, hyperparameters):
    """A function of all updates with a derivative that is nowhere zero by symmetry."""
    tx = method.factory(**hyperparameters) if hyperparameters else method.make()
    updates, _ = unroll(tx, params, gradients)
    return sum(jnp.sum((1.0 + jnp.arange(u.size)).reshape(u.shape) * u) for u in updates.values())


@every_method
def test_the_meta_gradient_is_finite_at_a_zero_gradient(method):
    params, gradients = random_tree(0), random_tree(1, 5)
    hyperparameters = {k: jnp.asarray(v) for k, v in method.hyperparameters.items()}
    derivative = jax.jit(jax.grad(lambda g, h: meta_loss(method, params, g, h), argnums=(0, 1)))
    for zero_steps in (5, 2):  # always zero; zero at first
        some_zero = jax.tree.map(lambda g, n=zero_steps: g.at[:n].set(0), gradients)
        for leaf in jax.tree.leaves(derivative(some_zero, hyperparameters)):
            assert np.all(np.isfinite(leaf))


@with_hyperparameters
def test_the_hypergradient_equals_finite_differences(method, x64):
    params = random_tree(0, dtype=jnp.float64)
    gradients = random_tree(1, 5, dtype=jnp.float64)
    hyperparameters = dict(method.hyperparameters)
    if "eps" in hyperparameters:
        hyperparameters["eps"] = 0.1  # large enough for a difference above rounding
    hyperparameters = {k: jnp.asarray(v) for k, v in hyperparameters.items()}
    value_and_grad = jax.jit(jax.value_and_grad(lambda h: meta_loss(method, params, gradients, h)))
    _, derivative = value_and_grad(hyperparameters)
    for name, value in hyperparameters.items():
        width = 1e-4 * (value if name == "learning_rate" else min(value, 1 - value))
        above, _ = value_and_grad({**hyperparameters, name: value + width})
        below, _ = value_and_grad({**hyperparameters, name: value - width})
        np.testing.assert_allclose(derivative[name], (above - below) / (2 * width), rtol=1e-6)


with_part = each([m for m in METHODS if m.part])


@with_part
def test_the_part_without_a_rate_followed_by_a_rate_computes_the_same(method):
    params, gradients = random_tree(0), random_tree(1, STEPS)
    others = {k: v for k, v in method.hyperparameters.items() if k != "learning_rate"}
    rate = optax.scale_by_learning_rate(method.hyperparameters["learning_rate"])
    composed = optax.chain(method.part(**others), rate)
    assert_same(unroll(composed, params, gradients)[0], unroll(method.make(), params, gradients)[0])


@every_method
def test_complex_params_are_taken_or_refused_by_name(method):
    tx = method.make()
    params = {"weight": jnp.array([1.0 + 2.0j, -0.5j]), "scale": jnp.ones(())}
    if method.real:
        with pytest.raises(ValueError, match=r"complex64.*weight|weight.*complex64"):
            tx.init(params)
        return
    state = tx.init(params)
    updates, new_state = tx.update(params, state, params)
    assert avals(updates) == avals(params)
    assert avals(new_state) == avals(state)
    # The formulas know no direction in the complex plane.
    turn = jnp.exp(1j)
    turned_params = {**params, "weight": turn * params["weight"]}
    turned, _ = tx.update(turned_params, tx.init(turned_params), turned_params)
    assert_same(turned["weight"], turn * updates["weight"])


@every_method
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_params_keep_their_sharding_and_give_their_state_the_same(method, kind):
    tx = method.make()
    mesh = jax.make_mesh((8,), ("shards",), axis_types=(jax.sharding.AxisType[kind],))
    rng = np.random.default_rng(0)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("shards"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    alone = {
        "scale": jnp.asarray(rng.normal(), jnp.float32),
        "weight": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    }
    params = jax.device_put(alone, {"scale": everywhere, "weight": rows})
    state = tx.init(params)
    updates, new_state = jax.jit(functools.partial(update, tx))(params, state, params)
    assert updates["weight"].sharding.is_equivalent_to(rows, 2)
    for leaf in [*jax.tree.leaves(state), *jax.tree.leaves(new_state)]:
        if leaf.shape == (8, 3):
            assert leaf.sharding.is_equivalent_to(rows, 2)
        elif leaf.shape[1:] == (8, 3):
            past = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "shards"))
            assert leaf.sharding.is_equivalent_to(past, 3)
    assert_same(updates, update(tx, alone, tx.init(alone), alone)[0], rtol=method.rounding)
