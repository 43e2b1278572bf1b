"""Several horizons, the curriculum, weights as functions, and logarithms of losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import checkpoint
from l2ljax.core import LearnedOptimizer, Task
from l2ljax.evaluate import curves
from l2ljax.learned import lstm
from l2ljax.meta import final_weights, make_step, polynomial_weights, train, truncated
from l2ljax.meta._train import _jitted_chunk, _prepare
from l2ljax.tasks import quadratic

KEY = jax.random.key(0)
PHI = jnp.float32(0.02)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Made once: programs are shared between tests where functions are the same objects.
OPT = LearnedOptimizer(init=lambda key: PHI, bind=lambda phi: optax.sgd(phi, momentum=0.5))
TASK = quadratic(2)


def prepare(batch=2, **settings):
    """A jitted estimate and its first state."""
    estimator = truncated(**settings)(OPT, TASK, batch)
    return jax.jit(estimator.estimate), jax.jit(estimator.init)(KEY, PHI)


def calls(estimate, state, count, phi=PHI):
    found = []
    for i in range(count):
        one, state = estimate(phi, state, jax.random.fold_in(KEY, i))
        found.append(one)
    return found, state


def episodes(found):
    """The horizon of each episode, and the steps at which its segments began."""
    horizons, steps = [], []
    for one in found:
        if one.aux["step"] == 0:
            horizons.append(int(one.aux["horizon"]))
            steps.append([])
        assert one.aux["horizon"] == horizons[-1]
        steps[-1].append(int(one.aux["step"]))
    return horizons, steps


def test_every_episode_draws_one_of_the_horizons_and_lasts_as_long():
    estimate, state = prepare(horizon=[4, 2, 8], truncation=2)
    assert state.begun is None
    horizons, steps = episodes(calls(estimate, state, 150)[0])
    for horizon, begun in list(zip(horizons, steps, strict=True))[:-1]:
        assert begun == list(range(0, horizon, 2))
    counts = [horizons.count(horizon) for horizon in (2, 4, 8)]
    # Uniform: 6.0 is the 95 % quantile of chi-square with two degrees of freedom.
    expected = len(horizons) / 3
    assert sum((count - expected) ** 2 / expected for count in counts) < 6.0


def test_a_curriculum_makes_longer_horizons_available_one_after_the_other():
    estimate, state = prepare(horizon=[2, 8, 4], truncation=2, curriculum=5)
    found, state = calls(estimate, state, 60)
    horizons, _ = episodes(found)
    assert state.begun == len(horizons) >= 15
    assert set(horizons[:5]) == {2}
    assert set(horizons[5:10]) == {2, 4}
    assert set(horizons[10:]) == {2, 4, 8}


def test_problems_are_those_of_a_single_horizon():
    several, state = prepare(horizon=[2, 4], truncation=2)
    single, other = prepare(horizon=2, truncation=2)
    assert (other.horizon, other.begun, other.initial) == (None, None, None)
    mine, _ = several(PHI, state, KEY)
    theirs, _ = single(PHI, other, KEY)
    np.testing.assert_array_equal(mine.aux["losses"], theirs.aux["losses"])
    np.testing.assert_array_equal(mine.grad, theirs.grad)
    assert "horizon" not in theirs.aux


def test_one_horizon_in_a_list_is_that_horizon():
    listed, state = prepare(horizon=[4], truncation=2)
    _, single = prepare(horizon=4, truncation=2)
    assert jax.tree.structure(state) == jax.tree.structure(single)
    assert sorted(listed(PHI, state, KEY)[0].aux) == ["losses", "step"]


def test_weights_as_a_function_are_those_of_the_horizon_that_was_drawn():
    several, state = prepare(horizon=[2, 6], truncation=2, step_weights=polynomial_weights)
    for one in calls(several, state, 12)[0]:
        horizon, step = int(one.aux["horizon"]), int(one.aux["step"])
        weights = horizon * np.arange(1, horizon + 1) ** 2 / (np.arange(1, horizon + 1) ** 2).sum()
        expected = weights[step : step + 2] @ one.aux["losses"]
        np.testing.assert_allclose(one.loss, expected, rtol=1e-6)


def test_weights_as_a_function_and_as_an_array_are_the_same_for_one_horizon():
    function = functools.partial(final_weights, window=3)
    (one,), _ = calls(*prepare(horizon=4, truncation=4, step_weights=function), 1)
    (other,), _ = calls(*prepare(horizon=4, truncation=4, step_weights=final_weights(4, 3)), 1)
    assert one.loss == other.loss


@pytest.mark.parametrize("meta_loss", ["log", "log_improvement"])
def test_logarithms_by_hand(meta_loss):
    estimate, state = prepare(horizon=4, truncation=2, batch=3, meta_loss=meta_loss)
    losses = np.asarray(curves(OPT.bind(PHI), TASK, key=KEY, steps=4, problems=3), np.float64)
    first, state = estimate(PHI, state, KEY)
    # The second segment still knows the loss at the start of the episode.
    second, _ = estimate(PHI, state, jax.random.key(7))
    logs = np.log(losses[:, 1:])
    if meta_loss == "log_improvement":
        logs -= np.log(losses[:, :1])
    expected = logs.mean(axis=0)
    np.testing.assert_allclose(first.loss, expected[:2].sum(), rtol=1e-4)
    np.testing.assert_allclose(second.loss, expected[2:].sum(), rtol=1e-4)
    np.testing.assert_allclose(first.aux["losses"], losses[:, 1:3].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("meta_loss", ["mean", "log", "log_improvement"])
def test_the_meta_gradient_is_that_of_finite_differences(meta_loss, x64):
    opt = LearnedOptimizer(
        init=lambda key: jnp.array([0.02, 0.5]),
        bind=lambda phi: optax.sgd(phi[0], momentum=phi[1]),
    )
    estimator = truncated(
        horizon=[3, 6],
        truncation=3,
        step_weights=polynomial_weights,
        meta_loss=meta_loss,
        second_derivatives=True,
    )(opt, TASK, 2)
    phi = opt.init(KEY)
    state = estimator.init(KEY, phi)
    estimate = jax.jit(lambda phi: estimator.estimate(phi, state, KEY)[0])
    for i, width in enumerate(1e-5 * np.eye(2)):
        slope = (estimate(phi + width).loss - estimate(phi - width).loss) / 2e-5
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(estimate(phi).grad[i], slope, rtol=1e-6)


def test_the_gradient_of_an_improvement_is_that_of_the_logarithm():
    settings = {"horizon": 4, "truncation": 2}
    (log,), _ = calls(*prepare(**settings, meta_loss="log"), 1)
    (improvement,), _ = calls(*prepare(**settings, meta_loss="log_improvement"), 1)
    np.testing.assert_allclose(improvement.grad, log.grad, rtol=1e-5)
    assert improvement.loss < 0


def test_a_loss_that_is_not_positive_skips_the_step():
    task = Task(
        sample=lambda key: jax.random.bernoulli(key),
        init=lambda key, problem: jnp.ones(()),
        loss=lambda params, problem, key: params**2 - 2.0 * problem,
    )
    settings = {"horizon": 2, "truncation": 2, "meta_loss": "log"}
    history = train(OPT, task, key=KEY, steps=12, estimator=truncated(**settings)).history
    negative = (history["losses"] <= 0).any(axis=1)
    assert 0 < negative.sum() < 12
    np.testing.assert_array_equal(history["skipped"], negative)


def test_training_resumes_bit_for_bit_from_a_file(tmp_path):
    estimator = truncated(horizon=[2, 4], truncation=2, curriculum=2, meta_loss="log_improvement")
    settings = {"key": KEY, "batch": 2, "estimator": estimator, "chunk": 3}
    states = []
    whole = train(OPT, TASK, steps=9, callbacks=[lambda p: states.append(p.state)], **settings)
    checkpoint.save_state(tmp_path, 3, states[0])
    _, like = make_step(OPT, TASK, **{n: settings[n] for n in ("key", "batch", "estimator")})
    resumed = train(OPT, TASK, steps=9, state=checkpoint.read_state(tmp_path, like), **settings)
    assert whole.history["horizon"].shape == (9,)
    for name in ("loss", "horizon", "step"):
        np.testing.assert_array_equal(resumed.history[name], whole.history[name][3:])
    np.testing.assert_array_equal(resumed.last_phi, whole.last_phi)


def test_longer_horizons_make_no_larger_program():
    def program(*horizon):
        opt = lstm((2,))
        factory = truncated(horizon=horizon, truncation=2, curriculum=3)
        _, state = make_step(opt, TASK, key=KEY, estimator=factory)
        estimates, meta = _prepare(opt, TASK, 1, None, factory)
        return _jitted_chunk.lower(estimates, meta, state, KEY, 1, capacity=3).as_text()

    short, long = program(2, 4), program(20, 40)
    # Numbers are printed, and weights are arguments.
    assert abs(len(long) - len(short)) < 0.02 * len(short)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": []}, r"horizon must have at least one number of steps, got \(\)"),
        ({"horizon": [20, 0]}, "horizon must be a whole number of at least 1, got 0"),
        ({"horizon": [20, 30]}, "truncation must divide horizon, got truncation=20 and horizon=30"),
        ({"curriculum": 5}, "horizon must have several numbers .* curriculum=5 .* got 100"),
        ({"horizon": [20, 40], "curriculum": 0}, "curriculum must be a whole number"),
        (
            {"horizon": [20, 40], "step_weights": jnp.ones(20)},
            r"step_weights must be a function of the horizon .* got shape \(20,\)",
        ),
        (
            {"horizon": [20, 40], "step_weights": lambda horizon: jnp.ones(20)},
            r"step_weights must have shape \(40,\)",
        ),
        ({"meta_loss": "logs"}, "meta_loss must be one of .* did you mean 'log'"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        truncated(**settings)
