"""Several tasks: mixtures of estimators, and a validation over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import KEY, OPT, PHI, TASK, assert_identical, estimate, slopes, start

from l2ljax import checkpoint
from l2ljax.core import Estimate, Estimator, LearnedOptimizer, Task
from l2ljax.evaluate import curves
from l2ljax.meta import final_loss, make_step, mixture, train, truncated, validation
from l2ljax.tasks import quadratic


def scaled(task, factor):
    """The same functions in other units."""
    return Task(task.sample, task.init, lambda p, q, k: factor * task.loss(p, q, k))


def two_leaves():
    return Task(
        sample=lambda key: jax.random.uniform(key, (2,)),
        init=lambda key, problem: {"w": jnp.zeros(2), "b": jnp.ones((2, 2))},
        loss=lambda p, q, k: jnp.sum((p["w"] - q) ** 2) + jnp.sum(p["b"] ** 2),
    )


TASKS = [TASK, two_leaves()]
SHORT, LONG = truncated(horizon=4, truncation=2), truncated(horizon=3, truncation=3)


def test_each_call_is_one_of_its_task_and_leaves_the_others_as_they_are():
    both = mixture([SHORT, LONG])(OPT, TASKS, 2)
    alone = [make(OPT, task, 2) for make, task in zip([SHORT, LONG], TASKS, strict=True)]
    drawn, states = set(), start(both)
    for i in range(8):
        key = jax.random.fold_in(KEY, i)
        found, new = estimate(both, PHI, states, key)
        task = int(found.aux["task"])
        drawn.add(task)
        expected, state = estimate(alone[task], PHI, states[task], key)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
        np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-5)
        assert new[task].step == state.step
        assert_identical(new[1 - task], states[1 - task])
        # Segments of 2 and of 3 steps: their losses have no shape in common.
        assert sorted(found.aux) == ["step", "task"]
        states = new
    assert drawn == {0, 1}


def test_what_all_members_report_in_one_shape_is_kept():
    def reporting(**aux):
        def run(phi, state, key):
            return Estimate(jnp.float32(1), phi, aux), state

        return lambda opt, task, batch: Estimator(init=lambda key, phi: (), estimate=run)

    same, other = jnp.zeros(2), jnp.zeros(3)
    members = [
        reporting(same=same, shape=same, dtype=same, mine=same),
        reporting(same=same + 1, shape=other, dtype=jnp.zeros(2, int), yours=same),
    ]
    estimator = mixture(members)(OPT, TASKS)
    found, _ = estimator.estimate(PHI, ((), ()), KEY)
    assert sorted(found.aux) == ["same", "task"]
    np.testing.assert_array_equal(found.aux["same"], 2 * [found.aux["task"]])


def numbered(task):
    """An estimator whose loss is its task, a number."""

    def estimate(phi, state, key):
        return Estimate(jnp.float32(task), jnp.full_like(phi, 3.0 * task), {}), state + 1

    return Estimator(init=lambda key, phi: jnp.int32(0), estimate=estimate)


def draws(weights, calls=200):
    """How often each of three tasks is drawn."""
    estimator = mixture(
        [lambda opt, task, batch, i=i: numbered(i) for i in range(3)], weights=weights
    )(OPT, 3 * [TASK])

    def step(states, i):
        found, states = estimator.estimate(PHI, states, jax.random.fold_in(KEY, i))
        return states, (found.loss, found.aux["task"])

    states, (losses, tasks) = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(calls)))(
        estimator.init(KEY, PHI)
    )
    np.testing.assert_array_equal(losses, tasks)
    counts = np.bincount(tasks, minlength=3)
    np.testing.assert_array_equal(states, counts)
    return counts


def test_tasks_are_drawn_equally_often_or_by_weight():
    # 9.2 is the 99 % quantile of chi-square with two degrees of freedom, 6.6 with one.
    assert np.sum((draws(None) - 200 / 3) ** 2 / (200 / 3)) < 9.2
    counts = draws([3.0, 0.0, 1.0])
    assert counts[1] == 0
    assert (counts[0] - 150) ** 2 / 150 + (counts[2] - 50) ** 2 / 50 < 6.6


def test_the_gradient_of_a_drawn_task_is_that_of_finite_differences(x64):
    exact = truncated(horizon=2, truncation=2, second_derivatives=True)
    estimator = mixture(exact)(OPT, [quadratic(2), quadratic(3)], 2)
    phi = PHI.astype(jnp.float64)
    states, seen = start(estimator, phi), set()
    for call in range(5):
        key = jax.random.fold_in(KEY, call)
        found, _ = estimate(estimator, phi, states, key)
        seen.add(int(found.aux["task"]))
        np.testing.assert_allclose(found.grad, slopes(estimator, phi, states, key), rtol=1e-6)
    assert seen == {0, 1}


def test_one_task_in_a_list_is_that_task_and_its_normalized_gradient_the_direction():
    alone = SHORT(OPT, TASK, 2)
    expected, _ = estimate(alone, PHI, start(alone), KEY)
    for normalize in (None, "gradient"):
        estimator = mixture(SHORT, normalize=normalize)(OPT, [TASK], 2)
        found, _ = estimate(estimator, PHI, (start(alone),), KEY)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
        norm = np.linalg.norm(expected.grad) if normalize else 1
        np.testing.assert_allclose(found.grad, expected.grad / norm, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e30, 0.5**0.5),  # whose square is infinite
        (1e-30, 0.5**0.5),  # whose square is zero
        (0.0, 0.0),
        (np.nan, np.nan),
        (np.inf, np.nan),
    ],
)
def test_a_normalized_gradient_has_length_one_unless_it_is_zero_or_no_number(value, expected):
    def run(phi, state, key):
        return Estimate(jnp.float32(1), jnp.full_like(phi, value), {}), state

    broken = Estimator(init=lambda key, phi: (), estimate=run)
    factory = mixture(lambda opt, task, batch: broken, normalize="gradient")
    found, _ = factory(OPT, [TASK]).estimate(PHI, ((),), KEY)
    np.testing.assert_allclose(found.grad, [expected, expected], rtol=1e-6)


def test_training_takes_several_tasks_and_resumes_bit_for_bit_from_a_file(tmp_path):
    settings = {
        "key": KEY,
        "batch": 2,
        "estimator": SHORT,
        "meta_optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-4)),
    }
    states = []
    whole = train(
        OPT, TASKS, steps=8, chunk=4, callbacks=[lambda p: states.append(p.state)], **settings
    )
    assert set(whole.history["task"]) == {0, 1}
    assert whole.history["losses"].shape == (8, 2)
    checkpoint.save_state(tmp_path, 4, states[0])
    _, like = make_step(OPT, TASKS, **settings)
    resumed = train(
        OPT, TASKS, steps=8, chunk=4, state=checkpoint.read_state(tmp_path, like), **settings
    )
    for name, rows in whole.history.items():
        np.testing.assert_array_equal(resumed.history[name], rows[4:])
    np.testing.assert_array_equal(resumed.phi, whole.phi)


def test_validation_over_several_tasks_is_the_mean_log_of_what_is_left_of_the_loss():
    tasks = [quadratic(2), scaled(quadratic(3), 1e6)]
    opt = LearnedOptimizer(
        init=lambda key: jnp.float32(0.1),
        bind=lambda phi: optax.chain(optax.normalize_by_update_norm(), optax.scale(-phi)),
    )
    score = validation(opt, tasks, key=KEY, horizon=[3, 4], problems=2, window=[1, 2])(
        jnp.float32(0.1)
    )
    logs = []
    keys = [KEY, jax.random.fold_in(KEY, 2**31 + 2)]
    for task, key, steps, window in zip(tasks, keys, [3, 4], [1, 2], strict=True):
        losses = curves(opt.bind(0.1), task, key=key, steps=steps, problems=2)
        logs.append(np.log(final_loss(losses, window).mean() / losses[:, 0].mean()))
    np.testing.assert_allclose(score, np.mean(logs), rtol=1e-5)
    assert score < 0


def test_validation_of_runs_that_diverge_is_infinite_and_of_solved_ones_finite():
    bowl = Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.ones(2),
        loss=lambda params, problem, key: 0.5 * jnp.sum(params**2),
    )
    opt = LearnedOptimizer(init=lambda key: jnp.float32(1), bind=lambda phi: optax.sgd(phi))
    score = validation(opt, [bowl, bowl], key=KEY, horizon=2, problems=2, window=1)
    assert score(jnp.float32(1e30)) == np.inf
    assert -np.inf < score(jnp.float32(1.0)) < score(jnp.float32(0.9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixture([]), "estimators must have at least one factory, got none"),
        (lambda: mixture(weights=[-1.0, 2.0]), "weights must be a non-negative number"),
        (lambda: mixture(weights=[0.0, 0.0]), "the sum of weights must be a positive number"),
        (lambda: mixture(normalize="loss"), "normalize must be one of .*'gradient'"),
        (lambda: mixture()(OPT, quadratic(2)), "tasks must be a sequence .* got one Task"),
        (lambda: mixture()(OPT, []), r"tasks must be a sequence of at least one Task, got \[\]"),
        (lambda: mixture([SHORT])(OPT, TASKS), "estimators must have one entry .* 2 tasks, got 1"),
        (lambda: mixture(weights=[1.0])(OPT, TASKS), "weights must have one entry .* 2 tasks"),
        (lambda: train(OPT, [], key=KEY, steps=1), "tasks must be a sequence"),
        (lambda: validation(OPT, [], key=KEY), "task must be a Task or a sequence of them"),
        (
            lambda: validation(OPT, TASKS, key=KEY, horizon=[100]),
            r"horizon must be one number, or one for each of 2 tasks, got \[100\]",
        ),
        (
            lambda: validation(OPT, TASKS, key=KEY, horizon=[100, 5]),
            "window must be at most horizon=5, got 10",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
