"""Exact meta-gradients of episodes that are run in one piece: estimators without a state."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    Phi,
    Scalar,
    Task,
    as_partial,
    closure,
)
from l2ljax.meta import Episode, EstimatorFactory, begin_episodes, device_mean

Measure = Callable[[optax.GradientTransformation, Task, Episode], tuple[Scalar, dict[str, Array]]]
"""`measure(tx, task, episode) -> (meta-loss, aux)` of one problem."""


def whole_episodes(measure: Measure) -> EstimatorFactory:
    """A factory of estimators that differentiate a measure of whole episodes.

    Args:
        measure: runs one episode; what it returns is averaged over the batch.
    """
    measure = as_partial(measure)

    def factory(
        opt: LearnedOptimizer, task: Task, batch: int = 1, axis: str | None = None
    ) -> Estimator:
        _checks.count("batch", batch)
        return Estimator(
            init=as_partial(_no_state),
            estimate=closure(_estimate, measure, opt, task, batch=batch, axis=axis),
        )

    return factory


def _no_state(key: Key, phi: Phi) -> tuple[()]:
    del key, phi
    return ()


def _estimate(
    measure: Partial,
    opt: LearnedOptimizer,
    task: Task,
    phi: Phi,
    state: Any,
    key: Key,
    *,
    batch: int,
    axis: str | None,
) -> tuple[Estimate, Any]:
    episodes = begin_episodes(task, key, batch, axis)

    def meta_loss(phi: Phi) -> tuple[Scalar, dict[str, Array]]:
        tx = opt.bind(phi)
        found = jax.vmap(lambda episode: measure(tx, task, episode))(episodes)
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), found)

    (loss, aux), grad = jax.value_and_grad(meta_loss, has_aux=True)(phi)
    return Estimate(*device_mean(axis, (loss, grad, aux))), state
