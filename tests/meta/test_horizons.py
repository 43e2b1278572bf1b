"""Several horizons, the curriculum, weights as functions, and logarithms of losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import KEY, OPT, PHI, TASK, assert_identical, estimate, slopes, start

from l2ljax import checkpoint
from l2ljax.core import Task
from l2ljax.evaluate import curves
from l2ljax.meta import final_weights, make_step, polynomial_weights, train, truncated
from l2ljax.meta._train import _jitted_chunk, _prepare


def make(batch=2, **settings):
    return truncated(**{"truncation": 2} | settings)(OPT, TASK, batch)


def calls(estimator, count, phi=PHI):
    found, state = [], start(estimator)
    for i in range(count):
        one, state = estimate(estimator, phi, state, jax.random.fold_in(KEY, i))
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
    found, state = calls(make(horizon=[4, 2, 8]), 150)
    assert state.begun is None
    horizons, steps = episodes(found)
    for horizon, begun in list(zip(horizons, steps, strict=True))[:-1]:
        assert begun == list(range(0, horizon, 2))
    counts = [horizons.count(horizon) for horizon in (2, 4, 8)]
    # Uniform: 6.0 is the 95 % quantile of chi-square with two degrees of freedom.
    expected = len(horizons) / 3
    assert sum((count - expected) ** 2 / expected for count in counts) < 6.0


def test_a_curriculum_makes_longer_horizons_available_one_after_the_other():
    found, state = calls(make(horizon=[2, 8, 4], curriculum=5), 60)
    horizons, _ = episodes(found)
    assert state.begun == len(horizons) >= 15
    assert set(horizons[:5]) == {2}
    assert set(horizons[5:10]) == {2, 4}
    assert set(horizons[10:]) == {2, 4, 8}


def test_problems_are_those_of_a_single_horizon():
    (mine,), _ = calls(make(horizon=[4, 2, 8]), 1)
    (theirs,), state = calls(make(horizon=4), 1)
    assert (state.horizon, state.begun, state.initial) == (None, None, None)
    np.testing.assert_array_equal(mine.aux["losses"], theirs.aux["losses"])
    np.testing.assert_allclose(mine.grad, theirs.grad, rtol=1e-6)
    assert "horizon" not in theirs.aux


def test_one_horizon_in_a_list_is_that_horizon():
    listed, single = (calls(make(horizon=horizon), 3) for horizon in ([4], 4))
    assert_identical(listed, single)


def test_weights_as_a_function_are_those_of_the_horizon_that_was_drawn():
    seen = set()
    for one in calls(make(horizon=[4, 2, 8], step_weights=polynomial_weights), 20)[0]:
        horizon, step = int(one.aux["horizon"]), int(one.aux["step"])
        weights = horizon * np.arange(1, horizon + 1) ** 2 / (np.arange(1, horizon + 1) ** 2).sum()
        expected = weights[step : step + 2] @ one.aux["losses"]
        np.testing.assert_allclose(one.loss, expected, rtol=1e-6)
        seen.add(horizon)
    assert seen == {2, 4, 8}


def test_weights_as_a_function_and_as_an_array_are_the_same_for_one_horizon():
    function = functools.partial(final_weights, window=3)
    (one,), _ = calls(make(horizon=4, step_weights=function), 1)
    (other,), _ = calls(make(horizon=4, step_weights=final_weights(4, 3)), 1)
    (plain,), _ = calls(make(horizon=4), 1)
    assert one.loss == other.loss != plain.loss


@pytest.mark.parametrize("meta_loss", ["log", "log_improvement"])
def test_logarithms_by_hand(meta_loss):
    estimator = make(horizon=4, batch=3, meta_loss=meta_loss)
    losses = np.asarray(curves(OPT.bind(PHI), TASK, key=KEY, steps=4, problems=3), np.float64)
    first, state = estimate(estimator, PHI, start(estimator), KEY)
    # The second segment still knows the loss at the start of the episode.
    second, _ = estimate(estimator, PHI, state, jax.random.key(7))
    logs = np.log(losses[:, 1:])
    if meta_loss == "log_improvement":
        logs -= np.log(losses[:, :1])
    expected = logs.mean(axis=0)
    np.testing.assert_allclose(first.loss, expected[:2].sum(), rtol=1e-4)
    np.testing.assert_allclose(second.loss, expected[2:].sum(), rtol=1e-4)
    np.testing.assert_allclose(first.aux["losses"], losses[:, 1:3].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("meta_loss", ["mean", "log_improvement"])
def test_the_meta_gradient_is_that_of_finite_differences(meta_loss, x64):
    estimator = make(
        horizon=[2, 4],
        step_weights=polynomial_weights,
        meta_loss=meta_loss,
        second_derivatives=True,
    )
    phi = PHI.astype(jnp.float64)
    state = start(estimator, phi)
    found, _ = estimate(estimator, phi, state, KEY)
    assert np.all(np.abs(found.grad) > 1e-3)
    np.testing.assert_allclose(found.grad, slopes(estimator, phi, state, KEY), rtol=1e-6)


def test_the_gradient_of_an_improvement_is_that_of_the_logarithm():
    log, improvement = (
        calls(make(horizon=4, batch=3, meta_loss=name), 1)[0][0]
        for name in ("log", "log_improvement")
    )
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
        factory = truncated(horizon=horizon, truncation=2, curriculum=3)
        state = jax.eval_shape(lambda: make_step(OPT, TASK, key=KEY, estimator=factory)[1])
        estimates, meta = _prepare(OPT, TASK, 1, None, factory, None)
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
