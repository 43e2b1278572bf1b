"""RMSprop: every coordinate is scaled by the root mean square of its gradients (Hinton, 2012)."""

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
    root_with_eps,
    square,
    step,
)
from l2ljax.core import DTypeLike


class RMSPropState(NamedTuple):
    """The state of `rmsprop`.

    Attributes:
        count: updates made so far, int32[]; None if the rate is no schedule.
        mean_square: $v$, a tree like the params, same shapes, real.
        mean: $m$, a tree like the params, same shapes; None unless `centered`.
        velocity: $h$, likewise; None without momentum.
    """

    count: Count  # type: ignore[assignment]
    mean_square: PyTree
    mean: PyTree | None
    velocity: PyTree | None


def rmsprop(
    learning_rate: LearningRate,
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyperparameter | None = None,
    rate_inside: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""RMSprop: gradient descent in units of each coordinate's recent gradients.

    $$v_t = \beta v_{t-1} + (1-\beta) g_t^2, \qquad
      w_t = w_{t-1} - \eta_t \frac{g_t}{\sqrt{v_t + \epsilon}}$$

    $v_0 = 0$ is not corrected for: with $\beta = 0.9$ the first step is 3.16 $\eta$ long. The
    centered form has the variance $v_t - m_t^2$ under the root,
    $m_t = \beta m_{t-1} + (1-\beta) g_t$; where rounding makes it negative, it counts as 0. With
    momentum the step goes into a velocity, $h_t = \alpha h_{t-1} + \eta_t g_t / \sqrt{\cdot}$,
    $w_t = w_{t-1} - h_t$.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        decay: $\beta$ in [0, 1), a scalar. Default 0.9; torch's is 0.99.
        eps: $\epsilon > 0$, a scalar, in units of $g^2$ inside the root, of $g$ outside. Default
            1e-8.
        eps_in_sqrt: False divides by $\sqrt{v_t} + \epsilon$, as torch does. Default True.
        centered: whether the root is of the variance. Default False.
        momentum: $\alpha$ in [0, 1), a scalar. Default None: no velocity is kept.
        rate_inside: whether the rate stands inside the velocity, as in optax, or outside,
            $w_t = w_{t-1} - \eta_t h_t$, as in torch; equal at a constant rate. Default True.
        accumulator_dtype: the real dtype of all averages; default: the params' own, float32 where
            that is narrower.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Of complex
        gradients, $|g|^2$ is averaged.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; a leaf of the params is
            not floating-point.

    Reference:
        Tieleman and Hinton, *Lecture 6.5, rmsprop: divide the gradient by a running average of its
        recent magnitude*, Coursera: Neural networks for machine learning, 2012. Centered, with
        momentum: Graves, *Generating sequences with recurrent neural networks*, 2013, equations
        38 to 45.

    Two coordinates whose gradients differ a thousandfold take the same steps:

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
    require_rate(learning_rate)
    return _rmsprop(
        learning_rate, decay, eps, eps_in_sqrt, centered, momentum, rate_inside, accumulator_dtype
    )


def scale_by_rmsprop(
    decay: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-8,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The direction of `rmsprop`, to be chained with a rate and, before or after it, momentum.

    Args:
        decay: as in `rmsprop`.
        eps: as in `rmsprop`.
        eps_in_sqrt: as in `rmsprop`.
        centered: as in `rmsprop`.
        accumulator_dtype: as in `rmsprop`.

    Returns:
        A transformation from gradients to directions; it does not change their sign.

    Raises:
        ValueError: as in `rmsprop`.

    >>> tx, g = scale_by_rmsprop(), jnp.array(5.0)
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(f"{updates:.3f}", end=" ")
    3.162 2.294 1.921 1.705
    """
    return _rmsprop(None, decay, eps, eps_in_sqrt, centered, None, False, accumulator_dtype)


def _rmsprop(
    learning_rate: LearningRate | None,
    decay: Hyperparameter,
    eps: Hyperparameter,
    eps_in_sqrt: bool,
    centered: bool,
    momentum: Hyperparameter | None,
    rate_inside: bool,
    accumulator_dtype: DTypeLike | None,
) -> optax.GradientTransformation:
    _checks.fraction("decay", decay)
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    _checks.choice("centered", centered, (True, False))
    _checks.choice("rate_inside", rate_inside, (True, False))
    require_scalars(decay=decay, eps=eps, momentum=momentum)
    require_accumulator_dtype(accumulator_dtype)
    hyperparameters = {"decay": decay, "eps": eps}
    if momentum is not None:
        _checks.fraction("momentum", momentum)
        hyperparameters["momentum"] = momentum

    def rule(minus_rate: Any, decay: Array, eps: Array, momentum: Any = None) -> Leaf:
        c = 1 - decay

        def leaf(g: Array, v: Array, m: Any, h: Any) -> tuple[Any, ...]:
            v = decay * v + c * square(g)
            spread = v
            if centered:
                m = decay * m + c * g
                spread = jnp.maximum(v - square(m), 0)
            direction = g / root_with_eps(spread, eps, inside=eps_in_sqrt)
            if momentum is None:
                return step(minus_rate, direction), v, m, h
            if rate_inside:
                h = momentum * h - minus_rate * direction
                return -h, v, m, h
            h = momentum * h + direction
            return step(minus_rate, h), v, m, h

        return leaf

    first = functools.partial(accumulator, dtype=accumulator_dtype)
    accumulators = [
        functools.partial(first, real=True),
        first if centered else None,
        None if momentum is None else first,
    ]
    return elementwise(RMSPropState, rule, accumulators, learning_rate, hyperparameters)
