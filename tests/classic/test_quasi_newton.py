"""BFGS and L-BFGS against scipy, optax, torch and a recursion written by hand, in float64."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from mgh import PROBLEMS

from l2ljax import classic

STEPS = 100
GTOL = 1e-5
DIM = max(len(problem.start) for problem in PROBLEMS)
SCIPY_NAMES = {"bfgs": "BFGS", "lbfgs": "L-BFGS-B"}


def run(tx, gradient, start, steps=STEPS):
    """The params after each step."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(start)


def assert_equal_runs(actual, expected, rtol=1e-12):
    """Relative to the largest coordinate of each row."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float64 and actual.shape == expected.shape
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < rtol


# The problems of Moré, Garbow and Hillstrom, all in one compiled program: shorter ones are padded
# with coordinates that nothing depends on.


def mgh_value(index, x):
    branches = [lambda x, p=p: p.value(x[: len(p.start)]) for p in PROBLEMS]
    return jax.lax.switch(index, branches, x)


mgh_value_and_grad = jax.jit(jax.value_and_grad(mgh_value, argnums=1))


def padded(problem):
    return np.pad(np.array(problem.start), (0, DIM - len(problem.start)))


def minimizer(tx, evaluations, max_steps=1000):
    """`(index, start) -> value, largest partial derivative`; counts evaluations as they run."""

    def minimize(index, x):
        def value_fn(x):
            jax.debug.callback(lambda: evaluations.append(None))
            return mgh_value(index, x)

        value_and_grad = optax.value_and_grad_from_state(value_fn)

        def unfinished(carry):
            _, _, _, slope, t = carry
            return (slope > GTOL) & (t < max_steps)

        def step(carry):
            x, state, _, _, t = carry
            value, grad = value_and_grad(x, state=state)
            slope = jnp.max(jnp.abs(grad))

            def proceed(x, state):
                updates, state = tx.update(
                    grad, state, x, value=value, grad=grad, value_fn=value_fn
                )
                return optax.apply_updates(x, updates), state

            x, state = jax.lax.cond(slope > GTOL, proceed, lambda *same: same, x, state)
            return x, state, value, slope, t + 1

        carry = (x, tx.init(x), jnp.inf, jnp.inf, 0)
        _, _, value, slope, _ = jax.lax.while_loop(unfinished, step, carry)
        return value, slope

    return jax.jit(minimize)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_mgh_minima_are_found_with_as_few_evaluations_as_scipy_needs(name, x64):
    evaluations = []
    minimize = minimizer(getattr(classic, name)(), evaluations)
    options = {"gtol": GTOL, "maxiter": 1000}
    if name == "lbfgs":
        options["ftol"] = 0
    ratios = []
    for index, problem in enumerate(PROBLEMS):
        start = padded(problem)
        evaluations.clear()
        value, slope = minimize(index, start)
        jax.effects_barrier()
        ours = len(evaluations)
        assert slope <= GTOL, problem
        least = min(problem.minima, key=lambda minimum: abs(value - minimum))
        np.testing.assert_allclose(value, least, rtol=1e-6, atol=1e-6, err_msg=problem.name)

        def function(x, index=index):
            value, grad = mgh_value_and_grad(index, x)
            return float(value), np.asarray(grad)

        theirs = scipy.optimize.minimize(
            function, start, jac=True, method=SCIPY_NAMES[name], options=options
        )
        if np.abs(theirs.jac).max() <= GTOL:
            ratios.append(ours / theirs.nfev)
            # Not all have one minimum only; where both find the same one is what is compared.
            assert value <= theirs.fun + 1e-6 * (1 + abs(theirs.fun)), problem
    assert len(ratios) >= 20
    assert np.median(ratios) < 1.2


def valley(tree):
    """Convex, not quadratic, with curvatures that differ a hundredfold."""
    x = jnp.concatenate([tree["a"].ravel(), tree["b"][None]])
    curvatures = jnp.geomspace(0.02, 2.0, x.size)
    return jnp.sum(curvatures * x**2 / 2) + jnp.sum(jnp.log(jnp.cosh(x[1:] - x[:-1])))


def tree_start():
    rng = np.random.default_rng(0)
    return {"a": jnp.asarray(rng.normal(size=(2, 4))), "b": jnp.asarray(rng.normal())}


def flat(trees):
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in trees.values()], axis=1)


@pytest.mark.parametrize("memory_size", [1, 5])
@pytest.mark.parametrize("whole", [True, False], ids=["lbfgs", "scale_by_lbfgs"])
def test_lbfgs_matches_optax_over_a_hundred_steps(memory_size, whole, x64):
    """Along one path, optax's: a rounding error in y grows with the steps that follow."""
    if whole:
        ours = classic.lbfgs(0.1, memory_size=memory_size, line_search=None)
        theirs = optax.lbfgs(0.1, memory_size=memory_size, linesearch=None)
    else:
        ours = optax.chain(classic.scale_by_lbfgs(memory_size), optax.scale(-0.1))
        theirs = optax.chain(optax.scale_by_lbfgs(memory_size), optax.scale(-0.1))

    def step(carry, _):
        params, state, their_state = carry
        gradient = jax.grad(valley)(params)
        updates, state = ours.update(gradient, state, params)
        their_updates, their_state = theirs.update(gradient, their_state, params)
        carry = optax.apply_updates(params, their_updates), state, their_state
        return carry, (updates, their_updates)

    def both(params):
        carry = params, ours.init(params), theirs.init(params)
        return jax.lax.scan(step, carry, length=STEPS)

    start = tree_start()
    assert optax.tree.norm(jax.grad(valley)(start)) > 1  # the first step is shortened
    (_, state, _), (updates, their_updates) = jax.jit(both)(start)
    assert int(optax.tree.get(state, "pairs")) == STEPS - 1
    assert_equal_runs(flat(updates), flat(their_updates))


