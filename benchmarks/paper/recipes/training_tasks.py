"""Tasks that recipes train on, beside those that the package has."""

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import networks, tasks
from l2ljax.core import Params, Task


def pooled(data: tasks.Dataset, factor: int = 2) -> tasks.Dataset:
    """Images of a lower resolution, by averaging."""

    def pool(split: tasks.Split) -> tasks.Split:
        count, height, width, channels = split.inputs.shape
        blocks = (count, height // factor, factor, width // factor, factor, channels)
        images = np.asarray(split.inputs, np.float32).reshape(blocks).mean((2, 4)) / split.maximum
        return tasks.Split(images, split.labels)

    return tasks.Dataset(train=pool(data.train), name=f"pooled {data.name}", classes=data.classes)


def digits_by_rows(units: int = 16) -> Task:
    """A plain recurrent network that reads a digit row by row."""

    def init(key: jax.Array, images: jax.Array) -> Params:
        keys = jax.random.split(key, 3)
        rows = images.shape[2]
        return {
            "input": jax.random.normal(keys[0], (rows, units)) / rows**0.5,
            "recurrent": jax.random.normal(keys[1], (units, units)) / units**0.5,
            "bias": jnp.zeros(units),
            "output": jax.random.normal(keys[2], (units, 10)) / units**0.5,
        }

    def apply(params: Params, images: jax.Array) -> jax.Array:
        hidden = jnp.zeros((images.shape[0], units))
        for row in range(images.shape[1]):
            new = images[:, row, :, 0] @ params["input"] + hidden @ params["recurrent"]
            hidden = jnp.tanh(new + params["bias"])
        return hidden @ params["output"]

    return tasks.supervised(init, apply, "cross_entropy", tasks.digits(), 32)


def lower_halves(units: int, activation: str, batch_size: int | None) -> Task:
    """Regression: the lower half of a digit from its upper half."""
    images, _ = tasks.digits().train.examples()
    images = images.reshape(len(images), -1)
    upper, lower = jnp.split(images, 2, axis=1)
    network = {"hidden": (units,), "outputs": lower.shape[1], "activation": activation}
    return tasks.supervised(
        lambda key, inputs: networks.mlp_init(key, inputs, **network),
        lambda params, inputs: networks.mlp_apply(params, inputs, **network),
        "squared_error",
        tasks.Dataset(train=tasks.Split(upper, lower), name="halves of digits"),
        batch_size,
    )


def repainted(size: int, style_size: int, contrast: float, channels: tuple[int, int, int]) -> Task:
    """Neural art of 64x64 pixels in the style of training, but for its colours and its scale.

    Args:
        size: of the contents, of which 64x64 pixels are painted.
        style_size: the shorter side of the style: on fewer pixels its lines are finer.
        contrast: the style's distance from grey is multiplied by it; below zero it is a negative.
        channels: which of red, green and blue takes the place of each.
    """
    contents, _ = tasks.sample_pictures(size=size, count=450)
    _, style = tasks.sample_pictures(size=style_size, count=1)
    colours = 0.5 + contrast * (style[..., list(channels)] / 255 - 0.5)
    return tasks.neural_art(contents, np.clip(colours, 0, 1))
