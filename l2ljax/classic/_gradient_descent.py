"""Gradient descent: the step is the gradient times a rate (Cauchy, 1847)."""

from typing import NamedTuple

import optax
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.classic._common import (
    Count,
    LearningRate,
    Updates,
    first_count,
    leafwise,
    rate_at,
    require_scalars,
)
from l2ljax.core import Params


class GradientDescentState(NamedTuple):
    """The state of gradient descent.

    Attributes:
        count: updates made so far, int32[].
    """

    count: Count  # type: ignore[assignment]


def gradient_descent(learning_rate: LearningRate) -> optax.GradientTransformation:
    r"""Gradient descent.

    $$w_t = w_{t-1} - \eta_t g_t$$

    Stochastic and mini-batch descent are the same rule; they differ in the sample that $g_t$, the
    mean gradient, is taken over.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: the rate is negative, not finite or not a scalar; a leaf of the params is not
            floating-point.

    Reference:
        Cauchy, *Méthode générale pour la résolution des systèmes d'équations simultanées*, 1847;
        the stochastic form: Robbins and Monro, *A stochastic approximation method*, 1951.

    The minimum of x², from 1:

    >>> import jax.numpy as jnp
    >>> tx, x = gradient_descent(0.25), jnp.array(1.0)
    >>> state = tx.init(x)
    >>> for _ in range(4):
    ...     updates, state = tx.update(2 * x, state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x:.4f}", end=" ")
    0.5000 0.2500 0.1250 0.0625
    """
    _checks.non_negative("learning_rate", learning_rate)
    require_scalars(learning_rate=learning_rate)

    def rule(g: Array, rate: Array) -> tuple[Array, ...]:
        return (-rate * g,)

    def init(params: Params) -> GradientDescentState:
        _checks.floating_leaves("params", params)
        return GradientDescentState(first_count())

    def update(
        updates: Updates, state: GradientDescentState, params: Params | None = None
    ) -> tuple[Updates, GradientDescentState]:
        del params
        (updates,) = leafwise(rule, updates, rate=rate_at(learning_rate, state.count))
        return updates, GradientDescentState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