def test_lbfgs_matches_optax_under_its_line_search(x64):
    def search(tx, params):
        value_and_grad = optax.value_and_grad_from_state(valley)

        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=valley)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, optax.tree.get(state, "learning_rate"))

        _, history = jax.lax.scan(step, (params, tx.init(params)), length=15)
        return history

    start = tree_start()
    ours, sizes = jax.jit(lambda p: search(classic.lbfgs(), p))(start)
    theirs, _ = jax.jit(lambda p: search(optax.lbfgs(), p))(start)
    assert len(np.unique(sizes)) > 1  # the search has searched
    assert_equal_runs(flat(ours), flat(theirs), rtol=1e-9)


def test_lbfgs_matches_torch_over_a_hundred_steps(x64):
    """Each step from torch's params: a rounding error in y grows with the steps that follow."""
    record = json.loads((Path(__file__).parent / "torch_lbfgs.json").read_text())
    curvatures = jnp.asarray(record["curvatures"])
    tx = classic.lbfgs(record["learning_rate"], memory_size=record["memory_size"], line_search=None)

    def step(state, w):
        updates, state = tx.update(curvatures * w + record["cubic"] * w**3, state, w)
        return state, w + updates

    before = jnp.asarray([record["start"], *record["sequence"][:-1]])
    state, after = jax.jit(lambda ws: jax.lax.scan(step, tx.init(ws[0]), ws))(before)
    assert len(after) == STEPS and int(state.direction.pairs) == STEPS - 1
    assert_equal_runs(after, record["sequence"])


CURVATURES = np.array([2.0, 0.5, 0.2, 0.05])


def cubic_gradient(w):
    return CURVATURES * w + 0.3 * w**3


def test_bfgs_follows_the_literal_recursion_over_a_hundred_steps(x64):
    rate, identity = 0.1, np.eye(4)
    w, h, before, expected = np.array([1.0, -2.0, 1.5, 3.0]), None, None, []
    start = w
    for _ in range(STEPS):
        g = cubic_gradient(w)
        if before is not None:
            s, y = w - before[0], g - before[1]
            rho = 1 / (s @ y)
            h = identity * (s @ y) / (y @ y) if h is None else h
            left = identity - rho * np.outer(s, y)
            h = left @ h @ left.T + rho * np.outer(s, s)
        before = w, g
        w = w - rate * (g * min(1, 1 / np.linalg.norm(g)) if h is None else h @ g)
        expected.append(w)
    ours = run(classic.bfgs(rate, line_search=None), cubic_gradient, jnp.asarray(start))
    assert np.linalg.norm(cubic_gradient(start)) > 1  # the first step is shortened
    assert_equal_runs(ours, expected)


