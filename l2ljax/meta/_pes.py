"""Persistent evolution strategies: unbiased although truncated."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Task,
    as_partial,
    closure,
)
from l2ljax.meta import _perturbations
from l2ljax.meta._binding import bind
from l2ljax.meta._episodes import Episode
from l2ljax.meta._horizons import Horizons, horizons
from l2ljax.meta._meta_loss import META_LOSSES, StepWeights, run_segment, start, step_weight_table
from l2ljax.meta._segments import (
    EstimatorFactory,
    SegmentEstimator,
    TruncatedState,
    after,
    begin_batch,
    device_mean,
    going_on,
    init_ended,
    measurements,
)


class PESState(NamedTuple):
    """Where the episodes stand, one run of each problem for every perturbation.

    Attributes:
        segment: as of `truncated`, but params and the optimizer's state, and for a `LearnedTask`
            all that its metaparameters may change, have one more leading axis, first φ + σε of all
            pairs, then φ - σε.
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
        `losses` are means over the perturbed runs. Its state is a `PESState`. On a mesh whose
        devices cannot share the batch evenly they share the pairs, as with `es`, and the state of
        their runs.

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

    def make(
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
        *,
        by_pairs: bool,
    ) -> Estimator:
        _checks.count("batch", batch)
        axis_of_pairs = axis if by_pairs else None
        fresh = closure(
            begin_batch,
            as_partial(start),
            horizons=lengths,
            batch=batch,
            axis=None if by_pairs else axis,
            keep_initial=meta_loss == "log_improvement",
        )
        return SegmentEstimator(
            horizons=lengths,
            truncation=truncation,
            init=closure(
                _init,
                fresh,
                opt,
                task,
                weights,
                horizons=lengths,
                pairs=pairs,
                axis_of_pairs=axis_of_pairs,
            ),
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
                axis_of_pairs=axis_of_pairs,
            ),
        )

    return _perturbations.Perturbing(
        partial(make, by_pairs=False), partial(make, by_pairs=True), (pairs,)
    )


def _axes(task: Task | LearnedTask) -> TruncatedState:
    """What each perturbed run has of its own, as axes for `jax.vmap`; the rest they share."""
    own: Any = 0
    shared: Any = None
    of_task = own if isinstance(task, LearnedTask) else shared
    return TruncatedState(shared, Episode(of_task, own, shared), own, initial=of_task)


def _init(
    fresh: Partial,
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    weights: Array,
    key: Key,
    phi: Phi,
    *,
    horizons: Horizons,
    pairs: int,
    axis_of_pairs: str | None,
) -> PESState:
    pairs = _perturbations.here(pairs, axis_of_pairs)
    state = init_ended(fresh, opt, task, weights, key, phi, horizons=horizons)
    for_all = jax.vmap(lambda: state, in_axes=(), out_axes=_axes(task), axis_size=2 * pairs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros((pairs, *jnp.shape(leaf)), leaf.dtype), phi)
    return PESState(for_all(), zeros)


def _estimate(
    fresh: Partial,
    run: Partial,
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
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
    axis_of_pairs: str | None,
) -> tuple[Estimate, PESState]:
    def one_run(
        phi: Phi, segment: TruncatedState
    ) -> tuple[Array, Array, TruncatedState, TruncatedState]:
        tx, bound = bind(opt, task, phi)
        # For each run, from its own φ: an optimizer may learn the state that it starts from.
        present = going_on(segment, lambda: fresh(tx, bound, weights, key, segment.begun), horizons)
        loss, (losses, params, opt_state) = run(tx, bound, weights, present)
        return loss, losses, present, after(present, truncation, params, opt_state)

    noise = _perturbations.draw(key, phi, pairs, axis_of_pairs)
    axes = _axes(task)
    found, losses, present, segment = jax.vmap(
        one_run, in_axes=(0, axes), out_axes=(0, 0, axes, axes)
    )(_perturbations.both_ways(phi, noise, std), state.segment)
    accumulated = jax.tree.map(
        lambda sum, noise: jnp.where(present.step == 0, noise, sum + noise),
        state.accumulated,
        noise,
    )
    grad = _perturbations.slope(found, accumulated, std)
    loss, grad, losses = device_mean(axis, (found.mean(), grad, losses[:, 1:].mean(axis=(0, 2))))
    return Estimate(loss, grad, measurements(present, losses)), PESState(segment, accumulated)
