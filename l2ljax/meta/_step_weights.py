"""Weights w_t of the meta-loss Σ_t w_t f(θ_t)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks


def polynomial_weights(horizon: int, power: float = 2.0) -> Float[Array, " horizon"]:
    r"""Weights that grow towards the end of an episode.

    $$w_t = \frac{T\, t^p}{\sum_{s=1}^T s^p}, \qquad t = 1 \dots T$$

    They sum to T, as the paper's ones do. Which weights are right depends on what is reported:
    ones (`power=0`) train for the mean loss over the run, larger powers for the final loss.

    Args:
        horizon: inner steps T.
        power: p, non-negative.

    Returns:
        w₁ … w_T, f32[horizon].

    Raises:
        ValueError: for a horizon below 1 or a negative power.

    >>> print(polynomial_weights(4, power=1))
    [0.4 0.8 1.2 1.6]
    """
    _checks.count("horizon", horizon)
    _checks.non_negative("power", power)
    weights = (jnp.arange(1, horizon + 1) / horizon) ** power
    return horizon * weights / weights.sum()


def final_weights(horizon: int, window: int = 1) -> Float[Array, " horizon"]:
    r"""Weight on the last steps only: $w_t = T / k$ for the last $k$ steps, else 0.

    Args:
        horizon: inner steps T.
        window: k, the number of last steps that count.

    Returns:
        w₁ … w_T, f32[horizon].

    Raises:
        ValueError: for a horizon or window below 1, or a window larger than the horizon.

    Reference:
        Andrychowicz et al. (2016), equation 2 and the remark on w_t below equation 3.

    >>> print(final_weights(4, window=2))
    [0. 0. 2. 2.]
    """
    _checks.count("horizon", horizon)
    _checks.count("window", window)
    if window > horizon:
        raise ValueError(f"window must be at most horizon={horizon}, got {window}")
    return jnp.where(jnp.arange(horizon) < horizon - window, 0.0, horizon / window)
