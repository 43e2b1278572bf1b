"""A tree of parameters as batches of coordinates, and back.

Small leaves are pooled in one flat batch, so that their number costs little time to compile and to
run. A large leaf is a batch of its own and keeps its shape: its axes may be split over devices, and
a flat batch could not be split alike.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.shard_alike import shard_alike
from jax.sharding import PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from l2ljax import kernels
from l2ljax._placeholders import stands_for_params
from l2ljax._sharding import explicit, gather, split_like
from l2ljax.core import DTypeLike

LARGE = 2**18
"""Coordinates from which on a leaf is a batch of its own, unless `layout` says otherwise."""

LAYOUTS: dict[str, float] = {"auto": LARGE, "flat": math.inf, "leaves": 0}
"""For each `layout` the coordinates from which on a leaf is a batch of its own."""

_CHUNK = 1024
# Leaves of a flat batch from which on splitting it is made easy for XLA.
_MANY = 32
# Leaves of a flat batch up to which slices are worth the time that they take to compile.
_FEW = 16


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


def pooled(tree: PyTree, layout: str) -> list[Any]:
    """The leaves that share the flat batch."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf, alone in zip(leaves, _alone(tree, layout), strict=True) if not alone]


def batches(tree: PyTree, dtype: jnp.dtype, layout: str) -> list[Array]:
    """All coordinates in one dtype: the flat batch, then each large leaf in its own shape."""
    pool = [jnp.asarray(gather(leaf), dtype) for leaf in pooled(tree, layout)]
    return [
        _join(pool) if pool else jnp.zeros(0, dtype),
        *(jnp.asarray(leaf, dtype) for leaf in _large(tree, layout)),
    ]


