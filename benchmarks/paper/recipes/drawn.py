"""Problems that are drawn: models, losses, and minibatches that are made as they are needed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from l2ljax import tasks
from l2ljax.core import Key, Params, Problem, Task, closure

Batch = tuple[Array, Array]
"""Inputs and targets."""


def generated(
    model: nn.Module,
    loss: Callable[[Array, Array], Array],
    problem: Callable[[Key], Problem],
    batch: Callable[[Problem, Key], Batch],
) -> Task:
    """A model on minibatches that are made for each step.

    Args:
        model: a Flax module.
        loss: `loss(outputs, targets) -> [n]`.
        problem: `problem(key)` draws what is to be learned.
        batch: `batch(problem, key)` draws a minibatch of it.
    """
    return Task(
        sample=closure(_sample, problem=problem),
        init=closure(_init, model=model, batch=batch),
        loss=closure(_loss, model=model, loss=loss, batch=batch),
    )


def _sample(key: Key, *, problem: Callable[[Key], Problem]) -> Problem:
    return problem(key)


def _init(key: Key, problem: Problem, *, model: nn.Module, batch: Callable[..., Batch]) -> Params:
    return model.init(key, batch(problem, key)[0])["params"]


def _loss(
    params: Params,
    problem: Problem,
    key: Key,
    *,
    model: nn.Module,
    loss: Callable[[Array, Array], Array],
    batch: Callable[..., Batch],
) -> Array:
    inputs, targets = batch(problem, key)
    return loss(model.apply({"params": params}, inputs), targets).mean()


# Models.


class Layers(nn.Module):
    """Fully connected layers; `units` ends with the outputs.

    Attributes:
        activation: between layers.
        gain: weights begin at `gain` times N(0, 1/fan-in).
        norm: whether each layer but the last is normalized over its units.
        skip: whether layers of as many units as the one before are added to it.
    """

    units: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.relu
    gain: float = 1.0
    norm: bool = False
    skip: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        start = nn.initializers.variance_scaling(self.gain**2, "fan_in", "normal")
        x = inputs.reshape(len(inputs), -1)
        for units in self.units[:-1]:
            y = nn.Dense(units, kernel_init=start)(x)
            y = self.activation(nn.LayerNorm()(y) if self.norm else y)
            x = x + y if self.skip and y.shape == x.shape else y
        return nn.Dense(self.units[-1], kernel_init=start)(x)


class Waves(nn.Module):
    """A network of sines of coordinates (Sitzmann et al., 2020)."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, places: Array) -> Array:
        x = jnp.sin(10 * nn.Dense(self.width)(places))
        x = jnp.sin(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class Words(nn.Module):
    """Embeddings of the last words, joined, and one hidden layer (Bengio et al., 2003)."""

    vocabulary: int
    width: int
    hidden: int

    @nn.compact
    def __call__(self, words: Array) -> Array:
        table = self.param("table", nn.initializers.normal(1.0), (self.vocabulary, self.width))
        # One-hot and not an index: the gradient of an index is a scatter.
        x = jax.nn.one_hot(words, self.vocabulary) @ table
        x = nn.tanh(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(self.vocabulary)(x)


class Reader(nn.Module):
    """A recurrent network that answers after the last symbol."""

    cell: Callable[[int], nn.RNNCellBase]
    width: int
    outputs: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        return nn.Dense(self.outputs)(nn.RNN(self.cell(self.width))(inputs)[:, -1])


class Attention(nn.Module):
    """Blocks of causal attention and a feed-forward network; logits of the next symbol."""

    vocabulary: int
    width: int
    heads: int
    blocks: int
    normalized: bool = True

    @nn.compact
    def __call__(self, symbols: Array) -> Array:
        x = nn.Dense(self.width, use_bias=False)(jax.nn.one_hot(symbols, self.vocabulary))
        x += self.param("places", nn.initializers.normal(0.1), (symbols.shape[1], self.width))
        mask = nn.make_causal_mask(symbols)
        norm = nn.RMSNorm if self.normalized else lambda: lambda x: x
        for _ in range(self.blocks):
            x += nn.MultiHeadDotProductAttention(self.heads, use_bias=False)(norm()(x), mask=mask)
            x += nn.Dense(self.width)(nn.silu(nn.Dense(2 * self.width)(norm()(x))))
        return nn.Dense(self.vocabulary)(norm()(x))


class Autoencoder(nn.Module):
    """Layers down to a code and up again."""

    widths: tuple[int, ...]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        return Layers((*self.widths, inputs.shape[-1]), self.activation)(inputs)


# Losses, one value for each example.


def cross_entropy(logits: Array, labels: Array) -> Array:
    return tasks.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def squared(outputs: Array, targets: Array) -> Array:
    return jnp.mean((outputs - targets) ** 2, axis=-1)


def absolute(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.abs(outputs - targets), axis=-1)


def huber(outputs: Array, targets: Array) -> Array:
    distance = jnp.abs(outputs - targets)
    return jnp.mean(jnp.where(distance < 0.3, distance**2, 0.6 * distance - 0.09), axis=-1)


def binary(logits: Array, targets: Array) -> Array:
    return jnp.mean(jnp.logaddexp(0, logits) - targets * logits, axis=-1)


def poisson(outputs: Array, counts: Array) -> Array:
    return jnp.mean(jnp.exp(jnp.minimum(outputs, 10)) - counts * outputs, axis=-1)


# What is drawn.


def network(key: Key, sizes: tuple[int, ...], gain: float = 1.5) -> list[Array]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        gain * jax.random.normal(k, (a, b)) / a**0.5
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def through(weights: list[Array], x: Array, activation: Callable[[Array], Array]) -> Array:
    for weight in weights[:-1]:
        x = activation(x @ weight)
    return x @ weights[-1]


def students(
    sizes: tuple[int, ...], size: int, activation: Callable[[Array], Array], noise: float = 0.0
) -> tuple[Callable[[Key], Problem], Callable[[Problem, Key], Batch]]:
    """Regression of what a random network makes of correlated inputs."""

    def problem(key: Key) -> Problem:
        keys = jax.random.split(key)
        scales = jnp.exp(jax.random.normal(keys[1], (sizes[0],)))
        return {"weights": network(keys[0], sizes), "scales": scales}

    def batch(problem: Problem, key: Key) -> Batch:
        keys = jax.random.split(key)
        x = jax.random.normal(keys[0], (size, sizes[0]))
        y = through(problem["weights"], x, activation)
        return x * problem["scales"], y + noise * jax.random.normal(keys[1], y.shape)

    return problem, batch


def clusters(
    inputs: int, classes: int, size: int, spread: float, each: int = 3
) -> tuple[Callable[[Key], Problem], Callable[[Problem, Key], Batch]]:
    """Classes that are several Gaussian clouds each."""

    def problem(key: Key) -> Problem:
        return jax.random.normal(key, (classes * each, inputs))

    def batch(centres: Problem, key: Key) -> Batch:
        keys = jax.random.split(key)
        i = jax.random.randint(keys[0], (size,), 0, classes * each)
        return centres[i] + spread * jax.random.normal(keys[1], (size, inputs)), i % classes

    return problem, batch


def rare(
    features: int, classes: int, size: int, present: int = 8
) -> tuple[Callable[[Key], Problem], Callable[[Problem, Key], Batch]]:
    """Few features of many are present, some of them seldom; the class is linear in them."""

    def problem(key: Key) -> Problem:
        return 2 * jax.random.normal(key, (features, classes))

    def batch(weights: Problem, key: Key) -> Batch:
        keys = jax.random.split(key, 2)
        odds = -1.2 * jnp.log(1.0 + jnp.arange(features))
        i = jax.random.categorical(keys[0], odds, shape=(size, present))
        x = jax.nn.one_hot(i, features).sum(axis=1)
        return x, jax.random.categorical(keys[1], x @ weights)

    return problem, batch


def chains(
    vocabulary: int, length: int, size: int, order: int = 1, sharp: float = 2.0
) -> tuple[Callable[[Key], Problem], Callable[[Problem, Key], Batch]]:
    """Sequences of a random Markov chain; of order 2, the next symbol depends on two."""

    def problem(key: Key) -> Problem:
        return sharp * jax.random.normal(key, (vocabulary,) * order + (vocabulary,))

    def batch(odds: Problem, key: Key) -> Batch:
        first = jax.random.randint(key, (order, size), 0, vocabulary)

        def step(last: Array, key: Key) -> tuple[Array, Array]:
            new = jax.random.categorical(key, odds[tuple(last)])
            return jnp.concatenate([last[1:], new[None]]), new

        _, symbols = jax.lax.scan(step, first, jax.random.split(key, length + 1))
        return symbols[:-1].T, symbols[1:].T

    return problem, batch


def words(vocabulary: int, size: int, context: int = 3) -> Any:
    """The next word after the last ones; most words are rare."""

    def problem(key: Key) -> Problem:
        keys = jax.random.split(key, 3)
        return (
            jax.random.normal(keys[0], (vocabulary, 6)),
            jax.random.normal(keys[1], (context, 6, vocabulary)),
        )

    def batch(problem: Problem, key: Key) -> Batch:
        vectors, readers = problem
        keys = jax.random.split(key)
        prior = -1.0 * jnp.log(1.0 + jnp.arange(vocabulary))
        x = jax.random.categorical(keys[0], prior, shape=(size, context))
        odds = jnp.einsum("nce,cev->nv", vectors[x], readers) + prior
        return x, jax.random.categorical(keys[1], odds)

    return problem, batch


def repeats(vocabulary: int, length: int, size: int) -> Any:
    """Random symbols, then the same again: what is to be learned is to look back."""

    def problem(key: Key) -> Problem:
        return jax.random.normal(key, (vocabulary,))

    def batch(odds: Problem, key: Key) -> Batch:
        half = jax.random.categorical(key, odds, shape=(size, length // 2 + 1))
        symbols = jnp.concatenate([half, half], axis=1)[:, : length + 1]
        return symbols[:, :-1], symbols[:, 1:]

    return problem, batch


def sums(length: int, size: int) -> Any:
    """The sum of two marked numbers in a sequence (Hochreiter and Schmidhuber, 1997)."""

    def problem(key: Key) -> Problem:
        return jax.random.uniform(key, (), minval=0.5, maxval=2.0)

    def batch(scale: Problem, key: Key) -> Batch:
        keys = jax.random.split(key, 3)
        values = scale * jax.random.uniform(keys[0], (size, length))
        half = length // 2
        a = jax.nn.one_hot(jax.random.randint(keys[1], (size,), 0, half), length)
        b = jax.nn.one_hot(jax.random.randint(keys[2], (size,), half, length), length)
        marks = a + b
        return jnp.stack([values, marks], axis=-1), (values * marks).sum(axis=1, keepdims=True)

    return problem, batch


def curves(size: int | None, outputs: int = 2, waves: int = 8) -> Any:
    """A random smooth curve; with `size` None at 64 fixed places, so that nothing is noisy."""

    def problem(key: Key) -> Problem:
        keys = jax.random.split(key)
        decay = 1.0 / (1 + jnp.arange(waves))[:, None]
        return jax.random.normal(keys[0], (waves, outputs)) * decay, jax.random.normal(
            keys[1], (waves, outputs)
        )

    def batch(problem: Problem, key: Key) -> Batch:
        heights, phases = problem
        x = jnp.linspace(-1, 1, 64) if size is None else jax.random.uniform(key, (size,), minval=-1)
        x = x[:, None]
        angles = jnp.pi * x[:, :, None] * (1 + jnp.arange(waves))[None, :, None] + phases
        return x, (heights * jnp.sin(angles)).sum(axis=1)

    return problem, batch


def copies(size: int, pixels: int, rank: int) -> Any:
    """Images of a random low-rank world."""

    def problem(key: Key) -> Problem:
        return network(key, (rank, 3 * rank, pixels), gain=1.5)

    def batch(weights: Problem, key: Key) -> Batch:
        code = jax.random.normal(key, (size, len(weights[0])))
        x = jax.nn.sigmoid(through(weights, code, jnp.tanh))
        return x, x

    return problem, batch


def counted(problem: Any, batch: Any) -> Any:
    def counts(drawn: Problem, key: Key) -> Batch:
        x, y = batch(drawn, key)
        return x, jax.random.poisson(key, jnp.exp(jnp.clip(y, -3, 3))).astype(jnp.float32)

    return problem, counts


class OneHot(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, symbols: Array) -> Array:
        return jax.nn.one_hot(symbols, self.classes)
