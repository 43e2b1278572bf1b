"""Models of the benchmark's tasks, as Flax modules.

What they draw depends on the names of their parts: other names are other problems.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array


class SuiteMLP(nn.Module):
    """Fully connected layers of any activation; `units` ends with the outputs."""

    units: tuple[int, ...]
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        x = inputs.reshape(len(inputs), -1)
        for units in self.units[:-1]:
            x = self.activation(nn.Dense(units)(x))
        return nn.Dense(self.units[-1])(x)


class SuiteResidual(nn.Module):
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


class SuiteConvNet(nn.Module):
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


class SuiteRecurrent(nn.Module):
    """A GRU that says after each character what the next one is."""

    width: int
    vocabulary: int

    @nn.compact
    def __call__(self, characters: Array) -> Array:
        x = jax.nn.one_hot(characters, self.vocabulary)
        return nn.Dense(self.vocabulary)(nn.RNN(nn.GRUCell(self.width))(x))


class SuiteTransformer(nn.Module):
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
