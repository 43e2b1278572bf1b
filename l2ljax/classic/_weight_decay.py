"""Adam with small weights: decay beside the gradient or a penalty in it (Loshchilov, 2019)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import _checks, _masks
from l2ljax._masks import Mask
from l2ljax.classic._adam import BiasCorrection, adam_with
from l2ljax.classic._common import (
    Hyperparameter,
    LearningRate,
    require_params,
    require_rate,
    require_scalars,
)
from l2ljax.core import DTypeLike, Params


def adamw(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    weight_decay: LearningRate = 1e-2,
    mask: Mask = None,
    decay_by_rate: bool = True,
    eps_in_sqrt: bool = False,
    bias_correction: BiasCorrection = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""AdamW: Adam beside which the weights decay, untouched by its averages.

    $$w_t = w_{t-1} - \eta_t \left( \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
      + \lambda w_{t-1} \right)$$

    with the averages of `adam`. The paper scales $\lambda$ by its schedule alone and not by the
    base rate, $w_t = w_{t-1} - \eta_t (\cdot) - \lambda_t w_{t-1}$: that is `decay_by_rate=False`,
    with $\lambda_t$ as a schedule.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        b1: $\beta_1$ in [0, 1), a scalar. Default 0.9.
        b2: $\beta_2$ in [0, 1), a scalar. Default 0.999.
        eps: $\epsilon > 0$, a scalar. Default 1e-8.
        weight_decay: $\lambda \ge 0$, a scalar or a schedule. Default 1e-2, torch's; optax's is
            1e-4.
        mask: which params decay: a tree of booleans, like the params or a prefix of them, or a
            function from params to one. It is a function if all its leaves are callable, as in
            optax. Default: all.
        decay_by_rate: whether the decay is $\eta_t \lambda$, as in torch and optax, or $\lambda$.
            Default True.
        eps_in_sqrt: as in `adam`.
        bias_correction: as in `adam`.
        accumulator_dtype: as in `adam`.

    Returns:
        A transformation that needs params; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: as in `adam`; also where an update gets no params.

    Reference:
        Loshchilov and Hutter, *Decoupled weight decay regularization*, 2019, algorithm 2.

    Where the gradient is zero, weights decay; where it is not, Adam's step dwarfs that:

    >>> tx, w = adamw(0.1, weight_decay=0.5), jnp.ones(2)
    >>> state = tx.init(w)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([0.0, 1.0]), state, w)
    ...     w = optax.apply_updates(w, updates)
    ...     print(f"{w[0]:.4f} {w[1]:.4f}")
    0.9500 0.8500
    0.9025 0.7075
    0.8574 0.5721
    """
    require_rate(learning_rate)
    _checks.non_negative("weight_decay", weight_decay)
    _checks.choice("decay_by_rate", decay_by_rate, (True, False))
    require_scalars(weight_decay=weight_decay)
    return adam_with(
        learning_rate,
        b1,
        b2,
        eps,
        eps_in_sqrt,
        bias_correction,
        accumulator_dtype,
        penalty={"in_direction" if decay_by_rate else "in_step": weight_decay},
        read=functools.partial(_penalized, "adamw", _static(mask)),
    )


def adam_l2(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    penalty: LearningRate = 5e-3,
    mask: Mask = None,
    eps_in_sqrt: bool = False,
    bias_correction: BiasCorrection = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    r"""Adam on the loss with the penalty $\lambda \|w\|^2$, for contrast with `adamw`.

    $$g_t \leftarrow g_t + 2 \lambda w_{t-1}$$

    and then `adam`. The penalty passes through Adam's averages: weights whose gradients are large
    are held back less than others. torch's `Adam(weight_decay=c)` is this with $\lambda = c / 2$.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        b1: $\beta_1$ in [0, 1), a scalar. Default 0.9.
        b2: $\beta_2$ in [0, 1), a scalar. Default 0.999.
        eps: $\epsilon > 0$, a scalar. Default 1e-8.
        penalty: $\lambda \ge 0$, a scalar or a schedule. Default 5e-3.
        mask: as in `adamw`.
        eps_in_sqrt: as in `adam`.
        bias_correction: as in `adam`.
        accumulator_dtype: as in `adam`.

    Returns:
        A transformation that needs params; updates keep the shapes and dtypes of the gradients.

    Raises:
        ValueError: as in `adam`; also where an update gets no params.

    Reference:
        Loshchilov and Hutter, *Decoupled weight decay regularization*, 2019, algorithm 2, the
        other of its two lines.

    Where the gradient is zero, the penalty alone drives Adam, by whole steps:

    >>> tx, w = adam_l2(0.1, penalty=0.5), jnp.ones(2)
    >>> state = tx.init(w)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([0.0, 1.0]), state, w)
    ...     w = optax.apply_updates(w, updates)
    ...     print(f"{w[0]:.4f} {w[1]:.4f}")
    0.9000 0.9000
    0.8004 0.8002
    0.7016 0.7006
    """
    require_rate(learning_rate)
    _checks.non_negative("penalty", penalty)
    require_scalars(penalty=penalty)
    return adam_with(
        learning_rate,
        b1,
        b2,
        eps,
        eps_in_sqrt,
        bias_correction,
        accumulator_dtype,
        penalty={"in_gradient": _twice(penalty)},
        read=functools.partial(_penalized, "adam_l2", _static(mask)),
    )


def _twice(penalty: LearningRate) -> LearningRate:
    return (lambda count: 2 * penalty(count)) if callable(penalty) else 2 * penalty


def _static(mask: Mask) -> Any:
    """The mask as `_masks` has it; a bare boolean is refused, it is an accident more often."""
    if mask is not None and jax.tree.leaves(mask)[:1] == [mask] and not callable(mask):
        raise ValueError(
            "mask must be a tree of booleans, a function from params to one, or None for all of "
            f"them, got {mask!r}; optax.inject_hyperparams calls a function as if it were a "
            "schedule, unless static_args='mask'"
        )
    return _masks.static(mask)


def _penalized(method: str, mask: Any, params: Params | None) -> Params:
    """The params, zero where the mask says that they are left alone."""
    params = require_params(method, params)
    if mask is None:
        return params
    return jax.tree.map(
        lambda kept, w: w if kept else jnp.zeros_like(w), _masks.kept(mask, params), params
    )
