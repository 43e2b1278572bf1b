"""One hypernetwork for networks of every complexity, against networks trained one by one.

    python benchmarks/hyper/complexity.py --data-dir DATA --seeds 5   # resumable: type it again

After Grebenkova, Bakhteev and Strijov (2021), 'Variational deep learning model optimization with
complexity control': a network 784-50-10 with ReLU on MNIST, pixels in [-1, 1], batches of 256,
Adam at 5e-4, 25 epochs for each network that is trained alone, 50 for a hypernetwork, which sees 5
log-uniform λ's a batch. Regularizers are those of `hyper.complexity_control`; hypernetworks are
straight lines in ln λ, of 2 knots (linear) and of 6 (piecewise). Accuracy is that of the means on
the 10,000 test images, after pruning in each layer.

At λ = 1 "var" and "rep" are one loss, and so have one row of direct networks.

Minibatches are drawn with replacement, so an epoch is a number of steps; weights begin as
N(0, 1/fan-in). Each run that is done is kept in `runs/complexity`.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import l2ljax as l2l
from l2ljax import hyper, meta, networks

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

KEPT = pathlib.Path("runs/complexity")
KINDS = ("base", "var", "rep")
KNOTS = {"linear": 2, "piecewise": 6}
NETWORK = {"hidden": (50,), "outputs": 10, "activation": "relu"}
BATCH, LAMBDAS, RATE = 256, 5, 5e-4
EPOCHS = {"direct": 25, "linear": 50, "piecewise": 50}
LOW, HIGH = math.log(1e-3), math.log(1e2)
DECADES = np.arange(-3, 2.5, 0.5)
OTHERS = [-3.0, -2.0, -1.0, 1.0, 2.0]
ONE = int(np.flatnonzero(DECADES == 0)[0])
FRACTIONS = np.arange(10) / 10
SHOWN = (0.0, 0.5, 0.7, 0.9)
LOOKS = {
    "linear": {"color": "#0072B2", "linestyle": "--"},
    "piecewise": {"color": "#D55E00", "linestyle": "-"},
}
TOLERANCE = 0.02
"""How far direct networks may be from what was reported, at 0 and 50 % pruned."""

# Accuracies at λ = 1, pruned by 0, 50, 70 and 90 %, from the paper.
REPORTED = {
    ("base", "direct"): (0.960, 0.939, 0.746, 0.246),
    ("base", "linear"): (0.970, 0.886, 0.524, 0.287),
    ("base", "piecewise"): (0.967, 0.902, 0.661, 0.224),
    ("var", "direct"): (0.962, 0.954, 0.908, 0.520),
    ("var", "linear"): (0.938, 0.946, 0.908, 0.778),
    ("var", "piecewise"): (0.966, 0.958, 0.879, 0.572),
    ("rep", "direct"): (0.963, 0.955, 0.916, 0.497),
    ("rep", "linear"): (0.973, 0.962, 0.847, 0.614),
    ("rep", "piecewise"): (0.969, 0.959, 0.874, 0.516),
}


def classifier(dataset: l2l.tasks.Dataset) -> l2l.Task:
    return l2l.tasks.supervised(
        lambda key, inputs: networks.mlp_init(key, inputs, **NETWORK),
        forward,
        "cross_entropy",
        dataset,
        batch_size=BATCH,
    )


def forward(params: Any, inputs: jax.Array) -> jax.Array:
    return networks.mlp_apply(params, 2 * inputs - 1, **NETWORK)


@jax.jit
def accuracies(params: Any, test: l2l.tasks.Split) -> jax.Array:
    """Of networks with a leading axis, after each pruning: f[networks, fractions]."""
    inputs, labels = test.examples()

    def accuracy(params: Any) -> jax.Array:
        def pruned(fraction: jax.Array) -> jax.Array:
            logits = forward(hyper.prune(params, fraction), inputs)
            return jnp.mean(jnp.argmax(logits, axis=1) == labels)

        return jax.lax.map(pruned, jnp.asarray(FRACTIONS, jnp.float32))

    return jax.lax.map(accuracy, params)


@jax.jit(static_argnames="steps")
def train(task: l2l.Task, key: jax.Array, steps: int) -> Any:
    return meta.unroll(optax.adam(RATE), task, (), key, horizon=steps)[1]


@jax.jit(static_argnames="steps")
def train_at(learned: l2l.LearnedTask, log_lams: jax.Array, keys: jax.Array, steps: int) -> Any:
    def one(log_lam: jax.Array, key: jax.Array) -> Any:
        task = learned.bind(log_lam)
        # The objective would be measured at every step; it is not looked at.
        task = l2l.Task(task.sample, task.init, task.loss)
        return meta.unroll(optax.adam(RATE), task, (), key, horizon=steps)[1]

    return jax.vmap(one)(log_lams, keys)


def seed_key(kind: str, network: str, seed: int) -> jax.Array:
    number = KINDS.index(kind) * len(EPOCHS) + [*EPOCHS].index(network)
    return jax.random.fold_in(jax.random.key(number), seed)


def steps_of(network: str, dataset: l2l.tasks.Dataset) -> int:
    return round(EPOCHS[network] * len(dataset.train) / BATCH)


def direct(dataset: l2l.tasks.Dataset, kind: str, decades: list[float], seeds: int) -> np.ndarray:
    """Networks trained alone, each λ with each seed: f[pairs, fractions]."""
    learned = hyper.complexity_control(classifier(dataset), len(dataset.train), kind)
    keys = jnp.stack([seed_key(kind, "direct", i) for i in range(seeds)] * len(decades))
    log_lams = jnp.repeat(jnp.array(decades) * math.log(10), seeds)
    params = train_at(learned, log_lams, keys, steps_of("direct", dataset))
    return np.asarray(accuracies(params, dataset.test))


def from_hypernetwork(dataset: l2l.tasks.Dataset, kind: str, network: str, seed: int) -> np.ndarray:
    """One hypernetwork's networks for every λ: f[decades, fractions]."""
    learned = hyper.complexity_control(classifier(dataset), len(dataset.train), kind)
    one = learned.bind(jnp.zeros(()))
    lines = hyper.interpolating_hypernetwork(
        lambda key: one.init(key, ()), LOW, HIGH, knots=KNOTS[network]
    )
    response = hyper.response_task(
        learned,
        lines,
        lambda key: jax.random.uniform(key, minval=LOW, maxval=HIGH),
        batch=LAMBDAS,
    )
    phi = train(response, seed_key(kind, network, seed), steps_of(network, dataset))
    params = jax.vmap(lines.apply, in_axes=(None, 0))(phi, DECADES * math.log(10))
    return np.asarray(accuracies(params, dataset.test))


