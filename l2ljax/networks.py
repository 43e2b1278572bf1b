"""Neural networks as plain `init` and `apply` functions on dictionaries; Flax stays in this file.

Two kinds live here: the network inside a learned optimizer, defined for **one coordinate** of the
parameters that are optimized, and the networks that are optimized ('optimizees').

The coordinate network is written with its features first. Called on vectors it is the network of
one coordinate, and `jax.vmap` over trailing axes maps it over coordinates: that is its definition.
Called on arrays whose trailing axis holds the coordinates it computes the same values with one
matrix product a layer for all of them, coordinates last, the layout that is fastest on a CPU.
`tests/test_networks.py` proves the two equal.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Params, Phi

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
}

# In float32 also where float64 is the default: saved weights fit everywhere.
_scaled_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal", dtype=jnp.float32)
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
        kernel = self.param("kernel", _scaled_normal, (inputs.shape[0], 4 * self.units))
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
        kernel = self.param("kernel", _scaled_normal, (x.shape[0], self.units))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.units,), jnp.float32)
        return _affine(kernel, bias, x)


def coordinate_dense_init(key: Key, *, features: int, units: int) -> Phi:
    """Draws `{"kernel": f32[features, units], "bias": f32[units]}`, N(0, 1/fan-in) and zeros."""
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
    carries = lstm_carry((), jnp.float32, hidden=hidden)
    return _CoordinateLSTM(hidden).init(key, carries, jnp.zeros(features, jnp.float32))["params"]


def lstm_apply(
    phi: Phi,
    carries: tuple[tuple[Float[Array, "_ *coordinates"], ...], ...],
    x: Float[Array, "features *coordinates"],
    *,
    hidden: tuple[int, ...],
    averaging: int = 0,
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

    Returns:
        The new carries and one output a coordinate.
    """
    network = _CoordinateLSTM(hidden, averaging)
    return network.apply({"params": phi}, carries, x)  # type: ignore[return-value]


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


class _MLP(nn.Module):
    """Fully connected layers, flattened inputs, an activation between layers."""

    hidden: tuple[int, ...]
    outputs: int
    activation: str
    init_std: float | None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        kernel_init, bias_init = _scaled_normal, nn.initializers.zeros_init()
        if self.init_std is not None:
            kernel_init = bias_init = nn.initializers.normal(self.init_std)
        x = inputs.reshape(inputs.shape[0], -1)
        for units in self.hidden:
            x = nn.Dense(units, kernel_init=kernel_init, bias_init=bias_init)(x)
            x = ACTIVATIONS[self.activation](x)
        return nn.Dense(self.outputs, kernel_init=kernel_init, bias_init=bias_init)(x)


def mlp_init(
    key: Key,
    inputs: Float[Array, "batch *features"],
    *,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "sigmoid",
    init_std: float | None = None,
) -> Params:
    """Draws the weights of a fully connected network.

    Args:
        key: PRNG key.
        inputs: examples; only their shape matters.
        hidden: units of each hidden layer; `()` is logistic regression.
        outputs: number of outputs.
        activation: a name in `ACTIVATIONS`.
        init_std: if None, weights are N(0, 1/fan-in) and biases zero; else both N(0, init_std²).

    Returns:
        `{"Dense_0": {"kernel": f32[in, h0], "bias": f32[h0]}, ...}`.

    Raises:
        ValueError: for an unknown activation.
    """
    _checks.choice("activation", activation, ACTIVATIONS)
    return _MLP(hidden, outputs, activation, init_std).init(key, inputs)["params"]


def mlp_apply(
    params: Params,
    inputs: Float[Array, "batch *features"],
    *,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "sigmoid",
) -> Float[Array, "batch outputs"]:
    """The outputs of a fully connected network; arguments as in `mlp_init`."""
    return _MLP(hidden, outputs, activation, None).apply({"params": params}, inputs)  # type: ignore[return-value]


_BATCH_NORM_EPS = 1e-5


