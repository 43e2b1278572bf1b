"""Convolutional networks that are optimized."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Params
from l2ljax.networks._common import ACTIVATIONS, scaled_normal
from l2ljax.networks._convolutions import convolve

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
        mean = jnp.mean(x, axes, dtype, keepdims=True)
        centered = x.astype(dtype) - mean
        variance = jnp.mean(centered**2, axes, keepdims=True)
        scale, bias = (p.astype(dtype).reshape(mean.shape) for p in (scale, bias))
        factor = scale * jax.lax.rsqrt(variance + _BATCH_NORM_EPS)
        return (centered * factor + bias).astype(x.dtype)


class _Conv(nn.Module):
    """A convolution that keeps height and width, with square kernels."""

    units: int
    size: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.units)
        kernel = self.param("kernel", scaled_normal, shape, jnp.float32)
        x = convolve(*nn.dtypes.promote_dtype(x, kernel, dtype=None))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.units,), jnp.float32)
            x, bias = nn.dtypes.promote_dtype(x, bias, dtype=None)
            x = x + bias[None, None, None]
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
    x = _larger(x[:, :, 0], x[:, :, 1])
    x = x.reshape(batch, height, width, 2, channels)
    return _larger(x[:, :, :, 0], x[:, :, :, 1])


def _larger(a: Array, b: Array) -> Array:
    """The first of equal numbers; NaN where there is one."""
    return jnp.where((a >= b) | (a != a), a, b)


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
            x = nn.Dense(units, use_bias=bias, kernel_init=scaled_normal)(x)
            if self.batch_norm:
                x = _BatchNorm(name=f"DenseNorm_{layer}")(x)
            x = activation(x)
        return nn.Dense(self.outputs, kernel_init=scaled_normal)(x)


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
    _checks.key("key", key)
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
