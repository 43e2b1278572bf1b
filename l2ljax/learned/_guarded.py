"""A guard: where the loss rises under an optimizer, another takes over for a while."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from l2ljax import _checks, classic
from l2ljax.core import ArrayLike, Params, Transformation, as_pytree, closure, seal

# The spread must lag behind a loss that grows, or it would excuse any growth.
_SLOWER = 5
# The longest stay with the fallback, which doubles every time.
_LONGEST = 2**30


class GuardedState(NamedTuple):
    """The states of both optimizers, and what the guard knows of the losses.

    Attributes:
        count: updates made so far, int32[].
        loss: m, the running mean of the losses, float32[], or float64 where it is the default.
        spread: d, the running mean of the losses' distance from it.
        lowest: μ, the lowest m under the guarded optimizer since it last took over.
        left: steps that are left to the fallback, int32[]; 0: the guarded optimizer's turn.
        stay: how many steps the next turn of the fallback has, int32[].
        guarded: the state of the guarded optimizer.
        fallback: the state of the other one.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    loss: Float[Array, ""]
    spread: Float[Array, ""]
    lowest: Float[Array, ""]
    left: Int[Array, ""]
    stay: Int[Array, ""]
    guarded: Any
    fallback: Any


def guarded(
    tx: Transformation,
    fallback: Transformation | float = 1e-3,
    *,
    decay: float = 0.95,
    tolerance: float = 1.5,
    stay: int = 100,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates of an optimizer by Adam's where the loss rises.

    Of the losses $f_t$, which `update` gets as `value`, it keeps a running mean, and a running mean
    distance that follows five times as slowly,

    $$m_t = m_{t-1} + (1 - \beta) (f_t - m_{t-1}), \qquad
    d_t = d_{t-1} + \frac{1 - \beta}{5} (|f_t - m_{t-1}| - d_{t-1}), \qquad m_0 = f_0, \quad
    d_0 = |f_0|$$

    and the lowest mean $\mu$ since the guarded optimizer last took over. The loss *rises* if
    $m_t > \mu + \tau d_{t-1}$, or if $f_t$ is not finite. Then the fallback makes this update and
    the ones after it, `stay` in all, and after that the guarded optimizer takes over again, with
    $\mu = m$. Each turn of the fallback is twice as long as the one before it, so that an optimizer
    that does not serve makes fewer and fewer of the updates.

    Both optimizers see all gradients, so memory and time are those of both.
    What has diverged is not undone; a `tx` that may make a few steps of any size needs
    `optax.clip_by_global_norm` behind it, too.

    Args:
        tx: the optimizer that is guarded, such as `load` returns.
        fallback: any optax transformation, or the learning rate of `classic.adam`.
        decay: β in [0, 1).
        tolerance: τ ≥ 0. Where only minibatches differ, m varies by a fraction of d.
        stay: updates of the first turn of the fallback.

    Returns:
        A transformation with the state `GuardedState`. Its `update` needs the loss at params, that
        of the minibatch the gradient is of: `tx.update(gradients, state, params, value=loss)`.
        `optax.chain` and `optax.MultiSteps` pass it on (`MultiSteps` around a chain, not inside);
        `meta.unroll` and `evaluate` give it. It is not coordinate-wise: each problem of a batch has
        its own loss.

    Raises:
        ValueError: for a `fallback` that is no transformation and no positive rate, a decay outside
            [0, 1), a negative tolerance, a `stay` below 1; from `update`, without `value` or for
            one that is not a real scalar.

    Reference:
        Heaton et al., 'Safeguarded learned convex optimization', 2020: a step is taken if it keeps
        below a mark that the steps before it have set, else that of a method that converges is.
        There and in Prémont-Schwarz et al., 'A simple guard for learned optimizers', 2022, points
        are tried before they are taken. This guard looks at losses that training computes anyway.

    Steps of -2.1 times the gradient climb, until Adam takes over:

    >>> tx = guarded(optax.sgd(2.1), fallback=0.1)
    >>> w = jnp.ones(())
    >>> state = tx.init(w)
    >>> for step in range(46):
    ...     loss, gradient = w**2 / 2, w
    ...     if step % 15 == 0:
    ...         print(step, f"{loss:.1f}, steps of Adam to come: {state.left}")
    ...     updates, state = tx.update(gradient, state, w, value=loss)
    ...     w += updates
    0 0.5, steps of Adam to come: 0
    15 5.8, steps of Adam to come: 98
    30 2.5, steps of Adam to come: 83
    45 0.5, steps of Adam to come: 68
    """
    if isinstance(fallback, int | float | np.number):
        _checks.positive("fallback", fallback)
        other: Transformation = classic.adam(fallback)
    else:
        other = fallback
    _checks.fraction("decay", decay)
    _checks.non_negative("tolerance", tolerance)
    _checks.scalars(decay=decay, tolerance=tolerance)
    _checks.count("stay", stay)
    members = {"guarded": as_pytree(tx), "fallback": as_pytree(other, "fallback")}
    return seal(
        optax.GradientTransformationExtraArgs(
            init=closure(_init, members, stay=min(stay, _LONGEST)),
            update=closure(_update, members, decay=float(decay), tolerance=float(tolerance)),
        )
    )


def _init(members: dict[str, Any], params: Params, *, stay: int) -> GuardedState:
    # Arrays of their own: the state may be donated.
    return GuardedState(
        count=jnp.zeros((), jnp.int32),
        loss=jnp.zeros((), float),
        spread=jnp.zeros((), float),
        lowest=jnp.zeros((), float),
        left=jnp.zeros((), jnp.int32),
        stay=jnp.asarray(stay, jnp.int32),
        **{name: tx.init(params) for name, tx in members.items()},
    )


def _update(
    members: dict[str, Any],
    updates: Params,
    state: GuardedState,
    params: Params | None = None,
    *,
    decay: float,
    tolerance: float,
    value: ArrayLike | None = None,
    **extra: Any,
) -> tuple[Params, GuardedState]:
    _checks.state(state, GuardedState)
    if value is None or jnp.shape(value) != ():
        got = "none" if value is None else f"the shape {jnp.shape(value)}"
        raise ValueError(
            "guarded needs the loss, a scalar: call tx.update(gradients, state, params, "
            f"value=loss), got {got}"
        )
    updates, params = _checks.gradients(updates, params)
    state, falls_back = _watched(jnp.asarray(value, state.loss.dtype), state, decay, tolerance)
    found: dict[str, Params] = {}
    for name, tx in members.items():
        takes_extra = isinstance(tx, optax.GradientTransformationExtraArgs)
        more = {"value": value, **extra} if takes_extra else {}
        found[name], new = tx.update(updates, getattr(state, name), params, **more)
        state = state._replace(**{name: new})
    chosen = jax.tree.map(
        lambda own, other: jnp.where(falls_back, other, own), found["guarded"], found["fallback"]
    )
    return chosen, state


def _watched(
    value: Float[Array, ""], state: GuardedState, decay: float, tolerance: float
) -> tuple[GuardedState, Bool[Array, ""]]:
    """What the guard knows with this loss, and whether the fallback makes this update."""
    first = state.count == 0
    finite = jnp.isfinite(value)
    # What is not finite would stay in the means for ever.
    value = jnp.where(finite, value, state.loss)
    before = jnp.where(first, value, state.loss)
    spread = jnp.where(first, jnp.abs(value), state.spread)
    weight = 1 - decay
    loss = before + weight * (value - before)
    lowest = jnp.where(first, value, state.lowest)

    mine = state.left == 0
    rises = mine & ((loss > lowest + tolerance * spread) | ~finite)
    left = jnp.where(rises, state.stay, state.left)
    falls_back = left > 0
    left = jnp.maximum(left - 1, 0)
    # As long as the fallback is at work the mark follows the mean, so that it is there at the end.
    lowest = jnp.where(falls_back, loss, jnp.minimum(lowest, loss))
    return state._replace(
        count=optax.safe_increment(state.count),
        loss=loss,
        spread=jnp.where(
            first, spread, spread + weight / _SLOWER * (jnp.abs(value - before) - spread)
        ),
        lowest=lowest,
        left=left,
        stay=jnp.where(rises, jnp.minimum(2 * state.stay, _LONGEST), state.stay),
    ), falls_back