class _BatchNorm(nn.Module):
    """Normalization by the batch at hand, always: a task's loss is a pure function of its params.

    A half-precision batch has its mean and variance in float32.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
        dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axes, dtype)
        centered = x.astype(dtype) - mean
        variance = jnp.mean(centered**2, axes)
        factor = scale.astype(dtype) * jax.lax.rsqrt(variance + _BATCH_NORM_EPS)
        return (centered * factor + bias.astype(dtype)).astype(x.dtype)


def _convolve_plainly(x: Array, kernel: Array, low: int, high: int) -> Array:
    padding = ((low, high), (low, high))
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)


# On a CPU and inside a loop, and all training is one, XLA computes a convolution fast only if it
# has channels last and one group (jax-ml/jax#12868). The usual gradient of a convolution has other
# layouts, and `vmap` over kernels makes groups: without these two rules the loss and gradient of
# the network for CIFAR-10 take ten times as long, and for two problems at once twenty-five times.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, low: int, high: int) -> Array:
    """A convolution, NHWC with HWIO; problems on an axis of `vmap` have it one after the other."""
    convolve = functools.partial(_convolve_plainly, low=low, high=high)
    return jax.custom_batching.sequential_vmap(convolve)(x, kernel)


@_convolve.defjvp
def _convolve_jvp(
    low: int, high: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # For second derivatives only. `sequential_vmap` has no transpose.
    (x, kernel), (dx, dkernel) = primals, tangents
    tangent = _convolve_plainly(dx, kernel, low, high) + _convolve_plainly(x, dkernel, low, high)
    return _convolve(x, kernel, low, high), tangent


@jax.custom_vjp
def _convolution(x: Array, kernel: Array) -> Array:
    """A convolution of stride 1 that keeps height and width: NHWC with HWIO."""
    return _convolution_forward(x, kernel)[0]


def _convolution_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    size = kernel.shape[0]
    return _convolve(x, kernel, (size - 1) // 2, size // 2), (x, kernel)


def _convolution_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[0]
    low, high = (size - 1) // 2, size // 2
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # The sum over examples is one over channels, with channels and examples exchanged.
    by_kernel = _convolve(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), low, high)
    # The XLA of JAX 0.8.1 miscompiles the transpose of this product without the barrier.
    by_kernel = jax.lax.optimization_barrier(by_kernel)
    return _convolve(gradient, turned, high, low), by_kernel.transpose(1, 2, 0, 3)


_convolution.defvjp(_convolution_forward, _convolution_backward)


class _Conv(nn.Module):
    """A convolution that keeps height and width, with square kernels."""

    units: int
    size: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.units)
        kernel = self.param("kernel", _scaled_normal, shape, jnp.float32)
        x = _convolution(*nn.dtypes.promote_dtype(x, kernel, dtype=None))
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros_init(), (self.units,), jnp.float32)
        return x


def _max_pool(x: Array) -> Array:
    """The largest of each 2x2 pixels; an odd last row or column is left out.

    The first of equally large pixels has the gradient.
    """
    # Not `reduce_window`: its gradient scatters, and the loss and gradient of the network for
    # CIFAR-10 take 1.5 times as long on a CPU. Not `max`: its gradient compares `x` with the
    # maximum, which a compiler that computes `x` twice may round otherwise; none is equal then,
    # and 0/0 follows.
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, 2 * width, channels)
    x = jnp.where(x[:, :, 0] >= x[:, :, 1], x[:, :, 0], x[:, :, 1])
    x = x.reshape(batch, height, width, 2, channels)
    return jnp.where(x[:, :, :, 0] >= x[:, :, :, 1], x[:, :, :, 0], x[:, :, :, 1])


class _ConvNet(nn.Module):
    """Convolutions, each with 2x2 max-pooling, then fully connected layers."""

    channels: tuple[int, ...]
    kernel: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str
    batch_norm: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        activation = ACTIVATIONS[self.activation]
        # Batch normalization would subtract it.
        bias = not self.batch_norm
        x = images
        for layer, units in enumerate(self.channels):
            x = _Conv(units, self.kernel, bias, name=f"Conv_{layer}")(x)
            if self.batch_norm:
                x = _BatchNorm(name=f"ConvNorm_{layer}")(x)
            # Before the activation: all of them are monotone, so the values are those of pooling
            # afterwards, for a quarter of the work.
            x = activation(_max_pool(x))
        x = x.reshape(x.shape[0], -1)
        for layer, units in enumerate(self.hidden):
            x = nn.Dense(units, use_bias=bias, kernel_init=_scaled_normal)(x)
            if self.batch_norm:
                x = _BatchNorm(name=f"DenseNorm_{layer}")(x)
            x = activation(x)
        return nn.Dense(self.outputs, kernel_init=_scaled_normal)(x)


def convnet_init(
    key: Key,
    images: Float[Array, "batch height width colors"],
    *,
    channels: tuple[int, ...],
    kernel: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "relu",
    batch_norm: bool = True,
) -> Params:
    """Draws the weights of a convolutional network.

    Args:
        key: PRNG key.
        images: examples; only their shape matters.
        channels: of each convolution, which keeps height and width; 2x2 max-pooling then halves
            them, rounding down.
        kernel: height and width of the convolutions' kernels.
        hidden: units of each fully connected hidden layer.
        outputs: number of outputs.
        activation: a name in `ACTIVATIONS`.
        batch_norm: whether each hidden layer is normalized before its activation.

    Returns:
        `{"Conv_0": {"kernel": f32[k, k, colors, c0]}, "ConvNorm_0": {"scale": f32[c0],
        "bias": f32[c0]}, ..., "Dense_0": {"kernel": f32[in, h0]}, "DenseNorm_0": {"scale": f32[h0],
        "bias": f32[h0]}, ..., "Dense_1": {"kernel": f32[h0, outputs], "bias": f32[outputs]}}`;
        without `batch_norm` no norms, and a `bias` in each layer. Kernels N(0, 1/fan-in), scales
        one, biases zero.

    Raises:
        ValueError: for an unknown activation, or images that are halved to nothing.
    """
    _checks.choice("activation", activation, ACTIVATIONS)
    if min(images.shape[1:3]) >> len(channels) == 0:
        raise ValueError(
            f"channels must have fewer layers than halve the images to nothing, got "
            f"{len(channels)} for images of {images.shape[1]}x{images.shape[2]}"
        )
    network = _ConvNet(channels, kernel, hidden, outputs, activation, batch_norm)
    return network.init(key, images)["params"]


def convnet_apply(
    params: Params,
    images: Float[Array, "batch height width colors"],
    *,
    channels: tuple[int, ...],
    kernel: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "relu",
    batch_norm: bool = True,
) -> Float[Array, "batch outputs"]:
    r"""The outputs of a convolutional network; arguments as in `convnet_init`.

    Batch normalization is, for each channel, over the examples and pixels of this batch alone

    $$\hat x = s \frac{x - \bar x}{\sqrt{\overline{(x - \bar x)^2} + 10^{-5}}} + b,$$

    so the output of one example depends on the others, in training and evaluation alike.

    Reference:
        Ioffe and Szegedy (2015), 'Batch normalization', algorithm 1.
    """
    network = _ConvNet(channels, kernel, hidden, outputs, activation, batch_norm)
    return network.apply({"params": params}, images)  # type: ignore[return-value]
