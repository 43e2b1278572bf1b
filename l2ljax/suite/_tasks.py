"""The tasks of the suite."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from l2ljax import networks, tasks
from l2ljax.core import Task
from l2ljax.suite import _data as data
from l2ljax.suite._losses import hinge, logistic, sequence_cross_entropy


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """One task of a benchmark, and how it is run.

    Attributes:
        description: one line.
        make: `make(data_dir) -> Task`.
        steps: inner steps of a run.
        needs_data: whether it reads files that neither this package nor scikit-learn has.
        problems: fresh problems that optimizers are compared on.
        tuning_problems: other problems, that they are tuned on.
        minibatches: whether the loss is that of a minibatch.
    """

    description: str
    make: Callable[[data.DataDir], Task]
    steps: int = 200
    needs_data: bool = False
    problems: int = 20
    tuning_problems: int = 4
    minibatches: bool = True

    @property
    def window(self) -> int:
        """Last losses whose mean is the final loss: 5 %, at least 10; one without minibatches."""
        return min(self.steps, max(10, self.steps // 20)) if self.minibatches else 1


def factors_init(key: Array, places: Array, *, shape: tuple[int, int], rank: int) -> Any:
    """Two factors of a matrix, N(0, 1/rank)."""
    del places
    keys = jax.random.split(key)
    return {
        name: jax.random.normal(key, (size, rank)) / rank**0.5
        for name, key, size in zip(("rows", "columns"), keys, shape, strict=True)
    }


def factors_apply(params: Any, places: Array) -> Array:
    """Entries of the factors' product, at `(row, column)` each."""
    return jnp.sum(params["rows"][places[:, 0]] * params["columns"][places[:, 1]], axis=1)


def fit(
    model: Any,
    loss: str | Callable[[Any, Array], Array],
    dataset: tasks.Dataset,
    batch_size: int = 128,
) -> Task:
    """A model with its data and loss."""
    return tasks.supervised(model.init, model.apply, loss, dataset, batch_size)


def penalized_wine(data_dir: data.DataDir, penalty: float = 1e-3) -> Task:
    """Without the penalty the loss of classes this far apart would be a race to zero."""
    del data_dir
    model = networks.SuiteMLP((16, 3), jax.nn.swish)

    def apply(params: Any, inputs: Array) -> tuple[Any, Array]:
        return model.apply(params, inputs), penalty * optax.tree.norm(params, squared=True)

    def loss(outputs: tuple[Array, Array], labels: Array) -> Array:
        logits, cost = outputs
        return tasks.cross_entropy(logits, labels) + cost

    return tasks.supervised(model.init, apply, loss, data.classes_of("wine", 3), 32)


def low_rank_factors(data_dir: data.DataDir) -> Task:
    """Two factors of a matrix, half of which is known."""
    del data_dir
    shape, rank = (60, 40), 4
    init = functools.partial(factors_init, shape=shape, rank=rank)
    return tasks.supervised(init, factors_apply, "squared_error", data.low_rank(shape, rank))


def gru_on_text(data_dir: data.DataDir) -> Task:
    """The licence, a character after the other."""
    del data_dir
    dataset, vocabulary = data.text()
    return fit(networks.SuiteRecurrent(32, vocabulary), sequence_cross_entropy, dataset, 32)


def transformer_on_text(data_dir: data.DataDir) -> Task:
    """The same by attention."""
    del data_dir
    dataset, vocabulary = data.text()
    return fit(networks.SuiteTransformer(32, 2, vocabulary), sequence_cross_entropy, dataset, 16)


