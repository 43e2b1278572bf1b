"""Photographs as arrays; needs the extra `art`."""

import os
import types
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from l2ljax import _checks
from l2ljax.core import ArrayLike


def image(
    path: str | os.PathLike[str], size: int | tuple[int, int] | None = None
) -> Float[Array, "height width 3"]:
    """Reads a picture of any format that Pillow knows, in the orientation that it says.

    Args:
        path: the file. Greys become three equal colours, transparency is dropped.
        size: pixels of the shorter side, the other in proportion; or (height, width); None leaves
            the picture as it is.

    Returns:
        Red, green and blue in [0, 1], as they are stored: no colour profile is applied.

    Raises:
        FileNotFoundError: if there is no file.
        OSError: if it is no picture.
        ValueError: for sizes below one, or more than 8 bits a colour.
        ImportError: without Pillow.

    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("RGB", (40, 30), (255, 0, 255)).save(f"{folder}/pink.png")
    ...     pink = image(f"{folder}/pink.png", size=3)
    >>> print(pink.shape, pink[0, 0])
    (3, 4, 3) [1. 0. 1.]
    """
    pillow = _pillow()
    from PIL import ImageOps

    with pillow.open(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(
                f"path must be a picture of 8 bits a colour, got mode {picture.mode!r} "
                f"in {os.fspath(path)!r}"
            )
        pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    return jnp.asarray(resize(pixels, size), jnp.float32) / 255


def sample_images() -> dict[str, Float[Array, "427 640 3"]]:
    """The two photographs that scikit-learn ships, of red, green and blue in [0, 1].

    Returns:
        "china", a temple in Beijing, and "flower", a dahlia.

    Raises:
        ImportError: without scikit-learn or Pillow.

    Reference:
        'Summer palace' by Yann, and 'dahlia' by dany13, both CC BY 2.0.

    >>> {name: photograph.shape for name, photograph in sample_images().items()}
    {'china': (427, 640, 3), 'flower': (427, 640, 3)}
    """
    _pillow()
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError("sample images need scikit-learn: pip install 'l2ljax[art]'") from error
    return {
        name: jnp.asarray(load_sample_image(f"{name}.jpg"), jnp.float32) / 255
        for name in ("china", "flower")
    }


def crops(
    images: Sequence[ArrayLike], count: int, size: int = 64, *, seed: int = 0
) -> UInt8[Array, "{count} {size} {size} 3"]:
    """Draws square parts of images at random places and scales, a data set made of a few images.

    Each comes from one of the images; its side is between `size` pixels, a detail, and the shorter
    side of the image, nearly all of it, uniform in the logarithm.

    Args:
        images: float[height, width, 3] in [0, 1] or u8, not all of one size.
        count: number of parts; Andrychowicz et al. have 1,800 images for meta-training.
        size: their sides after scaling, in pixels. What is smaller in an image is enlarged.
        seed: draws them.

    Returns:
        The parts, as bytes: a quarter of the memory of `float32`.

    Raises:
        ValueError: for no images, images of another shape or dtype, or sizes below one.
        ImportError: without Pillow.

    >>> photographs = sample_images()
    >>> crops([photographs["china"], photographs["flower"]], count=10).shape
    (10, 64, 64, 3)
    """
    _checks.count("count", count)
    _checks.count("size", size)
    if not len(images):
        raise ValueError("images must have at least one image, got none")
    pictures = [_pillow().fromarray(as_bytes("images", picture)) for picture in images]
    random = np.random.RandomState(seed)
    parts = np.empty((count, size, size, 3), np.uint8)
    for part in parts:
        picture = pictures[random.randint(len(pictures))]
        shorter = min(picture.size)
        least = min(size, shorter)
        side = least * (shorter / least) ** random.uniform()
        left, top = (random.uniform(0, length - side) for length in picture.size)
        part[:] = picture.resize((size, size), box=(left, top, left + side, top + side))
    return jnp.asarray(parts)


def as_bytes(name: str, picture: ArrayLike) -> UInt8[np.ndarray, "height width 3"]:
    """An image's pixels, rounded to 0 to 255.

    Args:
        name: what errors call it.
        picture: float[height, width, 3] in [0, 1] or u8.

    Returns:
        The pixels; those outside [0, 1] are clipped.

    Raises:
        ValueError: for another shape or dtype.
    """
    pixels = np.asarray(picture)
    check_pixels(name, pixels, "height, width, 3")
    if pixels.dtype == np.uint8:
        return pixels
    return np.round(255 * np.clip(np.asarray(pixels, np.float32), 0, 1)).astype(np.uint8)


def check_pixels(name: str, pixels: Array | np.ndarray, axes: str) -> None:
    """Requires images of three colours, bytes or floating-point numbers.

    Args:
        name: what the error calls them.
        pixels: the images.
        axes: how the error describes the shape, such as "height, width, 3".

    Raises:
        ValueError: for another number of axes or colours, an empty axis, or another dtype.
    """
    right = pixels.ndim == axes.count(",") + 1 and pixels.shape[-1] == 3 and pixels.size
    if not right or not (pixels.dtype == np.uint8 or jnp.issubdtype(pixels.dtype, jnp.floating)):
        raise ValueError(
            f"{name} must have shape ({axes}), floating-point in [0, 1] or uint8, "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )


def resize(
    pixels: UInt8[np.ndarray, "_ _ 3"], size: int | tuple[int, int] | None
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Scales an image; scaled down, each pixel is a mean over what it stands for.

    Args:
        pixels: the image.
        size: as in `image`.

    Returns:
        The scaled image.

    Raises:
        ValueError: for sizes below one.
        ImportError: without Pillow.
    """
    if size is None:
        return pixels
    if not isinstance(size, tuple):
        _checks.count("size", size)
        shorter = min(pixels.shape[:2])
        size = tuple(round(size * length / shorter) for length in pixels.shape[:2])
    height, width = size
    _checks.count("size", height)
    _checks.count("size", width)
    return np.asarray(_pillow().fromarray(pixels).resize((width, height)))


def _pillow() -> types.ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'l2ljax[art]'") from error
    return Image
