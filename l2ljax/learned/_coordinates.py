"""A tree of parameters as one flat batch of coordinates, and back."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

_CHUNK = 1024


def count(tree: PyTree) -> int:
    """The number of coordinates; shapes are enough."""
    return sum(sizes(tree))


def sizes(tree: PyTree) -> list[int]:
    """The number of coordinates of each leaf."""
    return [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]


def working_dtype(*trees: PyTree) -> jnp.dtype:
    """Single precision at least: a state in half precision loses small gradients."""
    leaves = [jax.dtypes.result_type(leaf) for leaf in jax.tree.leaves(trees)]
    return jnp.dtype("float64" if jnp.dtype("float64") in leaves else "float32")


def cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """All leaves in one dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def state_dtype_name(state_dtype: DTypeLike | None) -> str | None:
    """The name of a floating-point dtype, as a spec holds it; None stays None.

    Raises:
        ValueError: for anything else.
    """
    if state_dtype is None:
        return None
    try:
        dtype = jnp.dtype(state_dtype)
    except TypeError:
        dtype = jnp.dtype(bool)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"state_dtype must be a floating-point dtype or None, got {state_dtype!r}")
    return dtype.name


def flatten(tree: PyTree, dtype: jnp.dtype) -> Float[Array, " coordinates"]:
    """All coordinates in the order of the leaves, in one dtype."""
    leaves = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def unflatten(flat: Float[Array, " coordinates"], like: PyTree) -> PyTree:
    """Coordinates back in the structure, shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts = [
        part.reshape(jnp.shape(leaf)).astype(jax.dtypes.result_type(leaf))
        for part, leaf in zip(_split(flat, sizes(like)), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


def leaf_means(rows: Float[Array, "rows coordinates"], like: PyTree) -> Float[Array, "rows leaves"]:
    """The mean of each row over each leaf of `like`; zero over an empty one."""
    chunk, leaf = _chunks(like)
    lengths = sizes(like)
    columns = rows.T
    for segments, count in ((chunk, leaf.size), (jnp.asarray(leaf), len(lengths))):
        columns = jax.ops.segment_sum(columns, segments, count, indices_are_sorted=True)
    return columns.T / jnp.maximum(jnp.asarray(lengths, rows.dtype), 1)


def at_coordinates(
    rows: Float[Array, "rows leaves"], like: PyTree
) -> Float[Array, "rows coordinates"]:
    """What each leaf of `like` has, at each of its coordinates."""
    chunk, leaf = _chunks(like)
    return jnp.take(jnp.take(rows, leaf, axis=1, mode="clip"), chunk, axis=1, mode="clip")


def _chunks(like: PyTree) -> tuple[Int[Array, " coordinates"], Int[np.ndarray, " chunks"]]:
    """The chunk of each coordinate, and the leaf of each chunk.

    Indices and not slices, which take XLA some 50 ms to compile for each leaf; and chunks, because
    a long sum in single precision, one number at a time, stands still.
    """
    leaves, ends, total = [], [], 0
    for leaf, size in enumerate(sizes(like)):
        for start in range(0, size, _CHUNK):
            leaves.append(leaf)
            ends.append(total + min(start + _CHUNK, size))
        total += size
    # Computed, not stored: an index for each coordinate would be a constant of the program.
    coordinates = jnp.arange(total, dtype=jnp.int32)
    chunk = jnp.searchsorted(jnp.asarray(ends, jnp.int32), coordinates, side="right")
    return chunk, np.asarray(leaves, np.int32)


def _split(x: Float[Array, "*rows coordinates"], sizes: list[int]) -> list[Array]:
    """The part of each leaf along the last axis."""
    ends = itertools.accumulate(sizes)
    return [
        jax.lax.slice_in_dim(x, end - size, end, axis=-1)
        for end, size in zip(ends, sizes, strict=True)
    ]
