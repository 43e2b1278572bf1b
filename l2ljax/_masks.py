"""Masks: which params something is done to, as a tree of booleans or a function that makes one."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree
from typing_extensions import TypeAliasType

Mask = TypeAliasType("Mask", PyTree | Callable[[PyTree], PyTree] | None)
"""A tree of booleans, like the params or a prefix of them, a function to one, or None for all."""


def is_function(tree: Any) -> bool:
    """Whether a tree, or a function that makes one, is the function.

    As in optax all leaves have to be callable: a model of booleans or of names is not called,
    though models can be.

    >>> is_function(len), is_function({"w": True}), is_function({"w": len, "b": True})
    (True, False, False)
    """
    leaves = jax.tree.leaves(tree)
    return isinstance(tree, Partial) or (bool(leaves) and all(map(callable, leaves)))


def static(mask: Mask) -> Any:
    """A mask that can be compared and hashed: a function as it is, a tree as leaves and structure.

    Raises:
        ValueError: for a tree whose leaves are not booleans.
    """
    if mask is None or is_function(mask):
        return mask
    leaves, structure = jax.tree.flatten(mask)
    for leaf in leaves:
        known = not isinstance(leaf, jax.core.Tracer)
        if not (known and np.shape(leaf) == () and np.asarray(leaf).dtype == bool):
            raise ValueError(f"mask must have booleans as leaves, got {leaf!r}")
    return tuple(map(bool, leaves)), structure


def kept(mask: Any, params: PyTree) -> PyTree:
    """Which leaves a mask means, as a tree of booleans like the params.

    Args:
        mask: what `static` returned.
        params: any tree.

    Raises:
        ValueError: for a tree that is neither like the params nor a prefix of them.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    leaves, structure = static(mask(params)) if callable(mask) else mask
    try:
        parts = structure.flatten_up_to(params)
    except ValueError as error:
        raise ValueError(
            f"mask must be a tree like the params, or a prefix of them, got {structure}: {error}"
        ) from error
    trees = (
        jax.tree.map(lambda _, leaf=leaf: leaf, part)
        for leaf, part in zip(leaves, parts, strict=True)
    )
    return structure.unflatten(trees)
