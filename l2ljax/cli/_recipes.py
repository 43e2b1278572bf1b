"""How `l2ljax train` meta-trains on each task unless told otherwise."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from l2ljax import _checks, learned, meta
from l2ljax.cli._optimizers import imported
from l2ljax.core import LearnedOptimizer, Task


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a run of meta-training; plain JSON values.

    Attributes:
        steps: meta-updates.
        batch: problems of one meta-gradient.
        horizon: inner steps of an episode.
        truncation: inner steps of a meta-update.
        meta_rate: Adam's learning rate on φ: rises over 50 meta-steps, then falls to zero by a
            cosine.
        clip: largest global norm of a meta-gradient.
        power: the losses of an episode are weighted by t^power; 0 trains for the mean loss of a
            run, larger powers for its final loss.
        preprocess: of the LSTM's inputs: "log_sign", "scale" or "none".
        output_scale: of the LSTM's outputs.
        optimizer: `module:name` of another learned optimizer in place of the LSTM.
    """

    steps: int
    batch: int
    horizon: int = 100
    truncation: int = 20
    meta_rate: float = 1e-2
    clip: float = 1.0
    power: float = 2.0
    preprocess: str | None = "log_sign"
    output_scale: float | None = 0.1
    optimizer: str | None = None

    def __post_init__(self) -> None:
        # The rest is checked by what it is handed to.
        _checks.count("steps", self.steps)
        _checks.count("batch", self.batch)
        _checks.positive("meta_rate", self.meta_rate)
        _checks.positive("clip", self.clip)
        if self.optimizer is None:
            _checks.choice("preprocess", self.preprocess, ["log_sign", "scale", "none"])
            _checks.positive("output_scale", self.output_scale)

    def learned_optimizer(self) -> LearnedOptimizer:
        """The optimizer of these settings."""
        if self.optimizer is not None:
            return imported(self.optimizer)
        preprocess = None if self.preprocess == "none" else self.preprocess
        settings: dict[str, Any] = {"preprocess": preprocess, "output_scale": self.output_scale}
        return learned.lstm(**settings)

    def _rate(self, step: Array) -> Array:
        decay = optax.cosine_decay_schedule(self.meta_rate, self.steps)(step)
        return decay * jnp.minimum(1.0, (step + 1) / 50)

    def training(
        self, opt: LearnedOptimizer, task: Task, *, seed: int, window: int
    ) -> dict[str, Any]:
        """Arguments of `meta.train` beside the optimizer and the task."""
        run_key, validation_key = jax.random.split(jax.random.key(seed))
        weights = meta.polynomial_weights(self.horizon, self.power) / self.truncation
        return {
            "key": run_key,
            "steps": self.steps,
            "batch": self.batch,
            "estimator": meta.truncated(
                horizon=self.horizon, truncation=self.truncation, step_weights=weights
            ),
            "meta_optimizer": optax.chain(
                optax.clip_by_global_norm(self.clip),
                optax.adam(self._rate),
            ),
            "validate": meta.validation(
                opt, task, key=validation_key, horizon=self.horizon, window=window
            ),
            "validate_every": max(1, self.steps // 10),
        }


RECIPES: dict[str, Recipe] = {
    "quadratic": Recipe(steps=6500, batch=128, power=0.0),
    "digits": Recipe(steps=1200, batch=4),
    "mnist": Recipe(steps=1000, batch=1),
    "art": Recipe(steps=1000, batch=1, horizon=128, truncation=16),
}
RECIPES |= dict.fromkeys(
    ("cifar10", "cifar5", "cifar5-sub", "cifar2", "cifar2-sub"), RECIPES["mnist"]
)
