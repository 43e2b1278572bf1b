"""What the methods of this room share: hyperparameters, working precision, a safe square root."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax.core import ArrayLike, DTypeLike, Params, Schedule

Updates = TypeAliasType("Updates", PyTree)
"""Gradients on the way in, steps on the way out: a tree like the params."""

Count: TypeAlias = Int[Array, ""] | None
"""The number of updates made so far, int32; None where no schedule and no formula asks for it."""

Hyperparameter = TypeAliasType("Hyperparameter", ArrayLike)
"""A number, a scalar array or a traced scalar."""

LearningRate = TypeAliasType("LearningRate", Hyperparameter | Schedule)
"""A hyperparameter, or an optax schedule whose count starts at 0."""

require_scalars = _checks.scalars

Leaf: TypeAlias = Callable[..., tuple[Array, ...]]
"""A formula for one leaf: `leaf(g, *accumulators, *read) -> (update, *new_accumulators)`."""


def require_rate(learning_rate: LearningRate) -> None:
    """Refuses a rate that is negative, not finite or not a scalar, and also None.

    Inside this room None stands for no rate, and the direction then keeps its sign: a user's None
    would climb.
    """
    _checks.non_negative("learning_rate", learning_rate)
    require_scalars(learning_rate=learning_rate)


def require_accumulator_dtype(dtype: DTypeLike | None) -> None:
    """Refuses what is no real floating-point dtype."""
    try:
        array = isinstance(dtype, jax.Array)
        good = dtype is None or (not array and jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:
        good = False
    if not good:
        raise ValueError(
            f"accumulator_dtype must be a real floating-point dtype, got {dtype!r}"
            + _checks.injected_hint("accumulator_dtype", dtype)
        )


def require_params(method: str, params: Params | None) -> Params:
    """Refuses an update without params, which is legal for other methods."""
    if params is None:
        raise ValueError(f"{method} needs params: call tx.update(gradients, state, params)")
    return params


def real_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """Float64 if one of them has such parts, else float32: bfloat16 averages stand still."""
    wide = any(jnp.finfo(dtype).bits > 32 for dtype in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def _like(dtype: DTypeLike, real: jnp.dtype) -> jnp.dtype:
    """`real`, or its complex counterpart if `dtype` is complex."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return real
    return jnp.dtype(jnp.complex128 if jnp.finfo(real).bits > 32 else jnp.complex64)


def _cast(x: Any, dtype: jnp.dtype) -> Array:
    """`x` as a strongly typed array; one that is so already costs nothing, also not tracing."""
    done = isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type
    return x if done else jnp.asarray(x, dtype)


def accumulator(
    params: Params,
    dtype: DTypeLike | None = None,
    *,
    real: bool = False,
    value: Hyperparameter | None = None,
) -> PyTree:
    """Zeros, or `value`, like the params, sharded like them.

    Args:
        params: any tree of real or complex arrays.
        dtype: the real dtype of the result; default: the params' own, float32 where that is
            narrower.
        real: whether complex params have a real accumulator: one that averages |g|².
        value: what it is filled with; default 0.

    Returns:
        A tree like the params, same shapes.
    """

    def fill(leaf: ArrayLike) -> Array:
        own = jnp.result_type(leaf)
        part = real_dtype(own) if dtype is None else jnp.dtype(dtype)
        shape = jnp.zeros_like(leaf, part if real else _like(own, part))
        return shape if value is None else jnp.full_like(shape, value)

    return jax.tree.map(fill, params)


def first_count(needed: bool) -> Count:
    """Zero updates made, or None if nobody needs to know."""
    return jnp.zeros((), jnp.int32) if needed else None


def next_count(count: Count) -> Count:
    """One update more, up to the largest int32."""
    return None if count is None else optax.safe_increment(count)


