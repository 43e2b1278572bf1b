"""The estimators against a meta-gradient that is known, and against each other.

Gradient descent on f(θ) = a θ² / 2 from θ₀ = 1 has θ_t = (1 - φ a)ᵗ, so the meta-gradient is a sum
of powers. Gradients are kept exact (the default of `full` and `forward`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, meta, tasks
from l2ljax.core import LearnedOptimizer, Task
from tests.meta.small import KEY, estimate, start

RATE, CURVATURE = 0.3, 0.7

# Thousands of runs and hundreds of steps.
OPTIMIZED = True


def square(params, problem, key):
    del problem, key
    return CURVATURE * jnp.sum(params**2) / 2


BOWL = Task(sample=lambda key: (), init=lambda key, problem: jnp.ones(()), loss=square)
DESCENT = LearnedOptimizer(init=lambda key: jnp.asarray(RATE), bind=optax.sgd)


def known(weights, first=0):
    """dL/dφ, with θ and what made it constant before step `first`."""
    total = 0.0
    for t, weight in enumerate(weights, start=1):
        if t > first:
            factor = 1 - RATE * CURVATURE
            slope = -(t - first) * CURVATURE * factor ** (t - first - 1) * factor**first
            total += weight * CURVATURE * factor**t * slope
    return total


def first_gradient(factory, opt=DESCENT, task=BOWL, phi=None, batch=1):
    phi = opt.init(KEY) if phi is None else phi
    estimator = factory(opt, task, batch)
    return estimate(estimator, phi, start(estimator, phi), KEY)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("horizon", [1, 7, 16])
@pytest.mark.parametrize("factory", [meta.full, meta.forward], ids=["full", "forward"])
def test_the_exact_ones_are_exact(factory, horizon):
    weights = np.linspace(0.5, 2, horizon)
    found = first_gradient(factory(horizon=horizon, step_weights=weights))
    np.testing.assert_allclose(found.grad, known(weights), rtol=1e-12)
    factor = 1 - RATE * CURVATURE
    losses = CURVATURE * factor ** (2 * np.arange(1, horizon + 1)) / 2
    np.testing.assert_allclose(found.aux["losses"], losses, rtol=1e-12)
    np.testing.assert_allclose(found.loss, weights @ losses, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("meta_loss", ["mean", "log_improvement"])
@pytest.mark.parametrize("second_derivatives", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_exact_ones_agree_for_a_network(second_derivatives, meta_loss):
    opt, task = learned.lstm((3,)), tasks.quadratic(2)
    phi = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), opt.init(KEY))
    settings = {"second_derivatives": second_derivatives, "meta_loss": meta_loss}
    expected = first_gradient(
        meta.truncated(horizon=5, truncation=5, **settings), opt, task, phi, batch=2
    )
    for factory in (meta.full, meta.forward):
        found = first_gradient(factory(horizon=5, **settings), opt, task, phi, batch=2)
        for leaf, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, right, rtol=1e-8, atol=1e-12)


def bytes_needed(factory, horizon):
    estimator = factory(horizon=horizon)(learned.lstm(), tasks.quadratic(), 64)
    weights = learned.lstm().init(KEY)
    state = jax.eval_shape(estimator.init, KEY, weights)
    program = jax.jit(estimator.estimate).lower(weights, state, KEY).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_the_memory_of_full_grows_with_the_root_of_the_horizon():
    short, long = bytes_needed(meta.full, 64), bytes_needed(meta.full, 64 * 16)
    assert long < 6 * short


def over_an_episode(factory, calls, segments, pairs):
    """Means and standard errors of the sum over an episode's segments, from independent calls."""
    estimator = factory(pairs)(DESCENT, BOWL, 1)
    phi = DESCENT.init(KEY)

    def episode(key):
        state = estimator.init(key, phi)
        total = 0.0
        for segment in range(segments):
            found, state = estimator.estimate(phi, state, jax.random.fold_in(key, segment))
            total += found.grad
        return total

    sums = jax.jit(lambda keys: jax.lax.map(episode, keys))(jax.random.split(KEY, calls))
    return sums.mean(), sums.std() / np.sqrt(calls - 1)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_evolution_strategies_find_the_gradient_within_their_error():
    """10⁵ samples each; segments bias truncated ES, and do not bias persistent ES."""
    horizon, truncation, calls, pairs = 8, 2, 50, 2000
    weights = np.ones(horizon)
    exact = known(weights)
    biased = sum(
        known(np.where(np.arange(horizon) < end, weights, 0), first=end - truncation)
        for end in range(truncation, horizon + 1, truncation)
    )
    assert abs(biased - exact) > 0.3 * abs(exact)

    def whole(pairs):
        return meta.es(horizon=horizon, std=1e-3, pairs=pairs)

    def cut(pairs):
        return meta.es(horizon=horizon, truncation=truncation, std=1e-3, pairs=pairs)

    def persistent(pairs):
        return meta.pes(horizon=horizon, truncation=truncation, std=1e-3, pairs=pairs)

    for factory, expected, segments in [
        (whole, exact, 1),
        (cut, biased, 4),
        (persistent, exact, 4),
    ]:
        mean, error = over_an_episode(factory, calls, segments, pairs)
        assert error < 0.02 * abs(exact)
        assert abs(mean - expected) < 3 * error


