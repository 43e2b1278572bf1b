"""Arrays whose sharding is part of their type: mesh axes of the kind `AxisType.Explicit`.

Where arrays are split over such an axis, a product that sums over it, or a reshape, has to be told
how its result is split.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def explicit(x: Any) -> NamedSharding | None:
    """How the type says that an array is split over devices; None if it is not."""
    sharding = jax.typeof(x).sharding
    return None if all(axis is None for axis in sharding.spec) else sharding


def gather(x: Any) -> Any:
    """The array with all of it on each device, in its type."""
    sharding = explicit(x)
    if sharding is None:
        return x
    return jax.sharding.reshard(x, sharding.update(spec=PartitionSpec()))


def split_like(x: Array, other: Any) -> Array:
    """The array, in its type split as another one is."""
    sharding = explicit(other)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def _on(mesh: Mesh | AbstractMesh, tree: PyTree) -> PyTree:
    """The shardings of a tree on the mesh; what has none there is on each device."""

    def place(x: Any) -> NamedSharding:
        sharding = explicit(x)
        return NamedSharding(mesh, PartitionSpec() if sharding is None else sharding.spec)

    return jax.tree.map(place, tree)


def without_explicit_axes(
    call: Callable[..., PyTree],
    function: Callable[[PyTree], Array],
    state: PyTree,
    at: PyTree,
    *others: PyTree,
) -> PyTree:
    """`call(function, state, at, *others)`, where XLA chooses how arrays are split.

    Args:
        call: gives a tree like `state`.
        function: a function of trees like `at`; it sees them split as `at` is.
        state: a tree of arrays.
        at: likewise.
        *others: likewise.

    Returns:
        The result, split like `state`.
    """
    trees = (state, at, *others)
    splits = [split for split in map(explicit, jax.tree.leaves(trees)) if split is not None]
    if not splits:
        return call(function, *trees)
    mesh = splits[0].mesh
    axes = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    inside = jax.sharding.explicit_axes(function, axes=axes, in_sharding=(_on(mesh, at),))
    outside = jax.sharding.auto_axes(
        lambda *trees: call(inside, *trees), axes=axes, out_sharding=_on(mesh, state)
    )
    return outside(*trees)
