"""Compiled programs: shared by equal functions, and released where these cannot be told."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree

from l2ljax._functions import Static, canonical, is_lasting

T = TypeVar("T")

MOST_KEPT = 32
"""Programs of functions that others cannot share; of each entry point the latest are kept."""


class Program(Generic[T]):
    """A jitted function of functions.

    `jax.jit` keeps every program that it has made. One for a function that is made anew in each
    call, and cannot be told from others, is never used again: after a hundred calls the process
    would have no memory maps left. The latest of these are kept, the rest is released.

    Where such a function may hold traced values, nothing is kept.
    """

    def __init__(self, function: Callable[..., T], static_argnames: tuple[str, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._static = static_argnames
        self._shared = jax.jit(function, static_argnames=static_argnames)
        self._kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        passing = tuple(Static(function) for function in _passing((args, kwargs)))
        if not passing:
            return self._shared(*args, **kwargs)
        jitted = self._kept.pop(passing, None)
        if jitted is None:
            # Of another function, which JAX forgets together with its programs.
            jitted = jax.jit(_copy(self._function), static_argnames=self._static)
        if not _is_traced((args, kwargs)):
            self._kept[passing] = jitted
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return jitted(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `lower` of what `jax.jit` returns."""
        return self._shared.lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As `trace` of what `jax.jit` returns."""
        return self._shared.trace(*args, **kwargs)

    def count(self) -> int:
        """The programs that there are."""
        return sum(jitted._cache_size() for jitted in (self._shared, *self._kept.values()))


def program(*static_argnames: str) -> Callable[[Callable[..., T]], Program[T]]:
    """Decorates a function that becomes a `Program`, with the names of its static arguments."""
    return lambda function: Program(function, static_argnames)


def compiled(function: Callable[..., T], *args: PyTree) -> T:
    """Calls a function as one program where it is called outside of any.

    A loop or a derivative of a function that is made anew in each call would be compiled each time.
    What cannot be compiled, since it looks at values, runs as it is.

    Args:
        function: any function of pytrees.
        *args: its arguments; functions in them are `Partial`.
    """
    if not all(map(_is_value, jax.tree.leaves(args))):
        return function(*args)
    try:
        return _call(_partial(function), *args)
    except jax.errors.ConcretizationTypeError:
        return function(*args)


def in_one_program(update: Callable[..., T]) -> Callable[..., T]:
    """An update of a transformation that is `compiled`.

    Args:
        update: `update(updates, state, params=None, **extra)`. Extra arguments may be anything:
            those that are no arrays are compiled in, functions by what they are made of.
    """

    def call(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> T:
        functions = {name: _partial(value) for name, value in extra.items() if callable(value)}
        arrays = {
            name: value
            for name, value in extra.items()
            if name not in functions and _are_numbers(value)
        }
        static = {k: value for k, value in extra.items() if k not in functions and k not in arrays}

        def run(updates: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]) -> T:
            return update(updates, state, params, **extra, **static)

        return compiled(run, updates, state, params, functions | arrays)

    return call


def _are_numbers(value: PyTree) -> bool:
    # Whole numbers and truths may decide shapes and branches.
    return all(
        isinstance(leaf, jax.Array | np.ndarray | float | complex)
        for leaf in jax.tree.leaves(value)
    )


def _partial(function: Callable[..., Any]) -> Partial:
    return function if isinstance(function, Partial) else Partial(canonical(function))


@program()
def _call(function: Callable[..., T], *args: PyTree) -> T:
    return function(*args)


def _copy(function: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(function)
    def copy(*args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)

    return copy


def _passing(tree: PyTree) -> Iterator[Any]:
    """The functions in a tree whose programs no function serves that is made later."""
    for node in jax.tree.leaves(tree, is_leaf=_is_partial):
        if _is_partial(node):
            if not is_lasting(node.func):
                yield node.func
            yield from _passing((node.args, node.keywords))


def _is_partial(node: Any) -> bool:
    return isinstance(node, Partial)


def _is_traced(tree: PyTree) -> bool:
    leaves = [*jax.tree.leaves(tree), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _is_value(leaf: Any) -> bool:
    array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return array or isinstance(leaf, np.ndarray | np.generic | bool | int | float | complex)
