"""Imitation: what is measured, by hand and in closed form, and who moves the params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from jax.flatten_util import ravel_pytree
from small import KEY, estimate, slopes, start

from l2ljax import checkpoint
from l2ljax.core import CoordinatewiseTransformation, LearnedOptimizer, Task
from l2ljax.evaluate import curves
from l2ljax.learned import lstm
from l2ljax.meta import imitation, make_step, train
from l2ljax.tasks import quadratic

OPT = LearnedOptimizer(init=lambda key: jnp.float32(0.03), bind=lambda phi: optax.sgd(phi))
TEACHER = optax.sgd(0.02, momentum=0.9)


def first(opt, task, teacher, phi, **settings):
    """The first estimate."""
    estimator = make(opt, task, teacher, **settings)
    return estimate(estimator, phi, start(estimator, phi), KEY)[0]


def make(opt, task, teacher, batch=2, **settings):
    return imitation(teacher, **{"horizon": 4, "truncation": 2} | settings)(opt, task, batch)


def python_loop(opt, task, teacher, phi, *, steps, batch=2):
    """The relative distance of each step and problem, and the teacher's losses."""
    distances, losses = np.zeros((batch, steps)), np.zeros((batch, steps))
    for b in range(batch):
        problem_key, init_key, loss_key = jax.random.split(jax.random.fold_in(KEY, b), 3)
        problem = task.sample(problem_key)
        params = task.init(init_key, problem)
        student = opt.bind(phi)
        states = teacher.init(params), student.init(params)
        for t in range(steps):
            gradient = jax.grad(task.loss)(params, problem, jax.random.fold_in(loss_key, t))
            v, led = teacher.update(gradient, states[0], params)
            u, followed = student.update(gradient, states[1], params)
            u_flat, v_flat = ravel_pytree(u)[0], ravel_pytree(v)[0]
            distances[b, t] = np.sum((u_flat - v_flat) ** 2) / np.sum(np.square(v_flat))
            params, states = optax.apply_updates(params, v), (led, followed)
            losses[b, t] = task.objective(params, problem, jax.random.fold_in(loss_key, t + 1))
    return distances, losses


def two_leaves():
    """A bowl in two leaves, so that a norm of each alone would be another one."""

    def loss(params, problem, key):
        return jnp.sum((params["w"] - problem) ** 2) + 3 * (params["b"] - 1) ** 2

    return Task(
        sample=lambda key: jax.random.uniform(key, (2,)),
        init=lambda key, problem: {"w": jnp.zeros(2), "b": jax.random.normal(key)},
        loss=loss,
    )


def test_segments_are_the_means_of_a_loop_by_hand():
    opt, task, phi = small.OPT, two_leaves(), small.PHI
    estimator = make(opt, task, TEACHER)
    state = start(estimator, phi)
    distances, losses = python_loop(opt, task, TEACHER, phi, steps=4)
    for s in (0, 2):
        found, state = estimate(estimator, phi, state, KEY)
        assert found.aux["step"] == s
        np.testing.assert_allclose(found.loss, distances[:, s : s + 2].mean(), rtol=1e-4)
        np.testing.assert_allclose(
            found.aux["losses"], losses[:, s : s + 2].mean(axis=0), rtol=1e-5
        )


def test_the_teacher_drives_the_episode():
    found = first(OPT, quadratic(2), TEACHER, jnp.float32(5.0), truncation=4)
    expected = curves(TEACHER, quadratic(2), key=KEY, steps=4, problems=2).mean(axis=0)[1:]
    np.testing.assert_allclose(found.aux["losses"], expected, rtol=1e-5)


def test_a_student_like_its_teacher_has_no_distance_and_no_gradient():
    found = first(OPT, quadratic(2), optax.sgd(0.03), jnp.float32(0.03))
    assert (found.loss, found.grad) == (0, 0)


