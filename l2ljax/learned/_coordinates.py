"""A tree of parameters as one flat batch of coordinates, and back."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def count(tree: PyTree) -> int:
    """The number of coordinates; shapes are enough."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def flatten(tree: PyTree, dtype: jnp.dtype) -> Float[Array, " coordinates"]:
    """All coordinates in the order of the leaves, in one dtype."""
    leaves = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def unflatten(flat: Float[Array, " coordinates"], like: PyTree) -> PyTree:
    """Coordinates back in the structure, shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [math.prod(jnp.shape(leaf)) for leaf in leaves]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        flat[start : start + size].reshape(jnp.shape(leaf)).astype(jax.dtypes.result_type(leaf))
        for start, size, leaf in zip(starts, sizes, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
