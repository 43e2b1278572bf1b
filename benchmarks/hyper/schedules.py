"""Learned schedules of rates: 100 rates for each of 8 tensors, and the scales of initial weights.

    python benchmarks/hyper/schedules.py --data-dir DATA
    python benchmarks/hyper/schedules.py --data-dir DATA --standardised

The first experiment of Maclaurin, Duvenaud and Adams (2015, section 3.1) by `meta.reversible`: a
network 784-50-50-50-10 on 10,000 images of MNIST, 100 steps of momentum on minibatches of 200. Log
rates begin at -1, γ stays 0.5, logarithms of initial scales begin at -3; 50 meta-iterations of Adam
with rate 0.04. The meta-loss is the training loss after the last step, on 500 images drawn for
each meta-iteration. Rivals are the best of fixed rates, at the first scales and at the learned
ones. All are judged by the training loss on all 10,000 images, on fresh θ₀ and minibatches.

The paper reports that the first layer's scale goes to 1/√784, and does not say how pixels are
scaled. By default they are in [0, 1]; with `--standardised` their mean is zero and their variance
one, for which that scale is the usual one.
"""

import dataclasses
import math
import time
from typing import Any

import _mnist
import _report
import jax
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

from l2ljax import learned, meta, tasks
from l2ljax.core import LearnedOptimizer, Phi, Task

HORIZON, META_STEPS = 100, 50
HIDDEN = (50, 50, 50)
LOG_RATE, DECAY, LOG_SCALE = -1.0, 0.5, -3.0
LOG_RATES = np.arange(-1.0, 2.6, 0.5)
TUNING_RUNS, RUNS = 2, 8


def network(dataset: tasks.Dataset, batch_size: int | None) -> Task:
    return tasks.mlp_classifier(dataset, HIDDEN, "tanh", batch_size, init_std=1.0)


@jax.jit(static_argnames="runs")
def final_losses(
    opt: LearnedOptimizer, phi: Phi, task: Task, everything: Task, key: jax.Array, *, runs: int
) -> jax.Array:
    """The training loss on all images after the last step, one a run."""
    params = _mnist.final_params(opt.bind(phi), task, key, horizon=HORIZON, runs=runs)
    return jax.lax.map(lambda params: everything.loss(params, (), key), params)


def fixed(log_rate: float) -> tuple[LearnedOptimizer, Phi]:
    opt = learned.reversible_momentum(horizon=1, learning_rate=math.exp(log_rate), decay=DECAY)
    return opt, opt.init(_mnist.KEY)


def best_rate(task: Task, everything: Task) -> tuple[float, list[float]]:
    """Of the fixed rates the one with the lowest mean loss, as a logarithm, and all means."""
    means = [
        float(final_losses(*fixed(r), task, everything, jax.random.key(1), runs=TUNING_RUNS).mean())
        for r in LOG_RATES
    ]
    return float(LOG_RATES[np.nanargmin(means)]), means


