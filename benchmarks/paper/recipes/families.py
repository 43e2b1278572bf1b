"""Families of tasks that `tensorwise` is meta-trained on, and others that choose between versions.

None of them is in the benchmark's suite. Most draw a function of their own for each problem and
make minibatches of it as they go, so that no problem is seen twice; the rest are small networks on
digits, on MNIST's first 30,000 images at 14x14 pixels and on CIFAR-10's first 25,000 at 8x8.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from l2ljax import tasks
from l2ljax.core import Task
from recipes.drawn import (
    Attention,
    Autoencoder,
    Layers,
    OneHot,
    Reader,
    Waves,
    Words,
    absolute,
    binary,
    chains,
    clusters,
    copies,
    counted,
    cross_entropy,
    curves,
    generated,
    huber,
    poisson,
    rare,
    repeats,
    squared,
    students,
    sums,
    words,
)
from recipes.training_tasks import digits_by_rows, lower_halves, pooled
from recipes.valleys import banana, sensing, valley


@functools.cache
def mnist(data_dir: str | None) -> tasks.Dataset:
    return pooled(tasks.mnist(data_dir, validation=30_000))


@functools.cache
def cifar(data_dir: str | None) -> tasks.Dataset:
    data = tasks.cifar10(data_dir)
    split = data.train
    if len(split) > 25_000:
        split = split[:25_000]
    return pooled(tasks.Dataset(train=split, name=data.name, classes=data.classes), 4)


def fit(model: nn.Module, loss: Any, dataset: tasks.Dataset, size: int) -> Task:
    return tasks.supervised(model.init, model.apply, loss, dataset, size)


def training(data_dir: str | None) -> dict[str, Task]:
    """What `general` is meta-trained on."""
    digits = tasks.digits()
    return {
        "digits-sigmoid": tasks.mlp_classifier(digits, (20,), "sigmoid", batch_size=64),
        "digits-relu": fit(Layers((48, 10)), "cross_entropy", digits, 32),
        "digits-tanh": fit(Layers((20, 20, 20, 10), nn.tanh), "cross_entropy", digits, 64),
        "digits-rows": digits_by_rows(),
        "digits-halves": lower_halves(24, "tanh", 64),
        "digits-convnet": tasks.convnet_classifier(digits, (8,), 3, (16,), batch_size=32),
        "mnist-wide": fit(Layers((128, 10)), "cross_entropy", mnist(data_dir), 32),
        "mnist-skip": fit(
            Layers((24, 24, 24, 10), nn.silu, norm=True, skip=True),
            "cross_entropy",
            mnist(data_dir),
            64,
        ),
        "cifar-relu": fit(Layers((48, 32, 10)), "cross_entropy", cifar(data_dir), 64),
        "clusters": generated(
            Layers((32, 32, 8), nn.gelu), cross_entropy, *clusters(12, 8, 64, 0.7)
        ),
        "clusters-hot": generated(
            Layers((24, 24, 5), gain=3.0), cross_entropy, *clusters(20, 5, 32, 0.5)
        ),
        "clusters-linear": generated(Layers((10,)), cross_entropy, *clusters(40, 10, 64, 1.0)),
        "rare": generated(Layers((6,), gain=0.1), cross_entropy, *rare(300, 6, 32)),
        "student": generated(Layers((48, 48, 1)), squared, *students((12, 16, 1), 64, nn.relu)),
        "student-noise": generated(
            Layers((32, 2), nn.swish), squared, *students((8, 24, 2), 32, jnp.sin, 0.3)
        ),
        "student-cold": generated(
            Layers((32, 32, 4), nn.elu, gain=0.2), huber, *students((16, 8, 4), 128, nn.relu)
        ),
        "counts": generated(
            Layers((24, 1), nn.tanh), poisson, *counted(*students((10, 8, 1), 64, jnp.tanh))
        ),
        "waves": generated(Waves(48, 2), squared, *curves(None)),
        "curves": generated(Layers((40, 40, 2), nn.tanh), squared, *curves(64, waves=4)),
        "copies": generated(Autoencoder((24, 6, 24), nn.relu), squared, *copies(64, 64, 5)),
        "copies-binary": generated(Autoencoder((32, 8, 32), nn.tanh), binary, *copies(64, 100, 6)),
        "words": generated(Words(80, 12, 24), cross_entropy, *words(80, 64)),
        "attention": generated(Attention(16, 24, 2, 1), cross_entropy, *chains(16, 16, 16, 2, 2.5)),
        "lookback": generated(Attention(10, 32, 2, 2), cross_entropy, *repeats(10, 20, 16)),
        "gru-chain": generated(
            nn.Sequential([OneHot(12), nn.RNN(nn.GRUCell(20)), nn.Dense(12)]),
            cross_entropy,
            *chains(12, 16, 32, 2, 2.5),
        ),
        "lstm-sums": generated(Reader(nn.OptimizedLSTMCell, 16, 1), squared, *sums(12, 32)),
        "valley": valley(40, 9.0, 0.0),
        "valley-noise": valley(20, 5.0, 0.1),
        "banana": banana(20),
        "sensing": sensing(30, 3, 0.1),
    }


def validation(data_dir: str | None) -> dict[str, Task]:
    """What chooses between versions: other models, sizes and losses than in training."""
    digits = tasks.digits()
    return {
        "digits-leaky": fit(Layers((32, 32, 10), nn.leaky_relu), "cross_entropy", digits, 128),
        "mnist-narrow": fit(
            Layers((12, 12, 10), nn.softplus), "cross_entropy", mnist(data_dir), 64
        ),
        "cifar-tanh": fit(Layers((64, 10), nn.tanh), "cross_entropy", cifar(data_dir), 128),
        "clusters-deep": generated(
            Layers((16,) * 6 + (6,), nn.tanh), cross_entropy, *clusters(16, 6, 64, 0.6)
        ),
        "student-wide": generated(
            Layers((256, 1), nn.relu), squared, *students((24, 8, 1), 64, jnp.tanh)
        ),
        "student-l1": generated(
            Layers((32, 32, 2), nn.gelu), absolute, *students((10, 12, 2), 64, nn.relu, 0.1)
        ),
        "copies-deep": generated(
            Autoencoder((32, 16, 4, 16, 32), nn.elu), squared, *copies(128, 80, 4)
        ),
        "chain-attention": generated(
            Attention(20, 32, 4, 2), cross_entropy, *chains(20, 24, 16, 1, 2.0)
        ),
        "words-small": generated(Words(150, 8, 16), cross_entropy, *words(150, 32, 2)),
        "gru-sums": generated(Reader(nn.GRUCell, 20, 1), squared, *sums(16, 64)),
        "waves-noise": generated(Waves(32, 1), squared, *curves(32, 1, 6)),
        "sensing-exact": sensing(20, 2, 0.0),
    }
