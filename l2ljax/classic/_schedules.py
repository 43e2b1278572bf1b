"""Cyclical learning rates: triangles (Smith, 2017) and restarted cosines (Huang et al., 2017)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.classic._common import Hyperparameter, require_scalars
from l2ljax.core import ArrayLike, Schedule


def triangular(
    base_rate: Hyperparameter, max_rate: Hyperparameter, step_size: Hyperparameter
) -> Schedule:
    r"""The rate rises and falls linearly between two bounds.

    $$\eta_t = \eta_{base} + (\eta_{max} - \eta_{base}) \max(0, 1 - x_t), \qquad
      x_t = \left| \frac{t}{s} - 2 c_t + 1 \right|, \qquad
      c_t = \left\lfloor 1 + \frac{t}{2s} \right\rfloor$$

    Args:
        base_rate: $\eta_{base} \ge 0$, a scalar, the rate at $t = 0$ and at each cycle's end.
        max_rate: $\eta_{max} \ge \eta_{base}$, a scalar, the rate in the middle of a cycle.
        step_size: $s > 0$, a scalar, half a cycle in updates; Smith takes 2 to 10 epochs.

    Returns:
        A schedule `rate(count)`, where `count` is t, the number of updates made so far, of any
        shape; the rate has that shape and is float32 or wider.

    Raises:
        ValueError: an argument is out of its range or not a scalar.

    Reference:
        Smith, *Cyclical learning rates for training neural networks*, 2017, section 3.1.

    >>> print(triangular(0.1, 0.5, step_size=2)(jnp.arange(7)))
    [0.1 0.3 0.5 0.3 0.1 0.3 0.5]
    """
    return _cyclical(base_rate, max_rate, step_size, lambda count, cycle, height: height)


def triangular2(
    base_rate: Hyperparameter, max_rate: Hyperparameter, step_size: Hyperparameter
) -> Schedule:
    r"""Triangles of which each is half as high as the one before.

    $$\eta_t = \eta_{base} + (\eta_{max} - \eta_{base}) \max(0, 1 - x_t) \, 2^{-(c_t - 1)}$$

    with $x_t$ and the cycle $c_t$ of `triangular`.

    Args:
        base_rate: $\eta_{base} \ge 0$, a scalar, the rate at $t = 0$ and at each cycle's end.
        max_rate: $\eta_{max} \ge \eta_{base}$, a scalar, the rate in the middle of the first cycle.
        step_size: $s > 0$, a scalar, half a cycle in updates.

    Returns:
        A schedule `rate(count)` as in `triangular`.

    Raises:
        ValueError: an argument is out of its range or not a scalar.

    Reference:
        Smith, *Cyclical learning rates for training neural networks*, 2017, section 3.1.

    >>> print(triangular2(0.1, 0.5, step_size=2)(jnp.arange(7)))
    [0.1 0.3 0.5 0.3 0.1 0.2 0.3]
    """

    def halve(count: Array, cycle: Array, height: Array) -> Array:
        return jnp.ldexp(height, -cycle.astype(jnp.int32))

    return _cyclical(base_rate, max_rate, step_size, halve)


def exp_range(
    base_rate: Hyperparameter,
    max_rate: Hyperparameter,
    step_size: Hyperparameter,
    decay: Hyperparameter,
) -> Schedule:
    r"""Triangles under an exponentially falling bound.

    $$\eta_t = \eta_{base} + (\eta_{max} - \eta_{base}) \max(0, 1 - x_t) \, \gamma^t$$

    with $x_t$ of `triangular`.

    Args:
        base_rate: $\eta_{base} \ge 0$, a scalar, the rate at $t = 0$ and at each cycle's end.
        max_rate: $\eta_{max} \ge \eta_{base}$, a scalar, the bound at $t = 0$.
        step_size: $s > 0$, a scalar, half a cycle in updates.
        decay: $\gamma$ in (0, 1], a scalar, the decay of the bound with each update.

    Returns:
        A schedule `rate(count)` as in `triangular`.

    Raises:
        ValueError: an argument is out of its range or not a scalar.

    Reference:
        Smith, *Cyclical learning rates for training neural networks*, 2017, section 3.1.

    >>> print(exp_range(0.0, 1.0, step_size=2, decay=0.5)(jnp.arange(7)))
    [0.     0.25   0.25   0.0625 0.     0.015625   0.015625]
    """
    _checks.positive("decay", decay)
    if not isinstance(decay, jax.core.Tracer) and np.any(np.asarray(decay) > 1):
        raise ValueError(f"decay must be a number of at most 1, got {decay!r}")
    require_scalars(decay=decay)
    # Rounded to float32 before the logarithm, 0.9999 would be 2 % wrong after a million updates.
    traced = isinstance(decay, jax.core.Tracer)
    log_decay = jnp.log(decay) if traced else np.log(np.asarray(decay, np.float64))

    def fall(count: Array, cycle: Array, height: Array) -> Array:
        return height * jnp.exp(count.astype(height.dtype) * jnp.asarray(log_decay, height.dtype))

    return _cyclical(base_rate, max_rate, step_size, fall)


def snapshot_cosine(initial_rate: Hyperparameter, steps: int, cycles: int) -> Schedule:
    r"""Half a cosine from a rate towards zero, started anew in each cycle.

    $$\alpha(t) = \frac{\alpha_0}{2} \left( \cos\left(
      \frac{\pi \, \mathrm{mod}(t - 1, \lceil T/M \rceil)}{\lceil T/M \rceil} \right) + 1 \right)$$

    Args:
        initial_rate: $\alpha_0 \ge 0$, a scalar.
        steps: T, the number of updates in all.
        cycles: M, the number of cycles. Where it does not divide T, cycles are rounded up to whole
            updates and the last one is cut short.

    Returns:
        A schedule `rate(count)`, where `count` is $t - 1$, the number of updates made so far, of
        any shape; the rate has that shape and is float32 or wider. Beyond T it goes on in cycles.

    Raises:
        ValueError: the rate is negative, not finite or not a scalar; `steps` or `cycles` are not
            whole numbers of at least 1; there are more cycles than steps.

    Reference:
        Huang et al., *Snapshot ensembles: train 1, get M for free*, 2017, equation 2.

    >>> print(jnp.round(snapshot_cosine(0.2, steps=6, cycles=2)(jnp.arange(6)), 3))
    [0.2  0.15 0.05 0.2  0.15 0.05]
    """
    _checks.non_negative("initial_rate", initial_rate)
    require_scalars(initial_rate=initial_rate)
    length = cycle_length(steps, cycles)

    def schedule(count: ArrayLike) -> Array:
        dtype = _dtype(initial_rate)
        left = length - jnp.mod(jnp.asarray(count), length)
        # (cos a + 1) / 2 = sin²((π - a) / 2), without the cancellation at a cycle's end.
        root = jnp.sin(jnp.pi / 2 * left.astype(dtype) / length)
        return jnp.asarray(initial_rate, dtype) * root**2

    return schedule


def cycle_length(steps: int, cycles: int) -> int:
    r"""$\lceil T/M \rceil$, the updates of one cycle."""
    _checks.count("steps", steps)
    _checks.count("cycles", cycles)
    if cycles > steps:
        raise ValueError(f"cycles must be at most steps={steps}, got {cycles}")
    return -(-steps // cycles)


def _cyclical(
    base_rate: Hyperparameter,
    max_rate: Hyperparameter,
    step_size: Hyperparameter,
    scale: Callable[[Array, Array, Array], Array],
) -> Schedule:
    """Triangles; `scale(count, cycle, height)` scales their height, cycles are counted from 0."""
    _checks.non_negative("base_rate", base_rate)
    _checks.non_negative("max_rate", max_rate)
    _checks.positive("step_size", step_size)
    require_scalars(base_rate=base_rate, max_rate=max_rate, step_size=step_size)
    traced = isinstance(base_rate, jax.core.Tracer) or isinstance(max_rate, jax.core.Tracer)
    if not traced and np.asarray(max_rate) < np.asarray(base_rate):
        raise ValueError(f"max_rate must be at least base_rate={base_rate!r}, got {max_rate!r}")

    def schedule(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        dtype = _dtype(base_rate, max_rate)
        base, highest = jnp.asarray(base_rate, dtype), jnp.asarray(max_rate, dtype)
        period = 2 * jnp.asarray(step_size)
        # Whole numbers as long as both are: t/s in float32 would lose the place in a late cycle.
        number = jnp.promote_types(count.dtype, period.dtype)
        if jnp.issubdtype(number, jnp.floating):
            number = jnp.promote_types(number, dtype)
        count, period = count.astype(number), period.astype(number)
        place = jnp.mod(count, period)
        rise = jnp.minimum(place, period - place).astype(dtype) / (period.astype(dtype) / 2)
        return base + scale(count, count // period, (highest - base) * rise)

    return schedule


def _dtype(*rates: Hyperparameter) -> jnp.dtype:
    """That of the rates, float32 at least."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*rates))
