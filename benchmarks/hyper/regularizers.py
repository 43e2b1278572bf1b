"""A learned L2 penalty for each of 7,850 weights of logistic regression.

    python benchmarks/hyper/regularizers.py --data-dir DATA

After Maclaurin, Duvenaud and Adams (2015, section 3.2), by `meta.reversible`: 50 steps of momentum
(rate 1, γ = 0.5) on 200 images of MNIST, all at once. The meta-loss is the loss after the last
step, without penalty, on 1,000 of 10,000 validation images, drawn for each of 100 meta-iterations
of Adam with rate 0.04. Log penalties begin at -6. Rivals have no penalty, or one for all weights,
the best on the validation images. All are judged on the 10,000 test images.
"""

import dataclasses
import math
from typing import Any

import _mnist
import _report
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from l2ljax import learned, meta, plots, tasks
from l2ljax.core import Params, Task

HORIZON, META_STEPS = 50, 100
RATE, DECAY, LOG_PENALTY = 1.0, 0.5, -6.0
LOG_PENALTIES = np.arange(-9.0, -0.9, 1.0)
OPT = learned.reversible_momentum(horizon=1, learning_rate=RATE, decay=DECAY)


def regression(dataset: tasks.Dataset, batch_size: int | None = None, split: str = "train") -> Task:
    return tasks.mlp_classifier(dataset, (), batch_size=batch_size, split=split)


@jax.jit
def trained_params(task: Task) -> Params:
    tx = OPT.bind(OPT.init(_mnist.KEY))
    return meta.unroll(tx, task, (), jax.random.key(1), horizon=HORIZON)[1]


def judged(params: Params, split: tasks.Split) -> dict[str, float]:
    inputs, labels = split.examples()
    layer = params["Dense_0"]
    logits = inputs.reshape(len(inputs), -1) @ layer["kernel"] + layer["bias"]
    return {
        "loss": float(tasks.cross_entropy(logits, labels).mean()),
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
    }


def draw(content: dict[str, Any]) -> plt.Axes:
    """Log penalties of each class's weights, the same greys for all."""
    logs = _mnist.read(content["log_penalties"])
    greys = (logs - logs.min()) / (logs.max() - logs.min())
    return plots.images({str(i): grey for i, grey in enumerate(greys)}, columns=5)


def main() -> None:
    arguments = _mnist.arguments(__doc__)
    data = _mnist.data(arguments.data_dir, 200)
    plain = regression(data)
    measured = dataclasses.replace(plain, objective=regression(data, 1_000, "validation").loss)
    task = tasks.learned_l2(measured, math.exp(LOG_PENALTY), per="coordinate")
    steps = arguments.meta_steps or META_STEPS
    trained, seconds = _mnist.learn_task(OPT, task, steps=steps, horizon=HORIZON, min_decay=DECAY)
    logs = trained.last_phi["task"]["l2"]

    one = tasks.learned_l2(plain)
    grid = {float(log): trained_params(one.bind({"l2": jnp.float32(log)})) for log in LOG_PENALTIES}
    scores = {log: judged(params, data.validation) for log, params in grid.items()}
    best = min(scores, key=lambda log: scores[log]["loss"])
    learned_params = trained_params(tasks.learned_l2(plain, per="coordinate").bind({"l2": logs}))
    images = np.asarray(logs["Dense_0"]["kernel"]).T.reshape(10, 28, 28)
    content: dict[str, Any] = {
        "meta_steps": len(trained.history["loss"]),
        "seconds": seconds,
        "meta_loss": trained.history["loss"].tolist(),
        "test": {
            "no penalty": judged(trained_params(plain), data.test),
            "one penalty": {"log_penalty": best, **judged(grid[best], data.test)},
            "one penalty a weight": judged(learned_params, data.test),
        },
        "validation": {
            "one penalty": {str(log): score for log, score in scores.items()},
            "one penalty a weight": judged(learned_params, data.validation),
        },
        "log_penalties": _mnist.written(images),
    }
    for name, row in content["test"].items():
        print(f"{name:22}", row)
    command = "python benchmarks/hyper/regularizers.py --data-dir DATA"
    _report.publish("hyper/regularizers", command, content, draw(content))


if __name__ == "__main__":
    main()
