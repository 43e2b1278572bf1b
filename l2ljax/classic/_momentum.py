"""Momentum: a velocity that remembers past gradients (Polyak, 1964; Nesterov, 1983)."""

import functools
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, PyTree

from l2ljax import _checks
from l2ljax.classic._common import (
    Count,
    Hyperparameter,
    Leaf,
    LearningRate,
    accumulator,
    elementwise,
    require_accumulator_dtype,
    require_rate,
    require_scalars,
    step,
)
from l2ljax.core import DTypeLike, Params


class MomentumState(NamedTuple):
    """The state of `momentum`.

    Attributes:
        count: updates made so far, int32[]; None if the rate is no schedule.
        velocity: the last update, $-h$, with the rate inside; $h$ with the rate outside, and of
            `scale_by_momentum`. A tree like the params, same shapes.
    """

    count: Count  # type: ignore[assignment]
    velocity: PyTree


class NesterovState(NamedTuple):
    r"""The state of `nesterov`.

    Attributes:
        count: updates made so far, int32[]; None if the rate is no schedule.
        lookahead: $\alpha h$, how far the params are ahead of the iterate; a tree like the params,
            same shapes.
    """

    count: Count  # type: ignore[assignment]
    lookahead: PyTree


def momentum(
    learning_rate: LearningRate,
    decay: Hyperparameter = 0.9,
    rate_inside: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Heavy ball: a velocity that loses the fraction $1 - \alpha$ of itself in every step.

    $$h_t = \alpha h_{t-1} + \eta_t g_t, \qquad w_t = w_{t-1} - h_t$$

    The rate stands inside the velocity: under a schedule, a step taken at a high rate keeps
    rolling with it. `rate_inside=False` is the form of `optax.sgd` and of torch,

    $$h_t = \alpha h_{t-1} + g_t, \qquad w_t = w_{t-1} - \eta_t h_t$$

    and the two are equal at a constant rate only.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\alpha$ in [0, 1), a scalar; 0 is gradient descent. Default 0.9.
        rate_inside: whether the rate stands inside the velocity. Default True.
        accumulator_dtype: the real dtype of the velocity; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients, real or complex.

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
    require_rate(learning_rate)
    return _momentum(learning_rate, decay, rate_inside, accumulator_dtype)


def scale_by_momentum(
    decay: Hyperparameter = 0.9, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """The velocity of `momentum` alone, to be chained with a rate.

    Args:
        decay: as in `momentum`.
        accumulator_dtype: as in `momentum`.

    Returns:
        A transformation from gradients to velocities; it does not change their sign.

    Raises:
        ValueError: as in `momentum`.

    >>> import jax.numpy as jnp
    >>> tx, g = scale_by_momentum(decay=0.5), jnp.array(1.0)
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(f"{updates:.4f}", end=" ")
    1.0000 1.5000 1.7500 1.8750
    """
    return _momentum(None, decay, False, accumulator_dtype)


def _momentum(
    learning_rate: LearningRate | None,
    decay: Hyperparameter,
    rate_inside: bool,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.fraction("decay", decay)
    _checks.choice("rate_inside", rate_inside, (True, False))
    require_scalars(decay=decay)
    require_accumulator_dtype(accumulator_dtype)

    def rule(minus_rate: Any, decay: Array) -> Leaf:
        def leaf(g: Array, v: Array) -> tuple[Array, ...]:
            if rate_inside:
                v = decay * v + minus_rate * g
                return v, v
            v = decay * v + g
            return step(minus_rate, v), v

        return leaf

    first = functools.partial(accumulator, dtype=accumulator_dtype)
    return elementwise(MomentumState, rule, [first], learning_rate, {"decay": decay})


def nesterov(
    learning_rate: LearningRate,
    decay: Hyperparameter = 0.9,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Nesterov's momentum: the gradient is taken where the velocity is about to lead.

    $$h_t = \alpha h_{t-1} + \eta_t\, g(w_{t-1} - \alpha h_{t-1}), \qquad w_t = w_{t-1} - h_t$$

    A transformation sees the gradient at its params only, so **the params are the look-ahead
    point** $y_t = w_t - \alpha h_t$:

    $$y_t = y_{t-1} - \eta_t\, g(y_{t-1}) - \alpha h_t$$

    `nesterov_iterate` gives $w_t$ back. Both start at the same point, for $h_0 = 0$. As in
    `momentum`, the rate stands inside the velocity; the form of `optax.sgd(nesterov=True)` and of
    torch, which differs under a schedule, is `scale_by_nesterov` followed by the rate.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\alpha$ in [0, 1), a scalar; 0 is gradient descent. Default 0.9.
        accumulator_dtype: the real dtype of the velocity; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients, real or complex.

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
    require_rate(learning_rate)
    return _nesterov(learning_rate, decay, accumulator_dtype)


def scale_by_nesterov(
    decay: Hyperparameter = 0.9, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    r"""The direction $g_t + \alpha h_t$ of `nesterov`, $h_t = \alpha h_{t-1} + g_t$.

    Args:
        decay: as in `nesterov`.
        accumulator_dtype: as in `nesterov`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `nesterov`.

    >>> import jax.numpy as jnp
    >>> tx, g = scale_by_nesterov(decay=0.5), jnp.array(1.0)
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(f"{updates:.4f}", end=" ")
    1.5000 1.7500 1.8750 1.9375
    """
    return _nesterov(None, decay, accumulator_dtype)


def _nesterov(
    learning_rate: LearningRate | None,
    decay: Hyperparameter,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.fraction("decay", decay)
    require_scalars(decay=decay)
    require_accumulator_dtype(accumulator_dtype)

    def rule(minus_rate: Any, decay: Array) -> Leaf:
        def leaf(g: Array, lookahead: Array) -> tuple[Array, ...]:
            if minus_rate is None:
                lookahead = decay * (lookahead + g)
                return g + lookahead, lookahead
            # Not `decay * (lookahead - minus_rate * g)`: XLA writes a product used twice to memory.
            lookahead = decay * lookahead - (decay * minus_rate) * g
            return minus_rate * g - lookahead, lookahead

        return leaf

    first = functools.partial(accumulator, dtype=accumulator_dtype)
    return elementwise(NesterovState, rule, [first], learning_rate, {"decay": decay})


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