SUITE: dict[str, SuiteTask] = {
    "iris": SuiteTask(
        "iris, 4-16-16-3 ELU MLP, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteMLP((16, 16, 3), jax.nn.elu),
            "cross_entropy",
            data.classes_of("iris", 3),
            32,
        ),
    ),
    "wine": SuiteTask(
        "wine, 13-16-3 swish MLP, cross-entropy and a squared penalty on params", penalized_wine
    ),
    "breast-cancer": SuiteTask(
        "breast cancer, 30-16-16-1 GELU MLP, logistic loss",
        lambda data_dir: fit(
            networks.SuiteMLP((16, 16, 1), jax.nn.gelu), logistic, data.two_classes(), 32
        ),
    ),
    "diabetes": SuiteTask(
        "diabetes, 10-32-32-1 GELU MLP, squared error",
        lambda data_dir: fit(
            networks.SuiteMLP((32, 32, 1), jax.nn.gelu), "squared_error", data.diabetes(), 32
        ),
    ),
    "teacher": SuiteTask(
        "a random tanh network, 16-32-32-1 swish MLP, squared error, 1,000 steps",
        lambda data_dir: fit(
            networks.SuiteMLP((32, 32, 1), jax.nn.swish), "squared_error", data.teacher()
        ),
        steps=1000,
    ),
    "low-rank": SuiteTask(
        "half of a 60x40 matrix, its factors of rank 4, squared error", low_rank_factors
    ),
    "digits-residual": SuiteTask(
        "digits, residual GELU MLP with layer normalization, cross-entropy, 1,000 steps",
        lambda data_dir: fit(networks.SuiteResidual(24, 2, 10), "cross_entropy", data.digits()),
        steps=1000,
    ),
    "digits-hinge": SuiteTask(
        "digits, 64-32-10 GELU MLP, hinge loss of many classes",
        lambda data_dir: fit(networks.SuiteMLP((32, 10), jax.nn.gelu), hinge, data.digits()),
    ),
    "digits-noise": SuiteTask(
        "digits, a fifth of the labels random, 64-24-24-24-10 ELU MLP, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteMLP((24, 24, 24, 10), jax.nn.elu), "cross_entropy", data.noisy_digits()
        ),
    ),
    "digits-autoencoder": SuiteTask(
        "digits, 64-32-6-32-64 ELU autoencoder, squared error",
        lambda data_dir: fit(
            networks.SuiteMLP((32, 6, 32, 64), jax.nn.elu),
            "squared_error",
            data.copies(data.digits()),
        ),
    ),
    "text-gru": SuiteTask("characters of the licence, GRU of 32 units, cross-entropy", gru_on_text),
    "text-transformer": SuiteTask(
        "the same, one Transformer block of width 32, cross-entropy", transformer_on_text
    ),
    "mnist-convnet": SuiteTask(
        "MNIST, GELU ConvNet, two strided convolutions, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteConvNet((8, 16), jax.nn.gelu), "cross_entropy", data.mnist(data_dir), 64
        ),
        needs_data=True,
    ),
    "mnist-deep": SuiteTask(
        "MNIST, deep narrow ELU MLP, five layers of 16, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteMLP((*5 * (16,), 10), jax.nn.elu), "cross_entropy", data.mnist(data_dir)
        ),
        needs_data=True,
    ),
    "mnist-autoencoder": SuiteTask(
        "MNIST, 784-16-8-16-784 GELU autoencoder, binary cross-entropy",
        lambda data_dir: fit(
            networks.SuiteMLP((16, 8, 16, 784), jax.nn.gelu),
            logistic,
            data.copies(data.mnist(data_dir)),
        ),
        needs_data=True,
    ),
    "cifar-convnet": SuiteTask(
        "CIFAR-10 at 16x16 pixels, swish ConvNet, no normalization, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteConvNet((12, 24), jax.nn.swish),
            "cross_entropy",
            data.cifar10(data_dir),
            64,
        ),
        needs_data=True,
    ),
    "cifar-mlp": SuiteTask(
        "CIFAR-10 at 16x16 pixels, 768-32-32-10 GELU MLP, cross-entropy",
        lambda data_dir: fit(
            networks.SuiteMLP((32, 32, 10), jax.nn.gelu), "cross_entropy", data.cifar10(data_dir)
        ),
        needs_data=True,
    ),
}
