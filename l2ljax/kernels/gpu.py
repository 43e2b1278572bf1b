r"""The coordinate LSTM as one GPU program, in Pallas for Triton.

XLA runs a step of the network as a dozen programs, and the gates, four numbers for each unit of
each coordinate, travel to memory and back between them. Here a program takes a tile of coordinates
through all layers: it reads features and state once, keeps gates in registers, and writes the new
state once. Of U units in each of two layers that is $2 (4 U) + F + 1$ floats a coordinate instead
of some $2 (16 U)$. The backward program computes the gates again from the old state, and sums the
gradient of the weights over its tiles before it writes that.

`networks.lstm_apply` is the definition; tests compare values and gradients with it in interpret
mode, and lower both programs for CUDA. **Neither was measured on a GPU yet**, so they run only
where they are asked for (`learned.lstm(fused=True)`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, PyTree

from l2ljax.kernels._arrays import Carries, pairs, phi_of, weights_of

# Coordinates of a tile, and programs that share the tiles of a backward pass: one for each of the
# multiprocessors of a large GPU. First guesses.
TILE, PROGRAMS = 64, 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def lstm(
    phi: PyTree,
    carries: Carries,
    x: Float[Array, "features *coordinates"],
    interpret: bool = False,
) -> tuple[Carries, Float[Array, "*coordinates"]]:
    """`networks.lstm_apply` without averaging cells, in one program; float32 only.

    Args:
        phi: as `networks.lstm_init` draws it.
        carries: for each layer `(cell, hidden)`, features first.
        x: features of each coordinate, features first.
        interpret: whether to run the program in JAX itself, on any device, to test it.

    Returns:
        The new carries and one output a coordinate.
    """
    return _forward(phi, carries, x, interpret)[0]


def _forward(
    phi: PyTree, carries: Carries, x: Array, interpret: bool
) -> tuple[tuple[Carries, Array], tuple[PyTree, Carries, Array]]:
    coordinates = x.shape[1:]
    states = [_flat(leaf) for carry in carries for leaf in carry]
    size = states[0].shape[1]
    out_shape = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in states]
    outputs = _call(
        functools.partial(_forward_kernel, units=_units(carries), features=x.shape[0], size=size),
        [*out_shape, jax.ShapeDtypeStruct((1, size), x.dtype)],
        grid=pl.cdiv(size, TILE),
        interpret=interpret,
    )(*weights_of(phi, len(carries)), _flat(x), *states)
    *new, y = [leaf.reshape(-1, *coordinates) for leaf in outputs]
    return (pairs(new), y[0]), (phi, carries, x)


def _backward(
    interpret: bool, saved: tuple[PyTree, Carries, Array], gradients: tuple[Carries, Array]
) -> tuple[PyTree, Carries, Array]:
    phi, carries, x = saved
    new_carries, y = gradients
    states = [_flat(leaf) for carry in carries for leaf in carry]
    incoming = [_flat(leaf) for carry in new_carries for leaf in carry]
    size, units, features = states[0].shape[1], _units(carries), x.shape[0]
    programs = min(PROGRAMS, pl.cdiv(size, TILE))
    weights = weights_of(phi, len(carries))
    shapes = [_flat(x), *states]
    outputs = _call(
        functools.partial(
            _backward_kernel, units=units, features=features, size=size, programs=programs
        ),
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in shapes]
        + [jax.ShapeDtypeStruct((programs, *leaf.shape), leaf.dtype) for leaf in weights],
        grid=programs,
        interpret=interpret,
    )(*weights, _flat(x), *states, *incoming, y.reshape(1, -1))
    by_x, *by_states = [leaf.reshape(-1, *x.shape[1:]) for leaf in outputs[: len(shapes)]]
    sums = [leaf.sum(axis=0) for leaf in outputs[len(shapes) :]]
    return phi_of(sums), pairs(by_states), by_x


lstm.defvjp(lambda phi, carries, x, interpret: _forward(phi, carries, x, interpret), _backward)


def _call(kernel: Any, out_shape: list[Any], *, grid: int, interpret: bool) -> Any:
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=(grid,),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    )


def _flat(leaf: Array) -> Float[Array, "rows coordinates"]:
    return leaf.reshape(leaf.shape[0], -1)


def _units(carries: Carries) -> tuple[int, ...]:
    return tuple(cell.shape[0] for cell, _ in carries)


# Inside the programs. Triton's arrays have sizes that are powers of two, and its products at least
# 16 rows: everything is padded as it is read, with zeros, which stay out of all sums.


def _padded(size: int) -> int:
    return max(16, pl.next_power_of_2(size))


def _load(ref: Any, rows: tuple[Array, Any], columns: tuple[Array, Any]) -> Array:
    """A block of a matrix; rows and columns are pairs (indices, how many exist)."""
    (row, height), (column, width) = rows, columns
    mask = (row < height)[:, None] & (column < width)[None, :]
    # An index that does not exist reads the first element, which the mask then drops.
    row, column = jnp.where(row < height, row, 0), jnp.where(column < width, column, 0)
    return triton.load(ref.at[row[:, None], column[None, :]], mask=mask, other=0.0)


def _store(
    ref: Any,
    value: Array,
    rows: tuple[Array, Any],
    columns: tuple[Array, Any],
    *first: Array,
) -> None:
    """Writes a block of a matrix, or of the one that the first index chooses."""
    (row, height), (column, width) = rows, columns
    mask = (row < height)[:, None] & (column < width)[None, :]
    first = tuple(jnp.full(mask.shape, index) for index in first)
    row, column = (jnp.broadcast_to(i, mask.shape) for i in (row[:, None], column[None, :]))
    triton.store(ref.at[*first, row, column], value, mask=mask)


def _rows(size: int) -> tuple[Array, int]:
    return jnp.arange(_padded(size)), size


def _dot(a: Array, b: Array) -> Array:
    # Not in TensorFloat-32, which keeps 10 bits.
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


class _Layer:
    """The weights of one layer, in registers: for each gate those of inputs and of hidden units."""

    def __init__(self, kernel: Any, bias: Any, inputs: int, units: int) -> None:
        self.inputs, self.units = inputs, units
        unit = _rows(units)[0]
        own = jnp.where(unit < units, unit, 0)
        self.by_input, self.by_hidden, self.bias = [], [], []
        for gate in range(4):
            places = jnp.where(unit < units, gate * units + own, 4 * units)
            column = (places, 4 * units)
            self.by_input.append(_load(kernel, _rows(inputs), column).T)
            hidden, _ = _rows(units)
            row = (jnp.where(hidden < units, inputs + hidden, inputs + units), inputs + units)
            self.by_hidden.append(_load(kernel, row, column).T)
            bias_of_gate = triton.load(bias.at[gate * units + own], mask=unit < units, other=0.0)
            self.bias.append(bias_of_gate[:, None])

    def gates(self, x: Array, hidden: Array) -> list[Array]:
        """i, f, g, o after their activations."""
        before = [
            _dot(w, x) + _dot(u, hidden) + b
            for w, u, b in zip(self.by_input, self.by_hidden, self.bias, strict=True)
        ]
        i, f, g, o = before
        return [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]


def _read(refs: list[Any], units: tuple[int, ...], features: int) -> tuple[list[_Layer], Any, Any]:
    """The layers, and the output's weights."""
    layers = []
    inputs = features
    for layer, count in enumerate(units):
        layers.append(_Layer(refs[2 * layer], refs[2 * layer + 1], inputs, count))
        inputs = count
    output = _load(refs[-2], _rows(units[-1]), (jnp.zeros(1, jnp.int32), 1))
    return layers, output, triton.load(refs[-1].at[jnp.zeros(1, jnp.int32)])


