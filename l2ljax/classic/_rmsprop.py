"""RMSprop: every coordinate is scaled by the root mean square of its gradients (Hinton, 2012)."""

from typing import NamedTuple

import optax
from jaxtyping import Array, PyTree

from l2ljax import _checks
from l2ljax.classic._common import (
    Count,
    Hyperparameter,
    LearningRate,
    Updates,
    accumulator,
    first_count,
    leafwise,
    rate_at,
    require_scalars,
    root_with_eps,
)
from l2ljax.core import Params


class RMSPropState(NamedTuple):
    """The state of `rmsprop`.

    Attributes:
        count: updates made so far, int32[].
        mean_square: $v$, a tree like the params, same shapes, float32 or wider.
    """

    count: Count  # type: ignore[assignment]
    mean_square: PyTree


def rmsprop(
    learning_rate: LearningRate,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = True,
) -> optax.GradientTransformation:
    r"""RMSprop: gradient descent in units of each coordinate's recent gradients.

    $$v_t = \beta v_{t-1} + (1-\beta) g_t^2, \qquad
      w_t = w_{t-1} - \eta_t \frac{g_t}{\sqrt{v_t + \epsilon}}$$

    $v_0 = 0$ is not corrected for: with $\beta = 0.9$ the first step is 3.16 $\eta$ long.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\beta$ in [0, 1), a scalar. Default 0.9; torch's is 0.99.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ inside the root, of $g$ outside. Default
            1e-8.
        eps_in_sqrt: False divides by $\sqrt{v_t} + \epsilon$, as torch does. Default True.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Tieleman and Hinton, *Lecture 6.5, rmsprop: divide the gradient by a running average of its
        recent magnitude*, Coursera: Neural networks for machine learning, 2012.

    Two coordinates whose gradients differ a thousandfold take the same steps:

    >>> import jax.numpy as jnp
    >>> tx, x = rmsprop(0.1, eps=1e-12), jnp.ones(2)
    >>> state = tx.init(x)
    >>> for _ in range(3):
    ...     updates, state = tx.update(x * jnp.array([1.0, 1000.0]), state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x[0]:.4f} {x[1]:.4f}")
    0.6838 0.6838
    0.4989 0.4989
    0.3692 0.3692
    """
    _checks.non_negative("learning_rate", learning_rate)
    _checks.fraction("decay", decay)
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    require_scalars(learning_rate=learning_rate, decay=decay, eps=eps)

    def rule(g: Array, v: Array, rate: Array, decay: Array, eps: Array) -> tuple[Array, ...]:
        v = decay * v + (1 - decay) * g**2
        return -rate * g / root_with_eps(v, eps, inside=eps_in_sqrt), v

    def init(params: Params) -> RMSPropState:
        return RMSPropState(first_count(), accumulator(params))

    def update(
        updates: Updates, state: RMSPropState, params: Params | None = None
    ) -> tuple[Updates, RMSPropState]:
        del params
        rate = rate_at(learning_rate, state.count)
        updates, mean_square = leafwise(
            rule, updates, state.mean_square, rate=rate, decay=decay, eps=eps
        )
        return updates, RMSPropState(optax.safe_increment(state.count), mean_square)

    return optax.GradientTransformation(init, update)
