"""Statistics of a benchmark: of one task, and over tasks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SMOOTHING = 0.95


def interquartile_mean(values: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows"]:
    """The mean of the middle half: a quarter of the values, rounded down, is cut off at each end.

    Reference:
        Agarwal et al. (2021), 'Deep reinforcement learning at the edge of the statistical
        precipice', section 4.3.

    >>> print(interquartile_mean(np.array([100.0, 1.0, 2.0, 4.0, -50.0])))
    2.3333333333333335
    """
    cut = values.shape[-1] // 4
    middle = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut]
    return np.asarray(middle.mean(axis=-1))


def envelope(curves: Float[np.ndarray, "rates times"]) -> Float[np.ndarray, " times"]:
    """What an optimizer reaches at each step with the best of its rates.

    Each curve is smoothed by an exponential mean with 0.95, corrected for its bias, so that a loss
    that is k steps old has a weight in proportion to 0.95^k; then the lowest over rates is taken,
    and of that the lowest so far.

    Args:
        curves: mean losses over problems at θ₀ … θ_T; a rate counts until it diverges.
    """
    losses = np.where(np.isfinite(curves), curves, np.inf).astype(np.float64)
    total, weight = np.zeros(len(losses)), 0.0
    smoothed = np.empty_like(losses)
    for t in range(losses.shape[1]):
        total, weight = SMOOTHING * total + losses[:, t], SMOOTHING * weight + 1
        smoothed[:, t] = total / weight
    return np.minimum.accumulate(smoothed.min(axis=0))


def speedup(
    final: Float[np.ndarray, "*rows"], envelope: Float[np.ndarray, " times"], steps: int
) -> Float[np.ndarray, "*rows"]:
    """Steps until an envelope is as low as final losses, over the steps that these took.

    Args:
        final: final losses; of one that is not finite the speedup is zero.
        envelope: from `envelope`; a loss that it never reaches counts as reached at its end.
        steps: of the runs with these final losses.

    >>> falling = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    >>> print(speedup(np.array([4.0, 2.0, 0.1, np.inf]), falling, steps=2))
    [0.5 1.  2.  0. ]
    """
    final = np.where(np.isfinite(final), final, np.inf)
    reached = np.searchsorted(-envelope, -final, side="left")
    return np.minimum(reached, len(envelope) - 1) / steps


def quotient(
    upper: Float[np.ndarray, "..."], lower: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """A ratio of losses that broadcast, one where both are zero or both infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(upper / lower)
    return np.where(np.isnan(ratio), 1.0, ratio)


def interval(
    values: Float[np.ndarray, "resamples *rows"], confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a percentile interval over the first axis."""
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    # `inverted_cdf` picks a value: interpolation between infinite ones would make NaN.
    low, high = np.quantile(values, ends, axis=0, method="inverted_cdf")
    return low, high


class Resamples(NamedTuple):
    """Bootstrap samples of problems and of tasks.

    Attributes:
        means: mean final losses of drawn problems, the same ones for all optimizers,
            f64[resamples, optimizers, tasks].
        tasks: drawn tasks, i64[resamples, tasks].
    """

    means: Float[np.ndarray, "resamples optimizers tasks"]
    tasks: Int[np.ndarray, "resamples tasks"]

    def over_tasks(
        self, values: Float[np.ndarray, "resamples optimizers tasks"]
    ) -> Float[np.ndarray, "resamples optimizers tasks"]:
        """What was computed of `means`, of the drawn tasks."""
        return np.take_along_axis(values, self.tasks[:, None, :], axis=2)


def resample(
    finals: Sequence[Float[np.ndarray, "optimizers problems"]], count: int = 2000
) -> Resamples:
    """Draws problems of each task, and tasks, with replacement.

    Args:
        finals: for each task the final losses of each optimizer on each problem.
        count: number of resamples.
    """
    rng = np.random.default_rng(0)
    means = [
        losses[:, rng.integers(losses.shape[1], size=(count, losses.shape[1]))].mean(axis=2).T
        for losses in finals
    ]
    tasks = rng.integers(len(finals), size=(count, len(finals)))
    return Resamples(np.stack(means, axis=2), tasks)


def performance_profile(
    losses: Float[np.ndarray, "optimizers tasks"], factors: Float[np.ndarray, " factors"]
) -> Float[np.ndarray, "optimizers factors"]:
    """The share of tasks on which an optimizer's loss is within a factor of the best one's.

    Reference:
        Dolan and Moré (2002), 'Benchmarking optimization software with performance profiles'.

    >>> losses = np.array([[1.0, 4.0], [2.0, 2.0]])
    >>> print(performance_profile(losses, np.array([1.0, 2.0])))
    [[0.5 1. ]
     [0.5 1. ]]
    """
    within = quotient(losses, losses.min(axis=0))[:, :, None] <= factors
    return within.mean(axis=1)