def unbatch(found: Sequence[Array], like: PyTree, layout: str) -> PyTree:
    """Batches back in the structure, shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    flat = iter(_split(found[0], tuple(map(jnp.shape, pooled(like, layout)))))
    own = iter(found[1:])
    parts = [
        next(own) if alone else split_like(next(flat), leaf)
        for leaf, alone in zip(leaves, _alone(like, layout), strict=True)
    ]
    dtypes = [jax.dtypes.result_type(leaf) for leaf in leaves]
    parts = [part.astype(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    return jax.tree.unflatten(structure, parts)


def ways(
    dtype: jnp.dtype, layout: str, *, sequence: bool
) -> tuple[Callable[[PyTree], list[Array]], Callable[[list[Array], PyTree], PyTree]]:
    """`batches` and `unbatch` with these settings; of a sequence, all have a leading axis."""
    into = functools.partial(batches, dtype=dtype, layout=layout)
    back = functools.partial(unbatch, layout=layout)
    return (jax.vmap(into), jax.vmap(back)) if sequence else (into, back)


def zeros(
    params: PyTree, make: Callable[[tuple[int, ...]], PyTree], layout: str
) -> tuple[PyTree, Any]:
    """A memory of zeros for each batch; that of a large leaf is split over devices as the leaf is.

    Args:
        params: what is optimized.
        make: `make(shape)` is the memory of a batch of that shape; the last axes of all its arrays
            are those of the shape.
        layout: a key of `LAYOUTS`.

    Returns:
        The memory of the flat batch, and a tuple of those of the large leaves; one leaf stands for
        these where it is not known how many there are, see `core.stands_for_params`.
    """
    pool = make((sum(sizes(pooled(params, layout))),))
    if stands_for_params(params) and LAYOUTS[layout] < math.inf:
        return pool, jnp.zeros(())
    memories = []
    for leaf in _large(params, layout):
        like = jax.eval_shape(functools.partial(make, jnp.shape(leaf)))
        memories.append(
            jax.tree.map(
                lambda array, leaf=leaf: _zeros(
                    leaf, rows=array.shape[: array.ndim - jnp.ndim(leaf)], dtype=array.dtype
                ),
                like,
            )
        )
    return pool, tuple(memories)


def require_fit(
    found: Sequence[tuple[int, ...]], gradients: Sequence[Array], leading: int = 0
) -> None:
    """Refuses a state of other params than those that the gradients are of.

    Args:
        found: the coordinates that the state has of each batch.
        gradients: the batches.
        leading: axes of gradients that no memory has.

    Raises:
        ValueError: for batches of other shapes than their memories.
    """
    expected = [gradient.shape[leading:] for gradient in gradients]
    if list(found) != expected:
        raise ValueError(
            "state must be what `init` made of params like these: its flat batch and its large "
            f"leaves have the coordinates {[*found]}, those of the updates {expected}"
        )


def idle(gradient: Float[Array, "*coordinates"], averages: Sequence[Array]) -> Array:
    """Which coordinates have averages that are exactly zero: those that never had a gradient.

    Or none for so long that it has left the averages; a gradient whose square underflows is seen.

    Args:
        gradient: of the present step.
        averages: with that gradient in them; the last axes of each are those of the gradient.
    """
    still = gradient == 0
    for average in averages:
        still &= jnp.all(average == 0, tuple(range(average.ndim - gradient.ndim)))
    return still


def each(function: Partial, *parts: Sequence[PyTree]) -> list[Any]:
    """`function(*part)` of every batch; of large leaves with one shape it is traced once."""
    pool, *large = zip(*parts, strict=True)
    return [function(*pool), *(_call(function, *part) for part in large)]


def each_leaf(function: Partial, *parts: Sequence[PyTree]) -> list[Any]:
    """`function(*part)` of every leaf; of leaves with one shape it is traced once."""
    return [_call(function, *part) for part in zip(*parts, strict=True)]


_call = jax.jit(lambda function, *part: function(*part))


def _alone(tree: PyTree, layout: str) -> list[bool]:
    """Which leaves are a batch of their own."""
    return [size >= LAYOUTS[layout] for size in sizes(tree)]


def _large(tree: PyTree, layout: str) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf, alone in zip(leaves, _alone(tree, layout), strict=True) if alone]


@functools.partial(jax.jit, static_argnames=("rows", "dtype"))
def _zeros(leaf: Array, *, rows: tuple[int, ...], dtype: jnp.dtype) -> Array:
    array = jnp.zeros((*rows, *jnp.shape(leaf)), dtype)
    sharding = explicit(leaf)
    if sharding is not None and not jax.sharding.get_abstract_mesh().empty:
        spec = PartitionSpec(*[None] * len(rows), *sharding.spec)
        return jax.sharding.reshard(array, sharding.update(spec=spec))
    # Zeros depend on nothing, so the compiler would not split them. Never computed: the broadcast.
    return shard_alike(jnp.broadcast_to(leaf.astype(dtype), array.shape), array)[1]


def leaf_means(rows: Float[Array, "rows coordinates"], like: PyTree) -> Float[Array, "rows leaves"]:
    """The mean of each row over each leaf of `like`; zero over an empty one."""
    lengths = sizes(like)
    if len(lengths) <= _FEW:
        if not lengths:
            return rows[:, :0]
        parts = jax.lax.split(rows, lengths, axis=1)
        return jnp.stack([p.sum(axis=1) / max(1, p.shape[1]) for p in parts], axis=1)
    chunk, leaf = _chunks(like)
    columns = rows.T
    for segments, count in ((chunk, leaf.size), (jnp.asarray(leaf), len(lengths))):
        columns = jax.ops.segment_sum(columns, segments, count, indices_are_sorted=True)
    return columns.T / jnp.maximum(jnp.asarray(lengths, rows.dtype), 1)[None]


def at_coordinates(
    rows: Float[Array, "rows leaves"], like: PyTree
) -> Float[Array, "rows coordinates"]:
    """What each leaf of `like` has, at each of its coordinates."""
    if len(sizes(like)) <= _FEW:
        parts = [
            jnp.broadcast_to(rows[:, i : i + 1], (len(rows), size))
            for i, size in enumerate(sizes(like))
        ]
        return jnp.concatenate(parts, axis=1) if parts else jnp.zeros((len(rows), 0), rows.dtype)
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


def _join(leaves: Sequence[Array]) -> Float[Array, " coordinates"]:
    """The numbers of all leaves in their order."""
    if _many(leaves) and kernels.cpu_has_whole(leaves):
        return kernels.cpu_join(leaves)
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def _split(
    flat: Float[Array, " coordinates"], shapes: tuple[tuple[int, ...], ...]
) -> Sequence[Array]:
    """The part of each leaf, in its shape."""
    sizes = [math.prod(shape) for shape in shapes]
    if not _many([flat] * len(shapes)):
        parts = jax.lax.split(flat, sizes)
    elif kernels.cpu_has_whole(flat):
        return kernels.cpu_split(flat, shapes)
    else:
        parts = _split_many(flat, tuple(sizes))
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _many(leaves: Sequence[Array]) -> bool:
    """Whether leaves of a program are as many as take XLA long to copy one by one."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return len(leaves) >= _MANY and traced and any(leaf.size for leaf in leaves)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _split_many(flat: Float[Array, " coordinates"], sizes: tuple[int, ...]) -> list[Array]:
    """`jax.lax.split` in a form that XLA compiles quickly on a CPU.

    There it takes 30 ms to compile a copy from a place that it knows. Where it does not, all copies
    of one size share a program: and it does not know what a conditional returns.
    """

    def shared(flat: Array) -> list[Array]:
        ends = np.cumsum(sizes)
        starts = [np.uint32(end - size) for end, size in zip(ends, sizes, strict=True)]
        starts = jax.lax.cond(flat[0] > 0, lambda: starts, lambda: starts)
        return [
            jax.lax.dynamic_slice(flat, (start,), (size,))
            for start, size in zip(starts, sizes, strict=True)
        ]

    # Elsewhere a conditional may stop the device.
    return jax.lax.platform_dependent(
        flat, cpu=shared, default=lambda flat: list(jax.lax.split(flat, sizes))
    )


@_split_many.defjvp
def _split_many_jvp(sizes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
    return _split_many(primals[0], sizes), list(jax.lax.split(tangents[0], sizes))
