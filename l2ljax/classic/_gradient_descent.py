"""Gradient descent: the step is the gradient times a rate (Cauchy, 1847)."""

from typing import NamedTuple

import optax
from jaxtyping import Array

from l2ljax.classic._common import Count, Leaf, LearningRate, elementwise, require_rate, step
from l2ljax.classic._line_search import LineSearch, descend


class GradientDescentState(NamedTuple):
    """The state of gradient descent without a line search.

    Attributes:
        count: updates made so far, int32[]; None unless the learning rate is a schedule.
    """

    count: Count  # type: ignore[assignment]


def gradient_descent(
    learning_rate: LearningRate, line_search: LineSearch = None
) -> optax.GradientTransformation:
    r"""Gradient descent.

    $$w_t = w_{t-1} - \alpha_t \eta_t g_t$$

    where $\alpha_t$ is 1, or what a line search finds. Stochastic and mini-batch descent are the
    same rule; they differ in the sample that $g_t$, the mean gradient, is taken over.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0. With a line
            search it scales the direction that is searched.
        line_search: `"strong_wolfe"`, `"backtracking"`, one of optax, or None (the default): see
            `bfgs`. A search begins at the step size that the last one found; `"backtracking"` at
            twice that.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. With a line search
        its update needs `value`, `grad` and `value_fn`.

    Raises:
        ValueError: the rate is negative, not finite or not a scalar; `line_search` is none of
            those; a leaf of the params is not floating-point, or complex with a line search.

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
    if line_search is not None:
        return descend("gradient_descent", optax.identity(), learning_rate, line_search, keep=True)
    require_rate(learning_rate)

    def rule(minus_rate: Array) -> Leaf:
        return lambda g: (step(minus_rate, g),)

    return elementwise(GradientDescentState, rule, [], learning_rate, {})
