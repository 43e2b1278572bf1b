"""What the methods of this room share: hyperparameters, working precision, a safe square root."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from l2ljax import _checks
from l2ljax.core import Params

Updates: TypeAlias = PyTree
"""Gradients on the way in, steps on the way out: a tree like the params."""

Count: TypeAlias = Int[Array, ""]
"""The number of updates made so far, int32."""

Hyperparameter: TypeAlias = ArrayLike
"""A number, a scalar array or a traced scalar."""

LearningRate: TypeAlias = Hyperparameter | optax.Schedule
"""A hyperparameter, or an optax schedule whose count starts at 0."""


def require_scalars(**hyperparameters: Any) -> None:
    """Refuses arrays with axes: they would broadcast against the params without a word."""
    for name, value in hyperparameters.items():
        if not callable(value) and np.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got the shape {np.shape(value)}")


def _working_dtype(leaf: ArrayLike) -> jnp.dtype:
    """At least float32: in bfloat16 an average with decay 0.999 would never move."""
    dtype = jnp.result_type(leaf)
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def accumulator(params: Params) -> PyTree:
    """Zeros like the params, float32 where their dtype is narrower."""
    _checks.floating_leaves("params", params)
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, _working_dtype(leaf)), params)


def first_count() -> Count:
    """Zero updates made."""
    return jnp.zeros((), jnp.int32)


def rate_at(learning_rate: LearningRate, count: Count) -> Hyperparameter:
    """The learning rate of the update after `count` updates."""
    return learning_rate(count) if callable(learning_rate) else learning_rate


def leafwise(
    rule: Callable[..., tuple[Array, ...]],
    gradients: Updates,
    *accumulators: PyTree,
    **scalars: Hyperparameter,
) -> list[PyTree]:
    """Applies the formula of one leaf to every leaf.

    The formula sees one dtype only, that of the accumulators, so it is written without casts;
    casting a decay before `1 - decay` also makes the weights of an average sum to one exactly.

    Args:
        rule: `rule(g, *accumulators, **scalars) -> (update, *accumulators)`.
        gradients: a tree of arrays of any float dtype.
        *accumulators: trees like `gradients`.
        **scalars: hyperparameters and counts.

    Returns:
        The tree of updates, in the dtypes of the gradients, and the trees of new accumulators.
    """

    def apply(g: ArrayLike, *state: Array) -> tuple[Array, ...]:
        g = jnp.asarray(g)
        dtype = state[0].dtype if state else _working_dtype(g)
        cast = {name: jnp.asarray(value, dtype) for name, value in scalars.items()}
        update, *new = rule(g.astype(dtype), *state, **cast)
        return update.astype(g.dtype), *new

    rows = jax.tree.map(apply, gradients, *accumulators)
    # Not `jax.tree.transpose`, which cannot transpose a tree without leaves.
    return [
        jax.tree.map(lambda _, row, i=i: row[i], gradients, rows)
        for i in range(1 + len(accumulators))
    ]


@jax.custom_jvp
def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\sqrt{x}$ with derivative 0 at 0, where the true one is infinite.

    Under the root stands a mean of squares, and $\sqrt{g^2} = |g|$ has the subgradient 0 at 0.
    Without it, differentiating an optimizer at a zero gradient gives $\infty \cdot 0$, NaN.
    The program that is run forward is that of `jnp.sqrt`.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    flat = root == 0
    return root, jnp.where(flat, 0, dx / jnp.where(flat, 1, 2 * root))


def root_with_eps(v: Array, eps: Array, inside: bool) -> Array:
    r"""$\sqrt{v + \epsilon}$ if `inside`, else $\sqrt{v} + \epsilon$."""
    return jnp.sqrt(v + eps) if inside else safe_sqrt(v) + eps
