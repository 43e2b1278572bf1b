"""The networks inside learned optimizers, for one coordinate of the params that are optimized.

They are written with their features first. Called on vectors, a network is that of one coordinate,
and `jax.vmap` over trailing axes maps it over coordinates: that is its definition. Called on arrays
whose trailing axis holds the coordinates it computes the same values with one matrix product a
layer for all of them, coordinates last, the layout that is fastest on a CPU.
`tests/test_networks.py` proves the two equal.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from l2ljax import _checks, kernels
from l2ljax._programs import compiled
from l2ljax.core import Key, Phi, closure
from l2ljax.networks._common import scaled_normal

# A tenth of the usual deviation: an optimizer that is not trained yet should do little harm. Larger
# first updates saturate the optimizee, and meta-training then settles on doing nothing.
_small_normal = nn.initializers.variance_scaling(0.01, "fan_in", "normal", dtype=jnp.float32)


def _forget_bias(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Zero but for the forget gate's quarter, which is one (Jozefowicz et al., 2015)."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)


def _affine(kernel: Array, bias: Array, x: Array) -> Array:
    """`kernelᵀ x + bias` over the leading axis of `x`; trailing axes are coordinates."""
    return jnp.tensordot(kernel, x, axes=(0, 0)) + bias.reshape(bias.shape + (1,) * (x.ndim - 1))


def _average(x: Array) -> Array:
    """The mean over all coordinates, at each of them."""
    axes = tuple(range(1, x.ndim))
    size = max(1, math.prod(x.shape[1:]))
    return jnp.broadcast_to(jnp.sum(x, axes, keepdims=True) / size, x.shape)


class _LSTMCell(nn.Module):
    """One LSTM layer: gates `i, f, g, o` from one product with `[x; h]`."""

    units: int
    averaging: int = 0

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
        cell, hidden = carry
        inputs = jnp.concatenate([x, hidden])
        kernel = self.param("kernel", scaled_normal, (inputs.shape[0], 4 * self.units))
        bias = self.param("bias", _forget_bias, (4 * self.units,))
        i, f, g, o = jnp.split(_affine(kernel, bias, inputs), 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        if self.averaging:
            common, own = hidden[: self.averaging], hidden[self.averaging :]
            hidden = jnp.concatenate([_average(common), own])
        return cell, hidden


class _CoordinateDense(nn.Module):
    """A dense layer of one coordinate."""

    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", scaled_normal, (x.shape[0], self.units))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.units,), jnp.float32)
        return _affine(kernel, bias, x)


def coordinate_dense_init(key: Key, *, features: int, units: int) -> Phi:
    """Draws `{"kernel": f32[features, units], "bias": f32[units]}`, N(0, 1/fan-in) and zeros."""
    _checks.key("key", key)
    return _CoordinateDense(units).init(key, jnp.zeros(features, jnp.float32))["params"]


def coordinate_dense_apply(
    phi: Phi, x: Float[Array, "features *coordinates"]
) -> Float[Array, "units *coordinates"]:
    """One dense layer for each coordinate, features first."""
    return _CoordinateDense(phi["bias"].size).apply({"params": phi}, x)  # type: ignore[return-value]


class _CoordinateLSTM(nn.Module):
    """Stacked LSTM layers and a linear output."""

    hidden: tuple[int, ...]
    averaging: int = 0

    @nn.compact
    def __call__(
        self, carries: tuple[tuple[Array, Array], ...], x: Array
    ) -> tuple[tuple[tuple[Array, Array], ...], Array]:
        new = []
        for layer, (units, carry) in enumerate(zip(self.hidden, carries, strict=True)):
            carry = _LSTMCell(units, self.averaging, name=f"lstm_{layer}")(carry, x)
            new.append(carry)
            x = carry[1]
        kernel = self.param("output_kernel", _small_normal, (self.hidden[-1], 1))
        bias = self.param("output_bias", nn.initializers.zeros_init(), (1,), jnp.float32)
        return tuple(new), _affine(kernel, bias, x)[0]


def lstm_carry(
    shape: tuple[int, ...], dtype: DTypeLike, *, hidden: tuple[int, ...]
) -> tuple[tuple[Array, Array], ...]:
    """The zero state of the coordinate LSTM: for each layer `(cell, hidden)`, `[units, *shape]`."""
    return tuple(
        (jnp.zeros((units, *shape), dtype), jnp.zeros((units, *shape), dtype)) for units in hidden
    )


def lstm_init(key: Key, *, features: int, hidden: tuple[int, ...]) -> Phi:
    """Draws the weights of the coordinate LSTM.

    Args:
        key: PRNG key.
        features: inputs of one coordinate.
        hidden: units of each layer.

    Returns:
        `{"lstm_0": {"kernel": f32[features + h0, 4 h0], "bias": f32[4 h0]}, ...,
        "output_kernel": f32[h, 1], "output_bias": f32[1]}`; kernels N(0, 1/fan-in), that of
        the output a tenth as large; biases zero but for the forget gates', one.
    """
    _checks.key("key", key)
    carries = lstm_carry((), jnp.float32, hidden=hidden)
    return _CoordinateLSTM(hidden).init(key, carries, jnp.zeros(features, jnp.float32))["params"]


def lstm_apply(
    phi: Phi,
    carries: tuple[tuple[Float[Array, "_ *coordinates"], ...], ...],
    x: Float[Array, "features *coordinates"],
    *,
    hidden: tuple[int, ...],
    averaging: int = 0,
    fused: bool | None = None,
) -> tuple[tuple[tuple[Array, Array], ...], Float[Array, "*coordinates"]]:
    r"""One step of the coordinate LSTM.

    $$(i, f, g, o) = W^\top [x; h] + b, \quad c \leftarrow \sigma(f) c + \sigma(i) \tanh(g),
    \quad h \leftarrow \sigma(o) \tanh(c)$$

    for each layer, then $y = w^\top h + b$.

    Args:
        phi: weights from `lstm_init`.
        carries: for each layer `(cell, hidden)`, each `[units, *coordinates]`.
        x: features of each coordinate, features first.
        hidden: units of each layer.
        averaging: the first so many h of each layer are replaced by their mean over all
            coordinates, for the next layer and for the next step. The network is then one of all
            coordinates together, and `jax.vmap` over them is another.
        fused: whether a program of `kernels` may compute it, which it does in float32 and without
            averaging. None: that of the CPU, where it was built and serves (`kernels.cpu_serves`);
            True: on an NVIDIA GPU its own, too, which was never measured; False: none.

    Returns:
        The new carries and one output a coordinate.
    """
    network = _Network(_CoordinateLSTM(hidden, averaging))
    if averaging or fused is False or x.dtype != jnp.float32 or not x.size:
        return network(phi, carries, x)
    usual: Callable[..., Any] = network
    if kernels.cpu_serves((phi, carries, x)):
        usual = functools.partial(kernels.cpu_lstm, network)
    if not fused:
        return usual(phi, carries, x)
    # Here, because Pallas takes a while to import, and few want it.
    from l2ljax.kernels import gpu

    return jax.lax.platform_dependent(phi, carries, x, cuda=gpu.lstm, default=usual)


def lstm_notes(
    networks: Sequence[tuple[tuple[Float[Array, "_ ..."], Float[Array, "_ ..."]], ...]], steps: int
) -> list[kernels.Notes] | None:
    """Room for what `lstm_noting` notes for `lstm_sequence`, where that is worth it.

    Args:
        networks: for each batch of coordinates the carries before the first step.
        steps: how many there will be.
    """
    return kernels.cpu_notes(networks, steps) if kernels.cpu_serves(networks) else None


def lstm_noting(
    phi: Phi,
    carries: tuple[tuple[Float[Array, "_ *coordinates"], Float[Array, "_ *coordinates"]], ...],
    x: Float[Array, "features *coordinates"],
    notes: kernels.Notes,
    *,
    hidden: tuple[int, ...],
) -> tuple[tuple[tuple[Array, Array], ...], Float[Array, "*coordinates"], kernels.Notes]:
    """`lstm_apply`, which also notes what a derivative of `lstm_sequence` would compute again.

    Args:
        phi: weights from `lstm_init`.
        carries: as in `lstm_apply`.
        x: likewise.
        notes: from `lstm_notes`, or from the step before.
        hidden: units of each layer.

    Returns:
        The new carries, one output a coordinate and the notes with those of this step.
    """
    if not x.size:
        return (*lstm_apply(phi, carries, x, hidden=hidden), notes)
    return kernels.cpu_lstm_noting(_Network(_CoordinateLSTM(hidden)), phi, carries, x, notes)


def lstm_sequence(
    phi: Phi,
    carries: tuple[tuple[Float[Array, "_ *coordinates"], Float[Array, "_ *coordinates"]], ...],
    xs: Float[Array, "steps features *coordinates"],
    notes: kernels.Notes | None = None,
    *,
    hidden: tuple[int, ...],
) -> tuple[tuple[tuple[Array, Array], ...], Float[Array, "steps *coordinates"]]:
    """Steps of `lstm_apply` one after another, of inputs that are known beforehand.

    Where the CPU's program serves (`kernels.cpu_serves`), a derivative backwards keeps no state of
    a step in memory but that of notes. It then has no derivatives forwards or of higher order.

    Args:
        phi: weights from `lstm_init`.
        carries: as in `lstm_apply`, before the first step.
        xs: features of each coordinate at each step.
        notes: what `lstm_noting` noted of these very steps.
        hidden: units of each layer.

    Returns:
        The carries after the last step and one output a coordinate and step.
    """
    network = _Network(_CoordinateLSTM(hidden))
    if xs.size and kernels.cpu_serves((phi, carries, xs)):
        return kernels.cpu_lstm_sequence(network, phi, carries, xs, notes)
    return compiled(closure(_steps, hidden=hidden), phi, carries, xs)


def _steps(
    phi: Phi, carries: tuple[tuple[Array, Array], ...], xs: Array, *, hidden: tuple[int, ...]
) -> tuple[tuple[tuple[Array, Array], ...], Array]:
    network = _Network(_CoordinateLSTM(hidden))
    step = jax.checkpoint(functools.partial(network, phi), prevent_cse=False)
    return jax.lax.scan(step, carries, xs)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The coordinate LSTM as a function, equal where the network is."""

    module: _CoordinateLSTM

    def __call__(
        self, phi: Phi, carries: tuple[tuple[Array, ...], ...], x: Array
    ) -> tuple[tuple[tuple[Array, Array], ...], Array]:
        return self.module.apply({"params": phi}, carries, x)  # type: ignore[return-value]


