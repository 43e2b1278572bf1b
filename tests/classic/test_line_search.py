"""Line searches: wherever a transformation runs, they do, and no evaluation is made twice."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2ljax as l2l
from l2ljax import classic

SEARCHES = ["strong_wolfe", "backtracking"]
METHODS = {
    "gradient_descent": functools.partial(classic.gradient_descent, learning_rate=1.0),
    "bfgs": classic.bfgs,
    "lbfgs": classic.lbfgs,
    "newton": classic.newton,
    "newton_cg": functools.partial(classic.newton, solver="cg"),
    "saddle_free_newton": classic.saddle_free_newton,
    "saddle_free_newton_lanczos": functools.partial(classic.saddle_free_newton, solver="lanczos"),
}
# Each method with one search, to compile less; gradient descent with both.
PAIRS = [
    ("gradient_descent", "strong_wolfe"),
    ("gradient_descent", "backtracking"),
    ("bfgs", "strong_wolfe"),
    ("lbfgs", "strong_wolfe"),
    ("newton", "strong_wolfe"),
    ("newton_cg", "backtracking"),
    ("saddle_free_newton", "backtracking"),
    ("saddle_free_newton_lanczos", "backtracking"),
]
every_search = pytest.mark.parametrize("search", SEARCHES)
every_method = pytest.mark.parametrize("name", METHODS)


def rosenbrock(w):
    return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


def parabola(tree):
    return jnp.sum(tree["a"] ** 2) + 3 * (tree["b"] - 1) ** 2


def parabola_start():
    return {
        "a": jnp.array([1.0, -2.0]),
        "b": jnp.array(3.0, jnp.float32),
        "empty": jnp.ones((0, 3)),
        "none": None,
    }


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize(("name", "search"), PAIRS)
def test_the_minimum_is_found_in_one_program_that_evaluates_nothing_twice(name, search):
    tx, starts, traces = METHODS[name](line_search=search), [], []

    def at_start(tree):
        jax.debug.callback(starts.append, tree["b"])
        return parabola(tree)

    @jax.jit
    def step(params, state):
        traces.append(None)
        value, grad = optax.value_and_grad_from_state(at_start)(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=parabola)
        return optax.apply_updates(params, updates), state, value

    params = parabola_start()
    state = tx.init(params)
    before, values = types((params, state)), []
    for _ in range(20):
        params, state, value = step(params, state)
        values.append(float(value))
    jax.effects_barrier()
    assert np.all(np.diff(values) <= 0) and values[0] > 10
    assert parabola(params) < 1e-6
    assert len(starts) == len(traces) == 1
    assert types((params, state)) == before
    np.testing.assert_allclose(state.line_search.value, parabola(params), rtol=1e-5, atol=1e-10)
    for found, expected in zip(
        jax.tree.leaves(state.line_search.grad),
        jax.tree.leaves(jax.grad(parabola)(params)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "search"), PAIRS)
def test_narrow_params_are_searched_where_float64_is_enabled(name, search, dtype, x64):
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), parabola_start())

    def loss(tree, batch):
        return parabola(tree)

    tx = METHODS[name](line_search=search)
    found = classic.minimize(tx, loss, start, steps=20, tolerance=1e-3)
    assert types(found.params) == types(start)
    assert parabola(found.params) < (1e-5 if dtype == "float32" else 1e-2)


def test_the_search_compares_values_in_their_own_precision(x64):
    """In float32 no step from here would be seen to lower the value."""
    w, target = jnp.array(10.0, jnp.float32), jnp.array(3.0, jnp.float64)

    def value_fn(w):
        return 1e9 + (w.astype(jnp.float64) - target) ** 2

    tx = classic.gradient_descent(0.1, line_search="backtracking")
    value, grad = jax.value_and_grad(value_fn)(w)
    updates, state = tx.update(grad, tx.init(w), w, value=value, grad=grad, value_fn=value_fn)
    assert updates.dtype == state.line_search.learning_rate.dtype == jnp.float32
    assert value_fn(w + updates) < value - 10


@pytest.mark.parametrize(("name", "search"), [PAIRS[1], PAIRS[2], PAIRS[3], PAIRS[7]])
@pytest.mark.parametrize("entered", [False, True])
def test_params_split_over_explicit_axes_are_searched_as_whole_ones_are(name, search, entered):
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=kinds)
    whole = {"a": jnp.arange(16.0).reshape(4, 4) / 8, "b": jnp.array(3.0)}
    places = {"a": jax.sharding.PartitionSpec("rows", "columns"), "b": jax.sharding.PartitionSpec()}
    split = {
        n: jax.device_put(w, jax.sharding.NamedSharding(mesh, places[n])) for n, w in whole.items()
    }
    tx = METHODS[name](line_search=search)

    @jax.jit
    def run(params, weights):
        def value_fn(params):
            return jnp.sum(weights * params["a"] ** 2) + 3 * (params["b"] - 1) ** 2

        def step(carry, _):
            params, state = carry
            value, grad = optax.value_and_grad_from_state(value_fn)(params, state=state)
            extra = {"value": value, "grad": grad, "value_fn": value_fn}
            updates, state = tx.update(grad, state, params, **extra)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=3)

    expected = run(whole, 1 + whole["a"])
    with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
        found = run(split, 1 + split["a"])
    for actual, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=1e-3, atol=1e-5)
    assert found[0][0]["a"].sharding.spec == places["a"]


@every_search
def test_gradient_descent_walks_through_rosenbrocks_valley(search, x64):
    tx = classic.gradient_descent(1e-3, line_search=search)

    def step(carry, _):
        w, state = carry
        value, grad = jax.value_and_grad(rosenbrock)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=rosenbrock)
        return (w + updates, state), value

    run = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), length=1000))
    (_, state), values = run(jnp.array([-1.2, 1.0]))
    assert np.all(np.diff(values) <= 0)
    assert values[-1] < 0.05 * values[0] and values[-1] < 0.5
    # The size is in units of the rate.
    assert state.line_search.learning_rate * 1e-3 < 0.1


def test_the_search_evaluates_once_a_trial():
    trials = []

    def value_fn(w):
        jax.debug.callback(trials.append, w)
        return rosenbrock(w)

    tx, w = classic.bfgs(), jnp.array([-1.2, 1.0])
    value, grad = jax.value_and_grad(rosenbrock)(w)
    step = jax.jit(lambda s: tx.update(grad, s, w, value=value, grad=grad, value_fn=value_fn))
    updates, state = step(tx.init(w))
    jax.effects_barrier()
    assert len(trials) == state.line_search.info.num_linesearch_steps
    np.testing.assert_allclose(trials[-1], w + updates, rtol=1e-5)


def test_any_line_search_of_optax_will_do():
    exact = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=50, curv_rtol=1e-3, initial_guess_strategy="one"
    )
    tx = classic.gradient_descent(1.0, line_search=exact)
    w = jnp.array([1.0, 2.0])
    value, g = jax.value_and_grad(rosenbrock)(w)
    updates, _ = tx.update(g, tx.init(w), w, value=value, grad=g, value_fn=rosenbrock)
    # Along the gradient, exactly to the minimum.
    before, after = jnp.vdot(g, g), jnp.vdot(g, jax.grad(rosenbrock)(w + updates))
    assert abs(after) < 2e-3 * before


def test_without_descent_the_search_follows_the_gradient():
    """Newton's direction at negative curvature leads up."""
    w = jnp.array([0.3, 0.2])

    def value_fn(w):
        return jnp.sum(jnp.cos(w))

    value, grad = jax.value_and_grad(value_fn)(w)
    plain, _ = (tx := classic.newton()).update(grad, tx.init(w), w, value_fn=value_fn)
    assert jnp.vdot(plain, grad) > 0
    tx = classic.newton(line_search="backtracking")
    updates, _ = tx.update(grad, tx.init(w), w, value=value, grad=grad, value_fn=value_fn)
    assert value_fn(w + updates) < value
    np.testing.assert_allclose(updates / grad, (updates / grad)[0], rtol=1e-6)


