"""Persistent evolution strategies: unbiased although truncated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax.core import Estimate, Estimator, Key, LearnedOptimizer, Phi, Task, as_partial, closure
from l2ljax.meta import _perturbations
from l2ljax.meta._horizons import Horizons, horizons
from l2ljax.meta._meta_loss import META_LOSSES, StepWeights, run_segment, start, step_weight_table
from l2ljax.meta._segments import (
    EstimatorFactory,
    TruncatedState,
    average,
    begin_batch,
    going_on,
    init_ended,
    measurements,
)


class PESState(NamedTuple):
    """Where the episodes stand, one run of each problem for every perturbation.

    Attributes:
        segment: as of `truncated`, but params and the optimizer's state have one more leading axis,
            first φ + σε of all pairs, then φ - σε.
        accumulated: ξ, the noise of the present episodes so far; a tree like φ with an axis of
            pairs.
    """

    segment: TruncatedState
    accumulated: PyTree[Float[Array, "pairs ..."]]


def pes(
    *,
    horizon: int | Sequence[int] = 100,
    truncation: int = 20,
    curriculum: int | None = None,
    std: float = 0.01,
    pairs: int = 1,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
) -> EstimatorFactory:
    r"""Persistent evolution strategies, antithetic.

    $$\xi_i \leftarrow \xi_i + \epsilon_i, \qquad
      \hat g = \frac1N \sum_{i=1}^N \frac{L_s(\phi + \sigma\epsilon_i; h_i^+)
      - L_s(\phi - \sigma\epsilon_i; h_i^-)}{2\sigma}\,\xi_i$$

    for the segment s of K steps. Every perturbed run keeps its own params and state h from segment
    to segment, and its losses are credited to all noise ξ since the episode began: the sum over an
    episode's segments is an unbiased estimate of the gradient of the meta-loss of the whole
    episode, smoothed by σ, however short the segments are.

    All pairs see the same problems. Where φ moves between the segments of an episode, what it was
    before is left out of account, as with every online estimate.

    Args:
        horizon: inner steps of an episode; or several numbers of them, see `meta.truncated`.
        truncation: inner steps of a segment, K; it must divide every horizon.
        curriculum: as in `meta.truncated`.
        std: σ > 0, in the units of φ.
        pairs: N, perturbations of a meta-gradient, each used with both signs.
        step_weights: as in `meta.truncated`.
        meta_loss: as in `meta.truncated`.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`; loss and
        `losses` are means over the perturbed runs. Its state is a `PESState`.

    Raises:
        ValueError: as `meta.truncated` does; for σ that is not positive, or no pair.

    Reference:
        Vicol, Metz and Sohl-Dickstein (2021), 'Unbiased gradient estimation in unrolled computation
        graphs with persistent evolution strategies', algorithm 2.

    >>> import l2ljax as l2l
    >>> result = l2l.meta.train(l2l.learned.lstm((4,)), l2l.tasks.quadratic(), steps=3, batch=8,
    ...                         key=jax.random.key(0), estimator=pes(horizon=10, truncation=5))
    >>> print(result.history["step"])
    [0 5 0]
    """
    _perturbations.check(std, pairs)
    lengths = horizons(horizon, truncation, curriculum)
    weights = step_weight_table(step_weights, lengths)
    _checks.choice("meta_loss", meta_loss, META_LOSSES)
    run = closure(
        run_segment,
        horizons=lengths,
        truncation=truncation,
        meta_loss=meta_loss,
        second_derivatives=False,
    )

    def factory(
        opt: LearnedOptimizer, task: Task, batch: int = 1, axis: str | None = None
    ) -> Estimator:
        _checks.count("batch", batch)
        fresh = closure(
            begin_batch,
            as_partial(start),
            horizons=lengths,
            batch=batch,
            axis=axis,
            keep_initial=meta_loss == "log_improvement",
        )
        return Estimator(
            init=closure(_init, fresh, opt, task, weights, horizons=lengths, pairs=pairs),
            estimate=closure(
                _estimate,
                fresh,
                run,
                opt,
                task,
                weights,
                horizons=lengths,
                truncation=truncation,
                std=float(std),
                pairs=pairs,
                axis=axis,
            ),
        )

    return factory


def _for_all(state: TruncatedState, pairs: int) -> TruncatedState:
    """One copy of params and optimizer's state for each perturbed run."""

    def repeat(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf, (2 * pairs, *leaf.shape))

    return state._replace(
        episode=state.episode._replace(params=jax.tree.map(repeat, state.episode.params)),
        opt_state=jax.tree.map(repeat, state.opt_state),
    )


def _init(
    fresh: Partial,
    opt: LearnedOptimizer,
    task: Task,
    weights: Array,
    key: Key,
    phi: Phi,
    *,
    horizons: Horizons,
    pairs: int,
) -> PESState:
    state = init_ended(fresh, opt, task, weights, key, phi, horizons=horizons)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((pairs, *jnp.shape(leaf)), leaf.dtype), phi)
    return PESState(_for_all(state, pairs), zeros)


def _estimate(
    fresh: Partial,
    run: Partial,
    opt: LearnedOptimizer,
    task: Task,
    weights: Array,
    phi: Phi,
    state: PESState,
    key: Key,
    *,
    horizons: Horizons,
    truncation: int,
    std: float,
    pairs: int,
    axis: str | None,
) -> tuple[Estimate, PESState]:
    def begin() -> TruncatedState:
        return _for_all(fresh(opt, task, weights, phi, key, state.segment.begun), pairs)

    present = going_on(state.segment, begin, horizons)
    noise = _perturbations.draw(key, phi, pairs)
    accumulated = jax.tree.map(
        lambda sum, noise: jnp.where(present.step == 0, noise, sum + noise),
        state.accumulated,
        noise,
    )

    def one_run(phi: Phi, params: Any, opt_state: Any) -> tuple[Array, tuple[Array, Any, Any]]:
        opt_state = jax.lax.cond(
            present.step == 0,
            # An optimizer may learn the state that it starts from.
            lambda: start(opt, weights, phi, params),
            lambda: opt_state,
        )
        episode = present.episode._replace(params=params)
        return run(opt, task, weights, phi, present._replace(episode=episode, opt_state=opt_state))

    found, (losses, params, opt_state) = jax.vmap(one_run)(
        _perturbations.both_ways(phi, noise, std), present.episode.params, present.opt_state
    )
    grad = _perturbations.slope(found, accumulated, std)
    loss, grad, losses = average(axis, (found.mean(), grad, losses[:, 1:].mean(axis=(0, 2))))
    segment = present._replace(
        step=present.step + truncation,
        episode=present.episode._replace(params=params),
        opt_state=opt_state,
    )
    return Estimate(loss, grad, measurements(present, losses)), PESState(segment, accumulated)
