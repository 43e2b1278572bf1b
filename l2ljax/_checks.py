"""Eager checks of arguments.

They fire on concrete values only: a traced value, a schedule or anything else that is not a number
yet passes, so a checked function still works under `jit`, `vmap` and `grad`. Every error names the
argument, its value and what was expected.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import numpy as np

# What JAX makes arrays of; bools are numbers, too, and are refused as no floating-point ones.
_NUMBERS = (int, float, complex, np.generic, np.ndarray)


def _values(value: Any) -> np.ndarray | None:
    """The concrete numbers in `value`, or None where there are none to check."""
    if callable(value) or isinstance(value, jax.core.Tracer):
        return None
    return np.asarray(value)


def _require(name: str, value: Any, holds: Any, expected: str) -> None:
    concrete = _values(value)
    if concrete is None:
        return
    if concrete.dtype.kind not in "iuf" and concrete.dtype != jax.numpy.bfloat16:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    if not np.all(holds(concrete)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Requires finite numbers above zero."""
    _require(name, value, lambda v: (v > 0) & (v < math.inf), "a positive number")


def non_negative(name: str, value: Any) -> None:
    """Requires finite numbers of zero or more."""
    _require(name, value, lambda v: (v >= 0) & (v < math.inf), "a non-negative number")


def finite(name: str, value: Any) -> None:
    """Requires finite numbers."""
    _require(name, value, np.isfinite, "a finite number")


def fraction(name: str, value: Any) -> None:
    """Requires numbers in [0, 1)."""
    _require(name, value, lambda v: (v >= 0) & (v < 1), "a number in [0, 1)")


def number(name: str, value: Any) -> None:
    """Requires one finite number, and no array of them; traced values and schedules do not pass."""
    if callable(value) or np.ndim(value) != 0:
        raise ValueError(f"{name} must be one finite number, got {value!r}")
    finite(name, value)


def scalars(**values: Any) -> None:
    """Refuses arrays with axes: they would broadcast against the params without a word."""
    for name, value in values.items():
        if not callable(value) and value is not None and np.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got the shape {np.shape(value)}")


def probability(name: str, value: Any) -> None:
    """Requires one number in (0, 1)."""
    expected = "a number between 0 and 1"
    if callable(value) or np.ndim(value) != 0:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    _require(name, value, lambda v: (v > 0) & (v < 1), expected)


