"""Tasks that the learned optimizer `general` never saw: other data, architectures and losses.

It was meta-trained (`recipes/general.py`) on digits and MNIST at 14x14 pixels: MLPs of one and two
layers with sigmoid, tanh or ReLU, a small ConvNet and a recurrent network on digits, by
cross-entropy; on the lower halves of digits from their upper halves, by squared error; and on
quadratics; over 1,000 steps at the most. Where a task has digits or MNIST here, its examples are
others, and so is its model or loss.
Everything but MNIST and CIFAR-10 comes with scikit-learn and this repository.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from l2ljax import tasks
from l2ljax.core import Task

LICENSE = pathlib.Path(__file__).parents[2] / "LICENSE"
LENGTH = 32  # characters of a sequence


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One task of the evaluation.

    Attributes:
        description: one line.
        make: `make(data_dir) -> Task`.
        steps: inner steps.
        needs_data: whether it reads files that neither package nor scikit-learn has.
        problems: fresh seeds of θ₀ and minibatches.
        tuning_problems: other seeds that Adam is tuned on.
        window: last losses that are averaged to the final loss.
    """

    description: str
    make: Callable[[str | None], Task]
    steps: int = 200
    needs_data: bool = False
    problems: int = 20
    tuning_problems: int = 4
    window: int = 10


# Models.


class MLP(nn.Module):
    """Fully connected layers of any activation; `units` ends with the outputs."""

    units: tuple[int, ...]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        x = inputs.reshape(len(inputs), -1)
        for units in self.units[:-1]:
            x = self.activation(nn.Dense(units)(x))
        return nn.Dense(self.units[-1])(x)


