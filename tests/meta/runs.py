"""Short runs of meta-training that share their programs, and runs that fail."""

import jax
import jax.numpy as jnp
import optax

from l2ljax.core import Estimate, Estimator, LearnedOptimizer, Task
from l2ljax.meta import train, truncated, validation

KEY = jax.random.key(0)


def bowl():
    """f(θ) = |θ - c|²/2: gradient descent with rate 1 solves it in one step."""
    return Task(
        sample=lambda key: jax.random.uniform(key, (2,)),
        init=lambda key, problem: jnp.zeros(2),
        loss=lambda params, problem, key: 0.5 * jnp.sum((params - problem) ** 2),
    )


def learned_rate(first=0.1):
    return LearnedOptimizer(init=lambda key: jnp.float32(first), bind=lambda phi: optax.sgd(phi))


# Made once: programs are shared between tests where functions are the same objects.
OPT, TASK = learned_rate(), bowl()
VALIDATE = validation(OPT, TASK, key=jax.random.key(9), horizon=2, problems=2, window=1)
ESTIMATOR = truncated(horizon=4, truncation=2)
SETTINGS = {
    "key": KEY,
    "batch": 2,
    "estimator": ESTIMATOR,
    "meta_optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.03)),
    "validate": VALIDATE,
    "validate_every": 3,
    "chunk": 4,
}


def meta_train(**settings):
    return train(OPT, TASK, **{"steps": 9} | SETTINGS | settings)


def failing_at(*steps):
    """An estimator of |φ|²/2 whose gradient or loss is not finite at some steps."""

    def estimate(phi, step, key):
        bad = jnp.isin(step, jnp.array(steps))
        gradient = jnp.where(bad, jnp.nan, phi)
        return Estimate(jnp.where(bad, jnp.inf, 0.5 * phi**2), gradient, {}), step + 1

    estimator = Estimator(init=lambda key, phi: jnp.int32(0), estimate=estimate)
    return lambda opt, task, batch: estimator


def failing_train(bad, **settings):
    settings = {"key": KEY, "steps": 8, "chunk": 3, "meta_optimizer": optax.adam(0.01)} | settings
    return train(OPT, TASK, estimator=failing_at(*bad), **settings)
