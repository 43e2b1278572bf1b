"""Episodes cut into segments, one a call: what estimators by truncated backpropagation share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    Params,
    Phi,
    Scalar,
    Task,
    closure,
)
from l2ljax.meta._episodes import Episode, batch_keys, begin
from l2ljax.meta._horizons import Horizons

EstimatorFactory = Callable[..., Estimator]
"""`factory(opt, task, batch=1) -> Estimator`: an estimator before it knows what it estimates."""


class TruncatedState(NamedTuple):
    """Where the episodes of the batch stand.

    Attributes:
        step: inner steps done in the present episodes; their horizon when they have ended. i32[].
        episode: problems, present params and loss keys, a leading axis of `batch`.
        opt_state: the bound transformation's state for the whole batch; of `imitation` a pair,
            the teacher's and the student's.
        horizon: the horizon of the present episodes, i32[]; None where there is only one.
        begun: episodes begun, i32[]; a batch of them counts as one. None without a curriculum.
        initial: the objective at θ₀, one number a problem; None where no meta-loss asks for it.
    """

    step: Int[Array, ""]
    episode: Episode
    opt_state: Any
    horizon: Int[Array, ""] | None = None
    begun: Int[Array, ""] | None = None
    initial: Float[Array, " batch"] | None = None


def segmented(
    start: Partial,
    run: Partial,
    opt: LearnedOptimizer,
    task: Task,
    extra: Any,
    *,
    horizons: Horizons,
    truncation: int,
    batch: int,
    keep_initial: bool = False,
) -> Estimator:
    """An estimator that handles one segment a call, with all before it constant to the gradient.

    Args:
        start: `start(opt, extra, phi, params) -> opt_state`, for a batch of params.
        run: `run(opt, task, extra, phi, state) -> (meta-loss, (losses, params, opt_state))`: takes
            the episodes of a `TruncatedState` `truncation` steps on; `losses` are those of
            `advance`, before the first step too.
        opt: the learned optimizer.
        task: what it is trained on.
        extra: arrays that `start` and `run` need besides.
        horizons: of the episodes.
        truncation: inner steps of a segment.
        batch: number of problems.
        keep_initial: whether the state keeps the objective at θ₀.

    Returns:
        An estimator with the `aux` that `truncated` documents.

    Raises:
        ValueError: for a batch below 1.
    """
    _checks.count("batch", batch)
    settings = {"horizons": horizons, "batch": batch, "keep_initial": keep_initial}
    return Estimator(
        init=closure(_init, start, opt, task, extra, **settings),
        estimate=closure(
            _estimate, start, run, opt, task, extra, truncation=truncation, **settings
        ),
    )


def _begin(
    start: Partial,
    opt: LearnedOptimizer,
    task: Task,
    extra: Any,
    phi: Phi,
    key: Key,
    begun: Int[Array, ""] | None,
    *,
    horizons: Horizons,
    batch: int,
    keep_initial: bool,
) -> TruncatedState:
    episode = jax.vmap(begin, in_axes=(None, 0))(task, batch_keys(key, batch))
    return TruncatedState(
        step=jnp.zeros((), jnp.int32),
        episode=episode,
        opt_state=start(opt, extra, phi, episode.params),
        horizon=horizons.draw(key, begun),
        begun=None if begun is None else optax.safe_increment(begun),
        initial=jax.vmap(_initial, in_axes=(None, 0))(task, episode) if keep_initial else None,
    )


def _initial(task: Task, episode: Episode) -> Scalar:
    problem, params, loss_key = episode
    return task.objective(params, problem, jax.random.fold_in(loss_key, 0))


def _init(
    start: Partial,
    opt: LearnedOptimizer,
    task: Task,
    extra: Any,
    key: Key,
    phi: Phi,
    *,
    horizons: Horizons,
    batch: int,
    keep_initial: bool,
) -> TruncatedState:
    none = None if horizons.curriculum is None else jnp.zeros((), jnp.int32)
    state = _begin(
        start,
        opt,
        task,
        extra,
        phi,
        key,
        none,
        horizons=horizons,
        batch=batch,
        keep_initial=keep_initial,
    )
    # Marked as ended, so that the key of the first `estimate` decides what is seen.
    ended = jnp.full((), horizons.lengths[-1], jnp.int32)
    return state._replace(step=ended, begun=none)


def _estimate(
    start: Partial,
    run: Partial,
    opt: LearnedOptimizer,
    task: Task,
    extra: Any,
    phi: Phi,
    state: TruncatedState,
    key: Key,
    *,
    horizons: Horizons,
    truncation: int,
    batch: int,
    keep_initial: bool,
) -> tuple[Estimate, TruncatedState]:
    def fresh() -> TruncatedState:
        return _begin(
            start,
            opt,
            task,
            extra,
            phi,
            key,
            state.begun,
            horizons=horizons,
            batch=batch,
            keep_initial=keep_initial,
        )

    horizon = horizons.lengths[-1] if state.horizon is None else state.horizon
    present = jax.lax.cond(state.step >= horizon, fresh, lambda: state)

    def meta_loss(phi: Phi) -> tuple[Scalar, tuple[Array, Params, Any]]:
        opt_state = jax.lax.cond(
            present.step == 0,
            # Again, inside the gradient: an optimizer may learn the state that it starts from.
            lambda: start(opt, extra, phi, present.episode.params),
            lambda: present.opt_state,
        )
        return run(opt, task, extra, phi, present._replace(opt_state=opt_state))

    (loss, (losses, params, opt_state)), grad = jax.value_and_grad(meta_loss, has_aux=True)(phi)
    aux = {"losses": losses[1:].mean(axis=1), "step": present.step}
    if present.horizon is not None:
        aux["horizon"] = present.horizon
    return Estimate(loss, grad, aux), present._replace(
        step=present.step + truncation,
        episode=present.episode._replace(params=params),
        opt_state=opt_state,
    )
