"""A data set of a few random images, and jitted parts of a task."""

import jax
import numpy as np

from l2ljax.tasks import Dataset, Split

KEY = jax.random.key(0)


def images(n=12, seed=0):
    """Random images of 2x2 pixels in three classes."""
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 256, (n, 2, 2, 1)).astype(np.uint8)
    labels = random.randint(0, 3, n).astype(np.int32)
    return Dataset(train=Split(pixels, labels, maximum=255), name="random", classes=3)


@jax.jit
def draw(task):
    return task.init(KEY, task.sample(KEY))


@jax.jit
def loss_at(task, params, key=KEY):
    return task.loss(params, (), key)


@jax.jit
def value_and_grad(task, params, key=KEY):
    return jax.value_and_grad(task.loss)(params, (), key)