def test_the_distance_of_rates_is_their_relative_square():
    found = first(OPT, quadratic(3), optax.sgd(0.02), jnp.float32(0.05))
    np.testing.assert_allclose(found.loss, (0.03 / 0.02) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.grad, 2 * 0.03 / 0.02**2, rtol=1e-5)


def test_the_meta_gradient_is_that_of_finite_differences(x64):
    # An LSTM of one unit, its weights as one vector.
    weights, tree = ravel_pytree(lstm((1,)).init(KEY))
    opt = LearnedOptimizer(init=lambda key: weights, bind=lambda flat: lstm((1,)).bind(tree(flat)))
    estimator = make(opt, quadratic(2), TEACHER, horizon=3, truncation=3)
    phi = weights.astype(jnp.float64)
    state = start(estimator, phi)
    found, _ = estimate(estimator, phi, state, KEY)
    expected = slopes(estimator, phi, state, KEY, width=1e-5)
    size = np.abs(expected).max()
    assert size > 1e-3
    np.testing.assert_allclose(found.grad, expected, rtol=0, atol=1e-6 * size)


def test_a_student_is_trained_through_its_own_state_within_a_segment_only():
    opt = LearnedOptimizer(
        init=lambda key: jnp.float32(0.5), bind=lambda phi: optax.sgd(0.02, momentum=phi)
    )
    one, whole = (
        first(opt, quadratic(2), TEACHER, jnp.float32(0.5), truncation=k).grad for k in (1, 4)
    )
    # The momentum of the first step, from a state of zero, matters to later steps only.
    assert one == 0 and whole < -1e-3


def test_steps_at_which_the_teacher_stands_still_count_as_zero_and_stay_finite():
    warm_up = optax.sgd(lambda count: jnp.where(count < 2, 0.0, 0.02))
    found = first(OPT, quadratic(2), warm_up, jnp.float32(0.05), truncation=4)
    np.testing.assert_allclose(found.loss, 0.5 * (0.03 / 0.02) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.grad, 0.5 * 2 * 0.03 / 0.02**2, rtol=1e-5)


def test_a_teacher_may_search_along_a_line():
    teacher = optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=8)
    )
    found = first(OPT, quadratic(2), teacher, jnp.float32(0.03), truncation=4)
    assert np.isfinite(found.loss) and np.all(np.diff(found.aux["losses"]) < 0)


def test_a_coordinatewise_student_is_not_mapped_over_the_batch():
    shapes = []

    def update(gradient, state, params=None):
        shapes.append(gradient.shape)
        return gradient, state

    student = CoordinatewiseTransformation(lambda params: (), update)
    opt = LearnedOptimizer(init=lambda key: jnp.zeros(()), bind=lambda phi: student)
    estimator = make(opt, quadratic(3), TEACHER)
    state = jax.eval_shape(start, estimator, jnp.zeros(()))
    jax.eval_shape(estimate, estimator, jnp.zeros(()), state, KEY)
    assert set(shapes) == {(2, 3)}


def test_training_finds_the_teacher_and_resumes_from_a_file(tmp_path):
    factory = imitation(optax.sgd(0.02), horizon=[2, 4], truncation=2, curriculum=3)
    settings = {
        "key": KEY,
        "batch": 2,
        "estimator": factory,
        "meta_optimizer": optax.sgd(2e-5),
    }
    states, task = [], quadratic(2)
    whole = train(
        OPT, task, steps=60, chunk=20, callbacks=[lambda p: states.append(p.state)], **settings
    )
    np.testing.assert_allclose(whole.phi, 0.02, rtol=0.05)
    checkpoint.save_state(tmp_path, 20, states[0])
    _, like = make_step(OPT, task, **settings)
    state = checkpoint.read_state(tmp_path, like)
    resumed = train(OPT, task, steps=60, chunk=20, state=state, **settings)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"][20:])
    np.testing.assert_array_equal(resumed.phi, whole.phi)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="truncation must divide horizon, got truncation=3"):
        imitation(TEACHER, horizon=4, truncation=3)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        imitation(TEACHER)(OPT, quadratic(2), 0)
