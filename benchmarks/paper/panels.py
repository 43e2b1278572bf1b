"""The panels of the paper, each one experiment: a task, a number of steps, and its bars."""

import dataclasses
from collections.abc import Callable
from typing import Any

from l2ljax import tasks
from l2ljax.core import Task


@dataclasses.dataclass(frozen=True)
class Panel:
    """One experiment.

    Attributes:
        title: of the figure.
        task: `task(data_dir) -> Task`, drawn from data that meta-training never saw.
        steps: inner steps.
        weights: learned optimizers by the names of their weights; ratios are the first one's.
        paper: the paper's ratio of its LSTM to its best baseline, read off its figures.
        floor: the ratio to the best of the paper's four baselines that has to be reached.
        aim: the ratio that this project wants.
        problems: fresh problems.
        tuning_problems: other problems that baselines are tuned on.
        window: last losses that are averaged to the final loss.
        costly: each baseline has 11 rates instead of 17, one setting after the other, and none
            stands beside the paper's four: a tuned decay takes hours.
    """

    title: str
    task: Callable[[str | None], Task]
    steps: int
    weights: tuple[str, ...]
    paper: float | None
    floor: float
    aim: float
    problems: int = 64
    tuning_problems: int = 16
    window: int = 10
    costly: bool = False


def _mnist(hidden: tuple[int, ...] = (20,), activation: str = "sigmoid") -> Callable[..., Task]:
    def task(data_dir: str | None) -> Task:
        data = tasks.mnist(data_dir, validation=30_000)
        return tasks.mlp_classifier(data, hidden, activation, split="validation")

    return task


def _cifar(title: str, name: str, weights: tuple[str, ...]) -> Panel:
    def task(data_dir: str | None) -> Task:
        return tasks.load(name, data_dir).evaluation

    return Panel(
        title, task, 100, weights, None, 1.0, 0.95, problems=10, tuning_problems=4, costly=True
    )


def _art(title: str, **options: Any) -> Panel:
    def task(data_dir: str | None) -> Task:
        del data_dir
        return tasks.sample_art("evaluation", **options)

    weights = ("lstm-art",)
    return Panel(
        title,
        task,
        128,
        weights,
        None,
        1.0,
        0.9,
        problems=10,
        tuning_problems=4,
        window=1,
        costly=True,
    )


_LEARNED = ("robust-mnist", "lstm-mnist")

PANELS = {
    "quadratic": Panel(
        "quadratic functions, 10 coordinates",
        lambda data_dir: tasks.quadratic(),
        steps=100,
        weights=("lstm-quadratic",),
        paper=0.79,
        floor=0.6,
        aim=0.5,
        problems=1024,
        # As many: a rate that is right for most diverges on one of a thousand.
        tuning_problems=1024,
        window=1,
    ),
    "mnist": Panel(
        "MNIST, one layer of 20 sigmoid units", _mnist(), 100, _LEARNED, 0.76, 1.0, 0.82
    ),
    "mnist-200": Panel("MNIST, 200 steps", _mnist(), 200, _LEARNED, 0.81, 1.0, 0.85),
    "mnist-40-units": Panel("MNIST, 40 units", _mnist((40,)), 100, _LEARNED, 0.61, 1.0, 0.8),
    "mnist-2-layers": Panel(
        "MNIST, two layers of 20 units", _mnist((20, 20)), 100, _LEARNED, 0.46, 1.0, 0.9
    ),
    "mnist-relu": Panel("MNIST, ReLU", _mnist(activation="relu"), 100, _LEARNED, 7.0, 1.1, 0.95),
    # Bars of their own they have none: ReLU's.
    "mnist-tanh": Panel("MNIST, tanh", _mnist(activation="tanh"), 100, _LEARNED, None, 1.1, 0.95),
    "mnist-elu": Panel("MNIST, ELU", _mnist(activation="elu"), 100, _LEARNED, None, 1.1, 0.95),
    "mnist-2000": Panel(
        "MNIST, 2,000 steps",
        _mnist(),
        2000,
        _LEARNED,
        None,
        1.05,
        0.9,
        problems=20,
        tuning_problems=4,
    ),
    "cifar10": _cifar("CIFAR-10, convolutional network", "cifar10", ("lstm-cifar10",)),
    "cifar5": _cifar("CIFAR-5", "cifar5", ("lstm-cifar10", "lstm-cifar5-sub")),
    "cifar2": _cifar("CIFAR-2", "cifar2", ("lstm-cifar10", "lstm-cifar2-sub")),
    "art": _art("neural art, the style of training, 64x64"),
    "art-new-style": _art("neural art, a new style, 128x128", style="waves", size=128),
}
