"""Eager checks of arguments.

They fire on concrete values only: a traced value, a schedule or anything else that is not a number
yet passes, so a checked function still works under `jit`, `vmap` and `grad`. Every error names the
argument, its value and what was expected.
"""

import difflib
import inspect
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import numpy as np


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
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


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
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        try:
            # To `result_type` "float32" and `float` are names of dtypes.
            no_number = isinstance(leaf, str | type)
            found = repr(leaf) if no_number else jax.dtypes.result_type(leaf)
            good = not no_number and jax.numpy.issubdtype(found, kind)
        except TypeError:
            found, good = repr(leaf), False
        if not good:
            place = jax.tree_util.keystr(path) or "(the only leaf)"
            raise ValueError(
                f"{name} must have {expected} leaves, got {found} at {place}; "
                "optax.masked or optax.partition leave such leaves out"
            )
