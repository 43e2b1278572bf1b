"""AdaGrad: every coordinate is scaled by the root of all its squared gradients (Duchi, 2011)."""

import functools
from typing import Any, NamedTuple

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


class AdagradState(NamedTuple):
    """The state of `adagrad`.

    Attributes:
        count: updates made so far, int32[]; None if the rate is no schedule.
        sum_of_squares: $v$, a tree like the params, same shapes, real.
    """

    count: Count  # type: ignore[assignment]
    sum_of_squares: PyTree


def adagrad(
    learning_rate: LearningRate,
    eps: Hyperparameter = 1e-6,
    eps_in_sqrt: bool = True,
    initial_accumulator_value: Hyperparameter = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""AdaGrad: coordinates that have moved little keep a large step.

    $$v_t = v_{t-1} + g_t^2, \qquad w_t = w_{t-1} - \eta_t \frac{g_t}{\sqrt{v_t + \epsilon}}$$

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ inside the root, of $g$ outside. Default
            1e-6; optax's is 1e-7, torch's 1e-10.
        eps_in_sqrt: False divides by $\sqrt{v_t} + \epsilon$, as torch does. Default True.
        initial_accumulator_value: $v_0 \ge 0$, a scalar. Default 0; optax's is 0.1.
        accumulator_dtype: the real dtype of $v$; default: the params' own, float32 where that is
            narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Of complex
        gradients, $|g|^2$ is summed.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Duchi, Hazan and Singer, *Adaptive subgradient methods for online learning and stochastic
        optimization*, 2011, figure 1 with diagonal matrices; $\epsilon$ is there $\delta$, outside
        the root.

    Two coordinates whose gradients differ a thousandfold take the same steps, ever shorter:

    >>> import jax.numpy as jnp
    >>> tx, x = adagrad(0.5, eps=1e-12), jnp.ones(2)
    >>> state = tx.init(x)
    >>> for _ in range(3):
    ...     updates, state = tx.update(x * jnp.array([1.0, 1000.0]), state)
    ...     x = optax.apply_updates(x, updates)
    ...     print(f"{x[0]:.4f} {x[1]:.4f}")
    0.5000 0.5000
    0.2764 0.2764
    0.1564 0.1564
    """
    require_rate(learning_rate)
    return _adagrad(learning_rate, eps, eps_in_sqrt, initial_accumulator_value, accumulator_dtype)


def scale_by_adagrad(
    eps: Hyperparameter = 1e-6,
    eps_in_sqrt: bool = True,
    initial_accumulator_value: Hyperparameter = 0.0,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The direction of `adagrad`, to be chained with a rate.

    Args:
        eps: as in `adagrad`.
        eps_in_sqrt: as in `adagrad`.
        initial_accumulator_value: as in `adagrad`.
        accumulator_dtype: as in `adagrad`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `adagrad`.

    >>> import jax.numpy as jnp
    >>> tx, g = scale_by_adagrad(eps=1e-12), jnp.array(5.0)
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(f"{updates:.4f}", end=" ")
    1.0000 0.7071 0.5774 0.5000
    """
    return _adagrad(None, eps, eps_in_sqrt, initial_accumulator_value, accumulator_dtype)


def _adagrad(
    learning_rate: LearningRate | None,
    eps: Hyperparameter,
    eps_in_sqrt: bool,
    initial_accumulator_value: Hyperparameter,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    _checks.non_negative("initial_accumulator_value", initial_accumulator_value)
    require_scalars(eps=eps, initial_accumulator_value=initial_accumulator_value)
    require_accumulator_dtype(accumulator_dtype)

    def rule(minus_rate: Any, eps: Array) -> Leaf:
        def leaf(g: Array, v: Array) -> tuple[Array, ...]:
            v = v + square(g)
            return step(minus_rate, g / root_with_eps(v, eps, inside=eps_in_sqrt)), v

        return leaf

    first = functools.partial(
        accumulator, dtype=accumulator_dtype, real=True, value=initial_accumulator_value
    )
    return elementwise(AdagradState, rule, [first], learning_rate, {"eps": eps})
