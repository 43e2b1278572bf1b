"""The meta-loss of one segment of an episode: what every estimator differentiates or samples."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax.core import (
    ArrayLike,
    Estimator,
    LearnedOptimizer,
    LearnedTask,
    Params,
    Scalar,
    Task,
    as_partial,
    closure,
)
from l2ljax.meta._binding import require_second_derivatives
from l2ljax.meta._horizons import Horizons
from l2ljax.meta._replay import advance_replaying, replays
from l2ljax.meta._segments import EstimatorFactory, TruncatedState, horizon_of, segmented
from l2ljax.meta._unroll import advance, init_batch, update_rule

StepWeights = TypeAliasType("StepWeights", ArrayLike | Sequence[float] | Callable[[int], ArrayLike])
"""w₁ … w_T, or a function of the horizon T that returns them."""

META_LOSSES: dict[str, Callable[..., Array]] = {
    "mean": lambda losses, initial: losses,
    "log": lambda losses, initial: jnp.log(losses),
    "log_improvement": lambda losses, initial: (
        jnp.log(losses) - jnp.log(jnp.broadcast_to(initial, losses.shape))
    ),
}


def estimator_of(
    lengths: Horizons,
    truncation: int,
    *,
    step_weights: StepWeights | None,
    meta_loss: str,
    second_derivatives: bool,
    nested: bool = False,
    gradient: Partial | None = None,
) -> EstimatorFactory:
    """A factory of estimators that differentiate this meta-loss; arguments as in `truncated`.

    Args:
        lengths: horizons of the episodes.
        truncation: inner steps of a segment.
        step_weights: w₁ … w_T.
        meta_loss: a name in `META_LOSSES`.
        second_derivatives: whether ∂∇/∂φ is kept.
        nested: as in `advance`.
        gradient: as in `segmented`.

    Raises:
        ValueError: as `step_weight_table` does, or for an unknown meta-loss.
    """
    weights = step_weight_table(step_weights, lengths)
    _checks.choice("meta_loss", meta_loss, META_LOSSES)
    run = closure(
        run_segment,
        horizons=lengths,
        truncation=truncation,
        meta_loss=meta_loss,
        second_derivatives=second_derivatives,
        nested=nested,
        backwards=gradient is None,
    )

    def factory(
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        require_second_derivatives(task, second_derivatives)
        return segmented(
            as_partial(start),
            run,
            opt,
            task,
            weights,
            horizons=lengths,
            truncation=truncation,
            batch=batch,
            axis=axis,
            keep_initial=meta_loss == "log_improvement",
            gradient=gradient,
        )

    return factory


def step_weight_table(
    step_weights: StepWeights | None, lengths: Horizons
) -> Float[Array, "... horizon"]:
    """The weights of the only horizon, or a row for each, filled up with zeros.

    Raises:
        ValueError: for weights of another length or that are not finite, or an array of them for
            several horizons.
    """
    if step_weights is None:
        step_weights = jnp.ones
    if lengths.vary and not callable(step_weights):
        raise ValueError(
            "step_weights must be a function of the horizon where there are several, such as "
            f"meta.polynomial_weights, got shape {jnp.asarray(step_weights).shape}"
        )
    rows = []
    for length in lengths.lengths:
        row = jnp.asarray(step_weights(length) if callable(step_weights) else step_weights)
        if row.shape != (length,):
            raise ValueError(
                f"step_weights must have shape ({length},), one weight for each step of the "
                f"horizon, got shape {row.shape}"
            )
        _checks.finite("step_weights", row)
        rows.append(row)
    if not lengths.vary:
        return rows[0]
    return jnp.stack([jnp.pad(row, (0, lengths.lengths[-1] - row.size)) for row in rows])


def start(tx: optax.GradientTransformation, extra: Array, params: Params) -> Any:
    """The first state of the bound transformation, for a batch of params."""
    del extra
    return init_batch(tx, params)


def run_segment(
    tx: optax.GradientTransformation,
    task: Task,
    weights: Float[Array, "... horizon"],
    state: TruncatedState,
    *,
    horizons: Horizons,
    truncation: int,
    meta_loss: str,
    second_derivatives: bool,
    nested: bool = False,
    backwards: bool = False,
) -> tuple[Scalar, tuple[Array, Params, Any]]:
    """The meta-loss of one segment, then losses, params and state as `advance` returns them.

    With `backwards` it may be differentiated in no other way.
    """
    begin = (task, state.episode, state.opt_state, state.step)
    if backwards and not second_derivatives and not nested and replays(tx, state.episode.params):
        losses, params, opt_state = advance_replaying(tx, *begin, steps=truncation)
    else:
        losses, params, opt_state = advance(
            update_rule(tx, task, batched=True, num_steps=horizon_of(state, horizons)),
            *begin,
            steps=truncation,
            second_derivatives=second_derivatives,
            batched=True,
            nested=nested,
        )
    if state.horizon is not None:
        weights = weights[jnp.searchsorted(jnp.asarray(horizons.lengths), state.horizon)]
    weights = jax.lax.dynamic_slice_in_dim(weights, state.step, truncation)
    measured = META_LOSSES[meta_loss](losses[1:], state.initial).mean(axis=1)
    return weights.astype(measured.dtype) @ measured, (losses, params, opt_state)