def _forward_kernel(*refs: Any, units: tuple[int, ...], features: int, size: int) -> None:
    count = 2 * len(units)
    layers, output, bias = _read(list(refs[: count + 2]), units, features)
    x_ref, states, new, y_ref = (
        refs[count + 2],
        refs[count + 3 : 2 * count + 3],
        refs[2 * count + 3 : 3 * count + 3],
        refs[-1],
    )
    columns = (pl.program_id(0) * TILE + jnp.arange(TILE), size)
    x = _load(x_ref, _rows(features), columns)
    for number, layer in enumerate(layers):
        rows = _rows(layer.units)
        cell = _load(states[2 * number], rows, columns)
        i, f, g, o = layer.gates(x, _load(states[2 * number + 1], rows, columns))
        cell = f * cell + i * g
        x = o * jnp.tanh(cell)
        _store(new[2 * number], cell, rows, columns)
        _store(new[2 * number + 1], x, rows, columns)
    y = jnp.sum(output * x, axis=0) + bias
    _store(y_ref, y[None, :], (jnp.zeros(1, jnp.int32), 1), columns)


def _backward_kernel(
    *refs: Any, units: tuple[int, ...], features: int, size: int, programs: int
) -> None:
    count = 2 * len(units)
    read = iter(refs)

    def take(number: int) -> list[Any]:
        return [next(read) for _ in range(number)]

    weights, (x_ref,), states, incoming, (y_ref,) = (
        take(count + 2),
        take(1),
        take(count),
        take(count),
        take(1),
    )
    (by_x_ref,), by_states, by_weights = take(1), take(count), take(count + 2)
    layers, output, _ = _read(weights, units, features)
    program = pl.program_id(0)

    def tile(number: Any, sums: list[Any]) -> list[Any]:
        columns = ((program + number * programs) * TILE + jnp.arange(TILE), size)
        inputs = [_load(x_ref, _rows(features), columns)]
        kept = []
        for layer, (cell_ref, hidden_ref) in zip(layers, pairs(states), strict=True):
            rows = _rows(layer.units)
            cell = _load(cell_ref, rows, columns)
            hidden = _load(hidden_ref, rows, columns)
            gates = layer.gates(inputs[-1], hidden)
            bounded = jnp.tanh(gates[1] * cell + gates[0] * gates[2])
            inputs.append(gates[3] * bounded)
            kept.append((cell, hidden, gates, bounded))
        by_y = _load(y_ref, (jnp.zeros(1, jnp.int32), 1), columns)
        new_sums: list[Any] = [None] * len(sums)
        new_sums[-2] = sums[-2] + jnp.sum(inputs[-1] * by_y, axis=1, keepdims=True)
        new_sums[-1] = sums[-1] + jnp.sum(by_y, axis=1)
        from_above = output * by_y
        for number in reversed(range(len(layers))):
            layer, (cell, hidden, (i, f, g, o), bounded) = layers[number], kept[number]
            rows = _rows(layer.units)
            by_hidden = from_above + _load(incoming[2 * number + 1], rows, columns)
            by_cell = _load(incoming[2 * number], rows, columns)
            by_cell = by_cell + by_hidden * o * (1 - bounded**2)
            by_gates = [
                by_cell * g * i * (1 - i),
                by_cell * cell * f * (1 - f),
                by_cell * i * (1 - g**2),
                by_hidden * bounded * o * (1 - o),
            ]
            _store(by_states[2 * number], by_cell * f, rows, columns)
            below: Any = sum(_dot(u.T, d) for u, d in zip(layer.by_hidden, by_gates, strict=True))
            _store(by_states[2 * number + 1], below, rows, columns)
            from_above = sum(_dot(w.T, d) for w, d in zip(layer.by_input, by_gates, strict=True))
            x = inputs[number]
            new_sums[number] = [
                (
                    by_input + _dot(x, d.T),
                    by_state + _dot(hidden, d.T),
                    by_bias + jnp.sum(d, axis=1),
                )
                for d, (by_input, by_state, by_bias) in zip(by_gates, sums[number], strict=True)
            ]
        _store(by_x_ref, from_above, _rows(features), columns)
        return new_sums

    zeros: list[Any] = []
    for layer in layers:
        height = _padded(layer.units)
        shapes = ((_padded(layer.inputs), height), (height, height), (height,))
        zeros.append([tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)] * 4)
    zeros += [jnp.zeros((_padded(units[-1]), 1), jnp.float32), jnp.zeros(1, jnp.float32)]
    tiles = pl.cdiv(size, TILE)
    sums = jax.lax.fori_loop(0, pl.cdiv(tiles - program, programs), tile, zeros)

    for number, layer in enumerate(layers):
        kernel, bias = by_weights[2 * number : 2 * number + 2]
        unit = jnp.arange(_padded(layer.units))
        exists = unit < layer.units
        end = layer.inputs + layer.units
        by_hidden = (jnp.where(exists, layer.inputs + unit, end), end)
        for gate, sums_of_gate in enumerate(sums[number]):
            all_gates = 4 * layer.units
            column = jnp.where(exists, gate * layer.units + unit, all_gates)
            _store(kernel, sums_of_gate[0], _rows(layer.inputs), (column, all_gates), program)
            _store(kernel, sums_of_gate[1], by_hidden, (column, all_gates), program)
            place = jnp.full(unit.shape, program)
            triton.store(bias.at[place, column], sums_of_gate[2], mask=exists)
    one = jnp.zeros(1, jnp.int32)
    _store(by_weights[-2], sums[-2], _rows(units[-1]), (one, 1), program)
    triton.store(by_weights[-1].at[jnp.full(1, program), one], sums[-1])
