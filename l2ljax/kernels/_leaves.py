"""Many leaves as one array and back, by one call of the CPU's program each.

XLA compiles a copy for every leaf: of 400 leaves that takes twice as long as all the rest of an
update (`benchmarks/compile.py`).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax.kernels import _build, _primitives

Shapes = tuple[tuple[int, ...], ...]


def cpu_join(leaves: Sequence[Array]) -> Float[Array, " coordinates"]:
    """All numbers of leaves of one dtype, in their order; where `cpu_has_whole` leaves."""
    return _join.bind(*leaves)[0]


def cpu_split(flat: Float[Array, " coordinates"], shapes: Shapes) -> list[Array]:
    """Leaves of these shapes from what `cpu_join` made of such."""
    return _split.bind(flat, shapes=shapes)


def joined(*leaves: Array) -> list[Array]:
    """`cpu_join` by XLA."""
    return [jnp.concatenate([leaf.reshape(-1) for leaf in leaves])]


def split(flat: Array, *, shapes: Shapes) -> list[Array]:
    """`cpu_split` by XLA."""
    parts = jax.lax.split(flat, [math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _join_shapes(*leaves: Any) -> list[Any]:
    if len({leaf.dtype for leaf in leaves}) != 1:
        raise ValueError(f"leaves must have one dtype, got {[leaf.dtype.name for leaf in leaves]}")
    return [jax.core.ShapedArray((sum(leaf.size for leaf in leaves),), leaves[0].dtype)]


def _split_shapes(flat: Any, *, shapes: Shapes) -> list[Any]:
    if flat.shape != (sum(map(math.prod, shapes)),):
        raise ValueError(f"shapes must be those of {flat.size} numbers, got {shapes}")
    return [jax.core.ShapedArray(shape, flat.dtype) for shape in shapes]


_join = _primitives.defined("l2ljax_join", joined, _join_shapes, static=())
_split = _primitives.defined("l2ljax_split", split, _split_shapes, static=("shapes",))
_primitives.compiled(_join, _build.JOIN, joined)
_primitives.compiled(_split, _build.SPLIT, split)
