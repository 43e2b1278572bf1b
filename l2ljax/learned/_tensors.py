"""What a controller sees of each tensor, and the averages that it takes over a run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from l2ljax.core import Params
from l2ljax.learned import _coordinates
from l2ljax.learned._orthogonal import is_matrix

SPIKE = 5.0
"""Gradients of more than this times their slow root mean square are shortened to it."""

SPIKE_DECAY = 0.98
ALIGNMENT_DECAY = 0.9
TREND_DECAYS = (0.9, 0.99)
DRIFT_GAIN = 0.002
DRIFT_LIMIT = 4.0
TINY = 1e-20

Shapes = list[tuple[int, ...]]


class TensorStatistics(NamedTuple):
    """What is remembered of each tensor, first the small ones in their order, then the large.

    Attributes:
        square: running mean of its mean squared gradient, float[tensors].
        first_size: its root mean square before the first update, float[tensors].
        alignment: running means of the cosines between its gradient and its momenta before,
            float[2, tensors].
        trend: running means of the logarithm of its gradient's root mean square,
            float[2, tensors].
        drift: what the controller has added to the logarithm of its step so far, float[tensors].
    """

    square: Array
    first_size: Array
    alignment: Array
    trend: Array
    drift: Array


class Tensors(NamedTuple):
    """The tensors of params as batches of coordinates.

    Attributes:
        pool: the small leaves, in one flat batch.
        large: the shapes of the others, a batch each.
    """

    pool: list[Array]
    large: Shapes

    @property
    def shapes(self) -> Shapes:
        """Of all tensors, in their order here."""
        return [*map(jnp.shape, self.pool), *self.large]

    def means(self, rows: Sequence[Array]) -> Float[Array, "rows tensors"]:
        """The mean of each row over each tensor; [rows, *coordinates] for every batch."""
        pool, *large = rows
        means = [_coordinates.leaf_means(pool, self.pool)]
        means += [jnp.mean(x, range(1, x.ndim))[:, None] for x in large]
        return jnp.concatenate(means, axis=1)

    def spread(self, values: Float[Array, "rows tensors"]) -> list[Array]:
        """What each tensor has, at all its coordinates, for every batch: [rows, *coordinates]."""
        own = values[:, len(self.pool) :]
        return [
            _coordinates.at_coordinates(values[:, : len(self.pool)], self.pool),
            *(own[:, i].reshape(-1, *[1] * len(shape)) for i, shape in enumerate(self.large)),
        ]


def tensors(tree: Params, layout: str) -> Tensors:
    """The tensors of params, or of gradients."""
    pool = _coordinates.pooled(tree, layout)
    _, *large = _coordinates.batches(tree, jnp.dtype("float32"), layout)
    return Tensors(pool, [leaf.shape for leaf in large])


def first_statistics(positions: Sequence[Array], leaves: Tensors) -> TensorStatistics:
    """The statistics before the first update."""
    size = _root(leaves.means([x[None] ** 2 for x in positions])[0])
    # Each an array of its own: a state may be donated.
    zeros = [jnp.zeros((*rows, *size.shape), size.dtype) for rows in ((), (2,), (2,), ())]
    return TensorStatistics(zeros[0], size, *zeros[1:])


class Progress(NamedTuple):
    """Where a run stands; each float[].

    Attributes:
        count: updates made before this one.
        total: those of the whole run, 1 where nobody knows.
        known: 1 where somebody does, else 0.
    """

    count: Array  # type: ignore[assignment]  # a method of tuples, too
    total: Array
    known: Array

    @property
    def left(self) -> Array:
        """The share of the run that is left with this update; at the end of it 1 / total."""
        return jnp.maximum(self.total - self.count, 1) / self.total


def limited(
    gradients: Sequence[Array], statistics: TensorStatistics, leaves: Tensors, progress: Progress
) -> tuple[list[Array], TensorStatistics]:
    """Gradients without spikes, and the statistics that the next step compares with.

    A tensor's gradient is shortened to `SPIKE` times its root mean square so far.
    """
    square = leaves.means([g[None] ** 2 for g in gradients])[0]
    weight = 1 - SPIKE_DECAY ** jnp.maximum(progress.count, 1)
    bound = SPIKE**2 * statistics.square / weight
    over = (progress.count > 0) & (statistics.square > 0) & (square > bound)
    # Both arguments are safe where no gradient is shortened, also for derivatives.
    factor = jnp.sqrt(jnp.where(over, bound, 1) / jnp.where(over, square, 1))
    square = jnp.where(over, bound, square)
    mean = SPIKE_DECAY * statistics.square + (1 - SPIKE_DECAY) * square
    found = [g * f[0] for g, f in zip(gradients, leaves.spread(factor[None]), strict=True)]
    trend = jnp.stack([_log(square)] * 2)
    decays = jnp.asarray(TREND_DECAYS, trend.dtype)[:, None]
    moved = decays * statistics.trend + (1 - decays) * trend
    trend = jnp.where(progress.count == 0, trend, moved)
    return found, statistics._replace(square=mean, trend=trend)


FEATURE_NAMES = (
    "known",
    "over",
    "left",
    "count",
    "total",
    "alignment of all",
    "signal of all",
    "size",
    "growth",
    "signal",
    "slow signal",
    "alignment",
    "slow alignment",
    "gradient",
    "trend",
    "matrix",
    "rows",
    "columns",
    "drift",
)
FEATURES = len(FEATURE_NAMES)


def features(
    rows: Float[Array, "rows tensors"],
    statistics: TensorStatistics,
    leaves: Tensors,
    progress: Progress,
) -> tuple[Float[Array, "features tensors"], TensorStatistics]:
    """What the controller sees.

    Args:
        rows: means over each tensor of the squares of params, of both momenta and of the gradient,
            of both momenta before this step, and of their products with the gradient; all but the
            first in units of the root mean squared gradient.
        statistics: after `limited`.
        leaves: the tensors.
        progress: of the run.

    Returns:
        Numbers of order one, and the statistics with this step's alignments.
    """
    dtype = rows.dtype
    position, fast, slow, gradient, *before = rows
    cosines = jnp.stack(
        [before[2 + i] * jax.lax.rsqrt(gradient * before[i] + TINY) for i in range(2)]
    )
    moved = ALIGNMENT_DECAY * statistics.alignment + (1 - ALIGNMENT_DECAY) * cosines
    # The first gradient has nothing before it, and of the second that is all.
    alignment = jnp.where(progress.count < 2, cosines, moved)
    shapes = leaves.shapes
    matrix = np.array([is_matrix(shape) for shape in shapes], np.float32)
    rows_in = [math.prod(s[:-1]) if m else 1 for s, m in zip(shapes, matrix, strict=True)]
    rows_out = [s[-1] if m else 1 for s, m in zip(shapes, matrix, strict=True)]
    weight = np.sqrt([math.prod(shape) for shape in shapes])
    weight = weight / max(weight.sum(), 1.0)
    shared = [
        progress.known,
        progress.known * (0.5 - progress.left),
        progress.known * (0.5 * jnp.log(progress.left) + 0.5),
        0.5 * jnp.log10(progress.count + 1) - 1,
        progress.known * (0.5 * jnp.log10(progress.total) - 1),
        alignment[0] @ jnp.asarray(weight, dtype),
        _log(fast) @ jnp.asarray(weight, dtype) + 0.5,
    ]
    own = [
        0.5 * _log(position) + 1,
        _log(position) - jnp.log(statistics.first_size + 1e-3),
        _log(fast) + 0.5,
        _log(slow) + 1,
        alignment[0],
        alignment[1],
        _log(gradient),
        statistics.trend[0] - statistics.trend[1],
        jnp.asarray(matrix, dtype),
        jnp.asarray(np.log(rows_in) / 4, dtype),
        jnp.asarray(np.log(rows_out) / 4, dtype),
        statistics.drift,
    ]
    seen = [jnp.broadcast_to(x, position.shape) for x in shared] + own
    return jnp.clip(jnp.stack(seen), -3, 3), statistics._replace(alignment=alignment)


def _root(square: Array) -> Array:
    return jnp.sqrt(square + TINY)


def _log(square: Array) -> Array:
    """The logarithm of a root mean square."""
    return 0.5 * jnp.log(square + TINY)
