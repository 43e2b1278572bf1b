"""Data for benchmarks of speed and memory: the work is the same whatever the images show."""

import numpy as np

import l2ljax as l2l


def mnist(data_dir: str | None) -> l2l.tasks.Dataset:
    """MNIST; without its files, random images of the same shape."""
    if data_dir is not None:
        return l2l.tasks.mnist(data_dir)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30_000, 28, 28, 1), np.uint8)
    split = l2l.tasks.Split(images, rng.integers(0, 10, 30_000, np.int32), maximum=255)
    return l2l.tasks.Dataset(train=split, name="random images", classes=10)
