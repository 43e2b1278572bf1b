"""Momentum: a velocity that remembers past gradients (Polyak, 1964; Nesterov, 1983)."""

from typing import NamedTuple

import jax
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
)
from l2ljax.core import Params


class MomentumState(NamedTuple):
    """The state of `momentum`.

    Attributes:
        count: updates made so far, int32[].
        velocity: $h$, a tree like the params, same shapes, float32 or wider.
    """

    count: Count  # type: ignore[assignment]
    velocity: PyTree


class NesterovState(NamedTuple):
    r"""The state of `nesterov`.

    Attributes:
        count: updates made so far, int32[].
        lookahead: $\alpha h$, how far the params are ahead of the iterate; a tree like the params,
            same shapes, float32 or wider.
    """

    count: Count  # type: ignore[assignment]
    lookahead: PyTree


def momentum(
    learning_rate: LearningRate, decay: Hyperparameter = 0.9
) -> optax.GradientTransformation:
    r"""Heavy ball: a velocity that loses the fraction $1 - \alpha$ of itself in every step.

    $$h_t = \alpha h_{t-1} + \eta_t g_t, \qquad w_t = w_{t-1} - h_t$$

    The rate stands inside the velocity: under a schedule, a step taken at a high rate keeps
    rolling with it. `optax.sgd` and torch have the rate outside; the two forms are equal at a
    constant rate only.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\alpha$ in [0, 1), a scalar; 0 is gradient descent. Default 0.9.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964; in this
        form: Sutskever et al., *On the importance of initialization and momentum in deep
        learning*, 2013, equations 1 and 2.

    The minimum of x², from 1; the ball rolls through it:

    >>> import jax.numpy as jnp
    >>> tx, x = momentum(0.25, decay=0.5), jnp.array(1.0)
    >>> state = tx.init(x)
    >>> for _ in range(4):
    ...     updates, state = tx.update(2 * x, state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x:.4f}", end=" ")
    0.5000 0.0000 -0.2500 -0.2500
    """
    _checks.non_negative("learning_rate", learning_rate)
    _checks.fraction("decay", decay)
    require_scalars(learning_rate=learning_rate, decay=decay)

    def rule(g: Array, h: Array, rate: Array, decay: Array) -> tuple[Array, ...]:
        h = decay * h + rate * g
        return -h, h

    def init(params: Params) -> MomentumState:
        return MomentumState(first_count(), accumulator(params))

    def update(
        updates: Updates, state: MomentumState, params: Params | None = None
    ) -> tuple[Updates, MomentumState]:
        del params
        rate = rate_at(learning_rate, state.count)
        updates, velocity = leafwise(rule, updates, state.velocity, rate=rate, decay=decay)
        return updates, MomentumState(optax.safe_increment(state.count), velocity)

    return optax.GradientTransformation(init, update)


def nesterov(
    learning_rate: LearningRate, decay: Hyperparameter = 0.9
) -> optax.GradientTransformation:
    r"""Nesterov's momentum: the gradient is taken where the velocity is about to lead.

    $$h_t = \alpha h_{t-1} + \eta_t\, g(w_{t-1} - \alpha h_{t-1}), \qquad w_t = w_{t-1} - h_t$$

    A transformation sees the gradient at its params only, so **the params are the look-ahead
    point** $y_t = w_t - \alpha h_t$:

    $$y_t = y_{t-1} - \eta_t\, g(y_{t-1}) - \alpha h_t$$

    `nesterov_iterate` gives $w_t$ back. Both start at the same point, for $h_0 = 0$.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\alpha$ in [0, 1), a scalar; 0 is gradient descent. Default 0.9.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Nesterov, *A method of solving a convex programming problem with convergence rate
        O(1/k²)*, 1983; in this form: Sutskever et al., *On the importance of initialization and
        momentum in deep learning*, 2013, equations 3 and 4. The change of variable: Bengio et al.,
        *Advances in optimizing recurrent networks*, 2013, section 3.5.

    The minimum of x², from 1:

    >>> import jax.numpy as jnp
    >>> tx, y = nesterov(0.25, decay=0.5), jnp.array(1.0)
    >>> state = tx.init(y)
    >>> for _ in range(4):
    ...     updates, state = tx.update(2 * y, state)
    ...     y = optax.apply_updates(y, updates)
    ...     print(f"{y:.4f}", end=" ")
    0.2500 -0.0625 -0.1094 -0.0664
    """
    _checks.non_negative("learning_rate", learning_rate)
    _checks.fraction("decay", decay)
    require_scalars(learning_rate=learning_rate, decay=decay)

    def rule(g: Array, lookahead: Array, rate: Array, decay: Array) -> tuple[Array, ...]:
        h = lookahead + rate * g
        lookahead = decay * h
        return -(rate * g + lookahead), lookahead

    def init(params: Params) -> NesterovState:
        return NesterovState(first_count(), accumulator(params))

    def update(
        updates: Updates, state: NesterovState, params: Params | None = None
    ) -> tuple[Updates, NesterovState]:
        del params
        rate = rate_at(learning_rate, state.count)
        updates, lookahead = leafwise(rule, updates, state.lookahead, rate=rate, decay=decay)
        return updates, NesterovState(optax.safe_increment(state.count), lookahead)

    return optax.GradientTransformation(init, update)


def nesterov_iterate(params: Params, state: NesterovState) -> Params:
    r"""The iterate of Nesterov's method, from the look-ahead point that `nesterov` keeps as params.

    $$w_t = y_t + \alpha h_t$$

    Args:
        params: $y_t$, any tree.
        state: the state of `nesterov` after the update that led to `params`; inside
            `optax.chain` it is one element of the chain's state.

    Returns:
        $w_t$, a tree like the params, same shapes and dtypes.

    Reference:
        See `nesterov`.

    >>> import jax.numpy as jnp
    >>> tx, y = nesterov(0.25, decay=0.5), jnp.array(1.0)
    >>> state = tx.init(y)
    >>> for _ in range(3):
    ...     updates, state = tx.update(2 * y, state)
    ...     y = optax.apply_updates(y, updates)
    ...     print(f"{y:.4f} {nesterov_iterate(y, state):.4f}")
    0.2500 0.5000
    -0.0625 0.1250
    -0.1094 -0.0312
    """
    return jax.tree.map(lambda y, ah: y + ah.astype(y.dtype), params, state.lookahead)
