"""Convolutions of stride 1 that keep height and width, and that a CPU computes fast inside a loop.

All training is a loop. In one, XLA's convolution on a CPU is fast only if it has channels last and
one group (jax-ml/jax#12868). Its usual derivatives have other layouts, and `vmap` over kernels
makes groups. With the rules here gradients of the network for CIFAR-10 are 25 times as fast as by
Flax's layers, those of two problems at once 30 times, Hessian-vector products 8 times
(`python benchmarks/convolutions.py`, without normalization).

Images are NHWC, kernels HWIO.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve_patches(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    around: str = "constant",
) -> Float[Array, "batch height width outputs"]:
    """One matrix product with all patches; derivatives of any order are such products, too.

    Args:
        x: images.
        kernel: of any size.
        around: "constant", zeros around the image, or "edge", its last pixels.
    """
    rows, columns, _, _ = kernel.shape
    return _times_patches(x, kernel.astype(x.dtype), (_margins(rows), _margins(columns)), around)


def _times_patches(
    x: Array, kernel: Array, margins: tuple[tuple[int, int], ...], around: str = "constant"
) -> Array:
    return _patches(x, margins, around) @ kernel.reshape(-1, kernel.shape[-1])


def _patches(x: Array, margins: tuple[tuple[int, int], ...], around: str = "constant") -> Array:
    """What a kernel sees at each pixel: `[batch, height, width, rows * columns * inputs]`."""
    _, height, width, _ = x.shape
    rows, columns = (1 + sum(pair) for pair in margins)
    x = jnp.pad(x, ((0, 0), *margins, (0, 0)), mode=around)
    x = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], axis=-1)
    return jnp.concatenate([x[:, i : i + height] for i in range(rows)], axis=-1)


def _margins(size: int) -> tuple[int, int]:
    return (size - 1) // 2, size // 2


@jax.custom_vjp
def convolve(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "size size inputs outputs"]
) -> Float[Array, "batch height width outputs"]:
    """XLA's convolution with zeros around the image.

    By reverse mode once, and by either mode on top of that.
    """
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _to_outputs(x, kernel, _margins(len(kernel))), (x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    margins = low, high = _margins(len(kernel))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _to_outputs(gradient, turned, (high, low)), _to_kernel(x, gradient, margins)


convolve.defvjp(_forward, _backward)

# Their derivatives, for second derivatives of a convolution alone, are products of patches.
_bilinear = functools.partial(jax.custom_jvp, nondiff_argnums=(2,))


@_bilinear
def _to_outputs(x: Array, kernel: Array, margins: tuple[int, int]) -> Array:
    return _convolve_plainly(x, kernel, margins)


@_to_outputs.defjvp
def _to_outputs_jvp(
    margins: tuple[int, int], primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    both = margins, margins
    tangent = _times_patches(dx, kernel, both) + _times_patches(x, dkernel, both)
    return _to_outputs(x, kernel, margins), tangent


@_bilinear
def _to_kernel(x: Array, gradient: Array, margins: tuple[int, int]) -> Array:
    # The sum over examples is one over channels, with channels and examples exchanged.
    exchanged = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    return _convolve_plainly(*exchanged, margins).transpose(1, 2, 0, 3)


@_to_kernel.defjvp
def _to_kernel_jvp(
    margins: tuple[int, int], primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    def product(x: Array, gradient: Array) -> Array:
        patches = _patches(x, (margins, margins))
        return jnp.tensordot(patches, gradient, axes=((0, 1, 2), (0, 1, 2)))

    (x, gradient), (dx, dgradient) = primals, tangents
    kernel = _to_kernel(x, gradient, margins)
    tangent = product(dx, gradient) + product(x, dgradient)
    return kernel, tangent.reshape(kernel.shape)


def _convolve_plainly(x: Array, kernel: Array, margins: tuple[int, int]) -> Array:
    """XLA's own; problems on an axis of `vmap` have it one after the other."""

    def convolve(x: Array, kernel: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), (margins, margins), dimension_numbers=numbers
        )

    return jax.custom_batching.sequential_vmap(convolve)(x, kernel)
