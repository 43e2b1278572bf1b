"""Colour photographs of 32x32 pixels in ten classes, from local files or by download."""

import dataclasses
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import jax.numpy as jnp
import numpy as np

from l2ljax import _checks
from l2ljax.tasks import _files
from l2ljax.tasks._cifar10_python import read_batch
from l2ljax.tasks._dataset import Dataset, Split

_URLS = (
    "https://www.cs.toronto.edu/~kriz/",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
)
_CHECKSUM = "c32a1d4ab5d03f1284b67883e8d87530"  # MD5 of the binary version, as published

_IMAGES = 10_000  # in each file
_PIXELS = 3 * 32 * 32
_CLASSES = 10

Batch = tuple[np.ndarray, np.ndarray]  # images and their classes


def _read_binary(where: str, data: bytes) -> Batch:
    """Classes and pixels of records: a class, and the pixels a colour at a time."""
    record = 1 + _PIXELS
    if len(data) != _IMAGES * record:
        raise ValueError(
            f"{where} must hold {_IMAGES:,} records of {record:,} bytes, got {len(data):,} bytes, "
            f"{len(data) / record:.6g} records"
        )
    records = np.frombuffer(data, np.uint8).reshape(_IMAGES, record)
    return records[:, 1:], records[:, 0]


def _read_python(where: str, data: bytes) -> Batch:
    pixels, classes = read_batch(where, data)
    if pixels.shape != (_IMAGES, _PIXELS) or classes.shape != (_IMAGES,):
        raise ValueError(
            f"{where} must hold {_IMAGES:,} labels and images of {_PIXELS:,} bytes, got "
            f"{len(classes):,} labels and an array of shape {pixels.shape}"
        )
    return pixels, classes


@dataclasses.dataclass(frozen=True)
class _Version:
    """One of the versions of the data set: the names of its files, and what reads them."""

    archive: str
    folder: str
    suffix: str
    read: Callable[[str, bytes], Batch]

    @property
    def files(self) -> tuple[str, ...]:
        """The five training files and the test file."""
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        return tuple(f"{name}{self.suffix}" for name in names)


_BINARY = _Version("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", _read_binary)
_PYTHON = _Version("cifar-10-python.tar.gz", "cifar-10-batches-py", "", _read_python)


def cifar10(
    data_dir: _files.DataDir | None = None,
    labels: Sequence[int] | None = None,
    validation: int = 25_000,
    url: str | None = None,
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
            `cifar-10-batches-bin`; or the parent of a folder `cifar10` with these. The Python
            version will do as well, `cifar-10-python.tar.gz` or `cifar-10-batches-py`: nothing
            that its pickled files name is imported or called. Unpacked files are preferred, if they
            are all there: an archive is read in memory each time. None downloads the binary version
            once, 170 MB, to the user's cache folder, and needs the extra `data`.
        labels: the classes to keep, renumbered from 0 in this order: with (3, 5) class 3 becomes 0
            and 5 becomes 1. Default: all. They are airplane, automobile, bird, cat, deer, dog,
            frog, horse, ship, truck.
        validation: number of training images that are held out, the last ones, counted before
            classes are chosen.
        url: the folder that the archive is downloaded from; default: one of two mirrors.

    Returns:
        A data set; `inputs` are `u8[n, 32, 32, 3]` of 0 to 255, which `examples` makes `float32`
        in [0, 1]; `labels` are `i32[n]` below `classes`, the number of labels.

    Raises:
        FileNotFoundError: for a folder or a file that is not there.
        ValueError: for an archive or a file that is truncated or is another one than its name says,
            a download with a wrong checksum, labels that are not different whole numbers from 0 to
            9, or a `validation` that is not 0 to 49,999.
        OSError: if a download fails.
        ImportError: for a download without pooch.

    Reference:
        A. Krizhevsky, 'Learning multiple layers of features from tiny images', 2009.

    >>> cifar10("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: data_dir must be a folder with the CIFAR-10 files, got 'no/such/folder'
    """
    total = 5 * _IMAGES
    _checks.count("validation", validation, least=0)
    if validation >= total:
        raise ValueError(f"validation must be less than the {total:,} images, got {validation}")
    kept = _chosen(labels)
    if data_dir is None:
        urls, version = _URLS if url is None else (url,), _BINARY
        files = _files.download(urls, "CIFAR-10", {version.archive: _CHECKSUM}, "cifar10")
    else:
        version, files = _find(data_dir)
    if version.archive in files:
        batches = _read_archive(files[version.archive], version)
    else:
        batches = [_read(str(file), file.read_bytes(), version) for file in files.values()]
    images, classes = (np.concatenate(parts) for parts in zip(*batches[:5], strict=True))
    first = total - validation
    return Dataset(
        train=_split(images[:first], classes[:first], kept),
        validation=_split(images[first:], classes[first:], kept),
        test=_split(*batches[5], kept),
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


def _find(data_dir: _files.DataDir) -> tuple[_Version, dict[str, Path]]:
    """A version and its files in their order, or its archive alone."""
    unpacked = {}
    for version in (_BINARY, _PYTHON):
        folders = ("", version.folder, "cifar10", f"cifar10/{version.folder}")
        unpacked[version] = _files.find(data_dir, "CIFAR-10", version.files, folders=folders)
    version = max(unpacked, key=lambda version: len(unpacked[version]))
    if len(unpacked[version]) < len(version.files):
        for packed in (_BINARY, _PYTHON):
            archive = _files.find(data_dir, "CIFAR-10", [packed.archive], folders=("", "cifar10"))
            if archive:
                return packed, archive
    expected = (
        f"{version.archive}, or a folder {version.folder} with {', '.join(version.files)}, there "
        "or in its 'cifar10'"
    )
    _files.require_all(unpacked[version], version.files, data_dir, expected)
    return version, unpacked[version]


def _read_archive(archive: Path, version: _Version) -> list[Batch]:
    """The images of each file in the archive; nothing is written to the disk."""
    parts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_files.read(archive)), mode="r:") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                content = members.extractfile(member)
                if name in version.files and content is not None:
                    parts[name] = _read(f"{name} in {archive}", content.read(), version)
    except tarfile.TarError as error:
        raise ValueError(f"{archive} must be a whole tar archive, got: {error}") from error
    missing = [name for name in version.files if name not in parts]
    if missing:
        raise ValueError(
            f"{archive} must hold {', '.join(version.files)}; missing: {', '.join(missing)}"
        )
    return [parts[name] for name in version.files]


def _read(where: str, data: bytes, version: _Version) -> Batch:
    pixels, classes = version.read(where, data)
    if not 0 <= classes.min() <= classes.max() < _CLASSES:
        found = classes.min() if classes.min() < 0 else classes.max()
        raise ValueError(f"{where} must hold labels from 0 to {_CLASSES - 1}, got {found}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), classes
