"""The coordinate LSTM as one program of a CPU: primitives of JAX around compiled C++.

`lstm.cc` has the program and says how it works. Primitives are defined by the network that they
compute, and are that network wherever the program does not serve: on other platforms, in exported
programs, for derivatives forwards or of higher order, for derivatives that are mapped, and mapped
over axes that the weights have too.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array, Float, Int, PyTree

from l2ljax.kernels import _build, _primitives
from l2ljax.kernels._arrays import Carries, pairs, phi_of, weights_of

Network = Callable[[PyTree, Carries, Array], tuple[Carries, Array]]

# Numbers that `lstm.cc` keeps of a unit, coordinate and step, and a multiple of its tiles.
_KEPT_OF_A_UNIT, _TILES = 5, 32
# Notes beyond all caches pay, too (`benchmarks/lstm_step.py`): this bounds their memory.
_MOST_BYTES = 2**30


def cpu_serves(tree: PyTree) -> bool:
    """Whether `cpu_lstm` may take the place of the network for these arrays.

    It may in single precision, where `cpu_has_whole` arrays.

    Args:
        tree: weights, states and inputs, also traced ones.

    Returns:
        True or False.
    """
    single = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
    return single and _primitives.cpu_has_whole(tree)


def cpu_lstm(
    network: Network,
    phi: PyTree,
    carries: Carries,
    x: Float[Array, "features *coordinates"],
) -> tuple[Carries, Float[Array, "*coordinates"]]:
    """`network(phi, carries, x)`, where it is `networks.lstm_apply` without averaging cells.

    Args:
        network: the definition; hashable, equal where the network is.
        phi: as `networks.lstm_init` draws it, in single precision as all that follows.
        carries: for each layer `(cell, hidden)`, features first.
        x: features of each coordinate, features first.

    Returns:
        The new carries and one output a coordinate, differentiable any number of times.

    Raises:
        ValueError: for weights and states that do not belong together, or are in another precision.
    """
    outputs = _lstm.bind(*_flat(phi, carries, x), network=network)
    return pairs(outputs[:-1]), outputs[-1]


class Notes(NamedTuple):
    """What is kept of steps for a derivative of all of them.

    Attributes:
        kept: gates and cells of each unit, coordinate and step, in the program's own order; where
            nothing was written yet, anything.
        steps: how many were written.
    """

    kept: Float[Array, " numbers"]
    steps: Int[Array, ""]


def cpu_notes(networks: Sequence[Carries], steps: int) -> list[Notes] | None:
    """Room for the notes of so many steps, or None if they would take too much of it.

    Args:
        networks: for each batch of coordinates the state before the first step.
        steps: how many there will be.
    """
    sizes = []
    for carries in networks:
        units = sum(len(cell) for cell, _ in carries)
        coordinates = math.prod(carries[0][0].shape[1:])
        sizes.append(steps * _KEPT_OF_A_UNIT * units * -(-coordinates // _TILES) * _TILES)
    if 4 * sum(sizes) > _MOST_BYTES:
        return None
    zero = jnp.zeros((), jnp.int32)
    # With an argument it is none of the constants of a loop, which would be copied each time.
    return [
        Notes(_room.bind(carries[0][0], size=size)[0], zero)
        for carries, size in zip(networks, sizes, strict=True)
    ]


def cpu_lstm_noting(
    network: Network,
    phi: PyTree,
    carries: Carries,
    x: Float[Array, "features *coordinates"],
    notes: Notes,
) -> tuple[Carries, Float[Array, "*coordinates"], Notes]:
    """`cpu_lstm`, with notes of this step for `cpu_lstm_sequence`; it has no derivatives.

    Args:
        network: as in `cpu_lstm`.
        phi: likewise.
        carries: likewise.
        x: likewise.
        notes: of the steps before, from `cpu_notes`; their room is used again.

    Returns:
        The new carries, one output a coordinate, and notes of this step, too.

    Raises:
        ValueError: as `cpu_lstm`.
    """
    *outputs, kept = _noting.bind(*_flat(phi, carries, x), *notes, network=network)
    return pairs(outputs[:-1]), outputs[-1], Notes(kept, notes.steps + 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cpu_lstm_sequence(
    network: Network,
    phi: PyTree,
    carries: Carries,
    xs: Float[Array, "steps features *coordinates"],
    notes: Notes | None = None,
) -> tuple[Carries, Float[Array, "steps *coordinates"]]:
    """Steps of `cpu_lstm` one after another, whose derivative backwards is one call of the program.

    A tile of coordinates goes back through all steps before the next one begins. Gates are those of
    the notes; without them the tile goes forwards first, and a thread keeps 25 kB a step, for two
    layers of 20 units in AVX-512.

    Args:
        network: as in `cpu_lstm`.
        phi: likewise.
        carries: the state before the first step.
        xs: features of each coordinate at each step.
        notes: what `cpu_lstm_noting` noted of these very steps, if anything.

    Returns:
        The state after the last step and one output a coordinate and step, differentiable backwards
        once.

    Raises:
        ValueError: as `cpu_lstm`.
    """
    del notes
    return jax.lax.scan(functools.partial(cpu_lstm, network, phi), carries, xs)


def _sequence_forwards(network: Network, *arguments: Any) -> tuple[Any, Any]:
    return cpu_lstm_sequence(network, *arguments), arguments


def _sequence_backwards(network: Network, arguments: Any, gradients: Any) -> Any:
    *arguments, notes = arguments
    carries, ys = gradients
    states = [leaf for carry in carries for leaf in carry]
    kept = [] if notes is None else [notes.kept]
    found = _sequence_transpose.bind(*_flat(*arguments), *states, ys, *kept, network=network)
    return (*_tree(found), None)


cpu_lstm_sequence.defvjp(_sequence_forwards, _sequence_backwards)


# Flat lists stand for (phi, carries, x): kernel and bias of each layer, those of the output, x,
# cell and hidden of each layer; of L layers 4 L + 3 arrays, and 2 L + 1 for (carries, output).


def _flat(phi: PyTree, carries: Carries, x: Array) -> list[Array]:
    states = [leaf for carry in carries for leaf in carry]
    return [*weights_of(phi, len(carries)), x, *states]


def _tree(flat: Any) -> tuple[PyTree, Carries, Array]:
    weights, (x, *states) = flat[: _weights(flat)], flat[_weights(flat) :]
    return phi_of(weights), pairs(states), x


def _weights(flat: Any) -> int:
    """How many of the arrays are weights."""
    return 2 * ((len(flat) - 3) // 4) + 2


def _layers_of_transpose(flat: Any) -> int:
    """Of 4 L + 3 arguments of the network and 2 L + 1 gradients, and perhaps notes."""
    return (len(flat) - 4) // 6


# What the primitives are: the network, its derivative along a direction, the transpose of that, and
# the same of a sequence. The direction, and what a transpose takes, follow the arguments of the
# network; notes come last. A definition reads no notes, and those that it writes are not numbers:
# the program must not take them for its own.


def _values(*flat: Array, network: Network) -> list[Array]:
    carries, output = network(*_tree(flat))
    new = [leaf for carry in carries for leaf in carry]
    old = flat[_weights(flat) + 1 :]
    if [leaf.shape for leaf in new] != [leaf.shape for leaf in old]:
        raise ValueError(
            "carries must have the units of the network and the coordinates of x, got shapes "
            f"{[leaf.shape for leaf in old]} for {[leaf.shape for leaf in new]}"
        )
    return [*new, output]


def _noted(*flat: Array, network: Network) -> list[Array]:
    *flat, kept, _ = flat  # type: ignore[assignment]
    return [*_values(*flat, network=network), jnp.full_like(kept, jnp.nan)]


def _no_notes(cell: Array, *, size: int) -> list[Array]:
    del cell
    return [jnp.full(size, jnp.nan, jnp.float32)]


def _sequence_values(*flat: Array, network: Network) -> list[Array]:
    phi, carries, xs = _tree(flat)
    # Gates are computed again backwards, as the program does.
    step = jax.checkpoint(functools.partial(network, phi), prevent_cse=False)
    carries, outputs = jax.lax.scan(step, carries, xs)
    return [*(leaf for carry in carries for leaf in carry), outputs]


def _along(*flat: Array, network: Network) -> list[Array]:
    half = len(flat) // 2
    values = functools.partial(_values, network=network)
    return jax.jvp(values, flat[:half], flat[half:])[1]


def _pulled_back(
    *flat: Array, network: Network, of: Callable[..., list[Array]] = _values
) -> list[Array]:
    layers = _layers_of_transpose(flat)
    count = 4 * layers + 3
    values = functools.partial(of, network=network)
    gradients = flat[count : count + 2 * layers + 1]
    return list(jax.vjp(values, *flat[:count])[1](list(gradients)))


_sequence_pulled_back = functools.partial(_pulled_back, of=_sequence_values)


@functools.cache
def _shapes(definition: Callable[..., list[Array]], flat: Any, network: Network) -> list[Any]:
    """Errors are those of the network; the program takes sizes as they come."""
    arrays = flat[:-1] if definition is _noted else flat
    if any(leaf.dtype != jnp.float32 for leaf in arrays):
        raise ValueError(f"all arrays must be float32, got {[leaf.dtype.name for leaf in flat]}")
    found = jax.eval_shape(functools.partial(definition, network=network), *flat)
    return [jax.typeof(leaf) for leaf in found]


def _primitive(name: str, definition: Callable[..., list[Array]]) -> Primitive:
    def shapes(*flat: Any, network: Network) -> list[Any]:
        return _shapes(definition, flat, network)

    return _primitives.defined(name, definition, shapes, static=("network",))


_lstm = _primitive("l2ljax_lstm", _values)
_derivative = _primitive("l2ljax_lstm_derivative", _along)
_transpose = _primitive("l2ljax_lstm_transpose", _pulled_back)
_sequence_transpose = _primitive("l2ljax_lstm_sequence_transpose", _sequence_pulled_back)
_noting = _primitive("l2ljax_lstm_noting", _noted)
_room = _primitives.defined(
    "l2ljax_lstm_notes",
    _no_notes,
    lambda cell, **params: [
        jax.typeof(leaf) for leaf in jax.eval_shape(functools.partial(_no_notes, **params), cell)
    ],
    static=("size",),
)


def _differentiate(primals: Any, tangents: Any, *, network: Network) -> Any:
    tangents = map(ad.instantiate_zeros, tangents)
    values = _lstm.bind(*primals, network=network)
    return values, _derivative.bind(*primals, *tangents, network=network)


ad.primitive_jvps[_lstm] = _differentiate


def _pull_back(gradients: Any, *flat: Any, network: Network) -> list[Any]:
    half = len(flat) // 2
    gradients = map(ad.instantiate_zeros, gradients)
    found = _transpose.bind(*flat[:half], *gradients, network=network)
    linear = [ad.is_undefined_primal(leaf) for leaf in flat[half:]]
    return [None] * half + [
        leaf if wanted else None for leaf, wanted in zip(found, linear, strict=True)
    ]


ad.primitive_transposes[_derivative] = _pull_back


def _map_over(arguments: Any, axes: Any, *, network: Network) -> Any:
    """An axis of coordinates alone is one axis of coordinates more."""
    weights = _weights(arguments)
    if any(axis is not None for axis in axes[:weights]):
        return _primitives.map_definition(_values, arguments, axes, network=network)
    (size,) = {a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None}
    of_coordinates = [
        jnp.broadcast_to(a[..., None], (*a.shape, size))
        if axis is None
        else jnp.moveaxis(a, axis, -1)
        for a, axis in zip(arguments[weights:], axes[weights:], strict=True)
    ]
    found = _lstm.bind(*arguments[:weights], *of_coordinates, network=network)
    return found, [leaf.ndim - 1 for leaf in found]


batching.primitive_batchers[_lstm] = _map_over


def _devices(**params: Any) -> dict[str, Any]:
    """How many devices share the threads of one pool."""
    del params
    return {"devices": np.int64(len(jax.local_devices(backend="cpu")))}


def _forward_aliases(count: int) -> dict[int, int]:
    """New states take the places of the old ones."""
    layers = (count - 3) // 4
    return {2 * layers + 3 + i: i for i in range(2 * layers)}


def _noting_aliases(count: int) -> dict[int, int]:
    """So do the notes."""
    return _forward_aliases(count) | {count - 2: count // 2 - 1}


def _backward_aliases(count: int) -> dict[int, int]:
    """Gradients by the old states take the places of those by the new ones."""
    layers = (count - 4) // 6
    return {4 * layers + 3 + i: 2 * layers + 3 + i for i in range(2 * layers)}


_primitives.compiled(_room, _build.NOTES, _no_notes)
_PROGRAMS = (
    (_noting, _build.FORWARD, _noted, _noting_aliases),
    (_lstm, _build.FORWARD, _values, _forward_aliases),
    (_transpose, _build.BACKWARD, _pulled_back, _backward_aliases),
    (_sequence_transpose, _build.SEQUENCE_BACKWARD, _sequence_pulled_back, _backward_aliases),
)
for _of, _target, _definition, _aliases in _PROGRAMS:
    _primitives.compiled(_of, _target, _definition, aliases=_aliases, attributes=_devices)
