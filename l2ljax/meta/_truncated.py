"""Truncated backpropagation through the inner loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax.core import Estimate, Estimator, Key, LearnedOptimizer, Phi, Scalar, Task, closure
from l2ljax.meta._episodes import Episode, batch_keys, begin
from l2ljax.meta._unroll import advance, init_batch

EstimatorFactory = Callable[..., Estimator]
"""`factory(opt, task, batch=1) -> Estimator`: an estimator before it knows what it estimates."""


class TruncatedState(NamedTuple):
    """Where the episodes of the batch stand.

    Attributes:
        step: inner steps done in the present episodes; `horizon` when they have ended. i32[].
        episode: problems, present params and loss keys, a leading axis of `batch`.
        opt_state: the bound transformation's state for the whole batch.
    """

    step: Int[Array, ""]
    episode: Episode
    opt_state: Any


def truncated(
    *,
    horizon: int = 100,
    truncation: int = 20,
    step_weights: ArrayLike | Sequence[float] | None = None,
    second_derivatives: bool = False,
) -> EstimatorFactory:
    r"""Backpropagation through time, `truncation` inner steps a meta-update.

    $$L(\phi) = \frac1B \sum_{b=1}^B \sum_{t=s+1}^{s+K} w_t\, f_b(\theta_t)$$

    for the segment from step s, with θ_s and the optimizer's state constants to the gradient.
    Episodes of `horizon` steps are cut into `horizon / truncation` segments; each call of
    `estimate` handles one, for a batch of problems in step with each other.

    Args:
        horizon: inner steps of an episode, T.
        truncation: inner steps of a segment, K; it must divide `horizon`. `truncation=horizon` is
            the whole episode.
        step_weights: w₁ … w_T, finite; default: ones. See `meta.polynomial_weights`.
        second_derivatives: whether ∂∇/∂φ is kept. Default off, as in the paper (section 2.1).

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`. Its `aux` holds `losses`, f32[truncation]:
        the objective after each step of the segment, mean over the batch; and `step`, i32[]: the
        inner step at which the segment began.

    Raises:
        ValueError: for sizes below 1, a truncation that does not divide the horizon, weights of
            another length.

    Reference:
        Andrychowicz et al. (2016), 'Learning to learn by gradient descent by gradient descent',
        section 2 and equation 3.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.lstm()
    >>> est = truncated(horizon=10, truncation=5)(opt, l2l.tasks.quadratic(), batch=2)
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, state = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> estimate.aux["losses"].shape, int(state.step)
    ((5,), 5)
    """
    _checks.count("horizon", horizon)
    _checks.count("truncation", truncation)
    if horizon % truncation:
        raise ValueError(
            f"truncation must divide horizon, got truncation={truncation} and horizon={horizon}"
        )
    weights = jnp.ones(horizon) if step_weights is None else jnp.asarray(step_weights)
    if weights.shape != (horizon,):
        raise ValueError(
            f"step_weights must have shape ({horizon},), one weight for each step of the horizon, "
            f"got shape {weights.shape}"
        )
    _checks.finite("step_weights", weights)

    def factory(opt: LearnedOptimizer, task: Task, batch: int = 1) -> Estimator:
        _checks.count("batch", batch)
        return Estimator(
            init=closure(_init, opt, task, horizon=horizon, batch=batch),
            estimate=closure(
                _estimate,
                opt,
                task,
                weights,
                horizon=horizon,
                truncation=truncation,
                batch=batch,
                second_derivatives=second_derivatives,
            ),
        )

    return factory


def _begin(opt: LearnedOptimizer, task: Task, phi: Phi, key: Key, *, batch: int) -> TruncatedState:
    episode = jax.vmap(begin, in_axes=(None, 0))(task, batch_keys(key, batch))
    opt_state = init_batch(opt.bind(phi), episode.params)
    return TruncatedState(jnp.zeros((), jnp.int32), episode, opt_state)


def _init(
    opt: LearnedOptimizer, task: Task, key: Key, phi: Phi, *, horizon: int, batch: int
) -> TruncatedState:
    # Marked as ended, so that the key of the first `estimate` decides what is seen.
    ended = jnp.full((), horizon, jnp.int32)
    return _begin(opt, task, phi, key, batch=batch)._replace(step=ended)


def _estimate(
    opt: LearnedOptimizer,
    task: Task,
    weights: Float[Array, " horizon"],
    phi: Phi,
    state: TruncatedState,
    key: Key,
    *,
    horizon: int,
    truncation: int,
    batch: int,
    second_derivatives: bool,
) -> tuple[Estimate, TruncatedState]:
    state = jax.lax.cond(
        state.step >= horizon, lambda: _begin(opt, task, phi, key, batch=batch), lambda: state
    )
    segment_weights = jax.lax.dynamic_slice_in_dim(weights, state.step, truncation)

    def meta_loss(phi: Phi) -> tuple[Scalar, tuple[Array, Any, Any]]:
        tx = opt.bind(phi)
        opt_state = jax.lax.cond(
            state.step == 0,
            # Again, inside the gradient: an optimizer may learn the state that it starts from.
            lambda: init_batch(tx, state.episode.params),
            lambda: state.opt_state,
        )
        losses, params, opt_state = advance(
            tx,
            task,
            state.episode,
            opt_state,
            state.step,
            steps=truncation,
            second_derivatives=second_derivatives,
            batched=True,
        )
        losses = losses[1:].mean(axis=1)
        return segment_weights.astype(losses.dtype) @ losses, (losses, params, opt_state)

    (loss, (losses, params, opt_state)), grad = jax.value_and_grad(meta_loss, has_aux=True)(phi)
    estimate = Estimate(loss, grad, {"losses": losses, "step": state.step})
    episode = state.episode._replace(params=params)
    return estimate, TruncatedState(state.step + truncation, episode, opt_state)
