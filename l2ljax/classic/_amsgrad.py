"""AMSGrad: Adam whose steps in a coordinate can only become shorter (Reddi et al., 2018)."""

import functools
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
from l2ljax.core import DTypeLike

Order: TypeAlias = Literal[False, "before_max", "after_max"]


class AmsgradState(NamedTuple):
    r"""The state of `amsgrad`.

    Attributes:
        count: updates made so far, int32[]; None without bias correction, if the rate is no
            schedule.
        mean: $m$, a tree like the params, same shapes.
        mean_square: $v$, a tree like the params, same shapes, real.
        largest_mean_square: $\hat v$, likewise.
    """

    count: Count  # type: ignore[assignment]
    mean: PyTree
    mean_square: PyTree
    largest_mean_square: PyTree


def amsgrad(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: Order = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""AMSGrad: the mean gradient over the root of the largest mean squared gradient so far.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$$

    $$\hat v_t = \max(\hat v_{t-1}, v_t), \qquad
      w_t = w_{t-1} - \eta_t \frac{m_t}{\sqrt{\hat v_t} + \epsilon}$$

    Adam forgets a large gradient; where such gradients are rare and matter, it can walk the wrong
    way. The maximum remembers. The paper has no $\epsilon$ and divides by zero at zero gradients.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        b1: $\beta_1$ in [0, 1), a scalar. Default 0.9.
        b2: $\beta_2$ in [0, 1), a scalar. Default 0.999.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ inside the root, of $g$ outside. Default
            1e-8.
        eps_in_sqrt: True divides by $\sqrt{\hat v_t + \epsilon}$. Default False.
        bias_correction: False as above, the paper's; with the default decays the first step is
            then 3.16 $\eta$ long. `"before_max"` is optax's order: the maximum is over
            $v_t / (1-\beta_2^t)$. `"after_max"` is torch's: the maximum of $v_t$ is divided by
            $1-\beta_2^t$ after it was taken. In both, $m_t / (1-\beta_1^t)$ stands above.
            Default False.
        accumulator_dtype: the real dtype of all averages; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Of complex
        gradients, $|g|^2$ is averaged.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; `bias_correction` is none
            of the three; a leaf of the params is not floating-point.

    Reference:
        Reddi, Kale and Kumar, *On the convergence of Adam and beyond*, 2018, algorithm 2.

    A large gradient shortens all later steps:

    >>> tx = amsgrad(0.5, b1=0.0)
    >>> state = tx.init(jnp.array(0.0))
    >>> for g in (1.0, 1.0, 100.0, 1.0, 1.0):
    ...     updates, state = tx.update(jnp.array(g), state)
    ...     print(f"{updates:.2f}", end=" ")
    -15.81 -11.18 -15.81 -0.16 -0.16
    """
    require_rate(learning_rate)
    return _amsgrad(learning_rate, b1, b2, eps, eps_in_sqrt, bias_correction, accumulator_dtype)


def scale_by_amsgrad(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = False,
    bias_correction: Order = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The direction of `amsgrad`, to be chained with a rate.

    Args:
        b1: as in `amsgrad`.
        b2: as in `amsgrad`.
        eps: as in `amsgrad`.
        eps_in_sqrt: as in `amsgrad`.
        bias_correction: as in `amsgrad`.
        accumulator_dtype: as in `amsgrad`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `amsgrad`.

    >>> tx = scale_by_amsgrad(b1=0.0, bias_correction="before_max")
    >>> state = tx.init(jnp.array(0.0))
    >>> for g in (1.0, 1.0, 100.0, 1.0, 1.0):
    ...     updates, state = tx.update(jnp.array(g), state)
    ...     print(f"{updates:.3f}", end=" ")
    1.000 1.000 1.731 0.017 0.017
    """
    return _amsgrad(None, b1, b2, eps, eps_in_sqrt, bias_correction, accumulator_dtype)


def _amsgrad(
    learning_rate: LearningRate | None,
    b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    eps_in_sqrt: bool,
    bias_correction: Order,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    _checks.choice("bias_correction", bias_correction, (False, "before_max", "after_max"))
    require_scalars(b1=b1, b2=b2, eps=eps)
    require_accumulator_dtype(accumulator_dtype)

    def rule(minus_rate: Any, b1: Array, b2: Array, eps: Array, t: Any = None) -> Leaf:
        if t is not None:
            first, second = 1 - b1**t, 1 - b2**t

        c1, c2 = 1 - b1, 1 - b2

        def leaf(g: Array, m: Array, v: Array, largest: Array) -> tuple[Array, ...]:
            m = b1 * m + c1 * g
            v = b2 * v + c2 * square(g)
            m_hat = m / first if bias_correction else m
            largest = jnp.maximum(largest, v / second if bias_correction == "before_max" else v)
            v_hat = largest / second if bias_correction == "after_max" else largest
            direction = m_hat / root_with_eps(v_hat, eps, inside=eps_in_sqrt)
            return step(minus_rate, direction), m, v, largest

        return leaf

    first = functools.partial(accumulator, dtype=accumulator_dtype)
    squares = functools.partial(first, real=True)
    return elementwise(
        AmsgradState,
        rule,
        [first, squares, squares],
        learning_rate,
        {"b1": b1, "b2": b2, "eps": eps},
        numbered=bool(bias_correction),
    )
