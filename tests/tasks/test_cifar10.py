import gzip
import hashlib
import io
import shutil
import struct
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.tasks import CATALOGUE, cifar10, load

FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
COUNT = 20  # images in a file, in place of 10,000


def module():
    return sys.modules["l2ljax.tasks._cifar10"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module(), "_IMAGES", COUNT)


def image(number):
    """Image `number`, in which every byte of the first rows tells where it belongs."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[3, 5] = [number, 100, 200]
    pixels[3, 6, 2] = 7
    return pixels


def records(numbers):
    """Bytes of one file; image i has the label i % 10."""
    parts = []
    for i in numbers:
        parts += [bytes([i % 10]), *(image(i)[..., color].tobytes() for color in range(3))]
    return b"".join(parts)


CONTENT = {name: records(range(COUNT * i, COUNT * i + COUNT)) for i, name in enumerate(FILES)}


def packed(content, folder=FOLDER):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, bytes_ in {"batches.meta.txt": b"airplane\n", **content}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(bytes_)
            archive.addfile(member, io.BytesIO(bytes_))
    return data.getvalue()


def python_batch(numbers):
    """A file of the Python version, operation by operation as Python 2 pickled it."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    pixels = b"".join(image(i)[..., color].tobytes() for i in numbers for color in range(3))
    shape = b"M" + struct.pack("<H", len(numbers)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    byte_order = b"(K\x03" + text("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    return b"".join(
        [
            b"\x80\x02}q\x01(" + text("batch_label") + b"q\x02" + text("one of 6") + b"q\x03",
            text("labels") + b"q\x04]q\x05(",
            *(b"K" + bytes([i % 10]) for i in numbers),
            b"e" + text("data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07",
            b"cnumpy\nndarray\nq\x08K\x00\x85" + text("b") + b"\x87Rq\x09(K\x01" + shape,
            b"cnumpy\ndtype\nq\x0a" + text("u1") + b"K\x00K\x01\x87Rq\x0b" + byte_order,
            b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb" + text("filenames"),
            b"q\x0c]q\x0d(" + b"".join(text(f"{i}.png") for i in numbers) + b"eu.",
        ]
    )


PYTHON_FOLDER, PYTHON_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
PYTHON_CONTENT = {
    name.removesuffix(".bin"): python_batch(range(COUNT * i, COUNT * i + COUNT))
    for i, name in enumerate(FILES)
}


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    for name, bytes_ in content.items():
        (folder / name).write_bytes(bytes_)
    return folder


def check_content(data, train):
    numbers = range(COUNT * len(FILES))
    splits = [numbers[:train], numbers[train : 5 * COUNT], numbers[5 * COUNT :]]
    for split, expected in zip((data.train, data.validation, data.test), splits, strict=True):
        np.testing.assert_array_equal(split.labels, np.array(expected) % 10)
        np.testing.assert_array_equal(split.inputs, [image(i) for i in expected])
        assert split.inputs.dtype == np.uint8 and split.labels.dtype == np.int32
    assert data.classes == 10


@pytest.mark.parametrize("place", [".", FOLDER, "cifar10", f"cifar10/{FOLDER}"])
def test_cifar10_reads_unpacked_files_in_the_folder_or_its_parents(small, tmp_path, place):
    write(tmp_path / place, CONTENT)
    check_content(cifar10(tmp_path, validation=60), train=40)


@pytest.mark.parametrize("place", [".", "cifar10"])
@pytest.mark.parametrize("change", [lambda b: b, gzip.decompress], ids=["gzipped", "unpacked"])
def test_cifar10_reads_the_archive_whatever_its_name_says(small, tmp_path, place, change):
    write(tmp_path / place, {ARCHIVE: change(packed(CONTENT))})
    check_content(cifar10(str(tmp_path), validation=10), train=90)
    assert [path.name for path in (tmp_path / place).iterdir()] == [ARCHIVE]


@pytest.mark.parametrize("place", [".", PYTHON_FOLDER, f"cifar10/{PYTHON_FOLDER}"])
def test_cifar10_reads_the_python_version(small, tmp_path, place):
    write(tmp_path / place, PYTHON_CONTENT)
    check_content(cifar10(tmp_path, validation=60), train=40)


def test_cifar10_reads_the_archive_of_the_python_version(small, tmp_path):
    write(tmp_path, {PYTHON_ARCHIVE: packed(PYTHON_CONTENT, PYTHON_FOLDER)})
    check_content(cifar10(tmp_path, validation=60), train=40)


def test_whole_files_of_one_version_are_taken_before_some_of_another(small, tmp_path):
    write(tmp_path, {**PYTHON_CONTENT, FILES[0]: b"spoiled", ARCHIVE: b"spoiled"})
    check_content(cifar10(tmp_path, validation=60), train=40)


ONE = PYTHON_CONTENT["data_batch_3"]
FOREIGN = {
    "truncated": (ONE[:-100], "ValueError"),
    "empty": (b"", "ValueError"),
    "a page": (b"<!DOCTYPE html>" * 100, "ValueError"),
    "binary": (CONTENT[FILES[2]], "Error"),
    "a call": (b"\x80\x02cos\nsystem\n(U\x0ctouch calledtR.", "a call of 'os system'"),
    "a call of a text": (b"\x80\x02U\x09os system(U\x0ctouch calledtR.", "a call of 'os system'"),
    "an old call": (b"(S'touch called'\nios\nsystem\n.", "the operation STRING"),
    "an instance": (b"\x80\x02cos\npopen\n(U\x0ctouch calledt\x81.", "the operation NEWOBJ"),
    "no operands": (b"\x80\x02R.", "too few operands"),
    "no mark": (b"\x80\x02t.", "IndexError"),
    "no memory": (b"\x80\x02h\x05.", "KeyError"),
    "other keys": (ONE.replace(b"labels", b"fine_l"), "KeyError.'labels'"),
    "another dtype": (ONE.replace(b"U\x02u1", b"U\x02f4"), "an array of f4"),
    "a label": (ONE.replace(b"(K\x00K\x01", b"(NK\x01", 1), "a label None"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_pickle_is_refused_and_nothing_of_it_runs(small, tmp_path, monkeypatch, case):
    content, reason = FOREIGN[case]
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / PYTHON_FOLDER, {**PYTHON_CONTENT, "data_batch_3": content})
    with pytest.raises(ValueError, match=f"data_batch_3 must be a file of CIFAR-10's .*{reason}"):
        cifar10(folder, validation=50)
    assert [path.name for path in tmp_path.iterdir()] == [PYTHON_FOLDER]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            python_batch(range(19)),
            "20 labels and images of 3,072 bytes, got 19 labels and an array",
        ),
        (ONE.replace(b"(K\x00K\x01", b"(K\x0cK\x01", 1), "labels from 0 to 9, got 12"),
        (ONE.replace(b"(K\x00K\x01", b"(J\xff\xff\xff\xffK\x01", 1), "labels from 0 to 9, got -1"),
    ],
    ids=["short", "too large", "negative"],
)
def test_other_content_of_the_python_version_is_named(small, tmp_path, content, reason):
    folder = write(tmp_path, {**PYTHON_CONTENT, "data_batch_3": content})
    with pytest.raises(ValueError, match=f"data_batch_3 must hold {reason}"):
        cifar10(folder, validation=50)


