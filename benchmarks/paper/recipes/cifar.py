"""Optimizers for convolutional networks on CIFAR-10."""

import pathlib

import jax

from l2ljax import hyper, learned, meta, tasks
from l2ljax.core import Phi
from recipes.lengths import longer
from recipes.parts import Recipe


def _cifar(name: str, data_dir: str | None, trained_on: str) -> Recipe:
    """Two LSTMs, one for kernels of convolutions and one for all other params.

    Both are robust-mnist's before its exact meta-gradients, but for the length of their steps.
    Meta-training by `whole_episodes` from there, at rates of 1e-3 and 2e-4, did not make them
    better: final losses on 4 problems of CIFAR-10's training half were 1.39 after 10 meta-steps and
    1.39 to 1.42 after 30 to 50. Its gradient leaves out that a step changes the gradients after it,
    and what helps most, shorter steps, it does not find.
    """
    member = learned.adaptive_lstm(b1=(0.9, 0.99))
    opt = learned.partition({"conv": member, "fc": member}, {"Conv_*": "conv", "*": "fc"})
    task = tasks.load(name, data_dir).train

    def start(folder: pathlib.Path, key: jax.Array) -> Phi:
        # Not what ships as robust-mnist, which has more parts: `weights.py robust-mnist` leaves
        # this there.
        _, phi, _ = learned.restore(folder.parent / "robust-mnist" / "part-4")

        def scaled(**scales: jax.typing.ArrayLike) -> Phi:
            return {group: longer(phi, scale) for group, scale in scales.items()}

        found = hyper.search(
            hyper.objective(lambda **scales: opt.bind(scaled(**scales)), task, problems=4),
            {group: hyper.log_uniform(0.1, 1.0) for group in ("conv", "fc")},
            key=key,
            method="bayesian",
            trials=16,
            at_once=1,
            resume=folder / "search.json",
            progress=True,
        )
        print(found)
        return scaled(**found.best)

    return Recipe(
        opt=opt,
        task=task,
        parts=[],
        validate=lambda key: meta.validation(opt, task, key=key, problems=4),
        trained_on="as robust-mnist in its first four parts, then the length of its steps, by "
        f"search, on {trained_on}: convolutional network with batch normalization, 100 steps",
        limits="params of convolutions must be named Conv_*; one architecture was seen",
        start=start,
    )


def lstm_cifar10(data_dir: str | None) -> Recipe:
    return _cifar("cifar10", data_dir, "CIFAR-10")


def lstm_cifar5_sub(data_dir: str | None) -> Recipe:
    return _cifar("cifar5-sub", data_dir, "the five labels of CIFAR-10 that CIFAR-5 leaves out")


def lstm_cifar2_sub(data_dir: str | None) -> Recipe:
    return _cifar("cifar2-sub", data_dir, "the eight labels of CIFAR-10 that CIFAR-2 leaves out")
