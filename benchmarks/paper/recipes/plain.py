"""The paper's optimizer, on quadratics and on MNIST."""

import jax.numpy as jnp

from l2ljax import learned, meta, tasks
from recipes.parts import Part, Recipe, whole_episodes


def lstm_quadratic(data_dir: str | None) -> Recipe:
    del data_dir
    opt = learned.lstm()
    task = tasks.quadratic()
    segments = meta.truncated(horizon=100, truncation=20, step_weights=jnp.full(100, 1 / 20))
    return Recipe(
        opt=opt,
        task=task,
        # Whole episodes afterwards, at 1e-3 with late losses weighted most, undid it: .17 to .23.
        parts=[Part(6500, 1e-2, segments, batch=128)],
        validate=lambda key: meta.validation(opt, task, key=key, problems=512, window=1),
        trained_on="quadratic functions of 10 coordinates, 100 steps",
        limits="problems of this size and scale only",
    )


def lstm_mnist(data_dir: str | None) -> Recipe:
    opt = learned.lstm()
    task = tasks.load("mnist", data_dir).train
    weights = meta.polynomial_weights(100) / 20
    segments = meta.truncated(horizon=100, truncation=20, step_weights=weights)
    return Recipe(
        opt=opt,
        task=task,
        parts=[Part(1000, 1e-2, segments), Part(200, 1.5e-3, whole_episodes())],
        validate=lambda key: meta.validation(opt, task, key=key, problems=16),
        trained_on="MNIST, 784-20-10 sigmoid MLP, 100 steps",
        limits="the paper's optimizer, which fails on other activations and horizons",
    )
