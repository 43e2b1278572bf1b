"""Sums of estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import KEY, OPT, PHI, TASK, assert_identical, estimate, slopes, start

from l2ljax import checkpoint
from l2ljax.core import Estimate, Estimator
from l2ljax.meta import imitation, make_step, train, truncated, weighted

LOSS = truncated(horizon=4, truncation=2)
IMITATION = imitation(optax.sgd(0.01), horizon=2, truncation=2)


def make(factory):
    return factory(OPT, TASK, 2)


def first(factory, key=KEY):
    estimator = make(factory)
    return estimate(estimator, PHI, start(estimator), key)[0]


def test_a_sum_of_one_estimator_is_that_estimator():
    whole, alone = make(weighted([(1.0, LOSS)])), make(LOSS)
    state, other = start(whole), start(alone)
    for i in range(3):
        found, state = estimate(whole, PHI, state, jax.random.fold_in(KEY, i))
        expected, other = estimate(alone, PHI, other, jax.random.fold_in(KEY, i))
        assert_identical((found.loss, found.grad), (expected.loss, expected.grad))
        assert_identical(state.members, (other,))
    np.testing.assert_array_equal(found.aux["0/losses"], expected.aux["losses"])


def test_loss_and_gradient_are_weighted_sums_with_the_documented_keys():
    found = first(weighted({"loss": (2.0, LOSS), "imitation": (0.5, IMITATION)}))
    one, other = first(LOSS), first(IMITATION, jax.random.fold_in(KEY, 2**31 + 2))
    np.testing.assert_allclose(found.loss, 2 * one.loss + 0.5 * other.loss, rtol=1e-6)
    np.testing.assert_allclose(found.grad, 2 * one.grad + 0.5 * other.grad, rtol=1e-5)
    assert sorted(found.aux) == [
        "imitation/loss", "imitation/losses", "imitation/step",
        "loss/loss", "loss/losses", "loss/step",
    ]  # fmt: skip
    np.testing.assert_allclose(found.aux["imitation/loss"], other.loss, rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences(x64):
    log = truncated(horizon=2, truncation=2, meta_loss="log", second_derivatives=True)
    estimator = make(weighted([(1.0, log), (optax.constant_schedule(0.3), IMITATION)]))
    phi = PHI.astype(jnp.float64)
    state = start(estimator, phi)
    found, _ = estimate(estimator, phi, state, KEY)
    np.testing.assert_allclose(found.grad, slopes(estimator, phi, state, KEY), rtol=1e-6)


def constant(value):
    """An estimator with a loss of `value` and a gradient of ten times that."""

    def estimate(phi, state, key):
        return Estimate(jnp.float32(value), jnp.full_like(phi, 10 * value), {}), state

    return lambda opt, task, batch: Estimator(init=lambda key, phi: (), estimate=estimate)


def test_a_schedule_counts_calls_from_zero():
    fading = optax.linear_schedule(1.0, 0.0, 4)
    estimator = make(weighted([(0.5, constant(1.0)), (fading, constant(2.0))]))
    state = start(estimator)
    losses, gradients = [], []
    for _ in range(6):
        found, state = estimate(estimator, PHI, state, KEY)
        losses.append(found.loss)
        gradients.append(found.grad[0])
    np.testing.assert_allclose(losses, [2.5, 2.0, 1.5, 1.0, 0.5, 0.5])
    np.testing.assert_allclose(gradients, 10 * np.array(losses))
    assert state.calls == 6


def test_training_resumes_bit_for_bit_from_a_file(tmp_path):
    fading = optax.linear_schedule(1.0, 0.0, 5)
    factory = weighted({"loss": (1.0, LOSS), "imitation": (fading, IMITATION)})
    settings = {"key": KEY, "batch": 2, "estimator": factory}
    states = []
    whole = train(
        OPT, TASK, steps=6, chunk=3, callbacks=[lambda p: states.append(p.state)], **settings
    )
    checkpoint.save_state(tmp_path, 3, states[0])
    _, like = make_step(OPT, TASK, **settings)
    state = checkpoint.read_state(tmp_path, like)
    resumed = train(OPT, TASK, steps=6, chunk=3, state=state, **settings)
    assert whole.history["imitation/losses"].shape == (6, 2)
    for name, rows in whole.history.items():
        np.testing.assert_array_equal(resumed.history[name], rows[3:])
    np.testing.assert_array_equal(resumed.phi, whole.phi)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="terms must have at least one pair"):
        weighted([])
    with pytest.raises(ValueError, match="the weight of 'loss' must be a finite number, got nan"):
        weighted({"loss": (float("nan"), LOSS)})
