"""Fixed networks whose feature maps say what an image shows, and in which style.

`features(images) -> FeatureMaps` is any pure function; two are here: random filters, which need no
file, and VGG-19 from a file of weights. Every operation is one that `jax.vmap` turns into the same
operation on a larger batch.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.tree_util import Partial
from jaxtyping import Array, Float

from l2ljax import _checks, networks
from l2ljax._shown import one_line
from l2ljax.core import closure


class FeatureMaps(NamedTuple):
    """What a feature network makes of a batch of images.

    Attributes:
        content: maps that tell what is where, a tuple of float[batch, rows, columns, filters].
        style: maps whose correlations make the style, a tuple of the same kind.
    """

    content: tuple[Array, ...]
    style: tuple[Array, ...]

    def __repr__(self) -> str:
        return one_line(self)


Features = Callable[[Float[Array, "batch height width 3"]], FeatureMaps]
"""A feature network: images with red, green and blue in [0, 1], but not clipped, to maps."""


def random_features(
    seed: int = 0, *, filters: int = 32, width: int = 5, scales: int = 4, content: int = 1
) -> Partial:
    r"""Random filters on an image at several scales; one layer, nothing learned.

    $$F^l = \max(0, W^l * x_l), \qquad x_0 = x - \tfrac12, \quad x_{l+1} = \mathrm{pool}(x_l)$$

    where pool averages squares of 2x2 pixels, and the pixels of the border go on outside it. The
    filters of each scale are drawn from N(0, 1) by NumPy and each has its mean over positions
    subtracted for each colour: it sees contrast, not brightness. Those of the coarsest scale keep
    it, and so carry the colours. They are the same on every machine.

    Args:
        seed: draws the filters.
        filters: number of filters of each scale.
        width: side of a filter in pixels; on scale l it covers `width` · 2^l pixels of the image.
        scales: number of scales.
        content: the scale whose maps are the content; 0 is the finest. The style is all of them.

    Returns:
        A `jax.tree_util.Partial` from `float[batch, height, width, 3]` to `FeatureMaps`; each side
        must have at least 2^(scales - 1) pixels.

    Raises:
        ValueError: for sizes below one, or a content scale that there is not.

    Reference:
        Ustyuzhaninov, Brendel, Gatys and Bethge, 'Texture synthesis using shallow convolutional
        networks with random filters', 2016, https://arxiv.org/abs/1606.00021: filters of several
        sizes on one image, where these are of one size on several images.

    >>> maps = random_features()(jnp.zeros((2, 64, 64, 3)))
    >>> [m.shape for m in maps.style]
    [(2, 64, 64, 32), (2, 32, 32, 32), (2, 16, 16, 32), (2, 8, 8, 32)]
    """
    _checks.count("seed", seed, least=0)
    _checks.count("filters", filters)
    _checks.count("width", width)
    _checks.count("scales", scales)
    _checks.choice("content", content, range(scales))
    # Not a `Generator`, whose numbers may change with NumPy.
    kernels = np.random.RandomState(seed).standard_normal((scales, width, width, 3, filters))
    kernels[:-1] -= kernels[:-1].mean(axis=(1, 2), keepdims=True)
    kernels /= np.sqrt(3 * width**2)
    layers = tuple(jnp.asarray(kernel, jnp.float32) for kernel in kernels)
    return closure(_random_features, layers, content=content)


def vgg_features(
    path: str | os.PathLike[str],
    *,
    content: Sequence[str] = ("conv4_2",),
    style: Sequence[str] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"),
    pooling: str = "average",
) -> Partial:
    r"""VGG-19, a network that was trained on photographs, from a file of weights.

    $$x \leftarrow \max(0, W * x + b)$$

    for each convolution of 3x3, with pooling of 2x2 between blocks; only layers up to the deepest
    that is asked for are read and computed. Nothing is downloaded. The names in the file say how
    the kernels are stored, and on what pixels they were trained:

    | | torchvision | Caffe, converted to red, green, blue |
    |---|---|---|
    | names | `features.0.weight`, `features.0.bias`, ... | `conv1_1_W`, `conv1_1_b`, ... |
    | kernels | `[out, in, 3, 3]` | `[3, 3, in, out]` |
    | pixels | in [0, 1] | in [0, 255] |
    | minus | (.485, .456, .406) | (123.68, 116.779, 103.939) |
    | over | (.229, .224, .225) | 1 |

    Args:
        path: a `.safetensors` or `.npz` file; it may hold other arrays, too.
        content: layers of the content, from "conv1_1" to "conv5_4".
        style: layers of the style.
        pooling: "average", which Gatys et al. prefer, or "max", with which it was trained.

    Returns:
        A `jax.tree_util.Partial` from `float[batch, height, width, 3]` to `FeatureMaps`, those of
        layers after their rectification.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: for an unknown layer or pooling, no layers, a file of another kind, or an array
            in it that is missing or has another shape.

    Reference:
        Simonyan and Zisserman, 'Very deep convolutional networks for large-scale image
        recognition', 2014; the layers are those of Gatys et al., 2016.

    >>> vgg_features("vgg19.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: path must be a .safetensors or .npz file with the weights of VGG-19,
        got 'vgg19.safetensors'
    """
    content, style = tuple(content), tuple(style)
    for name, layers in (("content", content), ("style", style)):
        if not layers:
            raise ValueError(f"{name} must have at least one layer, got none")
        for layer in layers:
            _checks.choice(name, layer, _VGG19)
    _checks.choice("pooling", pooling, _POOLINGS)
    names = list(_VGG19)
    depth = 1 + max(names.index(layer) for layer in content + style)
    weights, naming = _read_vgg(pathlib.Path(path), names[:depth])
    mean, std = (jnp.asarray(value, jnp.float32) for value in (naming.mean, naming.std))
    return closure(_vgg_features, weights, mean, std, content=content, style=style, pooling=pooling)


class _Layer(NamedTuple):
    """One convolution of VGG-19: its number in torchvision, channels in and out."""

    number: int
    inputs: int
    outputs: int


def _vgg19() -> dict[str, _Layer]:
    layers, number, inputs = {}, 0, 3
    for block, (depth, outputs) in enumerate(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), 1):
        for layer in range(1, depth + 1):
            layers[f"conv{block}_{layer}"] = _Layer(number, inputs, outputs)
            number, inputs = number + 2, outputs  # torchvision counts rectifications
        number += 1  # and poolings
    return layers


_VGG19 = _vgg19()


class _Naming(NamedTuple):
    """How a file names and stores the layers, and what pixels they were trained on.

    Attributes:
        kernel: the name of a kernel.
        bias: the name of a bias.
        axes: where height, width, inputs and outputs stand in a stored kernel.
        mean: subtracted from the colours of pixels in [0, 1].
        std: divides what is left.
    """

    kernel: str
    bias: str
    axes: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def arrays(self, layer: str) -> dict[str, tuple[int, ...]]:
        """The names and stored shapes of a layer's kernel and bias."""
        number, inputs, outputs = _VGG19[layer]
        sizes = dict(zip(self.axes, (3, 3, inputs, outputs), strict=True))
        shapes = tuple(sizes[axis] for axis in range(4)), (outputs,)
        names = (name.format(layer=layer, number=number) for name in (self.kernel, self.bias))
        return dict(zip(names, shapes, strict=True))


_NAMINGS = (
    _Naming(
        "features.{number}.weight",
        "features.{number}.bias",
        (2, 3, 1, 0),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    _Naming(
        "{layer}_W",
        "{layer}_b",
        (0, 1, 2, 3),
        (123.68 / 255, 116.779 / 255, 103.939 / 255),
        (1 / 255, 1 / 255, 1 / 255),
    ),
)


def _read_vgg(
    path: pathlib.Path, layers: Sequence[str]
) -> tuple[tuple[tuple[Array, Array], ...], _Naming]:
    """Kernels `[3, 3, in, out]` and biases of these layers, and the naming that the file has."""
    if not path.is_file():
        raise FileNotFoundError(
            "path must be a .safetensors or .npz file with the weights of VGG-19, "
            f"got {str(path)!r}"
        )
    shapes = [
        {name: shape for layer in layers for name, shape in naming.arrays(layer).items()}
        for naming in _NAMINGS
    ]
    arrays = _read(path, [name for names in shapes for name in names])
    naming, expected = max(
        zip(_NAMINGS, shapes, strict=True), key=lambda pair: len(arrays.keys() & pair[1].keys())
    )
    for name, shape in expected.items():
        if name not in arrays:
            raise ValueError(
                f"{path} must hold the weights of VGG-19 under the names of torchvision, "
                f"features.0.weight and so on, or of Caffe, conv1_1_W; {name} is missing"
            )
        if arrays[name].shape != shape:
            raise ValueError(
                f"{path} must hold the weights of VGG-19, {name} of shape {shape}, "
                f"got {arrays[name].shape}"
            )
    weights = []
    for layer in layers:
        kernel, bias = (jnp.asarray(arrays[name], jnp.float32) for name in naming.arrays(layer))
        weights.append((kernel.transpose(naming.axes), bias))
    return tuple(weights), naming


def _read(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those arrays of a file that have one of these names; no others are read."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="numpy") as file:
                held = set(file.keys())
                return {name: file.get_tensor(name) for name in names if name in held}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in names if name in file.files}
    except (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} must be a whole {path.suffix} file: {error}") from error
    raise ValueError(f"path must end in .safetensors or .npz, got {str(path)!r}")


def _random_features(
    kernels: tuple[Array, ...], images: Float[Array, "batch height width 3"], *, content: int
) -> FeatureMaps:
    x, maps = images - 0.5, []
    for scale, kernel in enumerate(kernels):
        x = _pool(x, jnp.mean) if scale else x
        # Zeros around the image would be an edge, and a contrast.
        maps.append(jax.nn.relu(networks.convolve_patches(x, kernel, "edge")))
    return FeatureMaps((maps[content],), tuple(maps))


def _vgg_features(
    weights: tuple[tuple[Array, Array], ...],
    mean: Float[Array, " 3"],
    std: Float[Array, " 3"],
    images: Float[Array, "batch height width 3"],
    *,
    content: tuple[str, ...],
    style: tuple[str, ...],
    pooling: str,
) -> FeatureMaps:
    x = (images - mean.astype(images.dtype)) / std.astype(images.dtype)
    maps: dict[str, Array] = {}
    for layer, (kernel, bias) in zip(_VGG19, weights, strict=False):
        if layer.endswith("_1") and maps:
            x = _pool(x, _POOLINGS[pooling])
        x = jax.nn.relu(networks.convolve_patches(x, kernel) + bias.astype(x.dtype))
        maps[layer] = x
    return FeatureMaps(tuple(maps[i] for i in content), tuple(maps[i] for i in style))


_POOLINGS: dict[str, Callable[..., Array]] = {"average": jnp.mean, "max": jnp.max}


def _pool(x: Float[Array, "batch height width channels"], pooling: Callable[..., Array]) -> Array:
    """Halves the sides; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    if min(height, width) < 2:
        raise ValueError(
            "images must be large enough to be halved once more, got maps of "
            f"{height}x{width} pixels"
        )
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    # Not a window: the derivative of a window's mean is slow on a CPU.
    return pooling(x.reshape(batch, height, 2, width, 2, channels), axis=(2, 4))
