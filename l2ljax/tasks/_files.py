"""The files of data sets: how they are found, downloaded and read."""

import gzip
import os
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

DataDir = str | os.PathLike[str]


def find(
    data_dir: DataDir,
    title: str,
    names: Collection[str],
    *,
    folders: Collection[str],
    suffixes: Collection[str] = ("",),
) -> dict[str, Path]:
    """Looks for files in some folders, and takes them from the one that has most.

    Args:
        data_dir: where to look.
        title: what errors call the data set.
        names: of the files.
        folders: in `data_dir`, which is "" itself; of two that have as many the first is taken.
        suffixes: what may follow a name; of two files the one with the later suffix is taken.

    Returns:
        The files that are there, by name: all, some or none.

    Raises:
        FileNotFoundError: if `data_dir` is no folder.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a folder with the {title} files, got {str(root)!r}"
        )
    found: dict[str, Path] = {}
    for folder in folders:
        here = {
            name: file
            for name in names
            for file in (root / folder / f"{name}{suffix}" for suffix in suffixes)
            if file.is_file()
        }
        found = max(found, here, key=len)
    return found


def require_all(
    found: Mapping[str, Path], names: Collection[str], data_dir: DataDir, expected: str
) -> None:
    """Requires every file.

    Args:
        found: what `find` returned.
        names: of the files.
        data_dir: where it looked.
        expected: how the error describes what should be there.

    Raises:
        FileNotFoundError: naming the folder and the files that it lacks.
    """
    missing = [name for name in names if name not in found]
    if missing:
        place = next(iter(found.values())).parent if found else Path(data_dir)
        raise FileNotFoundError(
            f"{str(place)!r} must have {expected}; missing: {', '.join(missing)}"
        )


def download(url: str, title: str, checksums: Mapping[str, str], folder: str) -> dict[str, Path]:
    """Downloads files to the user's cache folder, those that are not there yet.

    Args:
        url: the folder that they are in.
        title: what errors call the data set.
        checksums: the MD5 of each file, by its name.
        folder: in the cache folder.

    Returns:
        The files by name.

    Raises:
        ImportError: without pooch.
        ValueError: for a file with another checksum; it is not kept.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"to download {title} takes pooch: pip install 'l2ljax[data]'; "
            "or pass data_dir=, a folder with its files"
        ) from error
    return {
        name: Path(
            pooch.retrieve(
                f"{url.rstrip('/')}/{name}",
                known_hash=f"md5:{checksum}",
                fname=name,
                path=Path(pooch.os_cache("l2ljax")) / folder,
                progressbar=True,
            )
        )
        for name, checksum in checksums.items()
    }


def read(file: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped.

    Raises:
        ValueError: for a gzip file that is not whole.
    """
    data = file.read_bytes()
    # By content, not by name: browsers and archivers unpack files and leave the name.
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} must be a whole gzip file, got: {error}") from error
