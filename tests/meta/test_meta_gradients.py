"""Meta-gradients against finite differences and against loops written again, in float64.

The loops here are plain Python: no `scan`, no `checkpoint`, no custom derivative.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from l2ljax.core import LearnedOptimizer
from l2ljax.learned import lstm
from l2ljax.meta import truncated
from l2ljax.tasks import mlp_classifier, quadratic
from l2ljax.tasks._dataset import Dataset, Split

KEY, PHI_KEY = jax.random.key(0), jax.random.key(1)
HORIZON, BATCH = 4, 2
WEIGHTS = np.array([0.5, 1.0, 0.25, 2.0])

pytestmark = pytest.mark.usefixtures("x64")


def small_mlp():
    rng = np.random.default_rng(0)
    data = Split(rng.normal(size=(12, 2)), rng.integers(2, size=12))
    task = mlp_classifier(Dataset(train=data, classes=2), hidden=(3,), batch_size=4)
    return dataclasses.replace(task, init=lambda key, problem: double(task.init(key, problem)))


def distance_is_measured(task):
    """The loss trains, another function is measured."""

    def objective(params, problem, key):
        return jnp.sum(jnp.abs(params) ** 3) + jnp.sum(problem["y"] * params)

    return dataclasses.replace(task, objective=objective)


CASES = {
    "an LSTM on quadratics": (lambda: lstm((3, 3)), lambda: quadratic(3)),
    "an LSTM on minibatches": (lambda: lstm((3, 3), "scale"), small_mlp),
    "a user's function": (
        lambda: LearnedOptimizer(
            init=lambda key: jnp.log(0.03), bind=lambda phi: optax.sgd(jnp.exp(phi), momentum=0.9)
        ),
        lambda: quadratic(2),
    ),
    "another objective": (
        lambda: lstm((2,)),
        lambda: distance_is_measured(quadratic(3)),
    ),
}


def cases(*names):
    """The first is tested with the oldest dependencies, too."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in names[1:]]
    return pytest.mark.parametrize("case", [names[0], *slow])


def prepare(case):
    make_opt, make_task = CASES[case]
    opt = make_opt()
    return opt, make_task(), ravel_pytree(double(jax.jit(opt.init)(PHI_KEY)))


def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def estimated(opt, task, phi, **settings):
    """The first estimate, of a whole episode unless `settings` cut it."""
    settings = {"horizon": HORIZON, "truncation": HORIZON, "step_weights": WEIGHTS} | settings
    estimator = truncated(**settings)(opt, task, BATCH)
    run = jax.jit(lambda phi: estimator.estimate(phi, estimator.init(KEY, phi), KEY)[0])
    return run(phi)


def python_loop(opt, task, phi, *, constant_gradients, recorded=None, detach_at=()):
    """The meta-loss, and the gradients that went into it: `[HORIZON][batch, ...]`."""

    def episode(key, recorded):
        problem_key, init_key, loss_key = jax.random.split(key, 3)
        problem = task.sample(problem_key)
        params = task.init(init_key, problem)
        tx = opt.bind(phi)
        state = tx.init(params)
        total, gradients = 0.0, []
        for t in range(HORIZON):
            if t in detach_at:
                params, state = jax.lax.stop_gradient((params, state))
            gradient = jax.grad(task.loss)(params, problem, jax.random.fold_in(loss_key, t))
            if constant_gradients:
                gradient = jax.lax.stop_gradient(gradient)
            if recorded is not None:
                gradient = recorded[t]
            gradients.append(gradient)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            measured = task.objective(params, problem, jax.random.fold_in(loss_key, t + 1))
            total += WEIGHTS[t] * measured
        return total, gradients

    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(BATCH)])
    losses, gradients = jax.vmap(episode, in_axes=(0, None if recorded is None else 0))(
        keys, recorded
    )
    return losses.mean(), gradients


def finite_differences(function, flat, step=1e-5):
    """Central differences along every coordinate, all in one program."""
    steps = step * jnp.eye(flat.size)
    both = jnp.concatenate([flat + steps, flat - steps])
    above, below = jnp.split(jax.jit(jax.vmap(function))(both), 2)
    return (above - below) / (2 * step)


def assert_equal_gradients(actual, expected, rtol):
    """Relative to the largest component: differences of a sum have its absolute precision."""
    actual = ravel_pytree(actual)[0]
    assert actual.dtype == jnp.float64
    size = np.max(np.abs(expected))
    assert size > 1e-4
    np.testing.assert_allclose(actual / size, expected / size, rtol=0, atol=rtol)


