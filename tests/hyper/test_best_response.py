"""Best responses of quadratics, whose optima are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import hyper
from l2ljax.core import LearnedTask, Task

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(1)
PULL = np.array([[1.0, 0.0], [0.5, 0.8], [0.0, 1.2]], np.float32)
WANTED = np.array([1.0, -0.5, 0.3], np.float32)

# The weights that are best for λ are PULL λ.
QUADRATIC = LearnedTask(
    init=lambda key: jnp.zeros(2),
    bind=lambda lam: Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.zeros(3),
        loss=lambda w, problem, key: 0.5 * jnp.sum((w - PULL @ lam) ** 2),
        objective=lambda w, problem, key: 0.5 * jnp.sum((w - WANTED) ** 2),
    ),
)
NETWORK = hyper.mlp_hypernetwork(lambda key: jnp.zeros(3), 2, output_scale=1.0)
BEST = np.linalg.lstsq(PULL, WANTED)[0]


def sample(key):
    return jax.random.normal(key, (2,))


def test_the_global_algorithm_learns_the_best_response_and_descends_on_it():
    found = hyper.tune_global(
        QUADRATIC,
        NETWORK,
        sample,
        key=KEY,
        steps=300,
        tuning_steps=200,
        batch=4,
        optimizer=optax.sgd(0.3),
        meta_optimizer=optax.sgd(0.3),
    )
    np.testing.assert_allclose(found.phi["Dense_0"]["kernel"], PULL.T, atol=1e-3)
    np.testing.assert_allclose(found.lam, BEST, atol=2e-3)
    np.testing.assert_allclose(
        found.objectives[-1], 0.5 * np.sum((PULL @ BEST - WANTED) ** 2), 0.02
    )
    assert found.losses.shape == (301,) and found.objectives.shape == (201,)


def test_the_local_algorithm_moves_while_it_learns():
    found = hyper.tune_local(
        QUADRATIC,
        NETWORK,
        key=KEY,
        steps=600,
        std=0.5,
        batch=4,
        training_steps=2,
        optimizer=optax.sgd(0.1),
        meta_optimizer=optax.sgd(0.03),
    )
    np.testing.assert_allclose(found.lam, BEST, atol=0.01)
    np.testing.assert_allclose(found.std, 0.5, rtol=1e-6)
    assert found.losses.shape == (1200,) and found.objectives.shape == (600,)


def test_self_tuning_networks_learn_how_far_to_look():
    entropy = 0.1
    found = hyper.tune_local(
        QUADRATIC,
        NETWORK,
        key=KEY,
        steps=1500,
        std=0.5,
        batch=32,
        training_steps=2,
        entropy=entropy,
        optimizer=optax.sgd(0.2),
        meta_optimizer=optax.sgd(0.05),
    )
    np.testing.assert_allclose(found.lam, BEST, atol=0.05)
    # ½ σ² ‖column of PULL‖² - τ log σ is least there.
    np.testing.assert_allclose(found.std, np.sqrt(entropy / np.sum(PULL**2, axis=0)), rtol=0.1)


def test_a_response_task_is_the_mean_over_drawn_metaparameters():
    task = LearnedTask(
        init=lambda key: jnp.zeros(()),
        bind=lambda lam: Task(
            sample=lambda key: jax.random.uniform(key),
            init=lambda key, problem: jnp.zeros(()),
            # The minibatch is in the thousands, λ in units.
            loss=lambda w, problem, key: 1000 * jax.random.randint(key, (), 0, 9) + lam,
        ),
    )
    network = hyper.mlp_hypernetwork(lambda key: jnp.zeros(()), 1)
    drawn = []

    def recorded(key):
        drawn.append(key)
        return jax.random.uniform(key)

    response = hyper.response_task(task, network, recorded, batch=50)
    losses = [
        float(response.loss(network.init(KEY), (), jax.random.key(i))) % 1000 for i in range(20)
    ]
    # One minibatch for all: no fraction of a thousand is left.
    np.testing.assert_allclose(np.mean(losses), 0.5, atol=0.05)
    assert 0 < np.std(losses) < 0.1
    assert response.objective is response.loss


def test_bad_settings_are_refused_by_name():
    for settings, name in [
        ({"steps": 0}, "steps"),
        ({"std": 0.0}, "std"),
        ({"batch": 0}, "batch"),
        ({"training_steps": 0}, "training_steps"),
        ({"tuning_steps": 0}, "tuning_steps"),
        ({"entropy": -1.0}, "entropy"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            hyper.tune_local(QUADRATIC, NETWORK, **{"key": KEY, "steps": 1, **settings})
    for settings, name in [
        ({"steps": 0}, "steps"),
        ({"tuning_steps": 0}, "tuning_steps"),
        ({"batch": 0}, "batch"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            hyper.tune_global(
                QUADRATIC,
                NETWORK,
                sample,
                **{"key": KEY, "steps": 1, "tuning_steps": 1, **settings},
            )
