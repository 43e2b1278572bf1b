"""The tasks that the command line knows by name."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

from l2ljax import _checks
from l2ljax._shown import one_line
from l2ljax.core import Task
from l2ljax.tasks._cifar10 import cifar10
from l2ljax.tasks._classifiers import convnet_classifier, mlp_classifier
from l2ljax.tasks._digits import digits
from l2ljax.tasks._mnist import mnist
from l2ljax.tasks._neural_art import sample_art
from l2ljax.tasks._quadratic import quadratic

DataDir = str | os.PathLike[str] | None


# No tuple: meta-training takes a sequence of tasks for several to train on.
@dataclasses.dataclass(frozen=True)
class Family:
    """One task twice, on data that do not overlap.

    Attributes:
        train: the task to meta-train on; early stopping uses fresh problems of it. A part of the
            data held out for that would be another problem: the smaller a data set, the sooner it
            is learned by heart.
        evaluation: the task to report on.
    """

    train: Task
    evaluation: Task

    __repr__ = one_line


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task of the catalogue.

    Attributes:
        description: one line.
        needs_data: whether it reads files that the package does not have.
        horizon: inner steps of an episode.
        final_window: how many last losses are averaged to the 'final loss': 1 where the loss is
            deterministic, 10 where it is a minibatch's.
        tasks: `tasks(data_dir) -> Family`.
    """

    description: str
    needs_data: bool
    horizon: int
    final_window: int
    tasks: Callable[[DataDir], Family]


def load(name: str, data_dir: DataDir = None) -> Family:
    """The tasks of one entry of `CATALOGUE`.

    | name | train | evaluation |
    |---|---|---|
    | quadratic | fresh functions | fresh functions |
    | digits | 898 images | 719 other images |
    | mnist | the first 30,000 training images | the other 30,000 |
    | cifar10 | the first 25,000 training images | the other 25,000 |
    | cifar5, cifar2 | those of classes 0 to 4, or 0 and 1 | of the same classes |
    | cifar5-sub, cifar2-sub | those of classes 5 to 9, or 2 to 9 | as cifar5, cifar2 |
    | art | 1,800 parts of the left half of a photograph | 1,800 of the right half |

    Test images are not touched: they stay for claims about classifiers. With `-sub`, an optimizer
    is meta-trained on no class that it is evaluated on.

    Args:
        name: a name in `CATALOGUE`.
        data_dir: folder with the data; see `mnist` and `cifar10`.

    Returns:
        Two tasks with one structure, so one runs in the program that was compiled for the other
        if their data have one shape; only those of cifar2-sub have different numbers of classes.
        Quadratics are told apart by their keys alone.

    Raises:
        ValueError: for a name that the catalogue does not have.
        FileNotFoundError: for data that are not there.
        ImportError: for art without the extra `art`.

    >>> load("digit")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: task must be one of [...], got 'digit'; did you mean 'digits'?
    """
    _checks.choice("task", name, CATALOGUE)
    return CATALOGUE[name].tasks(data_dir)


def _quadratic(data_dir: DataDir) -> Family:
    del data_dir
    return Family(quadratic(), quadratic())


def _digits(data_dir: DataDir) -> Family:
    del data_dir
    data = digits()
    return Family(mlp_classifier(data, split="train"), mlp_classifier(data, split="test"))


def _mnist(data_dir: DataDir) -> Family:
    data = mnist(data_dir, validation=30_000)
    return Family(mlp_classifier(data, split="train"), mlp_classifier(data, split="validation"))


def _art(data_dir: DataDir) -> Family:
    del data_dir
    return Family(sample_art("train"), sample_art("evaluation"))


def _cifar(
    data_dir: DataDir, *, labels: Sequence[int] | None, train_labels: Sequence[int] | None
) -> Family:
    data = cifar10(data_dir, labels)
    train = data if train_labels is None else cifar10(data_dir, train_labels)
    return Family(
        convnet_classifier(train, split="train"), convnet_classifier(data, split="validation")
    )


def _cifar_entry(
    description: str,
    labels: Sequence[int] | None = None,
    train_labels: Sequence[int] | None = None,
) -> Entry:
    """The paper's ConvNet on some classes; meta-training on the same ones or on others."""
    return Entry(
        description,
        needs_data=True,
        horizon=100,
        final_window=10,
        tasks=functools.partial(_cifar, labels=labels, train_labels=train_labels),
    )


CATALOGUE: dict[str, Entry] = {
    "quadratic": Entry(
        "random quadratic functions of 10 coordinates",
        needs_data=False,
        horizon=100,
        final_window=1,
        tasks=_quadratic,
    ),
    "digits": Entry(
        "a 64-20-10 sigmoid MLP on the embedded 8x8 digits, minibatches of 128",
        needs_data=False,
        horizon=100,
        final_window=10,
        tasks=_digits,
    ),
    "mnist": Entry(
        "the paper's 784-20-10 sigmoid MLP on MNIST, minibatches of 128",
        needs_data=True,
        horizon=100,
        final_window=10,
        tasks=_mnist,
    ),
    "cifar10": _cifar_entry("a ConvNet with batch normalization on CIFAR-10, minibatches of 128"),
    "cifar5": _cifar_entry("the same on CIFAR-10's classes 0 to 4", range(5)),
    "cifar5-sub": _cifar_entry(
        "cifar5 for an optimizer that knows classes 5 to 9 alone", range(5), range(5, 10)
    ),
    "cifar2": _cifar_entry("the same on CIFAR-10's classes 0 and 1", range(2)),
    "cifar2-sub": _cifar_entry(
        "cifar2 for an optimizer that knows classes 2 to 9 alone", range(2), range(2, 10)
    ),
    "art": Entry(
        "neural art: parts of a photograph of 64x64 pixels in the style of another; needs the "
        "extra 'art'",
        needs_data=False,
        horizon=128,
        final_window=1,
        tasks=_art,
    ),
}
