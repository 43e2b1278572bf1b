"""Minimising by values alone: of a function that JAX traces, or of any, by asking and telling."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._programs import compiled
from l2ljax._shown import one_line
from l2ljax.core import ArrayLike, Scalar, Transformation, as_partial, as_pytree, closure

Bounds = TypeAliasType("Bounds", ArrayLike | Sequence[Sequence[float]])
"""The lower and the upper bound of each variable, f[dim, 2]."""


class AskTellState(NamedTuple):
    """Where a minimisation stands.

    Attributes:
        x: the point to evaluate, f[dim], in [-1, 1].
        optimizer: the transformation's state.
    """

    x: Float[Array, " dim"]
    optimizer: Any

    def __repr__(self) -> str:
        return one_line(self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AskTell:
    """An optimizer that is asked for points and told their values.

    Attributes:
        init: `init() -> state`.
        ask: `ask(state) -> x`, the next point to evaluate, f[dim], within the bounds.
        tell: `tell(state, value) -> state`, with the value at that point.
    """

    init: Callable[[], AskTellState]
    ask: Callable[[AskTellState], Float[Array, " dim"]]
    tell: Callable[[AskTellState, ArrayLike], AskTellState]

    __repr__ = one_line


def ask_tell(
    tx: Transformation,
    bounds: Bounds,
    start: Sequence[float] | ArrayLike | None = None,
) -> AskTell:
    """Asks an optimizer that sees values alone for points, for a function of any kind.

    Args:
        tx: a transformation that moves params in [-1, 1] by their `value`, such as
            `learned.load("black-box-2d")`.
        bounds: the lower and the upper bound of each variable, f[dim, 2].
        start: the first point, f[dim]; default: the centre.

    Returns:
        A record of three pure functions.

    Raises:
        ValueError: for bounds of another shape, reversed or infinite ones, or a start outside.

    >>> import l2ljax as l2l
    >>> optimizer = ask_tell(l2l.learned.load("black-box-2d"), [(-5.0, 10.0), (0.0, 15.0)])
    >>> state = optimizer.init()
    >>> values = []
    >>> for _ in range(20):
    ...     x = optimizer.ask(state)
    ...     values.append(float(l2l.tasks.DIXON_SZEGO["branin"].function(x)))
    ...     state = optimizer.tell(state, values[-1])
    >>> round(values[0]), min(values) < 5
    (24, True)
    """
    tx = as_pytree(tx)
    low, high = _box(bounds)
    first = jnp.zeros(low.shape) if start is None else _to_box(low, high, start)
    return AskTell(
        init=closure(_init, tx, first), ask=closure(_ask, low, high), tell=closure(_tell, tx)
    )


def minimize_black_box(
    tx: Transformation,
    function: Callable[[Float[Array, " dim"]], Any],
    bounds: Bounds,
    *,
    horizon: int = 20,
    start: Sequence[float] | ArrayLike | None = None,
) -> tuple[Float[Array, "{horizon} dim"], Float[Array, " {horizon}"]]:
    """Minimises a function on a box by its values alone, in one loop that `jax.jit` takes.

    Args:
        tx: as in `ask_tell`.
        function: from f[dim] to a scalar, traced once. What JAX cannot trace goes through
            `ask_tell`.
        bounds: the lower and the upper bound of each variable, f[dim, 2].
        horizon: evaluations. A learned optimizer knows those that it was trained for.
        start: the first point, f[dim]; default: the centre.

    Returns:
        The points and their values, in order; the best is where the value is lowest.

    Raises:
        ValueError: as `ask_tell` does, or for a horizon below 1.

    >>> import l2ljax as l2l
    >>> branin = l2l.tasks.DIXON_SZEGO["branin"]
    >>> xs, ys = minimize_black_box(l2l.learned.load("black-box-2d"), branin.function,
    ...                             branin.bounds)
    >>> xs.shape, bool(ys.min() < 5)
    ((20, 2), True)
    """
    _checks.count("horizon", horizon)
    optimizer = ask_tell(tx, bounds, start)
    run = closure(_minimize_black_box, horizon=int(horizon))
    return compiled(run, as_pytree(tx), optimizer.ask, optimizer.init().x, as_partial(function))


def _minimize_black_box(
    tx: optax.GradientTransformationExtraArgs,
    ask: Callable[[AskTellState], Array],
    first: Array,
    function: Callable[[Array], Any],
    *,
    horizon: int,
) -> tuple[Array, Array]:
    def place(x: Array) -> Array:
        return ask(AskTellState(x, ()))

    xs, ys = evaluate_in_turn(tx, lambda x, _: function(place(x)), first, horizon=horizon)
    return jax.vmap(place)(xs), ys


def evaluate_in_turn(
    tx: optax.GradientTransformationExtraArgs,
    function: Callable[[Float[Array, " dim"], Array], Scalar],
    x: Float[Array, " dim"],
    *,
    horizon: int,
) -> tuple[Float[Array, "{horizon} dim"], Float[Array, " {horizon}"]]:
    """Points in [-1, 1] and their values, each point after the value of the one before.

    Args:
        tx: as in `ask_tell`.
        function: `function(x, t) -> value`.
        x: the first point.
        horizon: evaluations.
    """

    def step(state: AskTellState, t: Array) -> tuple[AskTellState, tuple[Array, Scalar]]:
        value = function(state.x, t)
        return _tell(tx, state, value), (state.x, value)

    _, (xs, ys) = jax.lax.scan(step, _init(tx, x), jnp.arange(horizon))
    return xs, ys


def _init(tx: optax.GradientTransformationExtraArgs, x: Array) -> AskTellState:
    return AskTellState(x, tx.init(x))


def _ask(low: Array, high: Array, state: AskTellState) -> Array:
    # Rounding must not leave the box.
    return jnp.clip((low + high) / 2 + (high - low) / 2 * state.x, low, high)


def _tell(
    tx: optax.GradientTransformationExtraArgs, state: AskTellState, value: ArrayLike
) -> AskTellState:
    return compiled(_move, tx, state, value)


def _move(
    tx: optax.GradientTransformationExtraArgs, state: AskTellState, value: ArrayLike
) -> AskTellState:
    # There is no gradient: zeros stand where it would.
    updates, optimizer = tx.update(jnp.zeros_like(state.x), state.optimizer, state.x, value=value)
    return AskTellState(state.x + updates, optimizer)


def _to_box(low: Array, high: Array, start: Sequence[float] | ArrayLike) -> Array:
    """A point within the bounds as one in [-1, 1]; a traced one is not checked."""
    point = jnp.asarray(start, low.dtype)
    known = not isinstance(point, jax.core.Tracer)
    if point.shape != low.shape or (known and bool(jnp.any((point < low) | (point > high)))):
        raise ValueError(f"start must be a point within bounds, got {start!r}")
    return 2 * (point - low) / (high - low) - 1


def _box(bounds: Bounds) -> tuple[Array, Array]:
    box = np.asarray(bounds, np.float64)
    if box.ndim != 2 or box.shape[1] != 2 or not len(box):
        raise ValueError(f"bounds must be a lower and an upper one a variable, got {bounds!r}")
    if not (np.isfinite(box).all() and (box[:, 0] < box[:, 1]).all()):
        raise ValueError(f"bounds must be finite, the lower below the upper, got {bounds!r}")
    return jnp.asarray(box[:, 0]), jnp.asarray(box[:, 1])
