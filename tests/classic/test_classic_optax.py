"""The methods that optax has, too, over 120 steps in float64; the twins are in the table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods_table import METHODS

STEPS = 120
SHAPES = {"bias": (3,), "scale": (), "weight": (2, 3)}
TWINS = [m for m in METHODS if m.twin is not None]


def trajectory(tx, params, gradients):
    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


def assert_equal_trajectories(tx, twin):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    gradients = {
        name: jnp.asarray(rng.normal(size=(STEPS, *shape)) * 10 ** rng.uniform(-3, 1, size=shape))
        for name, shape in SHAPES.items()
    }
    ours, theirs = trajectory(tx, params, gradients), trajectory(twin, params, gradients)
    for name in SHAPES:
        assert ours[name].dtype == jnp.float64
        np.testing.assert_array_less(
            np.abs(ours[name] - theirs[name]), 1e-12 * np.abs(theirs[name]).max()
        )


@pytest.mark.parametrize("method", TWINS, ids=str)
def test_method_matches_optax_over_many_steps(method, x64):
    rate = method.hyperparameters["learning_rate"]
    assert_equal_trajectories(method.make(), method.twin(rate))


@pytest.mark.parametrize("method", [m for m in TWINS if m.twin_takes_schedules], ids=str)
def test_method_matches_optax_under_a_schedule(method, x64):
    schedule = optax.cosine_decay_schedule(0.1, decay_steps=STEPS)
    scheduled = method.factory(**{**method.hyperparameters, "learning_rate": schedule})
    assert_equal_trajectories(scheduled, method.twin(schedule))