class Residual(nn.Module):
    """Blocks of layer normalization and two layers, each added to what it is given."""

    width: int
    blocks: int
    outputs: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        x = nn.Dense(self.width)(inputs.reshape(len(inputs), -1))
        for _ in range(self.blocks):
            x += nn.Dense(self.width)(nn.gelu(nn.Dense(self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))


class Conv(nn.Module):
    """A 3x3 convolution with stride 2, as one matrix product of patches.

    Over problems with a kernel each it stays one; `nn.Conv` becomes a grouped convolution there,
    which is many times slower on a CPU.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        patches = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
        return nn.Dense(self.channels)(jnp.concatenate(patches, axis=-1))


class ConvNet(nn.Module):
    """Convolutions with stride 2, neither pooled nor normalized, then one layer."""

    channels: tuple[int, ...]
    activation: Callable[[Array], Array]
    outputs: int = 10

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images
        for channels in self.channels:
            x = self.activation(Conv(channels)(x))
        return nn.Dense(self.outputs)(x.reshape(len(x), -1))


class Recurrent(nn.Module):
    """A GRU that says after each character what the next one is."""

    width: int
    vocabulary: int

    @nn.compact
    def __call__(self, characters: Array) -> Array:
        x = jax.nn.one_hot(characters, self.vocabulary)
        return nn.Dense(self.vocabulary)(nn.RNN(nn.GRUCell(self.width))(x))


class Transformer(nn.Module):
    """One block of causal attention and an MLP, which says the same."""

    width: int
    heads: int
    vocabulary: int

    @nn.compact
    def __call__(self, characters: Array) -> Array:
        small = nn.initializers.normal(0.02)
        positions = self.param("positions", small, (characters.shape[1], self.width))
        # One-hot and not an index: the gradient of an index is a scatter.
        x = nn.Dense(self.width, use_bias=False)(jax.nn.one_hot(characters, self.vocabulary))
        x += positions
        mask = nn.make_causal_mask(characters)
        x += nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        x += nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


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


# Losses beside cross-entropy and squared error: one value an example.


def hinge(outputs: Array, labels: Array, margin: float = 1.0) -> Array:
    r"""$\sum_{j \ne y} \max(0, m - z_y + z_j)$ (Weston and Watkins, 1999)."""
    chosen = jax.nn.one_hot(labels, outputs.shape[-1])
    score = jnp.sum(chosen * outputs, axis=-1, keepdims=True)
    return jnp.sum((1 - chosen) * jax.nn.relu(margin - score + outputs), axis=-1)


def logistic(outputs: Array, labels: Array) -> Array:
    """Binary cross-entropy of one logit, or of as many as an image has pixels, their sum."""
    values = optax.sigmoid_binary_cross_entropy(outputs, labels)
    return values.reshape(len(values), -1).sum(axis=1)


def sequence_cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over the places of a sequence, in nats a character."""
    values = tasks.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return values.reshape(labels.shape).mean(axis=1)


# Data.


def only(inputs: Any, labels: Any, name: str, classes: int | None = None) -> tasks.Dataset:
    """A data set of one split."""
    return tasks.Dataset(train=tasks.Split(inputs, labels), name=name, classes=classes)


def standardized(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)


def tabular(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardized features and the targets of one of scikit-learn's small data sets."""
    from sklearn import datasets

    features, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return standardized(features), targets


def classes_of(name: str, classes: int) -> tasks.Dataset:
    features, targets = tabular(name)
    return only(features, targets.astype(np.int32), name, classes)


def two_classes() -> tasks.Dataset:
    features, targets = tabular("breast_cancer")
    return only(features, targets.astype(np.float32)[:, None], "breast_cancer")


def diabetes() -> tasks.Dataset:
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
    characters = " ".join(LICENSE.read_text(encoding="utf-8").split())
    vocabulary = sorted(set(characters))
    numbers = np.array([vocabulary.index(character) for character in characters], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, LENGTH + 1)
    return only(windows[:, :-1], windows[:, 1:], "licence"), len(vocabulary)


@functools.cache
def mnist(data_dir: str | None) -> tasks.Dataset:
    """The images that meta-training did not see."""
    data = tasks.mnist(data_dir, validation=30_000)
    return tasks.Dataset(train=data.validation, name=data.name, classes=data.classes)


@functools.cache
def cifar10(data_dir: str | None) -> tasks.Dataset:
    """Photographs averaged over 2x2 pixels."""
    photographs = tasks.cifar10(data_dir).validation
    blocks = np.asarray(photographs.inputs).reshape(-1, 16, 2, 16, 2, 3)
    pooled = blocks.mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8)
    return tasks.Dataset(
        train=tasks.Split(pooled, photographs.labels, maximum=255), name="cifar10", classes=10
    )


# The suite.


def fit(
    model: nn.Module,
    loss: str | Callable[[Any, Array], Array],
    dataset: tasks.Dataset,
    batch_size: int = 128,
) -> Task:
    return tasks.supervised(model.init, model.apply, loss, dataset, batch_size)


def penalized_wine(data_dir: str | None, penalty: float = 1e-3) -> Task:
    """Without the penalty the loss of classes this far apart would be a race to zero."""
    del data_dir
    model = MLP((16, 3), nn.swish)

    def apply(params: Any, inputs: Array) -> tuple[Array, Array]:
        return model.apply(params, inputs), penalty * optax.tree.norm(params, squared=True)

    def loss(outputs: tuple[Array, Array], labels: Array) -> Array:
        logits, cost = outputs
        return tasks.cross_entropy(logits, labels) + cost

    return tasks.supervised(model.init, apply, loss, classes_of("wine", 3), 32)


def low_rank_factors(data_dir: str | None) -> Task:
    del data_dir
    shape, rank = (60, 40), 4
    init = functools.partial(factors_init, shape=shape, rank=rank)
    return tasks.supervised(init, factors_apply, "squared_error", low_rank(shape, rank))


def gru_on_text(data_dir: str | None) -> Task:
    del data_dir
    dataset, vocabulary = text()
    return fit(Recurrent(32, vocabulary), sequence_cross_entropy, dataset, 32)


def transformer_on_text(data_dir: str | None) -> Task:
    del data_dir
    dataset, vocabulary = text()
    return fit(Transformer(32, 2, vocabulary), sequence_cross_entropy, dataset, 16)


SUITE: dict[str, HeldOut] = {
    "iris": HeldOut(
        "iris, 4-16-16-3 ELU MLP, cross-entropy",
        lambda data_dir: fit(MLP((16, 16, 3), nn.elu), "cross_entropy", classes_of("iris", 3), 32),
    ),
    "wine": HeldOut(
        "wine, 13-16-3 swish MLP, cross-entropy and a squared penalty on params", penalized_wine
    ),
    "breast-cancer": HeldOut(
        "breast cancer, 30-16-16-1 GELU MLP, logistic loss",
        lambda data_dir: fit(MLP((16, 16, 1), nn.gelu), logistic, two_classes(), 32),
    ),
    "diabetes": HeldOut(
        "diabetes, 10-32-32-1 GELU MLP, squared error",
        lambda data_dir: fit(MLP((32, 32, 1), nn.gelu), "squared_error", diabetes(), 32),
    ),
    "teacher": HeldOut(
        "a random tanh network, 16-32-32-1 swish MLP, squared error, 1,000 steps",
        lambda data_dir: fit(MLP((32, 32, 1), nn.swish), "squared_error", teacher()),
        steps=1000,
    ),
    "low-rank": HeldOut(
        "half of a 60x40 matrix, its factors of rank 4, squared error", low_rank_factors
    ),
    "digits-residual": HeldOut(
        "digits, residual GELU MLP with layer normalization, cross-entropy, 1,000 steps",
        lambda data_dir: fit(Residual(24, 2, 10), "cross_entropy", digits()),
        steps=1000,
    ),
    "digits-hinge": HeldOut(
        "digits, 64-32-10 GELU MLP, hinge loss of many classes",
        lambda data_dir: fit(MLP((32, 10), nn.gelu), hinge, digits()),
    ),
    "digits-noise": HeldOut(
        "digits, a fifth of the labels random, 64-24-24-24-10 ELU MLP, cross-entropy",
        lambda data_dir: fit(MLP((24, 24, 24, 10), nn.elu), "cross_entropy", noisy_digits()),
    ),
    "digits-autoencoder": HeldOut(
        "digits, 64-32-6-32-64 ELU autoencoder, squared error",
        lambda data_dir: fit(MLP((32, 6, 32, 64), nn.elu), "squared_error", copies(digits())),
    ),
    "text-gru": HeldOut("characters of the licence, GRU of 32 units, cross-entropy", gru_on_text),
    "text-transformer": HeldOut(
        "the same, one Transformer block of width 32, cross-entropy", transformer_on_text
    ),
    "mnist-convnet": HeldOut(
        "MNIST, GELU ConvNet, two strided convolutions, cross-entropy",
        lambda data_dir: fit(ConvNet((8, 16), nn.gelu), "cross_entropy", mnist(data_dir), 64),
        needs_data=True,
    ),
    "mnist-deep": HeldOut(
        "MNIST, deep narrow ELU MLP, five layers of 16, cross-entropy",
        lambda data_dir: fit(MLP((*5 * (16,), 10), nn.elu), "cross_entropy", mnist(data_dir)),
        needs_data=True,
    ),
    "mnist-autoencoder": HeldOut(
        "MNIST, 784-16-8-16-784 GELU autoencoder, binary cross-entropy",
        lambda data_dir: fit(MLP((16, 8, 16, 784), nn.gelu), logistic, copies(mnist(data_dir))),
        needs_data=True,
    ),
    "cifar-convnet": HeldOut(
        "CIFAR-10 at 16x16 pixels, swish ConvNet, no normalization, cross-entropy",
        lambda data_dir: fit(ConvNet((12, 24), nn.swish), "cross_entropy", cifar10(data_dir), 64),
        needs_data=True,
    ),
    "cifar-mlp": HeldOut(
        "CIFAR-10 at 16x16 pixels, 768-32-32-10 GELU MLP, cross-entropy",
        lambda data_dir: fit(MLP((32, 32, 10), nn.gelu), "cross_entropy", cifar10(data_dir)),
        needs_data=True,
    ),
}
