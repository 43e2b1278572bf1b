"""Trees as vectors: one working precision, inner products, and a dense vector where one is due."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from l2ljax._sharding import gather, split_like
from l2ljax.classic._common import real_dtype, safe_sqrt


def working_dtype(tree: PyTree) -> jnp.dtype:
    """Float64 if a leaf has it, else float32."""
    return real_dtype(*map(jnp.result_type, jax.tree.leaves(tree)))


def widen(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """The floating-point leaves in another dtype; counts and flags as they are."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x,
        tree,
    )


def flatten(tree: PyTree, dtype: jnp.dtype) -> tuple[Float[Array, " D"], Callable[..., PyTree]]:
    """All leaves in one vector of one dtype, and the way back to a tree of that dtype."""
    vector, unravel = ravel_pytree(jax.tree.map(gather, widen(tree, dtype)))

    def back(vector: Float[Array, " D"]) -> PyTree:
        return jax.tree.map(split_like, unravel(vector), tree)

    return vector, back


def product(a: Array, b: Array) -> Array:
    """The matrix product, on accelerators too in full precision."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def inner(a: PyTree, b: PyTree) -> Array:
    r"""$a^\top b$, on accelerators too in full precision."""
    # Not `jnp.vdot`, which flattens: under explicit sharding it would have to be told how.
    products = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
    if not products:
        return jnp.zeros((), working_dtype(a))
    # A running sum, since XLA repeats a plain one in the program of every leaf that uses it: the
    # compile time of a tree of hundreds of leaves was quadratic.
    return jnp.cumsum(jnp.stack([jnp.asarray(x, working_dtype(a)) for x in products]))[-1]


def norm(a: PyTree) -> Array:
    r"""$\|a\|$, with derivative 0 at 0."""
    return safe_sqrt(inner(a, a))


def add_scaled(a: PyTree, scale: Array, b: PyTree) -> PyTree:
    r"""$a + c\,b$."""
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


def safe_divide(numerator: Array, denominator: Array, where: Array) -> Array:
    """The quotient where it is wanted, else 0, with finite derivatives in both cases."""
    return jnp.where(where, numerator / jnp.where(where, denominator, 1), 0)
