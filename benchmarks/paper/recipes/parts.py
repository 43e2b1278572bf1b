"""What a recipe is made of."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import meta
from l2ljax.core import LearnedOptimizer, Phi, Task


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of meta-training.

    Attributes:
        steps: meta-updates.
        rate: first learning rate of Adam on φ: rises over 50 meta-steps, falls by a cosine.
        estimator: of the meta-gradient.
        batch: problems of one meta-gradient.
        task: what it is trained on; None: the recipe's task.
        validate: as the recipe's; None: the recipe's.
        share: of what it finds in the φ that it leaves; the rest is the φ that it began with.
        finish: `finish(φ, key) -> φ`, what becomes of that; None: nothing.
    """

    steps: int
    rate: float
    estimator: meta.EstimatorFactory
    batch: int = 1
    task: Task | list[Task] | None = None
    validate: Callable[[jax.Array], Callable[[Phi], Any]] | None = None
    share: float = 1.0
    finish: Callable[[Phi, jax.Array], Phi] | None = None

    def meta_optimizer(self) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(self.rate, self.steps)
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / 50)),
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one set of weights is made.

    Attributes:
        opt: the learned optimizer.
        task: what it is trained on: a task, or several in turns.
        parts: runs, one after the other.
        validate: `validate(key) -> score`, the score of φ that chooses the best one.
        trained_on: one line for the card.
        limits: one line for the card.
        start: `start(folder, key) -> φ`, where the first part begins; None: drawn by `opt.init`.
    """

    opt: LearnedOptimizer
    task: Task | list[Task]
    parts: list[Part]
    validate: Callable[[jax.Array], Callable[[Phi], Any]]
    trained_on: str
    limits: str
    start: Callable[[pathlib.Path, jax.Array], Phi] | None = None


def whole_episodes(horizon: int = 100, second_derivatives: bool = False) -> meta.EstimatorFactory:
    """Backpropagation through whole episodes, late losses weighted most."""
    return meta.truncated(
        horizon=horizon,
        truncation=horizon,
        step_weights=meta.polynomial_weights(horizon) / horizon,
        second_derivatives=second_derivatives,
    )