def kept(name: str, measure: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
    """The accuracies of a run that is done or is made now."""
    settings = {"epochs": EPOCHS, "batch": BATCH, "lambdas": LAMBDAS, "rate": RATE}
    run = _report.kept(
        KEPT / f"{name}.json", settings, lambda: {"accuracies": measure(*arguments).tolist()}
    )
    print(f"{name}: {run['wall_seconds']:.0f} s", flush=True)
    return np.array(run["accuracies"])


def row(kind: str, network: str, values: np.ndarray) -> dict[str, Any]:
    """The table's row at λ = 1; `values` are f[seeds, fractions]."""
    at = [int(np.flatnonzero(np.isclose(FRACTIONS, shown))[0]) for shown in SHOWN]
    mean = values[:, at].mean(axis=0)
    reported = np.array(REPORTED[kind, network])
    entry = {
        "kind": kind,
        "network": network,
        "seeds": len(values),
        "pruned": SHOWN,
        "accuracy": mean.round(4).tolist(),
        "deviation": values[:, at].std(axis=0, ddof=1).round(4).tolist() if len(values) > 1 else [],
        "reported": reported.tolist(),
    }
    if network == "direct":
        entry["within"] = bool(np.all(np.abs(mean - reported)[:2] <= TOLERANCE))
    return entry


def draw(curves: dict[str, dict[str, np.ndarray]]) -> plt.Axes:
    """Accuracy against pruning at λ = 1 and, where there is more, against λ; a column a kind."""
    more = any(len(found) > 1 for found in curves.values())
    _, axes = plt.subplots(
        1 + more,
        3,
        figsize=(10, 6 if more else 3.4),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, (kind, found) in enumerate(curves.items()):
        against_pruning(axes[0, column], kind, found)
        axes[0, column].set(title=kind, xlabel="weights pruned, %")
        if more:
            against_lambda(axes[1, column], found)
            axes[1, column].set(xscale="log", xlabel="λ", xlim=(5e-4, 2e2))
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy at λ = 1")
    axes[0, 0].legend(frameon=False, loc="lower left", fontsize=9)
    if more:
        axes[1, 0].set_ylabel("test accuracy; open, pale: 70 % pruned")
    return axes[0, 0]


def against_pruning(ax: plt.Axes, kind: str, found: dict[str, np.ndarray]) -> None:
    percent = 100 * FRACTIONS
    ax.plot(percent, found["direct"].mean(axis=0), "ko-", ms=4, label="trained alone")
    ax.plot(100 * np.array(SHOWN), REPORTED[kind, "direct"], "kx", ms=7, label="the same, reported")
    for network, look in LOOKS.items():
        if network in found:
            values = found[network].mean(axis=0)[ONE]
            ax.plot(percent, values, **look, label=f"{network} hypernetwork")


def against_lambda(ax: plt.Axes, found: dict[str, np.ndarray]) -> None:
    most = int(np.flatnonzero(np.isclose(FRACTIONS, 0.7))[0])
    others = found.get("others", np.empty((0, len(FRACTIONS))))
    alone = np.concatenate([others, found["direct"].mean(axis=0, keepdims=True)])
    lams = 10.0 ** np.array([*OTHERS[: len(others)], 0.0])
    ax.plot(lams, alone[:, 0], "ko", ms=5)
    ax.plot(lams, alone[:, most], "ks", ms=5, fillstyle="none")
    for network, look in LOOKS.items():
        if network in found:
            values = found[network].mean(axis=0)
            ax.plot(10.0**DECADES, values[:, 0], **look)
            ax.plot(10.0**DECADES, values[:, most], **look, alpha=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with MNIST")
    parser.add_argument("--seeds", type=int, default=5, help="of hypernetworks; direct ones have 5")
    parser.add_argument("--lambdas", action="store_true", help="direct networks at other λ, too")
    arguments = parser.parse_args()
    dataset = l2l.tasks.mnist(arguments.data_dir, validation=0)
    curves: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        # At λ = 1 both variational losses are one.
        same = "var" if kind == "rep" else kind
        curves[kind]["direct"] = kept(f"{same}-direct", direct, dataset, same, [0.0], 5)
    for seed in range(arguments.seeds):
        for kind in KINDS:
            for network in KNOTS:
                name = f"{kind}-{network}-{seed}"
                found = kept(name, from_hypernetwork, dataset, kind, network, seed)
                before = curves[kind].get(network, np.empty((0, *found.shape)))
                curves[kind][network] = np.concatenate([before, found[None]])
    if arguments.lambdas:
        for kind in KINDS:
            curves[kind]["others"] = kept(f"{kind}-lambdas", direct, dataset, kind, OTHERS, 1)
    table = [
        row(kind, network, found["direct"] if network == "direct" else found[network][:, ONE])
        for kind, found in curves.items()
        for network in EPOCHS
        if network in found
    ]
    for entry in table:
        words = " ".join(f"{value:.3f}" for value in entry["accuracy"])
        print(f"{entry['kind']:5} {entry['network']:10} {words}   reported {entry['reported']}")
    content = {
        "fractions": FRACTIONS.tolist(),
        "decades": DECADES.tolist(),
        "other_decades": OTHERS,
        "tolerance": TOLERANCE,
        "table": table,
        "accuracies": {
            kind: {name: values.round(4).tolist() for name, values in found.items()}
            for kind, found in curves.items()
        },
    }
    command = f"python benchmarks/hyper/complexity.py --data-dir DATA --seeds {arguments.seeds}"
    command += " --lambdas" * arguments.lambdas
    _report.publish("hyper/complexity", command, content, draw(curves))


if __name__ == "__main__":
    main()
