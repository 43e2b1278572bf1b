"""Functions with arrays and settings bound to them: pytrees, compared by what they are made of."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree

from l2ljax._functions import Static, canonical
from l2ljax._shown import call


class Configured(Static):
    """A function with static settings; equal to another that has the same function and settings."""

    __slots__ = ()

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""
        return self.value[0]

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """Its keyword arguments."""
        return self.value[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **dict(self.settings), **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(functools.partial(self.function, **dict(self.settings)))


class Closure(Partial):
    """A `Partial` that is shown in one line, without its arrays' numbers."""

    def __repr__(self) -> str:
        if isinstance(self.func, Configured):
            settings = self.keywords | dict(self.func.settings)
            return call(self.func.function, *self.args, **settings)
        return call(self.func, *self.args, **self.keywords)


jax.tree_util.register_pytree_node(
    Closure,
    lambda closure: ((closure.args, closure.keywords), closure.func),
    lambda function, bound: Closure(function, *bound[0], **bound[1]),
)


def closure(function: Callable[..., Any], *arrays: PyTree, **settings: Any) -> Partial:
    """Binds leading arguments as pytree leaves and keyword settings as static, hashable values.

    Two closures of one module-level function with equal settings have equal tree structures, so a
    compiled program that takes one of them serves the other without retracing.

    Args:
        function: a module-level function `function(*arrays, *args, **settings)`.
        *arrays: pytrees; their leaves become leaves of the result.
        **settings: hashable values; they are compiled in.

    Returns:
        A `jax.tree_util.Partial`, shown in one line.

    >>> scale = closure(lambda a, x, *, power: a * x**power, 2.0, power=3)
    >>> scale(2.0), jax.tree.leaves(scale)
    (16.0, [2.0])
    """
    if not settings:
        return Closure(canonical(function), *arrays)
    return Closure(Configured((function, tuple(sorted(settings.items())))), *arrays)


def as_partial(function: Callable[..., Any]) -> Partial:
    """Makes any function a pytree; a `Partial` is returned as it is, a sealed one is opened.

    Functions that are made of the same code and values share a compiled program.

    >>> len(jax.tree.leaves(as_partial(max)))
    0
    """
    if not isinstance(function, Partial):
        return Closure(canonical(function))
    return function.func.function if isinstance(function.func, Sealed) else function


class Sealed:
    """A function whose arrays are no leaves; equal to another with the same function and arrays."""

    def __init__(self, function: Partial) -> None:
        self.function = function

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(self.function)
        return structure, tuple(map(_array_content, leaves))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Sealed) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def _array_content(leaf: Any) -> Any:
    """What two arrays have in common that a compiled program cannot tell apart."""
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        return leaf.shape, leaf.dtype, leaf.tobytes()
    if leaf.is_deleted() or not leaf.is_fully_addressable or _is_key(leaf):
        return id(leaf)
    values = np.asarray(leaf)
    return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding, values.tobytes()


def _is_key(leaf: jax.Array) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))
