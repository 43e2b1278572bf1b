"""Learned training images: ten images, one a class, from which 20 steps learn to read digits.

    python benchmarks/hyper/training_images.py --data-dir DATA

After Maclaurin, Duvenaud and Adams (2015, section 3.3), by `meta.reversible`: logistic regression
from zero weights, 20 steps of momentum (rate 1, γ = 0.5) on ten images that begin blank. Their
7,840 pixels are the metaparameters, the meta-loss is the loss after the last step on 2,000 of
10,000 validation images, drawn for each of 150 meta-iterations of Adam with rate 0.04. The rival
trains on ten real images, the first of each class, with the best of several rates. Both are judged
on the 10,000 test images. Specks at the border are pixels that hardly any image has: Adam moves
them as much as others.
"""

from typing import Any

import _mnist
import _report
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from l2ljax import learned, meta, plots, tasks
from l2ljax.core import Task

HORIZON, META_STEPS = 20, 150
RATE, DECAY = 1.0, 0.5
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def regression(dataset: tasks.Dataset, batch_size: int | None = None, split: str = "train") -> Task:
    return tasks.mlp_classifier(dataset, (), batch_size=batch_size, split=split, init_std=0.0)


def ten(inputs: Any) -> Task:
    """Training on ten images, one a class."""
    split = tasks.Split(jnp.asarray(inputs), jnp.arange(10))
    return regression(tasks.Dataset(train=split, classes=10))


def judged(task: Task, rate: float, data: tasks.Dataset) -> dict[str, float]:
    """Loss and accuracy on the test images after the last step."""
    opt = learned.reversible_momentum(horizon=1, learning_rate=rate, decay=DECAY)
    tx = opt.bind(opt.init(_mnist.KEY))
    _, params = meta.unroll(tx, task, (), _mnist.KEY, horizon=HORIZON)
    inputs, labels = data.test.examples()
    layer = params["Dense_0"]
    logits = inputs.reshape(len(inputs), -1) @ layer["kernel"] + layer["bias"]
    return {
        "rate": rate,
        "test_loss": float(tasks.cross_entropy(logits, labels).mean()),
        "test_accuracy": float((logits.argmax(axis=1) == labels).mean()),
    }


def draw(content: dict[str, Any]) -> plt.Axes:
    """The images, zero as a middle grey; of each the largest half percent is clipped."""
    images = _mnist.read(content["images"])
    largest = np.quantile(np.abs(images), 0.995, axis=(1, 2), keepdims=True)
    greys = 0.5 + images / (2 * np.where(largest > 0, largest, 1))
    return plots.images({str(i): grey for i, grey in enumerate(greys)}, columns=5)


def main() -> None:
    arguments = _mnist.arguments(__doc__)
    data = _mnist.data(arguments.data_dir, 10_000)
    held_out = regression(data, 2_000, "validation")
    task = tasks.learned_data(ten(np.zeros((10, 28, 28, 1), np.float32)), held_out)
    opt = learned.reversible_momentum(horizon=1, learning_rate=RATE, decay=DECAY)
    steps = arguments.meta_steps or META_STEPS
    trained, seconds = _mnist.learn_task(opt, task, steps=steps, horizon=HORIZON, min_decay=DECAY)
    images = np.asarray(trained.last_phi["task"]["data"])[..., 0]

    inputs, labels = data.train.examples()
    real = ten(inputs[jnp.array([int(jnp.argmax(labels == label)) for label in range(10)])])
    tuned = [judged(real, rate, data) for rate in RATES]
    content: dict[str, Any] = {
        "meta_steps": len(trained.history["loss"]),
        "seconds": seconds,
        "meta_loss": trained.history["loss"].tolist(),
        "learned images": judged(task.bind(trained.last_phi["task"]), RATE, data),
        "real images, by rate": tuned,
        "real images, best": max(tuned, key=lambda row: row["test_accuracy"]),
        "images": _mnist.written(images),
    }
    for name in ("learned images", "real images, best"):
        print(name, content[name])
    command = "python benchmarks/hyper/training_images.py --data-dir DATA"
    _report.publish("hyper/training_images", command, content, draw(content))


if __name__ == "__main__":
    main()