class _CoordinateMLP(nn.Module):
    """Dense layers of one coordinate, ReLU between them."""

    units: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for layer, units in enumerate(self.units):
            x = _CoordinateDense(units, name=f"dense_{layer}")(jax.nn.relu(x) if layer else x)
        return x


def coordinate_mlp_init(key: Key, *, features: int, hidden: tuple[int, ...], outputs: int) -> Phi:
    """Draws the weights of the coordinate MLP.

    Args:
        key: PRNG key.
        features: inputs of one coordinate.
        hidden: units of each hidden layer; `()` is an affine function.
        outputs: outputs of one coordinate.

    Returns:
        `{"dense_0": {"kernel": f32[features, h0], "bias": f32[h0]}, ...}`; kernels N(0, 1/fan-in),
        biases zero.
    """
    _checks.key("key", key)
    network = _CoordinateMLP((*hidden, outputs))
    return network.init(key, jnp.zeros(features, jnp.float32))["params"]


def coordinate_mlp_apply(
    phi: Phi, x: Float[Array, "features *coordinates"]
) -> Float[Array, "outputs *coordinates"]:
    r"""The outputs of the coordinate MLP.

    $$x \leftarrow W^\top \max(x, 0) + b$$

    for each layer, the first without the maximum.

    Args:
        phi: weights from `coordinate_mlp_init`.
        x: features of each coordinate, features first.

    Returns:
        Outputs of each coordinate, outputs first.
    """
    units = tuple(phi[f"dense_{layer}"]["bias"].size for layer in range(len(phi)))
    return _CoordinateMLP(units).apply({"params": phi}, x)  # type: ignore[return-value]