@pytest.mark.slow
def test_a_network_learns_by_evolution_strategies():
    opt, task = learned.lstm((4,)), tasks.quadratic(2)
    for factory in (
        meta.es(horizon=20, pairs=16, std=0.05),
        meta.pes(horizon=20, truncation=5, pairs=16, std=0.05),
    ):
        history = meta.train(
            opt,
            task,
            key=KEY,
            steps=200,
            batch=16,
            estimator=factory,
            meta_optimizer=optax.adam(1e-2),
        ).history
        last = history["step"] == history["step"].max()
        losses = history["losses"][last, -1]
        assert losses[-10:].mean() < 0.8 * losses[:10].mean()


@pytest.mark.slow
def test_persistent_runs_go_on_from_a_state():
    """The state is explicit: half a run, and the rest from there, is the whole run."""
    opt, task = learned.lstm((2,)), tasks.quadratic(2)
    settings = {"key": KEY, "estimator": meta.pes(horizon=6, truncation=2, pairs=2), "chunk": 5}
    whole = meta.train(opt, task, steps=5, **settings)
    half = meta.train(opt, task, steps=2, **settings)
    rest = meta.train(opt, task, steps=5, state=half.state, **settings)
    for a, b in zip(jax.tree.leaves(whole.last_phi), jax.tree.leaves(rest.last_phi), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("x64")
def test_hypergradient_descent_is_the_recursion_of_its_paper():
    """α ← α + κ ∇f_{t+1} · ∇f_t, on minibatches; Baydin et al., equation 6."""
    task = tasks.quadratic(3)
    opt = LearnedOptimizer(init=lambda key: jnp.asarray(0.01), bind=optax.sgd)
    result = meta.train(
        opt,
        task,
        key=KEY,
        steps=6,
        meta_optimizer=optax.sgd(1e-4),
        estimator=meta.hypergradient_descent(horizon=6),
    )
    problem_key, init_key, _ = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), 3
    )
    problem = task.sample(problem_key)
    params = task.init(init_key, problem)
    gradient = lambda params: 2 * problem["W"].T @ (problem["W"] @ params - problem["y"])  # noqa: E731
    rate = 0.01
    for _ in range(6):
        before = gradient(params)
        params = params - rate * before
        rate = rate + 1e-4 * gradient(params) @ before
    np.testing.assert_allclose(result.last_phi, rate, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: meta.full(horizon=0), "horizon must be"),
        (lambda: meta.forward(horizon=-1), "horizon must be"),
        (lambda: meta.full(horizon=3, step_weights=[1.0]), "step_weights must have shape"),
        (lambda: meta.forward(meta_loss="root"), "meta_loss must be"),
        (lambda: meta.es(std=0.0), "std must be"),
        (lambda: meta.es(pairs=0), "pairs must be"),
        (lambda: meta.es(horizon=[10, 20], shaping="rank"), "shaping must be"),
        (lambda: meta.pes(horizon=10, truncation=3), "truncation must divide"),
        (lambda: meta.pes(std=-1.0), "std must be"),
        (lambda: meta.pes(meta_loss="root"), "meta_loss must be"),
        (lambda: meta.pes()(DESCENT, BOWL, 0), "batch must be"),
        (lambda: meta.hypergradient_descent(horizon=0), "horizon must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
