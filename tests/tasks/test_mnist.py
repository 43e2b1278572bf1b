import gzip
import hashlib
import os
import shutil
import sys

import jax
import numpy as np
import pytest

from l2ljax.tasks import mnist

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def _idx(array):
    header = [0x0800 + array.ndim, *array.shape]
    return np.array(header, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """Files of MNIST's shapes: example i has the label i % 10, in every pixel."""
    folder = tmp_path_factory.mktemp("archives")
    for count, images, labels in ((60_000, IMAGES, LABELS), (10_000, TEST_IMAGES, TEST_LABELS)):
        digits = np.arange(count) % 10
        pixels = np.repeat(digits.astype(np.uint8), 28 * 28).reshape(count, 28, 28)
        for name, array in ((images, pixels), (labels, digits)):
            (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(array), 1, mtime=0))
    return folder


@pytest.fixture
def folder(archives, tmp_path):
    """A folder of one test, to spoil."""
    copy = tmp_path / "files"
    shutil.copytree(archives, copy)
    return copy


def _check_content(data, train=30_000):
    sizes = [len(data.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [train, 60_000 - train, 10_000]
    for split in (data.train, data.validation, data.test):
        assert split.inputs.shape[1:] == (28, 28, 1)
        np.testing.assert_array_equal(split.inputs[:, 5, 7, 0], split.labels)


@pytest.mark.parametrize("place", [".", "mnist", "MNIST", "raw", os.path.join("MNIST", "raw")])
def test_mnist_reads_the_folder_or_its_parents(archives, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if place == ".":
        tmp_path = archives
    else:
        (tmp_path / place).symlink_to(archives)
    _check_content(mnist(tmp_path, validation=5_000), train=55_000)


def test_mnist_reads_unpacked_files_whatever_their_names_say(folder):
    for name in (IMAGES, TEST_LABELS):
        packed = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    packed = folder / f"{LABELS}.gz"
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    _check_content(mnist(str(folder)))


SPELLINGS = {
    "a dot": lambda name: name.replace("-idx", ".idx"),
    "folders": lambda name: f"{name}/{name}",
    "a dot and folders": lambda name: "/".join([name.replace("-idx", ".idx")] * 2),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_mnist_reads_the_files_by_their_usual_other_names(archives, tmp_path, spelling):
    for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS):
        file = tmp_path / spelling(name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.decompress((archives / f"{name}.gz").read_bytes()))
    _check_content(mnist(tmp_path))


def test_mnist_reads_a_folder_of_the_users_home(archives, monkeypatch):
    monkeypatch.setenv("HOME", str(archives.parent))
    monkeypatch.setenv("USERPROFILE", str(archives.parent))
    _check_content(mnist(f"~/{archives.name}"))


def test_mnist_inputs_are_bytes_until_a_batch_is_drawn(archives):
    split = mnist(archives).validation
    assert split.inputs.dtype == np.uint8 and split.labels.dtype == np.int32
    inputs, labels = split.examples(jax.numpy.array([7, 29_999]))
    np.testing.assert_allclose(inputs[:, 0, 0, 0], np.asarray(labels) / 255, rtol=1e-6)


def _spoil(name, change):
    def spoil(folder):
        file = folder / f"{name}.gz"
        file.write_bytes(change(file.read_bytes()))

    return spoil


def _unpacked(change):
    return lambda packed: change(gzip.decompress(packed))


SPOILED = {
    "truncated archive": (_spoil(IMAGES, lambda b: b[:-100]), IMAGES, "whole gzip file, got"),
    "corrupt archive": (
        _spoil(IMAGES, lambda b: b[:500] + bytes(500) + b[1000:]),
        IMAGES,
        "whole gzip file, got",
    ),
    "truncated file": (
        _spoil(TEST_LABELS, _unpacked(lambda b: b[:-1])),
        TEST_LABELS,
        "have 10,008 bytes when unpacked, got 10,007",
    ),
    "truncated header": (
        _spoil(TEST_LABELS, _unpacked(lambda b: b[:6])),
        TEST_LABELS,
        "have 10,008 bytes when unpacked, got 6",
    ),
    "too long": (
        _spoil(LABELS, _unpacked(lambda b: b + b"\n")),
        LABELS,
        "have 60,008 bytes when unpacked, got 60,009",
    ),
    "empty": (_spoil(IMAGES, lambda b: b""), IMAGES, "got an empty file"),
    "foreign": (
        _spoil(IMAGES, lambda b: b"<!DOCTYPE html>"),
        IMAGES,
        "IDX file of bytes in 3 dimensions, starting with 00 00 08 03, got 3c 21 44 4f",
    ),
    "mislabelled: labels as images": (
        lambda folder: shutil.copy(folder / f"{LABELS}.gz", folder / f"{IMAGES}.gz"),
        IMAGES,
        "starting with 00 00 08 03, got 00 00 08 01",
    ),
    "mislabelled: test as training labels": (
        lambda folder: shutil.copy(folder / f"{TEST_LABELS}.gz", folder / f"{LABELS}.gz"),
        LABELS,
        r"array of shape \(60000,\), got \(10000,\)",
    ),
    "other images": (
        _spoil(TEST_IMAGES, lambda b: _idx(np.zeros((2, 32, 32)))),
        TEST_IMAGES,
        r"array of shape \(10000, 28, 28\), got \(2, 32, 32\)",
    ),
    "other labels": (
        _spoil(TEST_LABELS, lambda b: _idx(np.full(10_000, 26))),
        TEST_LABELS,
        "labels from 0 to 9, got 26",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_mnist_names_a_spoiled_file_and_the_reason(folder, case):
    spoil, name, reason = SPOILED[case]
    spoil(folder)
    with pytest.raises(ValueError, match=rf"{name}\.gz must .*{reason}"):
        mnist(folder)


def test_mnist_names_the_files_that_are_missing(folder, tmp_path):
    (folder / f"{LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"files'.* missing: {LABELS}$"):
        mnist(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"missing: {IMAGES}, .*{TEST_LABELS}"):
        mnist(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder .*nowhere"):
        mnist(tmp_path / "nowhere")


@pytest.mark.parametrize("validation", [-1, 60_000])
def test_mnist_names_a_bad_validation_size(archives, validation):
    with pytest.raises(ValueError, match=f"validation must be .* got {validation}"):
        mnist(archives, validation=validation)


def test_mnist_downloads_once_and_again_only_what_was_spoiled(
    archives, serve, cache, monkeypatch, capfd
):
    sums = {file.stem: hashlib.md5(file.read_bytes()).hexdigest() for file in archives.iterdir()}
    monkeypatch.setattr(sys.modules["l2ljax.tasks._mnist"], "_CHECKSUMS", sums)
    with serve(archives) as url:
        _check_content(mnist(url=url))
        assert "100%" in capfd.readouterr().err
        (cache / "mnist" / f"{LABELS}.gz").write_bytes(b"spoiled")
        _check_content(mnist(url=url))
    # The server is gone.
    _check_content(mnist(url=url))


def test_mnist_refuses_a_download_without_the_published_checksum(archives, serve, cache):
    with serve(archives) as url, pytest.raises(ValueError, match=rf"{IMAGES}\.gz.*hash"):
        mnist(url=url)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_mnist_is_downloaded_from_the_second_mirror_if_the_first_fails(
    archives, serve, cache, monkeypatch, tmp_path
):
    module = sys.modules["l2ljax.tasks._mnist"]
    sums = {file.stem: hashlib.md5(file.read_bytes()).hexdigest() for file in archives.iterdir()}
    (tmp_path / f"{IMAGES}.gz").write_text("moved")
    monkeypatch.setattr(module, "_CHECKSUMS", sums)
    with serve(tmp_path) as other, serve(archives) as url:
        # One that is gone, one that has something else, and one that has them.
        monkeypatch.setattr(module, "_URLS", ("http://127.0.0.1:9/", other, url))
        _check_content(mnist())


def test_a_download_that_fails_names_the_mirrors_and_the_argument(cache, monkeypatch):
    urls = ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/")
    monkeypatch.setattr(sys.modules["l2ljax.tasks._mnist"], "_URLS", urls)
    message = r"^MNIST cannot be downloaded: .*9/a/.*; .*9/b/.*pass data_dir=, a folder with its fi"
    with pytest.raises(OSError, match=message):
        mnist()
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_mnist_names_the_extra_that_a_download_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'l2ljax\[data\]'"):
        mnist()


def test_real_mnist_has_its_known_pixels_and_order(data_dir):
    data = mnist(data_dir)
    pixels = np.concatenate([data.train.inputs, data.validation.inputs])
    np.testing.assert_allclose(pixels.mean(), 33.3184, atol=5e-5)
    np.testing.assert_allclose(np.asarray(data.test.inputs).mean(), 33.7912, atol=5e-5)
    np.testing.assert_array_equal(data.train.labels[:5], [5, 0, 4, 1, 9])
    np.testing.assert_array_equal(data.test.labels[:5], [7, 2, 1, 0, 4])