def names_of(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by the names of layers."""
    return {
        f"{'weights' if kind == 'kernel' else 'biases'} {int(layer.removeprefix('Dense_')) + 1}": (
            np.asarray(leaf)
        )
        for layer, kinds in tree.items()
        for kind, leaf in kinds.items()
    }


def draw(content: dict[str, Any]) -> plt.Axes:
    """Schedules of the weights, initial scales along meta-training, and losses after it."""
    colors = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10, 3.3), width_ratios=(1.3, 1, 0.9), layout="constrained"
    )
    for i, color in enumerate(colors, start=1):
        look = {"color": color, "label": f"layer {i}"}
        left.plot(np.arange(1, HORIZON + 1), content["log_rates"][f"weights {i}"], **look)
        middle.plot(content["log_scales"][f"weights {i}"], **look)
    left.axhline(LOG_RATE, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel=r"log rate of the weights, $\log\alpha_t$")
    for fan_in in (784, 50):
        level = -0.5 * math.log(fan_in)
        middle.axhline(level, color="black", linestyle="--", linewidth=1)
        text = rf"$1/\sqrt{{{fan_in}}}$"
        middle.annotate(text, (0.5, level), (0, 4), ("axes fraction", "data"), "offset points")
    middle.set(xlabel="meta-iteration", ylabel="log scale of initial weights")
    losses = content["final_training_loss"]
    for place, values in enumerate(losses.values()):
        right.plot(values, [place] * len(values), "o", color="#999999", markersize=4, alpha=0.7)
        right.plot(np.median(values), place, "|", color="black", markersize=16, markeredgewidth=2)
    right.set_yticks(range(len(losses)), [name.replace(", ", ",\n") for name in losses])
    right.invert_yaxis()
    right.set(xscale="log", xlabel=f"training loss, {RUNS} runs, median")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5, which="both")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False
    )
    return left


def main() -> None:
    arguments = _mnist.arguments(__doc__, standardised="pixels of mean zero and variance one")
    steps = arguments.meta_steps or META_STEPS
    data = _mnist.data(arguments.data_dir, 10_000)
    data = _mnist.standardised(data) if arguments.standardised else data
    batches, everything = network(data, 200), network(data, None)
    measured = dataclasses.replace(batches, objective=network(data, 500).loss)
    task = tasks.learned_init_scale(measured, math.exp(LOG_SCALE))
    like = jax.eval_shape(batches.init, _mnist.KEY, ())
    opt = learned.reversible_momentum(
        horizon=HORIZON, learning_rate=math.exp(LOG_RATE), decay=DECAY, like=like
    )
    history: list[dict[str, np.ndarray]] = []
    start = time.perf_counter()
    trained = meta.train(
        opt,
        task,
        key=_mnist.KEY,
        steps=steps,
        meta_optimizer=_mnist.learns(optimizer={"learning_rate": True, "decay": False}, task=True),
        estimator=meta.reversible(
            horizon=HORIZON, min_decay=DECAY, step_weights=meta.final_weights(HORIZON) / HORIZON
        ),
        callbacks=[lambda now: history.append(names_of(now.state.phi["task"]["init_scale"]))],
        progress=True,
        chunk=1,
    )
    seconds = time.perf_counter() - start
    phi = trained.last_phi
    scales = {
        name: np.array([LOG_SCALE, *(float(row[name]) for row in history)]) for name in history[0]
    }

    first = dataclasses.replace(task.bind(task.init(_mnist.KEY)), objective=batches.loss)
    later = dataclasses.replace(task.bind(phi["task"]), objective=batches.loss)
    rates = {"first": best_rate(first, everything), "learned": best_rate(later, everything)}
    settings = {
        "start": (*fixed(LOG_RATE), first),
        "best rate": (*fixed(rates["first"][0]), first),
        "best rate, learned scales": (*fixed(rates["learned"][0]), later),
        "learned rates, learned scales": (opt, phi["optimizer"], later),
    }
    losses = {
        name: np.asarray(final_losses(o, p, t, everything, jax.random.key(2), runs=RUNS))
        for name, (o, p, t) in settings.items()
    }
    for name, values in losses.items():
        error = values.std(ddof=1) / math.sqrt(RUNS)
        print(f"{name:30} {values.mean():.4f} ± {error:.4f}, median {np.median(values):.4f}")

    log_rates = names_of(phi["optimizer"]["learning_rate"])
    content = {
        "meta_steps": steps,
        "seconds": seconds,
        "meta_loss": trained.history["loss"].tolist(),
        "final_training_loss": {name: values.tolist() for name, values in losses.items()},
        "log_rates_of_the_grid": LOG_RATES.tolist(),
        "tuning": {k: {"best": best, "means": means} for k, (best, means) in rates.items()},
        "log_scales": {name: rows.tolist() for name, rows in scales.items()},
        "mean_log_rate": {
            name: {"steps 41 to 90": float(r[40:90].mean()), "last 10": float(r[90:].mean())}
            for name, r in log_rates.items()
        },
        "log_rates": {name: np.round(r, 4).tolist() for name, r in log_rates.items()},
    }
    flag = "standardised" if arguments.standardised else ""
    command = "python benchmarks/hyper/schedules.py --data-dir DATA" + f" --{flag}" * bool(flag)
    _report.publish("hyper/schedules" + f"-{flag}" * bool(flag), command, content, draw(content))


if __name__ == "__main__":
    main()
