"""The files of data sets: how they are found, downloaded and read."""

import gzip
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

DataDir = str | os.PathLike[str]


def find(
    data_dir: DataDir,
    title: str,
    names: Collection[str],
    *,
    folders: Collection[str],
    spellings: Callable[[str], Iterable[str]] = lambda name: [name],
) -> dict[str, Path]:
    """Looks for files in some folders, and takes them from the one that has most.

    Args:
        data_dir: where to look; `~` is the user's home.
        title: what errors call the data set.
        names: of the files.
        folders: in `data_dir`, which is "" itself; of two that have as many the first is taken.
        spellings: what the file of a name may be called; of two files the later one is taken.

    Returns:
        The files that are there, by name: all, some or none.

    Raises:
        FileNotFoundError: if `data_dir` is no folder.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a folder with the {title} files, got {str(root)!r}"
        )
    found: dict[str, Path] = {}
    for folder in folders:
        here = {
            name: file
            for name in names
            for file in (root / folder / spelling for spelling in spellings(name))
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


def download(
    urls: Sequence[str], title: str, checksums: Mapping[str, str], folder: str
) -> dict[str, Path]:
    """Downloads files to the user's cache folder, those that are not there yet.

    Args:
        urls: folders that have them; where one fails, the next is tried.
        title: what errors call the data set.
        checksums: the MD5 of each file, by its name.
        folder: in the cache folder.

    Returns:
        The files by name.

    Raises:
        ImportError: without pooch.
        OSError: if no download succeeds.
        ValueError: for a file with another checksum; it is not kept.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"to download {title} takes pooch: pip install 'l2ljax[data]'; "
            "or pass data_dir=, a folder with its files"
        ) from error
    files, urls = {}, list(urls)
    for name, checksum in checksums.items():
        errors: dict[str, Exception] = {}
        for url in [*urls]:
            try:
                file = pooch.retrieve(
                    f"{url.rstrip('/')}/{name}",
                    known_hash=f"md5:{checksum}",
                    fname=name,
                    path=Path(pooch.os_cache("l2ljax")) / folder,
                    progressbar=True,
                )
            except (OSError, ValueError) as error:
                errors[url] = error
                # The next file is asked of it last.
                urls.append(urls.pop(urls.index(url)))
            else:
                files[name] = Path(file)
                break
        else:
            reasons = "; ".join(f"{url}: {error}" for url, error in errors.items())
            last = [*errors.values()][-1]
            kind = OSError if isinstance(last, OSError) else ValueError
            raise kind(
                f"{title} cannot be downloaded: {reasons}; try again later, or pass data_dir=, a "
                "folder with its files"
            ) from last
    return files


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