def count(name: str, value: Any, least: int = 1) -> None:
    """Requires one whole number of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
            + injected_hint(name, value)
        )


def injected_hint(name: str, value: Any) -> str:
    """What an error about an array adds if `optax.inject_hyperparams` may have made it."""
    if not isinstance(value, jax.Array):
        return ""
    return f"; optax.inject_hyperparams makes it an array, unless static_args={name!r}"


def sequence(name: str, value: Any, of: str) -> tuple[Any, ...]:
    """Requires something to go through, such as a list, and gives it as a tuple."""
    try:
        return tuple(value)
    except TypeError:
        raise ValueError(f"{name} must be a sequence of {of}, got {value!r}") from None


def counts(name: str, value: Any) -> tuple[int, ...]:
    """Requires a sequence of whole numbers of at least one, and gives it as a tuple."""
    sizes = sequence(name, value, "whole numbers")
    for size in sizes:
        count(name, size)
    return tuple(int(size) for size in sizes)


def key(name: str, value: Any) -> None:
    """Requires one PRNG key, typed or raw."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == np.uint32 and len(shape or ()) == 1
    if not raw and not (typed and shape == ()):
        # Of a traced value its representation says nothing.
        shown = value.aval.str_short() if isinstance(value, jax.core.Tracer) else repr(value)
        raise ValueError(f"{name} must be a PRNG key such as jax.random.key(0), got {shown}")
    words = _words(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
    if raw and shape != words:
        raise ValueError(
            f"{name} must be a PRNG key such as jax.random.key(0), or raw uint32 numbers of the "
            f"shape {words}, got uint32 numbers of the shape {shape}; jax.random.wrap_key_data "
            "makes a typed key of those of another implementation"
        )


@functools.cache
def _words(implementation: str) -> tuple[int, ...]:
    """The shape of a raw key."""
    return jax.eval_shape(lambda: jax.random.PRNGKey(0, impl=implementation)).shape


def scalar_value(name: str, value: Any) -> Any:
    """Requires that a function returned a scalar, and gives it back."""
    if isinstance(value, tuple):
        raise ValueError(
            f"{name} must return a scalar, got a tuple of {len(value)}; of a function f that "
            "returns (value, aux), give lambda *args: f(*args)[0]"
        )
    if value is None or isinstance(value, dict):
        found = "None" if value is None else f"a dict of {list(value)}"
        raise ValueError(f"{name} must return a scalar, got {found}")
    if np.shape(value) != ():
        raise ValueError(f"{name} must return a scalar, got shape {np.shape(value)}")
    return value


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises the error for a value of another kind; of a long one it shows the beginning."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    hint = "; was it to be called?" if inspect.isfunction(value) else ""
    raise ValueError(f"{name} must be {expected}, got {shown}{hint}")


def choice(name: str, value: Any, options: Iterable[Any]) -> None:
    """Requires one of `options`; the error proposes the nearest one."""
    options = list(options)
    # 1 equals True in Python, but who asks whether it `is True` takes it for another option.
    is_bool = isinstance(value, bool)
    if any(value == option and isinstance(option, bool) == is_bool for option in options):
        return
    raise ValueError(f"{name} must be one of {options}, got {value!r}{near(value, options)}")


def near(value: Any, options: Iterable[Any]) -> str:
    """What an error adds to propose the nearest of `options`; nothing if none is near."""
    found = difflib.get_close_matches(str(value), [str(o) for o in options], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def floating_leaves(name: str, tree: Any) -> None:
    """Requires real floating-point leaves; shapes and dtypes are enough."""
    _leaves(name, tree, jax.numpy.floating, "real floating-point")


def inexact_leaves(name: str, tree: Any) -> None:
    """Requires real or complex floating-point leaves; shapes and dtypes are enough."""
    _leaves(name, tree, jax.numpy.inexact, "floating-point")


def _leaves(name: str, tree: Any, kind: Any, expected: str) -> None:
    if all(_is_of(_dtype(leaf), kind) for leaf in jax.tree.leaves(tree)):
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        dtype = _dtype(leaf)
        if not _is_of(dtype, kind):
            raise ValueError(
                f"{name} must have {expected} leaves, got {dtype or repr(leaf)} at {_place(path)}; "
                "optax.masked or optax.partition leave such leaves out"
            )


def _dtype(leaf: Any) -> Any:
    """That of a number or an array, None of anything else."""
    if isinstance(leaf, jax.Array):
        return leaf.dtype
    # To `result_type` "float32" and `float` are names of dtypes.
    if isinstance(leaf, str | type):
        return None
    try:
        return jax.dtypes.result_type(leaf)
    except TypeError:
        return None


@functools.cache
def _is_of(dtype: Any, kind: Any) -> bool:
    return dtype is not None and bool(jax.numpy.issubdtype(dtype, kind))


def _place(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path) or "(the only leaf)"


def state(value: Any, kind: type) -> None:
    """Requires the state of an optimizer to be of its type."""
    if not isinstance(value, kind):
        raise ValueError(
            f"state must be the {kind.__name__} that `init` of this optimizer returns, got "
            f"{'None' if value is None else type(value).__name__}"
        )


def gradients(
    updates: Any, params: Any = None, like: Any = None, *, real: bool = False
) -> tuple[Any, Any]:
    """Requires gradients to be a tree of the shapes that params have, and params if there are any.

    Shapes that differ would broadcast, and the params with them. Shapes are known to a trace, so
    a compiled update does not pay for this.

    Args:
        updates: the gradients: arrays or numbers.
        params: the params, or None.
        like: a part of the state that has the shapes of params, or None.
        real: whether complex gradients are refused.

    Returns:
        Both, numbers as arrays. Where gradients have None, params have None, too: what is left out
        may be anything, such as a function that is a leaf of a model.
    """
    updates = jax.tree.map(_as_array, updates)
    (floating_leaves if real else inexact_leaves)("updates", updates)
    if like is not None:
        alike("updates", updates, "the params", like, holder="the state has")
    if params is None:
        return updates, None
    params = jax.tree.map(_as_array, _without_missing(params, updates))
    if like is None:
        alike("updates", updates, "the params", params, holder="the params have")
    else:
        alike("params", params, "the updates", updates, holder="the updates have")
    return updates, params


def alike(name: str, tree: Any, others: str, other: Any, *, holder: str) -> None:
    """Requires two trees to have one structure and the same shapes.

    Args:
        name: of `tree`, which is to blame.
        tree: arrays.
        others: what `other` is called.
        other: arrays, or anything with their shapes.
        holder: says in whose place the expected shape stands, with a verb.
    """
    structure: Any = jax.tree.structure(tree)
    if structure != jax.tree.structure(other):
        raise ValueError(
            f"{name} must be a tree like {others}, got {_shown(tree)}{_difference(other, tree)}"
        )
    found, expected = ([np.shape(x) for x in jax.tree.leaves(t)] for t in (tree, other))
    if found != expected:
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        rows = zip(paths, found, expected, strict=True)
        path, got, due = next(row for row in rows if row[1] != row[2])
        raise ValueError(
            f"{name} must have the shapes of {others}, got {got} at {_place(path)}, where {holder} "
            f"{due}"
        )


def _as_array(leaf: Any) -> Any:
    """A number, or an array of NumPy, as one of JAX."""
    return jax.numpy.asarray(leaf) if isinstance(leaf, _NUMBERS) else leaf


def _without_missing(params: Any, updates: Any) -> Any:
    """The params without those whose gradient is None."""
    structure: Any
    leaves, structure = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    if all(leaf is not None for leaf in leaves):
        return params
    try:
        parts = structure.flatten_up_to(params)
    except ValueError:
        return params
    kept = (None if leaf is None else part for leaf, part in zip(leaves, parts, strict=True))
    return structure.unflatten(kept)


def _difference(expected: Any, found: Any) -> str:
    """In the words of JAX, where one tree is not a prefix of the other."""
    for whole, part in ((expected, found), (found, expected)):
        structure: Any = jax.tree.structure(whole)
        try:
            structure.flatten_up_to(part)
        except ValueError as error:
            return f": {error}"
    return ""


def _shown(tree: Any) -> str:
    """Where a tree has None, or else its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, lambda x: x is None)
    places = ", ".join(jax.tree_util.keystr(path) for path, leaf in leaves if leaf is None)
    if not places:
        return str(structure)
    return f"None at {places} (zeros stand still; optax.masked leaves out what has no gradient)"
