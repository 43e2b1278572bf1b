"""What optimizers that see values alone know of the values so far."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax._placeholders import stands_for_params
from l2ljax.core import ArrayLike, Params
from l2ljax.learned._preprocess import log_sign

EVENTS = 4
"""Features of a value, beside its point and the best one."""

# Gains down to a hundred-thousandth of the spread are told apart.
_P = 12.0


class Seen(NamedTuple):
    """Statistics of all values so far.

    Attributes:
        count: finite values seen, i32[].
        mean: of the values, f[].
        squares: the sum of their squared distances to the mean, f[].
        best: the point with the lowest value, f[dim]; before any the first point.
        best_value: its value, f[]; infinite before any.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    mean: Float[Array, ""]
    squares: Float[Array, ""]
    best: Float[Array, " dim"]
    best_value: Float[Array, ""]


def see_nothing(params: Params, dim: int) -> Seen:
    """Before the first value; the params have to be one array f[dim]."""
    if stands_for_params(params):
        return see_nothing(jnp.zeros(dim), dim)._replace(best=params)
    _checks.floating_leaves("params", params)
    if jnp.shape(params) != (dim,):
        raise ValueError(
            f"params must be one array of shape ({dim},), as dim={dim}, got {jnp.shape(params)}"
        )
    zero = jnp.zeros((), params.dtype)
    return Seen(jnp.zeros((), jnp.int32), zero, zero, params, jnp.full_like(zero, jnp.inf))


def point(params: Params | None) -> Params:
    """The params, which have to be there."""
    if params is None:
        raise ValueError("params must be given, the point that value belongs to, got None")
    return params


def see(seen: Seen, params: Params, value: ArrayLike) -> tuple[Seen, Float[Array, " features"]]:
    r"""Takes in the value at a point.

    The features are the point, the best one, and

    $$\frac{y_t - \bar y_t}{s_t},\quad \frac{y^*_t - \bar y_t}{s_t},\quad
    \mathrm{log\_sign}\Big(\frac{y_t - y^*_{t-1}}{s_t}\Big)$$

    with the mean and standard deviation of the values so far. What is not finite is seen as two
    standard deviations above the mean, and is never the best.
    """
    dtype = seen.mean.dtype
    value = jnp.asarray(value, dtype)
    finite = jnp.isfinite(value)
    # What failed is bad, and else says nothing of the function.
    failed = seen.mean + 2 * _spread(seen.squares, seen.count)
    value = jnp.where(finite, value, failed)

    count = jnp.where(finite, optax.safe_increment(seen.count), seen.count)
    distance = jnp.where(finite, value - seen.mean, 0)
    mean = seen.mean + distance / jnp.maximum(count, 1).astype(dtype)
    squares = seen.squares + distance * (value - mean)
    spread = _spread(squares, count)
    better = finite & (value < seen.best_value)
    best = jnp.where(better, params, seen.best)
    best_value = jnp.where(better, value, seen.best_value)
    before, lowest = (
        jnp.where(jnp.isfinite(known), known, value) for known in (seen.best_value, best_value)
    )
    features = jnp.concatenate(
        [
            params,
            best,
            jnp.stack([value - mean, lowest - mean]) / spread,
            log_sign((value - before) / spread, p=_P),
        ]
    )
    return Seen(count, mean, squares, best, best_value), features


def _spread(squares: Array, count: Array) -> Array:
    """The standard deviation, or one where all values are equal."""
    variance = squares / jnp.maximum(count, 1).astype(squares.dtype)
    # The derivative of the root at zero is infinite.
    return jnp.sqrt(jnp.where(variance > 0, variance, 1))
