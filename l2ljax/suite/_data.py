"""Data of the suite: scikit-learn's, made here, digits, the licence, MNIST and CIFAR-10."""

import functools
import pathlib
from typing import Any, TypeAlias

import numpy as np

from l2ljax import tasks

DataDir: TypeAlias = str | pathlib.Path | None
"""The folder with MNIST and CIFAR-10, or its parent; None: they are downloaded."""

LICENCE = pathlib.Path(__file__).parent / "licence.txt"
LENGTH = 32
"""Characters of a sequence."""


def only(inputs: Any, labels: Any, name: str, classes: int | None = None) -> tasks.Dataset:
    """A data set of one split."""
    return tasks.Dataset(train=tasks.Split(inputs, labels), name=name, classes=classes)


def standardized(values: np.ndarray) -> np.ndarray:
    """Each column with mean zero and deviation one."""
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)


def tabular(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardized features and the targets of one of scikit-learn's small data sets."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"the data set {name} needs scikit-learn: pip install 'l2ljax[bench]'"
        ) from error
    features, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return standardized(features), targets


def classes_of(name: str, classes: int) -> tasks.Dataset:
    """One of scikit-learn's with classes."""
    features, targets = tabular(name)
    return only(features, targets.astype(np.int32), name, classes)


def two_classes() -> tasks.Dataset:
    """Breast cancer, its classes as the numbers 0 and 1."""
    features, targets = tabular("breast_cancer")
    return only(features, targets.astype(np.float32)[:, None], "breast_cancer")


def diabetes() -> tasks.Dataset:
    """Diabetes, its targets standardized, too."""
    features, targets = tabular("diabetes")
    return only(features, standardized(targets)[:, None], "diabetes")


def teacher(examples: int = 4096, inputs: int = 16, hidden: int = 8) -> tasks.Dataset:
    """What a random tanh network makes of normal inputs, and a tenth of noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(examples, inputs))
    first, second = random.normal(size=(inputs, hidden)) / 2, random.normal(size=hidden)
    y = standardized(np.tanh(x @ first) @ second) + 0.1 * random.normal(size=examples)
    return only(x.astype(np.float32), y.astype(np.float32)[:, None], "teacher")


def low_rank(shape: tuple[int, int] = (60, 40), rank: int = 4) -> tasks.Dataset:
    """Half of the entries of a random matrix of low rank, with a tenth of noise."""
    random = np.random.default_rng(0)
    rows, columns = (random.normal(size=(size, rank)) for size in shape)
    matrix = rows @ columns.T / rank**0.5 + 0.1 * random.normal(size=shape)
    places = random.permutation(np.argwhere(np.ones(shape)))[: matrix.size // 2]
    values = matrix[places[:, 0], places[:, 1]]
    return only(places.astype(np.int32), values.astype(np.float32), "low_rank")


def digits() -> tasks.Dataset:
    """The images that nothing was meta-trained on or chosen by."""
    inputs, labels = tasks.digits().test.examples()
    return only(inputs, labels, "digits", 10)


def noisy_digits(share: float = 0.2) -> tasks.Dataset:
    """The same, a share of their labels drawn at random."""
    images = digits().train
    random = np.random.default_rng(0)
    wrong = random.random(len(images)) < share
    labels = np.where(wrong, random.integers(10, size=len(images)), images.labels)
    return only(images.inputs, labels.astype(np.int32), "noisy_digits", 10)


def copies(dataset: tasks.Dataset) -> tasks.Dataset:
    """Images that are their own labels, pixels in a row."""
    inputs, _ = dataset.train[:8192].examples()
    return only(inputs, inputs.reshape(len(inputs), -1), f"copies of {dataset.name}")


def text() -> tuple[tasks.Dataset, int]:
    """Sequences of the licence's characters, their successors, and the size of the vocabulary."""
    characters = " ".join(LICENCE.read_text(encoding="utf-8").split())
    vocabulary = sorted(set(characters))
    numbers = np.array([vocabulary.index(character) for character in characters], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, LENGTH + 1)
    return only(windows[:, :-1], windows[:, 1:], "licence"), len(vocabulary)


@functools.cache
def mnist(data_dir: DataDir) -> tasks.Dataset:
    """The images that meta-training did not see."""
    data = tasks.mnist(data_dir, validation=30_000)
    return tasks.Dataset(train=data.validation, name=data.name, classes=data.classes)


@functools.cache
def cifar10(data_dir: DataDir) -> tasks.Dataset:
    """Photographs averaged over 2x2 pixels."""
    photographs = tasks.cifar10(data_dir).validation
    blocks = np.asarray(photographs.inputs).reshape(-1, 16, 2, 16, 2, 3)
    pooled = blocks.mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8)
    return tasks.Dataset(
        train=tasks.Split(pooled, photographs.labels, maximum=255), name="cifar10", classes=10
    )