def rate_at(learning_rate: LearningRate | None, count: Count) -> Hyperparameter | None:
    """The learning rate of the update after `count` updates."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def leafwise(
    rule: Callable[..., Leaf],
    scalars: dict[str, Hyperparameter | None],
    gradients: Updates,
    *accumulators: PyTree | None,
    read: Sequence[PyTree] = (),
) -> list[PyTree | None]:
    """Applies a formula to every leaf.

    The formula sees one precision only, the widest of float32, the gradient's and the
    accumulators', so it is written without casts; casting a decay before `1 - decay` also makes
    the weights of an average sum to one exactly. What depends on scalars alone is computed once
    for a dtype and not once for a leaf: trees of hundreds of leaves compile that much faster.

    Args:
        rule: `rule(**scalars) -> leaf`, where `leaf(g, *accumulators, *read)` returns the update
            and the new accumulators of one leaf.
        scalars: hyperparameters and counts; None is passed on.
        gradients: a tree of arrays of any real or complex dtype.
        *accumulators: trees like `gradients`; None is passed on, and given back.
        read: trees like `gradients` that the formula reads.

    Returns:
        The tree of updates, in the dtypes of the gradients, and the trees of new accumulators, in
        the dtypes of the old ones.
    """
    leaves: dict[jnp.dtype, Leaf] = {}

    def apply(*row: Any) -> tuple[Any, ...]:
        old = row[: 1 + len(accumulators)]
        work = real_dtype(*(jnp.result_type(x) for x in old if x is not None))
        if work not in leaves:
            leaves[work] = rule(
                **{k: None if v is None else jnp.asarray(v, work) for k, v in scalars.items()}
            )
        wide = [None if x is None else _cast(x, _like(jnp.result_type(x), work)) for x in row]
        new = leaves[work](*wide)
        return tuple(
            None if o is None else _cast(n, o.dtype) for n, o in zip(new, old, strict=True)
        )

    structure: Any = jax.tree.structure(gradients)
    columns = [
        [None] * structure.num_leaves if tree is None else structure.flatten_up_to(tree)
        for tree in (gradients, *accumulators, *read)
    ]
    rows = [apply(*row) for row in zip(*columns, strict=True)]
    return [
        None if tree is None else structure.unflatten(row[i] for row in rows)
        for i, tree in enumerate((gradients, *accumulators))
    ]


def elementwise(
    state_type: type,
    rule: Callable[..., Leaf],
    accumulators: Sequence[Callable[[Params], PyTree] | None],
    learning_rate: LearningRate | None,
    hyperparameters: dict[str, LearningRate],
    *,
    numbered: bool = False,
    read: Callable[[Params | None], Params] | None = None,
) -> optax.GradientTransformation:
    """The transformation of a formula that is the same for every coordinate.

    Args:
        state_type: the state, a NamedTuple: its count and then the accumulators.
        rule: as in `leafwise`; it gets `minus_rate`, the hyperparameters and, if `numbered`, `t`.
            The rate is negated once here instead of once a leaf.
        accumulators: for each one its first value, `params -> tree`, or None if it is not kept.
        learning_rate: a number, a schedule, or None for the direction alone.
        hyperparameters: numbers or schedules by name.
        numbered: whether the formula has the number `t` of the update in it, 1 for the first.
        read: if given, the formula reads `read(params)`.

    Returns:
        A transformation.
    """
    counted = numbered or any(map(callable, (learning_rate, *hyperparameters.values())))

    def init(params: Params) -> Any:
        _checks.inexact_leaves("params", params)
        trees = (first and first(params) for first in accumulators)
        return state_type(first_count(counted), *trees)

    def update(updates: Updates, state: Any, params: Params | None = None) -> tuple[Updates, Any]:
        _checks.state(state, state_type)
        count, *trees = state
        like = next((tree for tree in trees if tree is not None), None)
        updates, params = _checks.gradients(updates, params, like)
        after = next_count(count)
        rate = rate_at(learning_rate, count)
        scalars = {name: rate_at(value, count) for name, value in hyperparameters.items()}
        scalars["minus_rate"] = None if rate is None else -jnp.asarray(rate)
        if numbered:
            scalars["t"] = after
        extra = () if read is None else (read(params),)
        updates, *trees = leafwise(rule, scalars, updates, *trees, read=extra)
        return updates, state_type(after, *trees)

    return optax.GradientTransformation(init, update)


def step(minus_rate: Array | None, direction: Array) -> Array:
    r"""$-\eta d$; without a rate $d$ itself, as optax's `scale_by_...` parts pass it on."""
    return direction if minus_rate is None else minus_rate * direction


def square(g: Array) -> Array:
    """|g|², real for a complex g."""
    return g.real**2 + g.imag**2 if jnp.iscomplexobj(g) else g**2


@jax.custom_jvp
def _sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = _sqrt(x)
    flat = root == 0
    return root, jnp.where(flat, 0, dx / jnp.where(flat, 1, 2 * root))


# Traced once for a shape, like the functions of `jax.numpy`, instead of once for a leaf.
@functools.partial(jax.jit, inline=True)
def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\sqrt{x}$ with derivative 0 at 0, where the true one is infinite.

    Under the root stands a mean of squares, and $\sqrt{g^2} = |g|$ has the subgradient 0 at 0.
    Without it, differentiating an optimizer at a zero gradient gives $\infty \cdot 0$, NaN.
    The program that is run forward is that of `jnp.sqrt`.
    """
    return _sqrt(x)


def root_with_eps(v: Array, eps: Array, inside: bool) -> Array:
    r"""$\sqrt{v + \epsilon}$ if `inside`, else $\sqrt{v} + \epsilon$."""
    return jnp.sqrt(v + eps) if inside else safe_sqrt(v) + eps
