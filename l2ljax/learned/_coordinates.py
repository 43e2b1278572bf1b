"""A tree of parameters as one flat batch of coordinates, and back."""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


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
    means = [
        jnp.sum(part, axis=-1, keepdims=True) / max(1, part.shape[-1])
        for part in _split(rows, sizes(like))
    ]
    return jnp.concatenate(means, axis=-1) if means else rows


def at_coordinates(
    rows: Float[Array, "rows leaves"], like: PyTree
) -> Float[Array, "rows coordinates"]:
    """What each leaf of `like` has, at each of its coordinates."""
    columns = [
        jnp.broadcast_to(column, (rows.shape[0], size))
        for column, size in zip(_split(rows, [1] * rows.shape[1]), sizes(like), strict=True)
    ]
    return jnp.concatenate(columns, axis=-1) if columns else rows


def _split(x: Float[Array, "*rows coordinates"], sizes: list[int]) -> list[Array]:
    """The part of each leaf along the last axis."""
    ends = itertools.accumulate(sizes)
    return [
        jax.lax.slice_in_dim(x, end - size, end, axis=-1)
        for end, size in zip(ends, sizes, strict=True)
    ]