def test_bfgs_and_lbfgs_differ_in_the_identity_that_they_scale_only(x64):
    start = jnp.array([1.0, -2.0, 1.5, 3.0])
    bfgs = run(classic.bfgs(0.5, line_search=None), cubic_gradient, start, steps=8)
    # BFGS scales the identity by its first pair, L-BFGS by its newest: equal with one pair.
    lbfgs = run(classic.lbfgs(0.5, line_search=None), cubic_gradient, start, steps=8)
    assert_equal_runs(lbfgs[:2], bfgs[:2])
    assert np.abs(lbfgs[2] - bfgs[2]).max() > 1e-6


@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_a_pair_without_positive_curvature_is_skipped(name):
    """On a double well, from beside its top: there every y points against s."""
    tx = getattr(classic, name)(0.1, line_search=None)
    gradient = jax.grad(lambda w: jnp.sum(w**4 / 4 - w**2 / 2))
    w = jnp.array([0.05, 0.1])
    state, pairs = tx.init(w), []
    update = jax.jit(tx.update)
    for _ in range(200):
        g = gradient(w)
        before = state.direction
        updates, state = update(g, state, w)
        pairs.append(int(state.direction.pairs))
        if pairs[-1] == 0:  # no step is longer than the gradient's
            np.testing.assert_allclose(updates, -0.1 * g, rtol=1e-6)
        elif len(pairs) > 1 and pairs[-1] == pairs[-2]:
            kept = "inverse_hessian" if name == "bfgs" else "rho"
            assert np.array_equal(getattr(state.direction, kept), getattr(before, kept))
        assert jnp.vdot(g, updates) < 0
        w = w + updates
    assert pairs[10] == 0 and pairs[-1] > 5
    np.testing.assert_allclose(w, 1, atol=1e-3)


@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_min_cosine_decides_what_is_skipped(name):
    """The angle between s and y is the same whatever the scale of the function."""
    scale = np.array([1.0, 30.0])
    for factor in (1e-4, 1e4):
        for min_cosine, expected in ((0.0, 1), (0.9, 0)):
            tx = getattr(classic, f"scale_by_{name}")(min_cosine=min_cosine)
            w = jnp.array([1.0, 0.1])
            _, state = tx.update(factor * scale * w, tx.init(w), w)
            w = w - jnp.array([0.1, 0.01])
            _, state = tx.update(factor * scale * w, state, w)
            assert int(state.pairs) == expected


def test_the_memory_of_lbfgs_is_a_ring():
    tx = classic.scale_by_lbfgs(memory_size=3)
    update, w = jax.jit(tx.update), jnp.array([1.0, 2.0])
    state, steps = tx.init(w), []
    for t in range(6):
        g = jnp.array([1.0, 3.0]) * w
        _, state = update(g, state, w)
        steps.append(jnp.array([0.1, 0.2]) / (t + 1))
        w = w + steps[-1]
    np.testing.assert_allclose(
        sorted(state.steps[:, 0]), sorted(s[0] for s in steps[2:5]), rtol=1e-5
    )


def test_lbfgs_runs_where_sharding_is_part_of_the_type():
    mesh = jax.make_mesh((8,), ("shards",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("shards"))
    alone = jnp.arange(16.0).reshape(8, 2)
    tx = classic.lbfgs(0.1, line_search=None)
    with jax.set_mesh(mesh):
        sharded = run(tx, lambda w: w + 0.1 * w**3, jax.device_put(alone, rows), steps=3)
    np.testing.assert_allclose(sharded, run(tx, lambda w: w + 0.1 * w**3, alone, steps=3), 1e-5)


@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_bfloat16_params_have_a_float32_state(name):
    tx = getattr(classic, name)()
    w = jnp.array([1.0, 2.0], jnp.bfloat16)
    state = tx.init(w)
    floats = [x for x in jax.tree.leaves(state.direction) if x.dtype != jnp.int32]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}

    def value_fn(w):
        return jnp.sum(w**2)

    update = jax.jit(lambda w, s, v, g: tx.update(g, s, w, value=v, grad=g, value_fn=value_fn))
    for _ in range(5):
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = update(w, state, value, grad)
        assert updates.dtype == jnp.bfloat16
        w = w + updates
    assert jnp.abs(w).max() < 0.05


@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_wrong_arguments_are_refused_by_name(name):
    factory = getattr(classic, name)
    for bad in ({"learning_rate": -1.0}, {"min_cosine": 1.0}, {"min_cosine": jnp.zeros(2)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            factory(**bad)
    with pytest.raises(ValueError, match="complex64"):
        factory().init(jnp.ones(2, jnp.complex64))
    if name == "lbfgs":
        with pytest.raises(ValueError, match="memory_size"):
            factory(memory_size=0)
