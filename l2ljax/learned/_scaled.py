"""Step sizes in the user's hand: a factor, a ramp to zero at the end of a run, weight decay."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int
from typing_extensions import TypeAliasType

from l2ljax import _checks, _masks
from l2ljax._masks import Mask
from l2ljax.core import (
    ArrayLike,
    CoordinatewiseTransformation,
    Params,
    Schedule,
    Transformation,
    as_partial,
    as_pytree,
    closure,
    seal,
)
from l2ljax.learned import _coordinates

Rate = TypeAliasType("Rate", ArrayLike | Schedule)
"""A number, a scalar array, or a schedule whose count starts at 0."""

RAMP = 0.3
"""The share of a run over which updates go down to zero."""


class ScaledState(NamedTuple):
    """The state of the optimizer, and the time.

    Attributes:
        count: updates made so far, int32[].
        inner: the state of the transformation whose updates are scaled.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    inner: Any


def scaled(
    tx: Transformation,
    *,
    num_steps: int | None = None,
    scale: Rate = 1.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformation:
    r"""Multiplies the updates of a transformation, and adds weight decay.

    $$\theta_{t+1} = \theta_t + s_t r_t (u_t - \lambda_t \theta_t), \qquad
    r_t = \min\Big(1, \frac{\max(N - t, 1)}{0.3 N}\Big)$$

    with the update $u_t$ of `tx`, t = 0, 1, ... With `num_steps` = N, the ramp r is 1 for the first
    70 % of N updates and then goes linearly to zero, which it would reach at t = N: the last update
    is still made, and all updates after it have its factor.

    Weight decay is decoupled, as in AdamW, with $s_t r_t$ in the place of the rate. An optimizer
    without a rate has s = 1, so λ is a share of the params per step: AdamW with the rate 1e-3 and a
    decay of 0.1 corresponds to `weight_decay=1e-4`.

    Args:
        tx: any optax transformation; `load` passes that of the weights that it loads.
        num_steps: N, updates of the whole run; None: no ramp.
        scale: s, a number, a scalar array or a schedule whose count starts at 0.
        weight_decay: λ, likewise.
        mask: which params decay, as in `classic.adamw`: a tree of booleans, like the params or a
            prefix of them, or a function from params to one. Default: all.

    Returns:
        A transformation with the state `ScaledState`, or `tx` itself where nothing is asked of it.
        Updates keep their dtypes, and are multiplied in float32 at least. It is coordinate-wise if
        `tx` is and `mask` is no function, and takes extra arguments if `tx` does. With weight decay
        its `update` needs params.

    Raises:
        ValueError: for a `num_steps` that is not a whole number of at least 1, a `scale` or
            `weight_decay` that is negative, not finite or not a scalar, a `mask` without weight
            decay or with leaves that are not booleans; from `init`, for params with leaves that are
            not floating-point; from `update`, for weight decay without params.

    Reference:
        Loshchilov and Hutter, 'Decoupled weight decay regularization', 2019, algorithm 2.

    >>> tx = scaled(optax.sgd(1.0), num_steps=10, scale=0.5)
    >>> params = jnp.zeros(())
    >>> state = tx.init(params)
    >>> for step in range(12):
    ...     updates, state = tx.update(jnp.ones(()), state, params)
    ...     if step > 5:
    ...         print(step, f"{updates:.3f}")
    6 -0.500
    7 -0.500
    8 -0.333
    9 -0.167
    10 -0.167
    11 -0.167
    """
    if num_steps is not None:
        _checks.count("num_steps", num_steps)
        if num_steps > np.iinfo(np.int32).max:
            raise ValueError(f"num_steps must be less than 2**31, got {num_steps!r}")
    for name, value in (("scale", scale), ("weight_decay", weight_decay)):
        _checks.non_negative(name, value)
        _checks.scalars(**{name: value})
    decays = not _is(weight_decay, 0.0)
    by_function = _masks.is_function(mask)
    if mask is not None and not decays:
        raise ValueError("mask must be left out without weight_decay: it says which params decay")
    if num_steps is None and _is(scale, 1.0) and not decays:
        return tx if isinstance(tx, optax.GradientTransformation) else as_pytree(tx)
    inner = as_pytree(tx)
    kind = type(inner)
    if not issubclass(kind, optax.GradientTransformationExtraArgs):
        # A function may read shapes, which a batch of problems changes.
        alone = issubclass(kind, CoordinatewiseTransformation) and not by_function
        kind = CoordinatewiseTransformation if alone else optax.GradientTransformation
    update = closure(
        _update,
        inner,
        None if num_steps is None else jnp.asarray(num_steps, jnp.int32),
        _rate(scale),
        _rate(weight_decay) if decays else None,
        mask=_masks.static(mask),
    )
    return seal(kind(init=closure(_init, inner), update=update))


def _is(value: Any, number: float) -> bool:
    """Whether a rate is this number from the start and for ever."""
    return isinstance(value, int | float) and value == number


def _rate(value: Any) -> Any:
    """A number or a schedule, as an argument of a compiled program."""
    return as_partial(value) if callable(value) else jnp.asarray(value, float)


def _at(rate: Any, count: Array) -> Array:
    return jnp.asarray(rate(count), float) if isinstance(rate, Partial) else rate


def _init(inner: optax.GradientTransformation, params: Params) -> ScaledState:
    _checks.floating_leaves("params", params)
    return ScaledState(jnp.zeros((), jnp.int32), inner.init(params))


def _update(
    inner: optax.GradientTransformation,
    num_steps: Array | None,
    scale: Any,
    weight_decay: Any,
    updates: Params,
    state: ScaledState,
    params: Params | None = None,
    *,
    mask: Any,
    **extra: Any,
) -> tuple[Params, ScaledState]:
    if weight_decay is not None and params is None:
        raise ValueError("weight_decay needs params: call tx.update(gradients, state, params)")
    _checks.state(state, ScaledState)
    updates, params = _checks.gradients(updates, params, real=True)
    updates, new = inner.update(updates, state.inner, params, **extra)
    factor = _at(scale, state.count)
    if num_steps is not None:
        factor = factor * _ramp(num_steps, state.count).astype(factor.dtype)
    if weight_decay is None:
        updates = jax.tree.map(functools.partial(_scale, factor), updates)
    else:
        step = functools.partial(_decay_and_scale, factor, _at(weight_decay, state.count))
        updates = jax.tree.map(step, _masks.kept(mask, params), updates, params)
    return updates, ScaledState(optax.safe_increment(state.count), new)


def _ramp(num_steps: Int[Array, ""], count: Int[Array, ""]) -> Float[Array, ""]:
    left = jnp.maximum(num_steps - count, 1).astype(jnp.float32)
    return jnp.minimum(left / (jnp.float32(RAMP) * num_steps.astype(jnp.float32)), 1)


def _scale(factor: Float[Array, ""], update: Array) -> Array:
    """The step of one leaf, in the dtype of its update."""
    work = _coordinates.working_dtype(update)
    return (factor.astype(work) * update.astype(work)).astype(update.dtype)


def _decay_and_scale(
    factor: Float[Array, ""], decay: Float[Array, ""], decays: bool, update: Array, param: ArrayLike
) -> Array:
    if not decays:
        return _scale(factor, update)
    work = _coordinates.working_dtype(update, param)
    decayed = update.astype(work) - decay.astype(work) * jnp.asarray(param, work)
    return _scale(factor, decayed).astype(update.dtype)
