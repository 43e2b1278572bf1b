"""Several tasks: mixtures of estimators, and a validation over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import checkpoint
from l2ljax.core import Estimate, Estimator, LearnedOptimizer, Task
from l2ljax.evaluate import curves
from l2ljax.meta import final_loss, make_step, mixture, train, truncated, validation
from l2ljax.tasks import quadratic

KEY = jax.random.key(0)
PHI = jnp.array([0.02, 0.5])

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPT = LearnedOptimizer(init=lambda key: PHI, bind=lambda phi: optax.sgd(phi[0], momentum=phi[1]))


def scaled(task, factor):
    """The same functions in other units."""
    return Task(task.sample, task.init, lambda p, q, k: factor * task.loss(p, q, k))


def two_leaves():
    return Task(
        sample=lambda key: jax.random.uniform(key, (2,)),
        init=lambda key, problem: {"w": jnp.zeros(2), "b": jnp.ones((2, 2))},
        loss=lambda p, q, k: jnp.sum((p["w"] - q) ** 2) + jnp.sum(p["b"] ** 2),
    )


TASKS = [quadratic(2), two_leaves(), scaled(quadratic(3), 0.1)]
SHORT, LONG = truncated(horizon=4, truncation=2), truncated(horizon=3, truncation=3)


def prepare(factory, task=TASKS, opt=OPT, phi=PHI):
    estimator = factory(opt, task, 2)
    return jax.jit(estimator.estimate), jax.jit(estimator.init)(KEY, phi)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, strict=True)


def test_each_call_is_one_of_its_task_and_leaves_the_others_as_they_are():
    estimate, states = prepare(mixture([SHORT, SHORT, LONG]))
    alone = [prepare(f, t) for f, t in zip([SHORT, SHORT, LONG], TASKS, strict=True)]
    drawn = set()
    for i in range(12):
        key = jax.random.fold_in(KEY, i)
        found, new = estimate(PHI, states, key)
        task = int(found.aux["task"])
        drawn.add(task)
        expected, state = alone[task][0](PHI, states[task], key)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
        np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-5)
        assert new[task].step == state.step
        for other in {0, 1, 2} - {task}:
            assert_identical(new[other], states[other])
        # Segments of 2 and of 3 steps: their losses have no shape in common.
        assert sorted(found.aux) == ["step", "task"]
        states = new
    assert drawn == {0, 1, 2}


def test_what_all_members_report_in_one_shape_is_kept():
    estimate, states = prepare(mixture([SHORT, truncated(horizon=[2, 4], truncation=2)]), TASKS[:2])
    found, _ = estimate(PHI, states, KEY)
    assert sorted(found.aux) == ["losses", "step", "task"]
    assert found.aux["losses"].shape == (2,)


def numbered(task):
    """An estimator whose loss is its task, a number."""

    def estimate(phi, state, key):
        return Estimate(jnp.float32(task), jnp.full_like(phi, 3.0 * task), {}), state + 1

    return Estimator(init=lambda key, phi: jnp.int32(0), estimate=estimate)


def draws(weights, calls=200):
    """How often each of three tasks is drawn."""
    estimator = mixture(
        [lambda opt, task, batch, i=i: numbered(i) for i in range(3)], weights=weights
    )(OPT, TASKS)

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
    states = estimator.init(KEY, phi)
    estimate = jax.jit(lambda phi, key: estimator.estimate(phi, states, key)[0])
    seen = set()
    for call in range(6):
        key = jax.random.fold_in(KEY, call)
        found = estimate(phi, key)
        seen.add(int(found.aux["task"]))
        for i, width in enumerate(1e-6 * np.eye(2)):
            slope = (estimate(phi + width, key).loss - estimate(phi - width, key).loss) / 2e-6
            np.testing.assert_allclose(found.grad[i], slope, rtol=1e-6)
    assert seen == {0, 1}


def test_a_normalized_gradient_is_the_direction_of_the_plain_one():
    plain, state = prepare(SHORT, TASKS[0])
    unit, states = prepare(mixture(SHORT, normalize="gradient"), TASKS[:1])
    expected, _ = plain(PHI, state, KEY)
    found, _ = unit(PHI, states, KEY)
    direction = expected.grad / jnp.linalg.norm(expected.grad)
    np.testing.assert_allclose(found.grad, direction, rtol=1e-5)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)


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
    def estimate(phi, state, key):
        return Estimate(jnp.float32(1), jnp.full_like(phi, value), {}), state

    broken = Estimator(init=lambda key, phi: (), estimate=estimate)
    factory = mixture(lambda opt, task, batch: broken, normalize="gradient")
    found, _ = prepare(factory, TASKS[:1])[0](PHI, ((),), KEY)
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
    assert set(whole.history["task"]) <= {0, 1, 2} and len(set(whole.history["task"])) > 1
    assert whole.history["losses"].shape == (8, 2)
    checkpoint.save_state(tmp_path, 4, states[0])
    step, like = make_step(OPT, TASKS, **settings)
    resumed = train(
        OPT, TASKS, steps=8, chunk=4, state=checkpoint.read_state(tmp_path, like), **settings
    )
    for name, rows in whole.history.items():
        np.testing.assert_array_equal(resumed.history[name], rows[4:])
    np.testing.assert_array_equal(resumed.phi, whole.phi)
    _, metrics = step(like, jax.random.fold_in(KEY, 0))
    assert metrics["task"] == whole.history["task"][0]


def test_one_task_in_a_list_is_that_task():
    settings = {"key": KEY, "steps": 3, "batch": 2, "estimator": SHORT}
    several, single = train(OPT, [TASKS[0]], **settings), train(OPT, TASKS[0], **settings)
    np.testing.assert_allclose(several.history["loss"], single.history["loss"], rtol=1e-6)
    np.testing.assert_allclose(several.phi, single.phi, rtol=1e-6)


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
        (lambda: mixture([SHORT])(OPT, TASKS), "estimators must have one entry .* 3 tasks, got 1"),
        (lambda: mixture(weights=[1.0])(OPT, TASKS), "weights must have one entry .* 3 tasks"),
        (lambda: train(OPT, [], key=KEY, steps=1), "tasks must be a sequence"),
        (lambda: validation(OPT, [], key=KEY), "task must be a Task or a sequence of them"),
        (
            lambda: validation(OPT, TASKS, key=KEY, horizon=[100, 100]),
            r"horizon must be one number, or one for each of 3 tasks, got \[100, 100\]",
        ),
        (
            lambda: validation(OPT, TASKS[:2], key=KEY, horizon=[100, 5]),
            "window must be at most horizon=5, got 10",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
