"""Sums of estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import checkpoint
from l2ljax.core import Estimate, Estimator, LearnedOptimizer
from l2ljax.meta import imitation, make_step, train, truncated, weighted
from l2ljax.tasks import quadratic

KEY = jax.random.key(0)
PHI = jnp.array([0.02, 0.5])

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPT = LearnedOptimizer(init=lambda key: PHI, bind=lambda phi: optax.sgd(phi[0], momentum=phi[1]))
TASK = quadratic(2)
LOSS = truncated(horizon=4, truncation=2)
IMITATION = imitation(optax.sgd(0.01), horizon=2, truncation=2)


def prepare(factory, phi=PHI):
    estimator = factory(OPT, TASK, 2)
    return jax.jit(estimator.estimate), jax.jit(estimator.init)(KEY, phi)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, strict=True)


def test_a_sum_of_one_estimator_is_that_estimator():
    whole, state = prepare(weighted([(1.0, LOSS)]))
    alone, other = prepare(LOSS)
    for i in range(3):
        found, state = whole(PHI, state, jax.random.fold_in(KEY, i))
        expected, other = alone(PHI, other, jax.random.fold_in(KEY, i))
        assert_identical((found.loss, found.grad), (expected.loss, expected.grad))
        assert_identical(state.members, (other,))
    np.testing.assert_array_equal(found.aux["0/losses"], expected.aux["losses"])


def test_loss_and_gradient_are_weighted_sums_with_the_documented_keys():
    whole, state = prepare(weighted({"loss": (2.0, LOSS), "imitation": (0.5, IMITATION)}))
    found, _ = whole(PHI, state, KEY)
    first, second = (
        estimate(PHI, other, key)[0]
        for (estimate, other), key in [
            (prepare(LOSS), KEY),
            (prepare(IMITATION), jax.random.fold_in(KEY, 2**31 + 2)),
        ]
    )
    np.testing.assert_allclose(found.loss, 2 * first.loss + 0.5 * second.loss, rtol=1e-6)
    np.testing.assert_allclose(found.grad, 2 * first.grad + 0.5 * second.grad, rtol=1e-5)
    assert sorted(found.aux) == [
        "imitation/loss", "imitation/losses", "imitation/step",
        "loss/loss", "loss/losses", "loss/step",
    ]  # fmt: skip
    np.testing.assert_allclose(found.aux["imitation/loss"], second.loss, rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences(x64):
    factory = weighted(
        [
            (1.0, truncated(horizon=2, truncation=2, meta_loss="log", second_derivatives=True)),
            (optax.constant_schedule(0.3), IMITATION),
        ]
    )
    phi = PHI.astype(jnp.float64)
    estimator = factory(OPT, TASK, 2)
    state = estimator.init(KEY, phi)
    estimate = jax.jit(lambda phi: estimator.estimate(phi, state, KEY)[0])
    for i, width in enumerate(1e-6 * np.eye(2)):
        slope = (estimate(phi + width).loss - estimate(phi - width).loss) / 2e-6
        np.testing.assert_allclose(estimate(phi).grad[i], slope, rtol=1e-6)


def constant(value):
    """An estimator with a loss of `value` and a gradient of ten times that."""

    def estimate(phi, state, key):
        return Estimate(jnp.float32(value), jnp.full_like(phi, 10 * value), {}), state

    return lambda opt, task, batch: Estimator(init=lambda key, phi: (), estimate=estimate)


def test_a_schedule_counts_calls_from_zero():
    fading = optax.linear_schedule(1.0, 0.0, 4)
    estimate, state = prepare(weighted([(0.5, constant(1.0)), (fading, constant(2.0))]))
    losses, gradients = [], []
    for _ in range(6):
        found, state = estimate(PHI, state, KEY)
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
