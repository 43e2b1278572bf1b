"""Adadelta: the unit of a step is that of the steps before it (Zeiler, 2012)."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
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
    square,
    step,
)
from l2ljax.core import DTypeLike


class AdadeltaState(NamedTuple):
    r"""The state of `adadelta`.

    Attributes:
        count: updates made so far, int32[]; None if the rate is no schedule.
        mean_square: $v$, a tree like the params, same shapes, real.
        mean_square_step: $\Delta$, likewise.
    """

    count: Count  # type: ignore[assignment]
    mean_square: PyTree
    mean_square_step: PyTree


def adadelta(
    learning_rate: LearningRate = 1.0,
    decay: Hyperparameter = 0.95,
    rho: Hyperparameter = 0.95,
    eps: Hyperparameter = 1e-6,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Adadelta: gradients in units of their own mean square, steps in that of earlier steps.

    $$v_t = \gamma v_{t-1} + (1-\gamma) g_t^2, \qquad
      u_t = \frac{\sqrt{\Delta_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t$$

    $$w_t = w_{t-1} - \eta_t u_t, \qquad \Delta_t = \rho \Delta_{t-1} + (1-\rho) u_t^2$$

    $\Delta$ lags one step behind $v$. The first steps are about $\sqrt\epsilon$ long.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0. Default 1,
            the paper's method, which has none.
        decay: $\gamma$ in [0, 1), a scalar, of the mean squared gradient. Default 0.95.
        rho: $\rho$ in [0, 1), a scalar, of the mean squared step. Default 0.95. The paper, optax
            and torch have one decay for both; theirs is 0.9.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ below and $w^2$ above. Default 1e-6.
        accumulator_dtype: the real dtype of both averages; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Of complex
        gradients, $|g|^2$ is averaged.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Zeiler, *ADADELTA: an adaptive learning rate method*, 2012, algorithm 1.

    Steps begin small and grow, for two coordinates whose gradients differ a thousandfold alike:

    >>> tx, x = adadelta(eps=1e-4), jnp.ones(2)
    >>> state = tx.init(x)
    >>> for _ in range(3):
    ...     updates, state = tx.update(x * jnp.array([1.0, 1000.0]), state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x[0]:.4f} {x[1]:.4f}")
    0.9553 0.9553
    0.9111 0.9110
    0.8679 0.8678
    """
    require_rate(learning_rate)
    return _adadelta(learning_rate, decay, rho, eps, accumulator_dtype)


def scale_by_adadelta(
    decay: Hyperparameter = 0.95,
    rho: Hyperparameter = 0.95,
    eps: Hyperparameter = 1e-6,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The direction $u_t$ of `adadelta`, to be chained with a rate.

    Args:
        decay: as in `adadelta`.
        rho: as in `adadelta`.
        eps: as in `adadelta`.
        accumulator_dtype: as in `adadelta`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `adadelta`.

    >>> tx, g = scale_by_adadelta(eps=1e-4), jnp.array(5.0)
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(f"{updates:.4f}", end=" ")
    0.0447 0.0453 0.0457 0.0460
    """
    return _adadelta(None, decay, rho, eps, accumulator_dtype)


def _adadelta(
    learning_rate: LearningRate | None,
    decay: Hyperparameter,
    rho: Hyperparameter,
    eps: Hyperparameter,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.fraction("decay", decay)
    _checks.fraction("rho", rho)
    _checks.positive("eps", eps)
    require_scalars(decay=decay, rho=rho, eps=eps)
    require_accumulator_dtype(accumulator_dtype)

    def rule(minus_rate: Any, decay: Array, rho: Array, eps: Array) -> Leaf:
        c_v, c_delta = 1 - decay, 1 - rho

        def leaf(g: Array, v: Array, delta: Array) -> tuple[Array, ...]:
            v = decay * v + c_v * square(g)
            u = jnp.sqrt(delta + eps) / jnp.sqrt(v + eps) * g
            return step(minus_rate, u), v, rho * delta + c_delta * square(u)

        return leaf

    hyperparameters = {"decay": decay, "rho": rho, "eps": eps}
    first = functools.partial(accumulator, dtype=accumulator_dtype, real=True)
    return elementwise(AdadeltaState, rule, [first, first], learning_rate, hyperparameters)
