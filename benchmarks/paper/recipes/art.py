"""An optimizer for images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2ljax import learned, meta, tasks
from l2ljax.core import Phi
from recipes.lengths import best_length, longer
from recipes.parts import Part, Recipe
from recipes.training_tasks import repainted


def lstm_art(data_dir: str | None) -> Recipe:
    del data_dir
    # As far as classic methods go in their first steps: with steps of at most .1, as in `general`,
    # it is behind them until the twentieth.
    bound = 0.3
    opt = learned.adaptive_lstm((20,), b1=(0.9, 0.99), output_scale=bound)
    task = tasks.load("art").train
    painted = [
        task,
        # Trained on one style alone, it is slower on others.
        repainted(64, 32, 3.0, (2, 0, 1)),
        repainted(64, 64, -2.0, (1, 2, 0)),
        repainted(128, 128, 2.0, (2, 1, 0)),
        repainted(128, 64, -3.0, (0, 2, 1)),
    ]

    def validate(key: jax.Array) -> Callable[[Phi], Any]:
        return meta.validation(opt, painted, key=key, horizon=128, problems=4, window=1)

    # The loss is a mean over pixels: on an image twice as large its slopes are a quarter.
    scaled = [task, *(tasks.augment(kind, loss=4.0) for kind in painted)]

    def segments(truncation: int, power: float, first: int = 0) -> meta.EstimatorFactory:
        # Meta-gradients of whole episodes explode. Late losses of each segment weigh most.
        steps = jnp.arange(128)
        weights = (power + 1) / truncation * ((steps % truncation + 1) / truncation) ** power
        exact = meta.truncated(
            horizon=128,
            truncation=truncation,
            step_weights=jnp.where(steps >= first, weights, 0),
            meta_loss="log",
            second_derivatives=True,
        )
        return meta.mixture(exact, weights=[1] * len(scaled), normalize="gradient")

    def best(phi: Phi, key: jax.Array) -> Phi:
        lengths = (0.7, 0.85, 1.0, 1.2, 1.4, 1.7)
        windows = (1,) * len(painted)
        return best_length(
            opt, painted, phi, key, lengths=lengths, runs=((128, 8),), windows=windows
        )

    return Recipe(
        opt=opt,
        task=task,
        parts=[
            Part(1000, 1e-3, segments(32, 0), batch=2, task=scaled, finish=best),
            # Ahead early, but not at the end: longer segments.
            Part(500, 5e-4, segments(64, 2), batch=2, task=scaled, finish=best),
            # Meta-gradients of the loss after 64 steps and of the loss at the end are opposed (a
            # cosine of -.7): the end alone. The other segments of an episode only lead to it.
            Part(1000, 5e-4, segments(32, 8, first=96), batch=2, task=scaled, finish=best),
        ],
        validate=validate,
        trained_on="as general in its first three parts, then neural art of 64x64 pixels in one "
        "style, in other colours, contrasts and scales, too, random scales of its loss; 128 steps",
        limits="images and losses of this kind",
        # What `weights.py general` leaves there: as it shipped before its fourth part.
        start=lambda folder, key: longer(
            learned.restore(folder.parent / "general" / "part-3")[1], 0.1 / bound
        ),
    )
