"""The outer loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax.core import LearnedOptimizer
from l2ljax.evaluate import curves
from l2ljax.learned import lstm
from l2ljax.meta import (
    Progress,
    final_loss,
    final_weights,
    make_step,
    polynomial_weights,
    train,
    truncated,
    validation,
)
from l2ljax.tasks import quadratic
from tests.meta.runs import (
    ESTIMATOR,
    KEY,
    OPT,
    SETTINGS,
    TASK,
    VALIDATE,
    failing_at,
    failing_train,
    meta_train,
)
from tests.meta.small import assert_identical

OPTIMIZED = True


def test_the_same_key_gives_the_same_run_bit_for_bit():
    first, second = meta_train(), meta_train()
    assert_identical(first.state, second.state)
    assert_identical(first.history, second.history)
    other = meta_train(key=jax.random.key(1))
    assert not np.array_equal(other.history["loss"], first.history["loss"])


@pytest.mark.parametrize("chunk", [1, 50])
def test_a_run_does_not_depend_on_how_it_is_cut(chunk):
    expected, actual = meta_train(), meta_train(chunk=chunk)
    assert_identical(actual.state, expected.state)
    assert_identical(actual.history, expected.history)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit():
    states = []
    whole = meta_train(callbacks=[lambda progress: states.append(progress.state)])
    assert [int(state.step) for state in states] == [3, 6, 9]
    # In the middle of an episode, after a validation, with a best φ and a count kept inside.
    resumed = meta_train(state=states[0])
    assert_identical(resumed.state, whole.state)
    assert_identical(resumed.phi, whole.phi)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"][3:])
    np.testing.assert_array_equal(resumed.history["validation_step"], [6, 9])


def test_make_step_is_the_step_of_train():
    step, state = make_step(
        OPT, TASK, **{name: SETTINGS[name] for name in ("key", "batch", "estimator")}
    )
    result = meta_train(steps=3, validate=None, meta_optimizer=None)
    losses = []
    for i in range(3):
        state, metrics = step(state, jax.random.fold_in(KEY, i))
        losses.append(metrics["loss"])
    np.testing.assert_array_equal(losses, result.history["loss"])
    assert_identical(state, result.state)


def test_training_begins_with_the_phi_that_is_given():
    phi = jax.tree.map(lambda leaf: leaf + 1, OPT.init(KEY))
    _, state = make_step(OPT, TASK, key=KEY, estimator=ESTIMATOR, phi=phi)
    jax.tree.map(np.testing.assert_array_equal, state.phi, phi)
    still = optax.set_to_zero()
    result = train(OPT, TASK, key=KEY, steps=1, estimator=ESTIMATOR, meta_optimizer=still, phi=phi)
    jax.tree.map(np.testing.assert_array_equal, result.phi, phi)


def test_history_has_one_row_a_meta_step():
    history = meta_train(steps=7).history
    assert sorted(history) == [
        "grad_norm", "loss", "losses", "skipped", "step", "validation", "validation_step"
    ]  # fmt: skip
    for name in ("loss", "grad_norm", "skipped", "step"):
        assert history[name].shape == (7,)
    assert history["losses"].shape == (7, 2)
    np.testing.assert_array_equal(history["step"], [0, 2, 0, 2, 0, 2, 0])
    np.testing.assert_allclose(history["loss"], history["losses"].sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(history["validation_step"], [3, 6, 7])
    assert history["validation"].shape == (3,)


def test_callbacks_get_the_progress_of_every_chunk():
    seen = []
    meta_train(steps=8, validate_every=6, callbacks=iter([seen.append]))
    assert all(isinstance(progress, Progress) for progress in seen)
    assert [len(progress.metrics["loss"]) for progress in seen] == [4, 2, 2]
    assert [progress.validation is None for progress in seen] == [True, False, False]
    assert {progress.steps for progress in seen} == {8}


def test_a_bar_shows_step_loss_and_validation(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    meta_train(progress=True)
    bar = capsys.readouterr().err
    assert "meta-training: 100%" in bar and "9/9" in bar
    assert "meta-loss=" in bar and "validation=" in bar
    # Segments have two steps of equal weight.
    last = bar.split("loss per step=")[-1]
    per_step, meta_loss = (float(part.split(",")[0]) for part in last.split(", meta-loss="))
    assert meta_loss == pytest.approx(2 * per_step, rel=1e-2)
    meta_train()
    assert capsys.readouterr().err == ""


def distance_to(target):
    return jax.tree_util.Partial(lambda target, phi: jnp.abs(phi - target), jnp.float32(target))


def test_early_stopping_stops_and_keeps_the_best_phi():
    phis = []
    # φ grows from 0.1 by about 0.03 a step and passes 0.2 between the first two validations.
    result = meta_train(
        steps=60,
        validate=distance_to(0.2),
        patience=2,
        callbacks=[lambda progress: phis.append(float(progress.state.phi))],
    )
    history = result.history
    assert int(result.state.step) == len(history["loss"]) < 60
    best = int(np.argmin(history["validation"]))
    assert best == len(history["validation"]) - 3
    assert float(result.phi) == phis[best]
    assert float(result.last_phi) == phis[-1] != phis[best]
    assert float(result.state.best_score) == history["validation"][best]
    assert int(result.state.stale) == 2


def test_without_validation_the_result_is_the_last_phi():
    result = meta_train(validate=None)
    assert_identical(result.phi, result.last_phi)
    assert "validation" not in result.history
    assert not np.isfinite(result.state.best_score)


def test_validation_that_is_never_finite_selects_nothing():
    result = meta_train(steps=4, validate=lambda phi: jnp.nan * phi)
    assert_identical(result.phi, result.last_phi)
    assert int(result.state.stale) == 2


def test_validation_is_the_mean_final_loss_of_curves():
    phi = jnp.float32(0.3)
    key = jax.random.key(9)
    expected = curves(OPT.bind(phi), TASK, key=key, steps=2, problems=2)[:, -1].mean()
    np.testing.assert_allclose(VALIDATE(phi), expected, rtol=1e-6)
    assert VALIDATE(jnp.float32(1e30)) == np.inf


def test_a_meta_gradient_that_is_not_finite_leaves_phi_alone_and_is_marked(capsys):
    result = failing_train([0, 1, 5, 6], progress=True)
    np.testing.assert_array_equal(result.history["skipped"], [1, 1, 0, 0, 0, 1, 1, 0])
    assert "meta-loss=" in capsys.readouterr().err
    expected = train(OPT, TASK, key=KEY, steps=4, meta_optimizer=optax.adam(0.01),
                     estimator=failing_at(-1))  # fmt: skip
    assert_identical(result.last_phi, expected.last_phi)
    assert_identical(result.state.opt_state, expected.state.opt_state)


def test_one_failure_in_a_chunk_cut_short_does_not_end_the_run():
    # The last of seven steps is a chunk of its own; so is each step with validation after it.
    assert failing_train([6], steps=7).history["skipped"].sum() == 1
    result = failing_train([2, 3], validate=distance_to(0), validate_every=1, progress=True)
    assert result.history["skipped"].sum() == 2


CUTS = [
    {"chunk": 1},
    {"chunk": 3},
    {"chunk": 50},
    {"validate": distance_to(0), "validate_every": 1},
]


@pytest.mark.parametrize("settings", CUTS, ids=lambda settings: "-".join(settings))
def test_many_failures_one_after_the_other_end_the_run_and_say_what_to_do(settings):
    message = "no meta-gradient was finite in meta-steps 3 to 27; lower the rate .*clip"
    with pytest.raises(FloatingPointError, match=message):
        failing_train(range(3, 28), steps=40, **settings)
    failures = [*range(3, 27), *range(28, 40)]
    assert failing_train(failures, steps=40, **settings).history["skipped"].sum() == 36


@pytest.mark.parametrize("settings", CUTS, ids=lambda settings: "-".join(settings))
def test_a_run_of_failures_alone_is_none(settings):
    with pytest.raises(FloatingPointError, match="in meta-steps 0 to 7"):
        failing_train(range(8), **settings)
    # What is left of a run that has had better meta-steps may fail.
    half = failing_train([7], steps=7, **settings)
    assert failing_train([7], state=half.state, **settings).history["skipped"].all()


def test_rows_of_a_chunk_cut_short_keep_no_others():
    seen = []
    keep = [lambda progress: seen.append(progress.metrics)]
    meta_train(steps=5, validate=None, validate_every=100, callbacks=keep)
    assert [len(metrics["losses"]) for metrics in seen] == [4, 1]
    for array in seen[1].values():
        assert array.base is None or array.base.nbytes == array.nbytes


def test_the_best_score_has_the_precision_of_the_default(x64):
    opt = LearnedOptimizer(init=lambda key: jnp.zeros(()), bind=optax.sgd)
    score = 1 + 2.0**-40
    result = train(
        opt, TASK, key=KEY, steps=1, estimator=ESTIMATOR, validate=lambda phi: score + 0 * phi
    )
    assert float(result.state.best_score) == score


def test_a_meta_optimizer_may_ask_for_the_meta_loss():
    plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
    result = meta_train(meta_optimizer=optax.chain(optax.sgd(0.0), plateau), validate=None)
    assert result.state.opt_state[1].best_value == pytest.approx(result.history["loss"].min())


def test_clipping_bounds_the_first_step():
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    result = meta_train(steps=1, meta_optimizer=clipped, validate=None)
    assert result.history["grad_norm"][0] > 0.1
    np.testing.assert_allclose(result.phi, 0.1 + 1e-3, rtol=1e-5)


def test_meta_training_finds_the_best_rate():
    result = train(
        OPT,
        TASK,
        key=KEY,
        steps=100,
        batch=2,
        estimator=truncated(horizon=2, truncation=2),
        meta_optimizer=optax.adam(0.05),
    )
    np.testing.assert_allclose(result.phi, 1.0, atol=0.02)


@pytest.mark.slow
def test_an_lstm_learns_to_optimize():
    opt, task = lstm((4,)), quadratic(2)
    result = train(
        opt,
        task,
        key=KEY,
        steps=200,
        batch=8,
        chunk=100,
        estimator=truncated(horizon=10, truncation=10),
        meta_optimizer=optax.adam(2e-2),
    )
    first, last = (
        final_loss(curves(opt.bind(phi), task, key=jax.random.key(5), steps=10), window=1).mean()
        for phi in (opt.init(jax.random.split(KEY)[0]), result.phi)
    )
    assert last < 0.5 * first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: truncated(horizon=5, truncation=2), "truncation must divide horizon, got .*=2"),
        (lambda: truncated(horizon=0), "horizon must be a whole number of at least 1, got 0"),
        (lambda: truncated(truncation=-1), "truncation must be a whole number"),
        (lambda: truncated()(OPT, TASK, 0), "batch must be a whole number of at least 1, got 0"),
        (
            lambda: truncated(horizon=2, truncation=1, step_weights=jnp.ones(3)),
            r"step_weights must have shape \(2,\).* got shape \(3,\)",
        ),
        (
            lambda: truncated(horizon=2, truncation=1, step_weights=[1.0, np.nan]),
            "step_weights must be a finite number",
        ),
        (lambda: meta_train(steps=0), "steps must be a whole number of at least 1, got 0"),
        (lambda: meta_train(chunk=0), "chunk must be a whole number"),
        (lambda: meta_train(batch=0), "batch must be a whole number of at least 1, got 0"),
        (lambda: meta_train(validate_every=0), "validate_every must be a whole number"),
        (lambda: meta_train(patience=0), "patience must be a whole number"),
        (lambda: meta_train(patience=1, validate=None), "validate must be given for patience=1"),
        (
            lambda: meta_train(steps=2, state=make_state(3)),
            "steps must be at least the 3 that state has done, got 2",
        ),
        (lambda: validation(OPT, TASK, key=KEY, horizon=5), "window must be at most horizon=5"),
        (lambda: validation(OPT, TASK, key=KEY, problems=0), "problems must be a whole number"),
        (lambda: final_loss(jnp.ones((2, 4)), 4), "window must be at most the 3 steps, got 4"),
        (lambda: final_loss(jnp.ones((2, 4)), 0), "window must be a whole number"),
        (lambda: final_weights(3, window=4), "window must be at most horizon=3, got 4"),
        (lambda: final_weights(0), "horizon must be a whole number"),
        (lambda: polynomial_weights(3, -1.0), "power must be a non-negative number, got -1.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def make_state(step):
    names = ("key", "batch", "estimator", "meta_optimizer")
    _, state = make_step(OPT, TASK, **{name: SETTINGS[name] for name in names})
    return state._replace(step=jnp.int32(step))


def test_a_state_that_has_done_all_steps_trains_no_more():
    result = meta_train(steps=3, state=make_state(3), validate=None)
    assert result.history == {}
    assert float(result.phi) == pytest.approx(0.1)


def test_weights_sum_to_the_horizon():
    np.testing.assert_allclose(polynomial_weights(5, power=0), np.ones(5), rtol=1e-6)
    np.testing.assert_allclose(
        polynomial_weights(4, power=2), 4 * np.array([1, 4, 9, 16]) / 30, rtol=1e-6
    )
    np.testing.assert_array_equal(final_weights(5, window=2), [0, 0, 0, 2.5, 2.5])


def test_final_loss_is_the_mean_after_the_last_updates():
    losses = np.arange(24.0).reshape(2, 12)
    np.testing.assert_array_equal(final_loss(jnp.asarray(losses)), losses[:, 2:].mean(axis=1))
    assert final_loss(jnp.asarray(losses[0]), window=1) == 11
