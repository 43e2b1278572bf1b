"""What the experiments with reversible learning share: MNIST in their sizes, losses at the end."""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np
import optax
from jax import Array

from l2ljax import meta
from l2ljax.core import Key, LearnedTask, ReversibleOptimizer, Task
from l2ljax.tasks import Dataset, mnist

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

KEY = jax.random.key(0)


def arguments(description: str, **flags: str) -> argparse.Namespace:
    """Those of every script, and flags by their help."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST")
    parser.add_argument("--meta-steps", type=int, help="fewer, for a look")
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    return parser.parse_args()


def data(data_dir: str | None, train: int) -> Dataset:
    """The first images to train on, and 10,000 others to validate with."""
    found = mnist(data_dir, validation=10_000)
    return Dataset(found.train[:train], found.validation, found.test, "mnist", found.classes)


def standardised(dataset: Dataset) -> Dataset:
    """Pixels less the mean of those to train on, over their standard deviation."""
    mean, std = np.mean(dataset.train.inputs), np.std(dataset.train.inputs)
    splits = [
        dataclasses.replace(split, inputs=np.float32((split.inputs - mean) / std), maximum=None)
        for split in (dataset.train, dataset.validation, dataset.test)
    ]
    return Dataset(*splits, dataset.name, dataset.classes)


def learns(**labels: object) -> optax.GradientTransformation:
    """Adam of rate 0.04 where the label is True; see `optax.partition`."""
    return optax.partition({True: optax.adam(0.04), False: optax.set_to_zero()}, labels)


def learn_task(
    opt: ReversibleOptimizer, task: LearnedTask, *, steps: int, horizon: int, min_decay: float
) -> tuple[meta.TrainResult, float]:
    """Trains the metaparameters of a task alone, for the loss at the end; and the seconds."""
    start = time.perf_counter()
    result = meta.train(
        opt,
        task,
        key=KEY,
        steps=steps,
        meta_optimizer=learns(optimizer=False, task=True),
        estimator=meta.reversible(
            horizon=horizon, min_decay=min_decay, step_weights=meta.final_weights(horizon) / horizon
        ),
        progress=True,
    )
    return result, time.perf_counter() - start


def written(images: np.ndarray) -> list[list[str]]:
    """Images as text, a line a row: JSON would give each pixel a line."""
    return [[" ".join(f"{x:.3g}" for x in row) for row in image] for image in images]


def read(images: list[list[str]]) -> np.ndarray:
    """What `written` wrote."""
    return np.array([[[float(x) for x in row.split()] for row in image] for image in images])


def final_params(
    tx: optax.GradientTransformation, task: Task, key: Key, *, horizon: int, runs: int
) -> Array:
    """θ_T of each run, one after the other."""

    def run(i: Array) -> Array:
        return meta.unroll(tx, task, (), jax.random.fold_in(key, i), horizon=horizon)[1]

    return jax.lax.map(run, jax.numpy.arange(runs))