def test_a_search_recovers_from_a_step_that_failed():
    """Not finite wherever it looks: the step is zero, and the next search begins anew."""
    tx = classic.gradient_descent(1.0, line_search="backtracking")
    w = jnp.array([1.0, 2.0])

    @functools.partial(jax.jit, static_argnums=1)
    def step(state, value_fn):
        value, grad = 5.0, 2 * w
        return tx.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)

    updates, state = step(tx.init(w), lambda w: jnp.nan * w[0])
    np.testing.assert_array_equal(updates, 0)
    updates, _ = step(state, lambda w: jnp.sum(w**2))
    np.testing.assert_allclose(updates, -w)


def test_in_a_chain_arguments_of_the_function_are_passed_on():
    def value_fn(w, scale):
        return scale * jnp.sum(w**2)

    w, scale = jnp.array([3.0, 4.0]), jnp.array(2.0)
    tx = optax.chain(optax.identity(), classic.lbfgs(), optax.scale(0.5))
    value, grad = jax.value_and_grad(value_fn)(w, scale)
    updates, _ = tx.update(
        grad, tx.init(w), w, value=value, grad=grad, value_fn=value_fn, scale=scale
    )
    alone = classic.lbfgs()
    expected, _ = alone.update(
        grad, alone.init(w), w, value=value, grad=grad, value_fn=lambda w: value_fn(w, scale)
    )
    np.testing.assert_allclose(updates, expected / 2)


