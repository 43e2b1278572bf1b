"""Evolution strategies over whole episodes of several lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, meta, tasks
from l2ljax.core import LearnedOptimizer
from l2ljax.meta._whole_es import centered_ranks

OPT = learned.lstm((3,), preprocess=None)
TASK = tasks.quadratic(dim=3)
HORIZONS = (4, 7)


@functools.cache
def estimate(horizon, seed, **settings):
    est = meta.es(horizon=horizon, std=0.1, pairs=2, **settings)(OPT, TASK, batch=2)
    phi = OPT.init(jax.random.key(0))
    key = jax.random.key(seed)
    return jax.jit(est.estimate)(phi, est.init(key, phi), key)[0]


@pytest.mark.parametrize("meta_loss", ["mean", "log", "log_improvement"])
def test_it_equals_the_estimate_of_the_horizon_that_it_draws(meta_loss):
    drawn = set()
    for seed in range(4):
        found = estimate(HORIZONS, seed, meta_loss=meta_loss)
        horizon = int(found.aux["horizon"])
        drawn.add(horizon)
        expected = estimate(horizon, seed, meta_loss=meta_loss)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
            found.grad,
            expected.grad,
        )
    assert drawn == set(HORIZONS)


def test_ranks_of_a_single_horizon_are_those_of_several_that_draw_it():
    drawn = [estimate(HORIZONS, seed, shaping="ranks").aux["horizon"] for seed in range(4)]
    seed = drawn.index(4)
    found, expected = (estimate(h, seed, shaping="ranks") for h in (4, HORIZONS))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(expected.grad))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected
    )


def test_final_is_the_mean_of_the_weighted_losses():
    settings = {"step_weights": functools.partial(meta.final_weights, window=2)}
    found = estimate(HORIZONS, 1, **settings)
    losses = estimate(int(found.aux["horizon"]), 1, **settings).aux["losses"]
    np.testing.assert_allclose(found.aux["final"], losses[-2:].mean(), rtol=1e-4)


def test_ranks_know_no_scale_and_take_a_diverged_run_for_the_worst():
    found = centered_ranks(jnp.array([1e9, 2.0, jnp.nan, -5.0, 2.0]))
    np.testing.assert_allclose(found, [0.25, -0.125, 0.5, -0.5, -0.125])


def test_ranks_lead_downhill():
    result = meta.train(
        learned.hyperparameters(optax.sgd, learning_rate=1e-4),
        TASK,
        key=jax.random.key(0),
        steps=60,
        meta_optimizer=optax.adam(0.1),
        estimator=meta.es(horizon=HORIZONS, std=0.3, pairs=4, shaping="ranks", meta_loss="log"),
    )
    losses = result.history["loss"]
    assert losses[-10:].mean() < losses[:10].mean() - 1


def test_transformations_that_take_it_get_the_number_of_steps():
    def update(updates, state, params=None, *, num_steps, **rest):
        del params, rest
        return jax.tree.map(lambda g: -g * num_steps, updates), state

    told = LearnedOptimizer(
        lambda key: jnp.ones(()),
        lambda phi: optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update),
    )
    for factory in (
        meta.es(horizon=HORIZONS, pairs=1),
        meta.es(horizon=4, pairs=1),
        meta.truncated(horizon=4, truncation=2),
        meta.pes(horizon=4, truncation=2),
    ):
        est = factory(told, TASK)
        key = jax.random.key(0)
        found, _ = est.estimate(jnp.ones(()), est.init(key, jnp.ones(())), key)
        assert np.isfinite(found.loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": (4, 7), "shaping": "rank"}, "shaping"),
        ({"horizon": (4, 8), "truncation": 2, "shaping": "ranks"}, "shaping"),
        ({"horizon": ()}, "horizon"),
        ({"horizon": (4, 7), "curriculum": 3}, "curriculum"),
        ({"horizon": (4, 0)}, "horizon"),
        ({"horizon": (4, 7), "meta_loss": "sum"}, "meta_loss"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        meta.es(**settings)
