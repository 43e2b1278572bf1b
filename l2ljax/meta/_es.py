"""Evolution strategies: the meta-gradient from meta-losses at perturbed φ."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from l2ljax import _checks
from l2ljax.core import (
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Scalar,
    Task,
    closure,
)
from l2ljax.meta import _perturbations
from l2ljax.meta._horizons import Horizons, horizons
from l2ljax.meta._meta_loss import META_LOSSES, StepWeights, estimator_of, step_weight_table
from l2ljax.meta._segments import EstimatorFactory, MetaLoss, device_mean
from l2ljax.meta._whole_es import whole_es


def es(
    *,
    horizon: int | Sequence[int] = 100,
    truncation: int | None = None,
    curriculum: int | None = None,
    std: float = 0.01,
    pairs: int = 1,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
    shaping: str | None = None,
) -> EstimatorFactory:
    r"""Antithetic evolution strategies.

    $$\hat g = \frac1N \sum_{i=1}^N \frac{L(\phi + \sigma\epsilon_i) - L(\phi - \sigma\epsilon_i)}
      {2\sigma}\,\epsilon_i, \qquad \epsilon_i \sim \mathcal N(0, I)$$

    an unbiased estimate of the gradient of $\mathbb E_\epsilon L(\phi + \sigma\epsilon)$. All pairs
    see the same problems and minibatches. Nothing is differentiated: it needs no memory for a
    backward pass, passes discontinuities, and smooths a meta-loss whose exact gradient explodes;
    its variance grows with the number of meta-parameters.

    With a `truncation` L is the meta-loss of one segment, from where the unperturbed φ has led:
    what φ did before that segment is left out, and the estimate is biased, as that of `truncated`
    is. `meta.pes` has no such bias.

    Without one, every call runs whole episodes; with several horizons it draws one of them, and
    one compiled loop serves all.

    Args:
        horizon: inner steps of an episode; or several numbers of them, see `meta.truncated`.
        truncation: inner steps of a segment; it must divide every horizon. None: whole episodes.
        curriculum: as in `meta.truncated`.
        std: σ > 0, in the units of φ.
        pairs: N, perturbations of a meta-gradient, each used with both signs.
        step_weights: as in `meta.truncated`.
        meta_loss: as in `meta.truncated`.
        shaping: None, or "ranks": of the perturbed meta-losses only the ranks count, from -1/2 for
            the lowest to 1/2 for the highest. The estimate then knows no scale of a loss, and a run
            that diverged is no more than the worst. For whole episodes.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`. Loss and
        `losses` are those of the unperturbed φ; of whole episodes, where that run is not needed,
        the mean over the perturbed ones. With several horizons, or `shaping`, the `aux` of whole
        episodes holds `horizon` and `final`, the mean of the losses with the weights w. On a mesh
        whose devices cannot share the batch evenly they share the pairs: each draws the noise of
        all, and runs its part of them on all problems.

    Raises:
        ValueError: as `meta.truncated` does; for σ that is not positive, no pair, an unknown
            shaping or one with a truncation, or a curriculum without one.

    Reference:
        Salimans et al. (2017), 'Evolution strategies as a scalable alternative to reinforcement
        learning'; truncated: Metz et al. (2019), 'Understanding and correcting pathologies in the
        training of learned optimizers'.

    >>> import l2ljax as l2l
    >>> result = l2l.meta.train(l2l.learned.lstm((4,)), l2l.tasks.quadratic(), steps=2, batch=8,
    ...                         key=jax.random.key(0), estimator=es(horizon=10, pairs=4))
    >>> result.history["losses"].shape
    (2, 10)
    """
    _perturbations.check(std, pairs)
    _checks.choice("shaping", shaping, [None, "ranks"])
    if truncation is None:
        whole = horizons(horizon, 1, None)
        if whole.vary or shaping is not None:
            return _of_whole_episodes(
                whole, step_weights, curriculum, meta_loss, std, pairs, shaping
            )
        (truncation,) = whole.lengths
    elif shaping is not None:
        raise ValueError(f"shaping must be None with a truncation, got {shaping!r}")
    lengths = horizons(horizon, truncation, curriculum)

    def by_problems(axis_of_pairs: str | None = None) -> EstimatorFactory:
        return estimator_of(
            lengths,
            truncation,
            step_weights=step_weights,
            meta_loss=meta_loss,
            # Nothing is differentiated, so nothing is held constant.
            second_derivatives=True,
            gradient=closure(
                _sampled,
                std=float(std),
                pairs=pairs,
                whole=lengths.lengths == (truncation,),
                axis=axis_of_pairs,
            ),
        )

    def by_pairs(
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        return by_problems(axis)(opt, task, batch)

    return _perturbations.Perturbing(by_problems(), by_pairs, (pairs,))


def _of_whole_episodes(
    lengths: Horizons,
    step_weights: StepWeights | None,
    curriculum: int | None,
    meta_loss: str,
    std: float,
    pairs: int,
    shaping: str | None,
) -> EstimatorFactory:
    if curriculum is not None:
        raise ValueError(f"curriculum must be None without a truncation, got {curriculum!r}")
    _checks.choice("meta_loss", meta_loss, META_LOSSES)
    make = functools.partial(
        whole_es,
        lengths=lengths,
        weights=step_weight_table(step_weights, lengths),
        meta_loss=meta_loss,
        std=float(std),
        pairs=pairs,
        shaping=shaping,
    )
    return _perturbations.Perturbing(
        functools.partial(make, by_pairs=False), functools.partial(make, by_pairs=True), (pairs,)
    )


def _sampled(
    meta_loss: MetaLoss,
    phi: Phi,
    key: Key,
    *,
    std: float,
    pairs: int,
    whole: bool,
    axis: str | None,
) -> tuple[tuple[Scalar, Any], Phi]:
    noise = _perturbations.draw(key, phi, pairs, axis)
    found, rest = jax.vmap(meta_loss)(_perturbations.both_ways(phi, noise, std))
    grad = _perturbations.slope(found, noise, std)
    if not whole:
        return meta_loss(phi), device_mean(axis, grad)
    losses, *state = rest
    loss, losses, grad = device_mean(axis, (found.mean(), losses.mean(axis=0), grad))
    # No step follows, so any of the states will do.
    return (loss, (losses, *jax.tree.map(lambda leaf: leaf[0], state))), grad
