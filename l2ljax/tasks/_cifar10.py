"""Colour photographs of 32x32 pixels in ten classes, from local files or by download."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import jax.numpy as jnp
import numpy as np

from l2ljax import _checks
from l2ljax.tasks import _files
from l2ljax.tasks._dataset import Dataset, Split

_URL = "https://www.cs.toronto.edu/~kriz/"
_ARCHIVE = "cifar-10-binary.tar.gz"
_CHECKSUM = "c32a1d4ab5d03f1284b67883e8d87530"  # MD5, as published

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
_FILES = (*_TRAIN, _TEST)

_IMAGES = 10_000  # in each file
_PIXELS = 3 * 32 * 32
_CLASSES = 10


def cifar10(
    data_dir: _files.DataDir | None = None,
    labels: Sequence[int] | None = None,
    validation: int = 25_000,
    url: str = _URL,
) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test photographs of 32x32 pixels in ten classes.

    | split | examples |
    |---|---|
    | train | the first 50,000 - `validation` training images |
    | validation | the other training images |
    | test | the 10,000 test images |

    Classes are chosen after the split: an image is in one split, whatever `labels` are.

    Args:
        data_dir: the folder with `cifar-10-binary.tar.gz` (gzipped or not), or with the files
            `data_batch_1.bin` to `test_batch.bin` that it holds, there or in a folder
            `cifar-10-batches-bin`; or the parent of a folder `cifar10` with these. Unpacked files
            are preferred, if they are all there: an archive is read in memory each time. None
            downloads the archive once, 170 MB, to the user's cache folder, and needs the extra
            `data`.
        labels: the classes to keep, renumbered from 0 in this order: with (3, 5) class 3 becomes 0
            and 5 becomes 1. Default: all. They are airplane, automobile, bird, cat, deer, dog,
            frog, horse, ship, truck.
        validation: number of training images that are held out, the last ones, counted before
            classes are chosen.
        url: the folder that the archive is downloaded from.

    Returns:
        A data set; `inputs` are `u8[n, 32, 32, 3]` of 0 to 255, which `examples` makes `float32`
        in [0, 1]; `labels` are `i32[n]` below `classes`, the number of labels.

    Raises:
        FileNotFoundError: for a folder or a file that is not there.
        ValueError: for an archive or a file that is truncated or is another one than its name says,
            a download with a wrong checksum, labels that are not different whole numbers from 0 to
            9, or a `validation` that is not 0 to 49,999.
        ImportError: for a download without pooch.

    Reference:
        A. Krizhevsky, 'Learning multiple layers of features from tiny images', 2009.

    >>> cifar10("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: data_dir must be a folder with the CIFAR-10 files, got 'no/such/folder'
    """
    total = len(_TRAIN) * _IMAGES
    _checks.count("validation", validation, least=0)
    if validation >= total:
        raise ValueError(f"validation must be less than the {total:,} images, got {validation}")
    kept = _chosen(labels)
    if data_dir is None:
        files = _files.download(url, "CIFAR-10", {_ARCHIVE: _CHECKSUM}, "cifar10")
    else:
        files = _find(data_dir)
    parts = _read_archive(files[_ARCHIVE]) if _ARCHIVE in files else _read_files(files)
    images = np.concatenate([parts[name][0] for name in _TRAIN])
    classes = np.concatenate([parts[name][1] for name in _TRAIN])
    first = total - validation
    return Dataset(
        train=_split(images[:first], classes[:first], kept),
        validation=_split(images[first:], classes[first:], kept),
        test=_split(*parts[_TEST], kept),
        name="cifar10",
        classes=len(kept),
    )


def _chosen(labels: Sequence[int] | None) -> tuple[int, ...]:
    kept = tuple(range(_CLASSES)) if labels is None else tuple(labels)
    for label in kept:
        _checks.count("labels", label, least=0)
    if not kept or max(kept) >= _CLASSES or len(set(kept)) < len(kept):
        raise ValueError(
            f"labels must be different numbers from 0 to {_CLASSES - 1}, got {labels!r}"
        )
    return kept


def _split(images: np.ndarray, classes: np.ndarray, kept: tuple[int, ...]) -> Split:
    """The examples of some classes, renumbered in their order."""
    number = np.full(_CLASSES, -1, np.int32)
    number[list(kept)] = np.arange(len(kept))
    labels = number[classes]
    here = labels >= 0
    return Split(jnp.asarray(images[here]), jnp.asarray(labels[here]), maximum=255)


def _find(data_dir: _files.DataDir) -> dict[str, Path]:
    """The archive alone, or the files that it holds."""
    unpacked = _files.find(
        data_dir,
        "CIFAR-10",
        _FILES,
        folders=("", _FOLDER, "cifar10", f"cifar10/{_FOLDER}"),
    )
    if len(unpacked) < len(_FILES):
        archive = _files.find(data_dir, "CIFAR-10", [_ARCHIVE], folders=("", "cifar10"))
        if archive:
            return archive
    expected = (
        f"{_ARCHIVE}, or a folder {_FOLDER} with {', '.join(_FILES)}, there or in its 'cifar10'"
    )
    _files.require_all(unpacked, _FILES, data_dir, expected)
    return unpacked


def _read_files(files: dict[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: _parse(str(file), file.read_bytes()) for name, file in files.items()}


def _read_archive(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images of each file in the archive; nothing is written to the disk."""
    parts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_files.read(archive)), mode="r:") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                content = members.extractfile(member)
                if name in _FILES and content is not None:
                    parts[name] = _parse(f"{name} in {archive}", content.read())
    except tarfile.TarError as error:
        raise ValueError(f"{archive} must be a whole tar archive, got: {error}") from error
    missing = [name for name in _FILES if name not in parts]
    if missing:
        raise ValueError(f"{archive} must hold {', '.join(_FILES)}; missing: {', '.join(missing)}")
    return parts


def _parse(where: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of one file: records of a class and the pixels, a colour at a time."""
    record = 1 + _PIXELS
    if len(data) != _IMAGES * record:
        raise ValueError(
            f"{where} must hold {_IMAGES:,} records of {record:,} bytes, got {len(data):,} bytes, "
            f"{len(data) / record:.6g} records"
        )
    records = np.frombuffer(data, np.uint8).reshape(_IMAGES, record)
    classes = records[:, 0]
    if classes.max() >= _CLASSES:
        raise ValueError(f"{where} must hold labels from 0 to {_CLASSES - 1}, got {classes.max()}")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), classes
