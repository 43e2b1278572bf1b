"""A coordinate-wise step on a CPU, tile after tile, so that all that a tile needs is in the cache.

Taken whole, a step of the LSTM on a million coordinates writes 640 MB of gates to memory that is
new to the process and reads them again: on two cores it takes 1.5 times as long
(`benchmarks/lstm_step.py`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

_TILE = 4096
# Coordinates from which on a batch is taken in tiles.
_LEAST = 8 * _TILE


def tiled(step: Partial) -> Partial:
    """A step that treats each coordinate alone, in tiles where that is faster.

    Args:
        step: `step(memory, gradient)` returns the new memory and the update, in the shapes and
            dtypes of the old memory and of the gradient; the last axes of all arrays of the memory
            are those of the gradient.
    """
    return Partial(_tiled, step)


def _tiled(step: Partial, memory: PyTree, gradient: Array) -> tuple[PyTree, Array]:
    # A tile of a leaf that is split over devices would have to be gathered from them.
    if gradient.size < _LEAST or jax.device_count() > 1:
        return step(memory, gradient)
    return _compiled(step, memory, gradient)


@jax.custom_jvp
def _in_tiles_on_a_cpu(step: Partial, memory: PyTree, gradient: Array) -> tuple[PyTree, Array]:
    return jax.lax.platform_dependent(step, memory, gradient, cpu=in_tiles, default=_whole)


@_in_tiles_on_a_cpu.defjvp
def _in_tiles_on_a_cpu_jvp(primals: tuple, tangents: tuple) -> tuple:
    # Backwards through the loop the memory of all coordinates would be kept for every tile.
    return jax.jvp(_whole, primals, tangents)


# Without it a call outside `jit` would compile the loop each time.
_compiled = jax.jit(_in_tiles_on_a_cpu)


def _whole(step: Partial, memory: PyTree, gradient: Array) -> tuple[PyTree, Array]:
    return step(memory, gradient)


def in_tiles(
    step: Callable[[PyTree, Array], tuple[PyTree, Array]],
    memory: PyTree,
    gradient: Float[Array, "*coordinates"],
    tile: int = _TILE,
) -> tuple[PyTree, Float[Array, "*coordinates"]]:
    """`step(memory, gradient)`, computed for `tile` coordinates after another, in place."""
    size = gradient.size
    tile = min(tile, size)
    # The last tile begins where `tile` coordinates are left, of which the first are done already.
    whole, done = (size - 1) // tile, -size % tile
    flat = jax.tree.map(
        lambda array: array.reshape(*array.shape[: array.ndim - gradient.ndim], size),
        (memory, gradient),
    )

    def last(memory: PyTree, gradient: Array) -> tuple[PyTree, Array]:
        old = (memory, gradient)
        new = step(*jax.tree.map(lambda array: array[..., done:], old))
        return jax.tree.map(lambda old, new: jnp.concatenate([old[..., :done], new], -1), old, new)

    def body(i: Int[Array, ""], values: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        # Gradients, and updates in the place of those that are done.
        start = jnp.minimum(i * tile, size - tile)
        part = jax.tree.map(
            lambda bits, array: _as(
                array.dtype, jax.lax.dynamic_slice_in_dim(bits, start, tile, -1)
            ),
            values,
            flat,
        )
        # The conditional also keeps XLA from computing the new cells twice, from what it writes
        # and from what was there: it would have to copy the whole memory for each tile.
        part = jax.lax.cond(i < whole, step, last, *part)
        return jax.tree.map(
            lambda bits, new: jax.lax.dynamic_update_slice_in_dim(
                bits, _as(bits.dtype, new), start, -1
            ),
            values,
            part,
        )

    found = jax.lax.fori_loop(0, whole + 1, body, jax.tree.map(_bits, flat))
    return jax.tree.map(
        lambda bits, like: _as(like.dtype, bits).reshape(like.shape), found, (memory, gradient)
    )


def _bits(array: Array) -> Array:
    """Below single precision whole numbers: XLA would convert all of them for each tile."""
    size = array.dtype.itemsize
    return _as(jnp.dtype(f"uint{8 * size}"), array) if size < 4 else array


def _as(dtype: jnp.dtype, array: Array) -> Array:
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
