"""The inner loop: what it measures, with which keys, and for whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.core import CoordinatewiseTransformation, LearnedOptimizer, Task
from l2ljax.evaluate import curves
from l2ljax.learned import lstm
from l2ljax.meta import truncated, unroll, unroll_batch
from l2ljax.tasks import quadratic

KEY = jax.random.key(3)
STEPS = 4


def noisy_bowl():
    """Minibatches without the compile time of a network."""

    def loss(params, problem, key):
        noise = jax.random.uniform(key)
        return jnp.sum((params["w"] - problem) ** 2) + (params["b"] - noise) ** 2

    return Task(
        sample=lambda key: jax.random.uniform(key, (2,)),
        init=lambda key, problem: {"w": jax.random.uniform(key, (2,)), "b": jnp.ones(())},
        loss=loss,
    )


def run(tx, task, problem, key, horizon=STEPS):
    return jax.jit(lambda problem, key: unroll(tx, task, problem, key, horizon=horizon))(
        problem, key
    )


def python_loop(tx, task, problem, key, horizon=STEPS):
    """The definition, step by step."""
    _, init_key, loss_key = jax.random.split(key, 3)
    params = task.init(init_key, problem)
    state, losses = tx.init(params), []
    measure = jax.jit(jax.value_and_grad(task.loss))
    update = jax.jit(tx.update)
    for t in range(horizon):
        loss, gradient = measure(params, problem, jax.random.fold_in(loss_key, t))
        losses.append(loss)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    losses.append(measure(params, problem, jax.random.fold_in(loss_key, horizon))[0])
    return np.array(losses), params


def bound_lstm():
    opt = lstm((3, 3))
    return opt.bind(opt.init(jax.random.key(1)))


OPTIMIZERS = {
    "optax.sgd": lambda: optax.sgd(0.3, momentum=0.5),
    "classic.adam": lambda: classic.adam(0.1),
    "an LSTM": bound_lstm,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unroll_is_a_plain_loop_with_any_transformation(name):
    task, tx = noisy_bowl(), OPTIMIZERS[name]()
    problem = jnp.array([0.5, 2.0])
    losses, params = run(tx, task, problem, KEY)
    expected, last = python_loop(tx, task, problem, KEY)
    assert losses.shape == (STEPS + 1,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, last)


def test_time_zero_is_the_loss_at_the_first_params():
    task = quadratic(2)
    problem_key, init_key, loss_key = jax.random.split(KEY, 3)
    problem = task.sample(problem_key)
    losses, params = run(optax.sgd(0.0), task, problem, KEY, horizon=2)
    first = task.init(init_key, problem)
    np.testing.assert_allclose(losses, np.full(3, task.loss(first, problem, loss_key)), rtol=1e-6)
    np.testing.assert_array_equal(params, first)


def solved_in_one_step():
    """Each key has its own minimum, which gradient descent with rate 1 reaches at once."""

    def target(key):
        return jax.random.normal(key, (3,))

    return Task(
        sample=lambda key: (),
        init=lambda key, problem: jax.random.normal(key, (3,)),
        loss=lambda params, problem, key: 0.5 * jnp.sum((params - target(key)) ** 2),
    ), target


def test_the_loss_after_an_update_is_never_measured_on_the_minibatch_of_its_gradient():
    task, target = solved_in_one_step()
    losses, _ = run(optax.sgd(1.0), task, (), KEY)
    loss_key = jax.random.split(KEY, 3)[2]
    minima = np.array([target(jax.random.fold_in(loss_key, t)) for t in range(STEPS + 1)])
    # On the minibatch of the gradient these would all be zero.
    next_minibatch = 0.5 * np.sum(np.diff(minima, axis=0) ** 2, axis=1)
    np.testing.assert_allclose(losses[1:], next_minibatch, rtol=1e-5)
    assert np.all(losses[1:] > 0.1)


def test_meta_training_does_not_overfit_the_minibatch_of_the_gradient():
    task, _ = solved_in_one_step()
    opt = LearnedOptimizer(init=lambda key: jnp.ones(()), bind=lambda phi: optax.sgd(phi))
    estimator = truncated(horizon=4, truncation=4)(opt, task, batch=16)
    estimate, _ = jax.jit(lambda phi: estimator.estimate(phi, estimator.init(KEY, phi), KEY))(
        jnp.ones(())
    )
    # The wrong convention has its minimum, a gradient of zero, at this rate of 1. Here a smaller
    # rate is better: it averages the minima of several minibatches.
    assert estimate.grad > 1


def test_loss_and_gradient_of_a_step_use_one_key():
    # The gradient is the step's random number, and with rate -1 the params are their sum.
    task = Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.zeros(()),
        loss=lambda params, problem, key: params * jax.random.uniform(key),
    )
    losses, last = run(optax.sgd(-1.0), task, (), KEY)
    loss_key = jax.random.split(KEY, 3)[2]
    drawn = [jax.random.uniform(jax.random.fold_in(loss_key, t)) for t in range(STEPS + 1)]
    sums = np.cumsum([0, *drawn[:-1]])
    np.testing.assert_allclose(losses, sums * drawn, rtol=1e-6)
    np.testing.assert_allclose(last, sums[-1], rtol=1e-6)


def test_another_objective_is_what_is_measured_while_the_loss_is_descended():
    task = quadratic(2)
    measured = dataclasses.replace(task, objective=lambda params, problem, key: jnp.max(params))
    problem = task.sample(KEY)
    _, plain = run(optax.sgd(0.05), task, problem, KEY)
    losses, params = run(optax.sgd(0.05), measured, problem, KEY)
    np.testing.assert_array_equal(params, plain)
    np.testing.assert_allclose(losses[-1], jnp.max(params), rtol=1e-6)


@pytest.mark.parametrize("name", ["classic.adam", "an LSTM"])
def test_row_i_of_curves_is_unroll_with_the_key_of_problem_i(name):
    task, tx = quadratic(2), OPTIMIZERS[name]()
    together = curves(tx, task, key=KEY, steps=STEPS, problems=3)
    assert together.shape == (3, STEPS + 1)
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(3)])

    def alone(key):
        problem = task.sample(jax.random.split(key, 3)[0])
        return unroll(tx, task, problem, key, horizon=STEPS)[0]

    np.testing.assert_allclose(together, jax.jit(jax.vmap(alone))(keys), rtol=2e-5)


def test_estimators_and_curves_see_the_same_problems():
    opt, task = lstm((3, 3)), noisy_bowl()
    phi = opt.init(jax.random.key(1))
    estimator = truncated(horizon=STEPS, truncation=STEPS)(opt, task, batch=3)
    estimate, _ = jax.jit(lambda phi: estimator.estimate(phi, estimator.init(KEY, phi), KEY))(phi)
    losses = curves(opt.bind(phi), task, key=KEY, steps=STEPS, problems=3)
    np.testing.assert_allclose(estimate.aux["losses"], losses.mean(axis=0)[1:], rtol=1e-5)
    np.testing.assert_allclose(estimate.loss, losses.mean(axis=0)[1:].sum(), rtol=1e-5)


def test_a_coordinatewise_transformation_is_not_mapped_over_the_batch():
    marked, task = bound_lstm(), quadratic(2)
    assert isinstance(marked, CoordinatewiseTransformation)
    plain = optax.GradientTransformation(marked.init, marked.update)
    args = {"task": task, "key": KEY, "horizon": STEPS, "problems": 3}
    np.testing.assert_allclose(unroll_batch(marked, **args), unroll_batch(plain, **args), rtol=2e-5)


LINE_SEARCHES = {
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    ),
    "lbfgs": lambda: optax.lbfgs(memory_size=3),
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_line_searches_get_value_gradient_and_function(name):
    task, tx = quadratic(2), LINE_SEARCHES[name]()
    losses = curves(tx, task, key=KEY, steps=15, problems=3)
    assert np.all(np.diff(losses, axis=1) <= 1e-6)
    assert np.all(losses[:, -1] < 0.5 * losses[:, 0])
    key = jax.random.fold_in(KEY, 1)
    problem = task.sample(jax.random.split(key, 3)[0])
    alone, _ = run(tx, task, problem, key, horizon=15)
    np.testing.assert_allclose(alone, losses[1], rtol=1e-2, atol=1e-5)


def test_extra_arguments_are_those_of_the_present_step():
    seen = []

    def update(gradient, state, params=None, *, value, grad, value_fn, **extra):
        jax.debug.callback(
            lambda *numbers: seen.append(numbers),
            value,
            value_fn(params) - value,
            jnp.max(jnp.abs(grad - gradient)),
        )
        return jax.tree.map(lambda g: -0.01 * g, gradient), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    losses, _ = run(tx, quadratic(2), quadratic(2).sample(KEY), KEY)
    jax.effects_barrier()
    values, *differences = np.array(seen).T
    np.testing.assert_allclose(np.sort(values), np.sort(losses[:-1]), rtol=1e-6)
    np.testing.assert_allclose(differences, 0, atol=1e-6)


def test_typed_and_raw_keys_agree():
    task, tx = noisy_bowl(), bound_lstm()
    typed, raw = (
        unroll_batch(tx, task, key, horizon=STEPS, problems=2)
        for key in (jax.random.key(5), jax.random.PRNGKey(5))
    )
    np.testing.assert_array_equal(typed, raw)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["classic.adam", "an LSTM"])
def test_params_keep_their_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        task = quadratic(2)
        cast = dataclasses.replace(
            task, init=lambda key, problem: task.init(key, problem).astype(dtype)
        )
        opt = lstm((3,))
        phi = opt.init(KEY)
        tx = opt.bind(phi) if name == "an LSTM" else OPTIMIZERS[name]()
        losses, params = run(tx, cast, task.sample(KEY), KEY)
        assert params.dtype == dtype
        assert losses.dtype == ("float64" if dtype == "float64" else "float32")
        assert np.all(np.isfinite(losses))
        if name == "an LSTM":
            estimator = truncated(horizon=2, truncation=2)(opt, cast, batch=2)
            estimate, _ = jax.jit(
                lambda phi: estimator.estimate(phi, estimator.init(KEY, phi), KEY)
            )(phi)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(estimate.grad))


def test_a_horizon_below_one_is_refused():
    with pytest.raises(ValueError, match="horizon must be a whole number of at least 1, got 0"):
        unroll(optax.sgd(0.1), quadratic(2), (), KEY, horizon=0)
