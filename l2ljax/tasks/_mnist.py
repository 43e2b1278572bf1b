"""Handwritten digits of 28x28 pixels, from local files or by download."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from l2ljax import _checks
from l2ljax.tasks import _files
from l2ljax.tasks._dataset import Dataset, Split

_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# The name, shape and, for downloads, published MD5 checksum of each archive.
_TRAIN_IMAGES = "train-images-idx3-ubyte"
_TRAIN_LABELS = "train-labels-idx1-ubyte"
_TEST_IMAGES = "t10k-images-idx3-ubyte"
_TEST_LABELS = "t10k-labels-idx1-ubyte"
_SHAPES: dict[str, tuple[int, ...]] = {
    _TRAIN_IMAGES: (60_000, 28, 28),
    _TRAIN_LABELS: (60_000,),
    _TEST_IMAGES: (10_000, 28, 28),
    _TEST_LABELS: (10_000,),
}
_FOLDERS = ("", "mnist", "MNIST", "raw", "MNIST/raw")
_CHECKSUMS = {
    _TRAIN_IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    _TRAIN_LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
    _TEST_IMAGES: "9fb629c4189551a2d022fa330f9573f3",
    _TEST_LABELS: "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist(
    data_dir: _files.DataDir | None = None, validation: int = 30_000, url: str | None = None
) -> Dataset:
    """The MNIST handwritten digits: 60,000 training and 10,000 test images of 28x28 pixels.

    | split | examples |
    |---|---|
    | train | the first 60,000 - `validation` training images |
    | validation | the other training images |
    | test | the 10,000 test images |

    Args:
        data_dir: the folder with the four original files (`train-images-idx3-ubyte` or
            `train-images.idx3-ubyte` and so on, gzipped or not, alone or each in a folder of its
            name), or a parent of it: they may lie in its `mnist`, `MNIST`, `raw` or `MNIST/raw`.
            None downloads them once, 11 MB, to the user's cache folder, and needs the extra `data`.
        validation: number of training images that are held out, the last ones.
        url: the folder that they are downloaded from; default: one of two mirrors.

    Returns:
        A data set; `inputs` are `u8[n, 28, 28, 1]` of 0 to 255, which `examples` makes `float32`
        in [0, 1]; `labels` are `i32[n]` of 0 to 9.

    Raises:
        FileNotFoundError: for a folder or a file that is not there.
        ValueError: for a file that is truncated or is another one than its name says, a download
            with a wrong checksum, or a `validation` that is not 0 to 59,999.
        OSError: if a download fails.
        ImportError: for a download without pooch.

    Reference:
        Y. LeCun, C. Cortes and C. Burges, 'The MNIST database of handwritten digits', 1998,
        CC BY-SA 3.0.

    >>> mnist("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: data_dir must be a folder with the MNIST files, got 'no/such/folder'
    """
    _checks.count("validation", validation, least=0)
    if validation >= 60_000:
        raise ValueError(f"validation must be less than the 60,000 images, got {validation}")
    urls = _URLS if url is None else (url,)
    files = _download(urls) if data_dir is None else _find(data_dir)
    arrays = {name: _read(file, _SHAPES[name]) for name, file in files.items()}
    train = _split(arrays[_TRAIN_IMAGES], arrays[_TRAIN_LABELS])
    kept = len(train) - validation
    return Dataset(
        train=train[:kept],
        validation=train[kept:],
        test=_split(arrays[_TEST_IMAGES], arrays[_TEST_LABELS]),
        name="mnist",
        classes=10,
    )


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(jnp.asarray(images[..., None]), jnp.asarray(labels, jnp.int32), maximum=255)


def _find(data_dir: _files.DataDir) -> dict[str, Path]:
    found = _files.find(
        data_dir,
        "MNIST",
        _SHAPES,
        folders=_FOLDERS,
        spellings=_spellings,
    )
    folders = ", ".join(repr(folder) for folder in _FOLDERS if folder)
    expected = (
        f"the MNIST files {', '.join(_SHAPES)}, gzipped (.gz) or not, there or in its {folders}"
    )
    _files.require_all(found, _SHAPES, data_dir, expected)
    return found


def _spellings(name: str) -> list[str]:
    """With a dot in place of a dash as in the first archives, and as archives of folders unpack."""
    bare = [name.replace("-idx", ".idx"), name]
    return [f"{part}.gz" for part in bare] + [f"{part}/{part}" for part in bare] + bare


def _download(urls: Sequence[str]) -> dict[str, Path]:
    checksums = {f"{name}.gz": checksum for name, checksum in _CHECKSUMS.items()}
    files = _files.download(urls, "MNIST", checksums, "mnist")
    return {name: files[f"{name}.gz"] for name in _CHECKSUMS}


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an IDX file of bytes: a magic number, the shape, all big-endian, and the values."""
    data = _files.read(file)
    magic = bytes([0, 0, 8, len(shape)])
    if data[:4] != magic:
        raise ValueError(
            f"{file} must be an IDX file of bytes in {len(shape)} dimensions, starting with "
            f"{magic.hex(' ')}, got {data[:4].hex(' ') or 'an empty file'}"
        )
    start = 4 + 4 * len(shape)
    held = tuple(np.frombuffer(data[4:start], ">u4", count=len(data[4:start]) // 4).tolist())
    if len(data) >= start and held != shape:
        raise ValueError(f"{file} must hold an array of shape {shape}, got {held}")
    size = start + math.prod(shape)
    if len(data) != size:
        raise ValueError(f"{file} must have {size:,} bytes when unpacked, got {len(data):,}")
    values = np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    if values.ndim == 1 and values.max() > 9:
        raise ValueError(f"{file} must hold labels from 0 to 9, got {values.max()}")
    return values
