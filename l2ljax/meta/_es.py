"""Evolution strategies: the meta-gradient from meta-losses at perturbed φ."""

from collections.abc import Sequence
from typing import Any

import jax

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
from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import StepWeights, estimator_of
from l2ljax.meta._segments import EstimatorFactory, MetaLoss, device_mean


def es(
    *,
    horizon: int | Sequence[int] = 100,
    truncation: int | None = None,
    curriculum: int | None = None,
    std: float = 0.01,
    pairs: int = 1,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
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

    Args:
        horizon: inner steps of an episode; or several numbers of them, see `meta.truncated`.
        truncation: inner steps of a segment; it must divide every horizon. None: the horizon, of
            which there must be one then.
        curriculum: as in `meta.truncated`.
        std: σ > 0, in the units of φ.
        pairs: N, perturbations of a meta-gradient, each used with both signs.
        step_weights: as in `meta.truncated`.
        meta_loss: as in `meta.truncated`.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`. Loss and
        `losses` are those of the unperturbed φ; of whole episodes, where that run is not needed,
        the mean over the perturbed ones. On a mesh whose devices cannot share the batch evenly they
        share the pairs: each draws the noise of all, and runs its part of them on all problems.

    Raises:
        ValueError: as `meta.truncated` does; for σ that is not positive, no pair, or several
            horizons without a truncation.

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
    if truncation is None:
        if isinstance(horizon, Sequence):
            raise ValueError(f"truncation must be given for several horizons, got None, {horizon=}")
        truncation = horizon
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
