"""Adam: momentum in units of each coordinate's recent gradients (Kingma and Ba, 2015)."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

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
    root_with_eps,
    square,
    step,
)
from l2ljax.core import DTypeLike, Params

BiasCorrection: TypeAlias = bool | Literal["rate"]


class AdamState(NamedTuple):
    """The state of `adam`, `adamw` and `adam_l2`.

    Attributes:
        count: updates made so far, int32[]; None without bias correction, if no rate is a
            schedule.
        mean: $m$, a tree like the params, same shapes.
        mean_square: $v$, a tree like the params, same shapes, real.
    """

    count: Count  # type: ignore[assignment]
    mean: PyTree
    mean_square: PyTree


def adam(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: BiasCorrection = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Adam: the mean gradient over the root of the mean squared gradient.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$$

    $$w_t = w_{t-1} - \eta_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \qquad
      \hat m_t = \frac{m_t}{1-\beta_1^t}, \qquad \hat v_t = \frac{v_t}{1-\beta_2^t}$$

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        b1: $\beta_1$ in [0, 1), a scalar. Default 0.9.
        b2: $\beta_2$ in [0, 1), a scalar. Default 0.999.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ inside the root, of $g$ outside. Default
            1e-8.
        eps_in_sqrt: True divides by $\sqrt{\hat v_t + \epsilon}$. Default False.
        bias_correction: True as above. False steps by $m_t / (\sqrt{v_t} + \epsilon)$: with the
            default decays the first step is then 3.16 $\eta$ long, not $\eta$. `"rate"` corrects
            the rate instead, $\eta_t \sqrt{1-\beta_2^t} / (1-\beta_1^t)$, the paper's efficient
            order of computation, in which $\epsilon$ is relative to the uncorrected
            $\sqrt{v_t}$. Default True.
        accumulator_dtype: the real dtype of both averages; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Of complex
        gradients, $|g|^2$ is averaged.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; `bias_correction` is none
            of the three; a leaf of the params is not floating-point.

    Reference:
        Kingma and Ba, *Adam: a method for stochastic optimization*, 2015, algorithm 1;
        `bias_correction="rate"`: the end of section 2.

    Two coordinates whose gradients differ a thousandfold take the same steps:

    >>> tx, x = adam(0.5), jnp.ones(2)
    >>> state = tx.init(x)
    >>> for _ in range(3):
    ...     updates, state = tx.update(x * jnp.array([1.0, 1000.0]), state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x[0]:.4f} {x[1]:.4f}")
    0.5000 0.5000
    0.0339 0.0339
    -0.3359 -0.3359
    """
    require_rate(learning_rate)
    return adam_with(learning_rate, b1, b2, eps, eps_in_sqrt, bias_correction, accumulator_dtype)


def scale_by_adam(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: BiasCorrection = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The direction of `adam`, to be chained with a rate.

    Args:
        b1: as in `adam`.
        b2: as in `adam`.
        eps: as in `adam`.
        eps_in_sqrt: as in `adam`.
        bias_correction: as in `adam`.
        accumulator_dtype: as in `adam`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `adam`.

    >>> tx = scale_by_adam()
    >>> state = tx.init(jnp.array(0.0))
    >>> for g in (5.0, 5.0, -5.0, -5.0):
    ...     updates, state = tx.update(jnp.array(g), state)
    ...     print(f"{updates:.4f}", end=" ")
    1.0000 1.0000 0.2620 -0.1050
    """
    return adam_with(None, b1, b2, eps, eps_in_sqrt, bias_correction, accumulator_dtype)


def adam_with(
    learning_rate: LearningRate | None,
    b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    eps_in_sqrt: bool,
    bias_correction: BiasCorrection,
    accumulator_dtype: DTypeLike | None,
    *,
    penalty: dict[str, LearningRate] | None = None,
    read: Callable[[Params | None], Params] | None = None,
) -> optax.GradientTransformation:
    """Adam, perhaps with a penalty on the params that `read` gives.

    Args:
        learning_rate: as in `adam`; None for the direction alone.
        b1: as in `adam`.
        b2: as in `adam`.
        eps: as in `adam`.
        eps_in_sqrt: as in `adam`.
        bias_correction: as in `adam`.
        accumulator_dtype: as in `adam`.
        penalty: one number or schedule by the name of what it multiplies the params for:
            `in_gradient`, `in_direction` or `in_step`.
        read: as in `elementwise`.

    Returns:
        A transformation with an `AdamState`.
    """
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    _checks.choice("bias_correction", bias_correction, (True, False, "rate"))
    require_scalars(b1=b1, b2=b2, eps=eps)
    require_accumulator_dtype(accumulator_dtype)

    def rule(
        minus_rate: Any,
        b1: Array,
        b2: Array,
        eps: Array,
        t: Any = None,
        in_gradient: Any = None,
        in_direction: Any = None,
        in_step: Any = None,
    ) -> Leaf:
        if t is not None:
            first, second = 1 - b1**t, 1 - b2**t
        factor = jnp.sqrt(second) / first if bias_correction == "rate" else None

        c1, c2 = 1 - b1, 1 - b2

        def leaf(g: Array, m: Array, v: Array, w: Any = None) -> tuple[Array, ...]:
            if in_gradient is not None:
                g = g + in_gradient * w
            m = b1 * m + c1 * g
            v = b2 * v + c2 * square(g)
            m_hat, v_hat = (m / first, v / second) if bias_correction is True else (m, v)
            direction = m_hat / root_with_eps(v_hat, eps, inside=eps_in_sqrt)
            if factor is not None:
                direction = factor * direction
            if in_direction is not None:
                direction = direction + in_direction * w
            update = step(minus_rate, direction)
            if in_step is not None:
                update = update - in_step * w
            return update, m, v

        return leaf

    first = functools.partial(accumulator, dtype=accumulator_dtype)
    return elementwise(
        AdamState,
        rule,
        [first, functools.partial(first, real=True)],
        learning_rate,
        {"b1": b1, "b2": b2, "eps": eps, **(penalty or {})},
        numbered=bias_correction is not False,
        read=read,
    )