@cases("an LSTM on quadratics", "an LSTM on minibatches", "a user's function")
def test_the_exact_meta_gradient_is_that_of_finite_differences(case):
    opt, task, (flat, tree) = prepare(case)

    def meta_loss(flat):
        return python_loop(opt, task, tree(flat), constant_gradients=False)[0]

    estimate = estimated(opt, task, tree(flat), second_derivatives=True)
    assert_equal_gradients(estimate.grad, finite_differences(meta_loss, flat), rtol=1e-6)


@cases("an LSTM on quadratics", "a user's function", "another objective")
def test_without_second_derivatives_gradients_are_constants(case):
    opt, task, (flat, tree) = prepare(case)
    estimate = estimated(opt, task, tree(flat))

    # By a loop that stops each gradient,
    (loss, recorded), stopped = jax.jit(
        jax.value_and_grad(
            lambda phi: python_loop(opt, task, phi, constant_gradients=True), has_aux=True
        )
    )(tree(flat))
    np.testing.assert_allclose(estimate.loss, loss, rtol=1e-12)
    assert_equal_gradients(estimate.grad, ravel_pytree(stopped)[0], rtol=1e-11)

    # and by differences of a function in which the numbers of the recorded gradients stand.
    def frozen(flat):
        return python_loop(opt, task, tree(flat), constant_gradients=False, recorded=recorded)[0]

    assert_equal_gradients(estimate.grad, finite_differences(frozen, flat), rtol=1e-6)


def test_the_two_meta_gradients_differ():
    opt, task, (flat, tree) = prepare("a user's function")
    off = estimated(opt, task, tree(flat)).grad
    on = estimated(opt, task, tree(flat), second_derivatives=True).grad
    assert abs(on - off) > 0.01 * abs(on)


def test_segments_add_up_to_a_loop_whose_state_is_detached_at_their_borders():
    opt, task, (flat, tree) = prepare("another objective")
    phi = tree(flat)
    expected = jax.jit(
        jax.grad(
            lambda phi: python_loop(opt, task, phi, constant_gradients=False, detach_at=(2,))[0]
        )
    )(phi)
    factory = truncated(
        horizon=HORIZON, truncation=2, step_weights=WEIGHTS, second_derivatives=True
    )
    estimator = factory(opt, task, BATCH)
    estimate = jax.jit(estimator.estimate)
    first, state = estimate(phi, jax.jit(estimator.init)(KEY, phi), KEY)
    # A running episode goes on whatever the key: another one must not matter.
    second, _ = estimate(phi, state, jax.random.key(7))
    assert (first.aux["step"], second.aux["step"]) == (0, 2)
    total = sum(ravel_pytree(found.grad)[0] for found in (first, second))
    assert_equal_gradients(total, ravel_pytree(expected)[0], rtol=1e-11)


def learned_start():
    """Momentum that learns its rate and the velocity it begins with."""

    def bind(phi):
        def init(params):
            return jax.tree.map(lambda leaf: phi["start"] * jnp.ones_like(leaf), params)

        def update(updates, velocity, params=None):
            velocity = jax.tree.map(lambda v, g: 0.5 * v + g, velocity, updates)
            return jax.tree.map(lambda v: -phi["rate"] * v, velocity), velocity

        return optax.GradientTransformation(init, update)

    return LearnedOptimizer(
        init=lambda key: {"rate": jnp.float64(0.01), "start": jnp.float64(0.3)}, bind=bind
    )


def test_a_learned_first_state_has_its_gradient_in_the_first_segment_alone():
    opt, task = learned_start(), quadratic(2)
    phi = opt.init(PHI_KEY)
    estimator = truncated(horizon=4, truncation=2)(opt, task, BATCH)
    estimate = jax.jit(estimator.estimate)
    state = jax.jit(estimator.init)(KEY, phi)
    gradients = []
    for i in range(4):
        found, state = estimate(phi, state, jax.random.fold_in(KEY, i))
        gradients.append(found.grad["start"])
        assert found.grad["rate"] != 0
    assert gradients[1] == gradients[3] == 0
    assert gradients[0] != 0 != gradients[2]

    # θ₁ depends on the start by constants alone, so that ∂∇/∂φ has no part in it.
    one = truncated(horizon=1, truncation=1)(opt, task, BATCH)
    run = jax.jit(lambda phi: one.estimate(phi, one.init(KEY, phi), KEY)[0])
    above, below = (run(phi | {"start": phi["start"] + h}).loss for h in (1e-5, -1e-5))
    np.testing.assert_allclose(run(phi).grad["start"], (above - below) / 2e-5, rtol=1e-7)