def test_an_archive_beside_files_that_are_not_all_there_is_read(small, tmp_path):
    write(tmp_path, {ARCHIVE: packed(CONTENT), FILES[0]: b"spoiled"})
    check_content(cifar10(tmp_path, validation=50), train=50)


def test_chosen_classes_are_renumbered_in_their_order_after_the_split(small, tmp_path):
    data = cifar10(write(tmp_path, CONTENT), labels=(7, 2), validation=35)
    assert data.classes == 2
    expected = {"train": range(65), "validation": range(65, 100), "test": range(100, 120)}
    for name, numbers in expected.items():
        kept = [i for i in numbers if i % 10 in (7, 2)]
        split = data.split(name)
        np.testing.assert_array_equal(split.inputs[:, 3, 5, 0], kept)
        np.testing.assert_array_equal(split.labels, [0 if i % 10 == 7 else 1 for i in kept])


def test_inputs_become_numbers_from_zero_to_one(small, tmp_path):
    inputs, labels = cifar10(write(tmp_path, CONTENT), validation=1).train.examples(jnp.array([33]))
    np.testing.assert_allclose(inputs[0, 3, 5], np.array([33, 100, 200]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(labels, [3])


@pytest.mark.parametrize("labels", [(), (0, 10), (-1, 2), (3, 3), (True, 2)], ids=str)
def test_bad_labels_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be .* got"):
        cifar10("nowhere", labels=labels)


@pytest.mark.parametrize("validation", [-1, 50_000])
def test_a_bad_validation_size_is_refused(validation):
    with pytest.raises(ValueError, match=f"validation must be .* got {validation}"):
        cifar10("nowhere", validation=validation)


SPOILED = {
    "truncated": (lambda b: b[:-1], "must hold 20 records of 3,073 bytes, got 61,459 bytes"),
    "short": (lambda b: b[:3073], "must hold 20 records of 3,073 bytes, .* 1 records"),
    "long": (lambda b: b + b[:3073], "must hold 20 records of 3,073 bytes, .* 21 records"),
    "empty": (lambda b: b"", "must hold 20 records of 3,073 bytes, got 0 bytes"),
    "foreign": (lambda b: b"\x0c" + b[1:], "must hold labels from 0 to 9, got 12"),
}


@pytest.mark.parametrize("place", ["file", "archive"])
@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_named_with_the_reason(small, tmp_path, case, place):
    change, reason = SPOILED[case]
    content = {**CONTENT, FILES[2]: change(CONTENT[FILES[2]])}
    write(tmp_path, content if place == "file" else {ARCHIVE: packed(content)})
    where = rf"{FILES[2]} in .*{ARCHIVE}" if place == "archive" else FILES[2]
    with pytest.raises(ValueError, match=f"{where} {reason}"):
        cifar10(tmp_path, validation=50)


WHOLE = packed(CONTENT)
SPOILED_ARCHIVES = {
    "truncated": (WHOLE[:-100], "must be a whole gzip file, got"),
    "corrupt": (WHOLE[:600] + bytes(200) + WHOLE[800:], "must be a whole gzip file, got"),
    "truncated inside": (gzip.decompress(WHOLE)[:100_000], "must be a whole tar archive, got"),
    "a page": (b"<!DOCTYPE html>" * 100, "must be a whole tar archive, got"),
    "empty": (b"", "must be a whole tar archive, got"),
    "other content": (packed({"a": b"1"}), f"must hold data_batch_1.bin, .*missing: {FILES[0]}, "),
    "not all": (
        packed({name: CONTENT[name] for name in FILES if name != FILES[3]}),
        f"missing: {FILES[3]}$",
    ),
}


@pytest.mark.parametrize("case", SPOILED_ARCHIVES)
def test_a_spoiled_archive_is_named_with_the_reason(small, tmp_path, case):
    content, reason = SPOILED_ARCHIVES[case]
    write(tmp_path, {ARCHIVE: content})
    with pytest.raises(ValueError, match=f"{ARCHIVE} .*{reason}"):
        cifar10(tmp_path, validation=50)


def test_what_is_missing_is_named(small, tmp_path):
    write(tmp_path / FOLDER, {name: CONTENT[name] for name in FILES[:4]})
    with pytest.raises(FileNotFoundError, match=rf"{FOLDER}' .*; missing: {FILES[4]}, {FILES[5]}$"):
        cifar10(tmp_path, validation=50)
    shutil.rmtree(tmp_path / FOLDER)
    with pytest.raises(FileNotFoundError, match=rf"must have {ARCHIVE}, or a folder {FOLDER}"):
        cifar10(tmp_path, validation=50)
    with pytest.raises(FileNotFoundError, match="data_dir must be a folder .*CIFAR-10.*nowhere"):
        cifar10(tmp_path / "nowhere", validation=50)


def test_the_archive_is_downloaded_once(small, serve, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module(), "_CHECKSUM", hashlib.md5(WHOLE).hexdigest())
    with serve(write(tmp_path / "served", {ARCHIVE: WHOLE})) as url:
        check_content(cifar10(url=url, validation=50), train=50)
    # The server is gone.
    check_content(cifar10(url=url, validation=50), train=50)
    assert [path.name for path in (cache / "cifar10").iterdir()] == [ARCHIVE]


def test_a_download_without_the_published_checksum_is_refused(small, serve, cache, tmp_path):
    with serve(write(tmp_path / "served", {ARCHIVE: WHOLE})) as url:
        with pytest.raises(ValueError, match=rf"{ARCHIVE}.*hash"):
            cifar10(url=url, validation=50)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_the_published_checksum_is_that_of_the_official_page():
    assert module()._CHECKSUM == "c32a1d4ab5d03f1284b67883e8d87530"


# Real images.


@pytest.fixture(scope="module")
def parts(data_dir):
    """What the real archive holds, read once for all tests."""
    if not (data_dir / "cifar10" / ARCHIVE).is_file():
        pytest.skip(f"no data: {data_dir} has no cifar10/{ARCHIVE}")
    return module()._read_archive(data_dir / "cifar10" / ARCHIVE, module()._BINARY)


@pytest.fixture
def real(data_dir, parts, monkeypatch):
    """The folder of the real data."""
    monkeypatch.setattr(module(), "_read_archive", lambda archive, version: parts)
    return data_dir


def test_real_cifar10_has_its_known_means_and_classes(real):
    data = cifar10(real)
    splits = (data.train, data.validation)
    assert [len(split) for split in (*splits, data.test)] == [25_000, 25_000, 10_000]
    labels = np.concatenate([split.labels for split in splits])
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 5_000))
    np.testing.assert_array_equal(np.bincount(data.test.labels), np.full(10, 1_000))
    means = np.mean([np.mean(split.inputs, axis=(0, 1, 2)) for split in splits], axis=0)
    # The published means; a copy by JPEG is nearly the same.
    np.testing.assert_allclose(means, [125.3, 123.0, 113.9], atol=0.5)
    # Neighbouring pixels of a photograph are alike, in both directions and in each colour.
    pixels = np.asarray(data.test.inputs[:500], float)
    for axis in (1, 2):
        assert np.abs(np.diff(pixels, axis=axis)).mean() < 20
    assert np.abs(np.diff(pixels, axis=3)).mean() < 20


FAMILIES = {
    "cifar10": (range(10), range(10)),
    "cifar5": (range(5), range(5)),
    "cifar5-sub": (range(5, 10), range(5)),
    "cifar2": (range(2), range(2)),
    "cifar2-sub": (range(2, 10), range(2)),
}


def data_of(task):
    """The images and labels that a task holds."""
    images, labels = task.loss.args[0].inputs, task.loss.args[0].labels
    return np.asarray(images), np.asarray(labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_catalogue_trains_on_one_half_and_evaluates_on_the_other(real, name):
    family, entry = load(name, real), CATALOGUE[name]
    assert (entry.needs_data, entry.horizon, entry.final_window) == (True, 100, 10)
    whole = cifar10(real)
    both, halves = (family.train, family.evaluation), (whole.train, whole.validation)
    for task, split, kept in zip(both, halves, FAMILIES[name], strict=True):
        images, labels = data_of(task)
        classes = np.asarray(split.labels)
        here = np.isin(classes, kept)
        np.testing.assert_array_equal(images, np.asarray(split.inputs)[here])
        np.testing.assert_array_equal(labels, classes[here] - kept[0])