def scaled_task():
    """A parabola whose scale is the problem; losses of several sizes in one batch."""
    return l2l.Task(
        sample=lambda key: jax.random.uniform(key, minval=0.1, maxval=10.0),
        init=lambda key, problem: {"w": jnp.array([1.0, -2.0])},
        loss=lambda params, scale, key: scale * jnp.sum(jnp.array([1.0, 5.0]) * params["w"] ** 2),
    )


@pytest.mark.parametrize(("name", "search"), [PAIRS[1], PAIRS[3]])
def test_a_batch_of_problems_is_minimized_under_vmap_and_scan(name, search):
    tx = METHODS[name](line_search=search)
    losses = l2l.evaluate.curves(tx, scaled_task(), key=jax.random.key(0), steps=15, problems=4)
    assert losses.shape == (4, 16)
    assert np.all(losses[:, -1] < 1e-3 * losses[:, 0])


@pytest.mark.parametrize("name", ["gradient_descent", "lbfgs", "newton_cg"])
def test_an_unroll_with_a_search_in_it_can_be_differentiated_in_reverse(name):
    """By the rate, and by the problem that the searched function closes over."""
    task, key = scaled_task(), jax.random.key(0)

    def meta_loss(rate, scale):
        tx = METHODS[name](learning_rate=rate, line_search="backtracking")
        losses, _ = l2l.meta.unroll(tx, task, scale, key, horizon=2, second_derivatives=True)
        return losses[-1]

    derivatives = jax.jit(jax.grad(meta_loss, argnums=(0, 1)))(jnp.array(0.01), task.sample(key))
    assert np.all(np.isfinite(derivatives)) and np.all(np.abs(derivatives) > 0)


def test_the_derivative_takes_the_step_size_for_a_constant(x64):
    w, grad = jnp.array([1.0, 2.0]), jnp.array([2.0, 40.0])

    def value_fn(w):
        return w[0] ** 2 + 10 * w[1] ** 2

    def step(rate, grad):
        tx = classic.gradient_descent(rate, line_search="backtracking")
        updates, state = tx.update(
            grad, tx.init(w), w, value=value_fn(w), grad=grad, value_fn=value_fn
        )
        return updates, state.line_search.learning_rate

    rate = jnp.array(0.3)
    _, size = step(rate, grad)
    assert size < 1
    by_rate, by_gradient = jax.jit(jax.jacrev(lambda *a: step(*a)[0], argnums=(0, 1)))(rate, grad)
    np.testing.assert_allclose(by_rate, -size * grad)
    np.testing.assert_allclose(by_gradient, -size * rate * np.eye(2))


@every_method
def test_what_a_search_needs_is_asked_for_by_name(name):
    tx, w = METHODS[name](line_search="strong_wolfe"), jnp.ones(2)
    state = tx.init(w)
    given = {"value": jnp.ones(()), "grad": w, "value_fn": jnp.sum}
    for missing in given:
        some = {k: v for k, v in given.items() if k != missing}
        with pytest.raises(ValueError, match=rf" needs {missing}: call tx\.update\("):
            tx.update(w, state, w, **some)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(w, state, **given)


@every_method
def test_a_function_that_returns_more_than_the_value_is_named(name):
    tx, w = METHODS[name](line_search="backtracking"), jnp.ones(2)
    given = {"value": jnp.ones(()), "grad": w, "value_fn": lambda w: (jnp.sum(w), {})}
    with pytest.raises(ValueError, match="value_fn must return a scalar, got a tuple of 2"):
        tx.update(w, tx.init(w), w, **given)


def test_a_transformation_that_is_no_line_search_is_refused():
    tx = classic.bfgs(line_search=optax.with_extra_args_support(optax.scale(0.1)))
    with pytest.raises(ValueError, match="line_search must be an optax line search"):
        tx.init(jnp.ones(2))


def test_gradient_descent_takes_complex_params_without_a_search_only():
    w = jnp.array([1.0 + 2.0j])
    tx = classic.gradient_descent(0.5)
    updates, _ = tx.update(w, tx.init(w))
    np.testing.assert_allclose(updates, -0.5 * w)
    with pytest.raises(ValueError, match="complex64"):
        classic.gradient_descent(0.5, line_search="backtracking").init(w)


@every_method
def test_params_without_leaves_have_nothing_to_search(name):
    tx = METHODS[name](line_search="strong_wolfe")
    updates, _ = tx.update(
        {}, tx.init({}), {}, value=1.0, grad={}, value_fn=lambda tree: jnp.zeros(())
    )
    assert updates == {}
