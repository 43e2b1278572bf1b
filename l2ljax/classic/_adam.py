"""Adam: momentum in units of each coordinate's recent gradients (Kingma and Ba, 2015)."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
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


class AdamState(NamedTuple):
    """The state of `adam`.

    Attributes:
        count: updates made so far, int32[].
        mean: $m$, a tree like the params, same shapes, float32 or wider.
        mean_square: $v$, likewise.
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
    bias_correction: bool | Literal["rate"] = True,
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

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients.

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
    _checks.non_negative("learning_rate", learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.positive("eps", eps)
    _checks.choice("eps_in_sqrt", eps_in_sqrt, (True, False))
    _checks.choice("bias_correction", bias_correction, (True, False, "rate"))
    require_scalars(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps)

    def rule(
        g: Array, m: Array, v: Array, t: Array, rate: Array, b1: Array, b2: Array, eps: Array
    ) -> tuple[Array, ...]:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m, v
        if bias_correction == "rate":
            rate = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        elif bias_correction:
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        return -rate * m_hat / root_with_eps(v_hat, eps, inside=eps_in_sqrt), m, v

    def init(params: Params) -> AdamState:
        return AdamState(first_count(), accumulator(params), accumulator(params))

    def update(
        updates: Updates, state: AdamState, params: Params | None = None
    ) -> tuple[Updates, AdamState]:
        del params
        rate = rate_at(learning_rate, state.count)
        t = optax.safe_increment(state.count)
        updates, mean, mean_square = leafwise(
            rule, updates, state.mean, state.mean_square, t=t, rate=rate, b1=b1, b2=b2, eps=eps
        )
        return updates, AdamState(t, mean, mean_square)

    return optax.GradientTransformation(init, update)
