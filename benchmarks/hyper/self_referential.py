"""A network that changes its own weights (Schmidhuber, 1993), on streams with an unknown gain.

    python benchmarks/hyper/self_referential.py

Targets are a·x with inputs x ~ U[0, 2] and a gain a ~ U[-1, 1] of each stream. The same network
is meta-trained with its modifying units and without them; the first is also run with them switched
off. Nothing but w(1) is learned: what happens to weights in a stream is the network's own doing.
"""

import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from l2ljax import Task, hyper, meta

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

HORIZON, STEPS, STREAMS = 20, 1500, 1000


def sample(key: jax.Array) -> dict[str, jax.Array]:
    gain, inputs = jax.random.split(key)
    inputs = jax.random.uniform(inputs, (HORIZON, 1), maxval=2.0)
    return {"inputs": inputs, "targets": jax.random.uniform(gain, minval=-1.0) * inputs}


TASK = Task(sample, init=lambda key, problem: (), loss=lambda params, problem, key: jnp.zeros(()))


def meta_train(modifying: bool) -> jax.Array:
    rate = optax.cosine_decay_schedule(1e-2, STEPS, 0.03)
    result = meta.train(
        hyper.self_referential(1, 1, modifying=modifying),
        TASK,
        key=jax.random.key(0),
        steps=STEPS,
        batch=32,
        meta_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        estimator=hyper.stream(),
        progress=True,
    )
    return result.phi


@jax.jit
def run(tx: optax.GradientTransformation, streams: Any) -> tuple[jax.Array, jax.Array]:
    """Errors, f[streams, steps], and the weight from input to output after each step."""

    def one(stream: Any) -> tuple[jax.Array, jax.Array]:
        outputs, states = hyper.run_stream(tx, stream["inputs"], stream["targets"])
        errors = jnp.sum((outputs - stream["targets"]) ** 2, axis=1) / 2
        return errors, states.weights[:, 0, 0]

    return jax.vmap(one)(streams)


def draw(curves: dict[str, np.ndarray], paths: np.ndarray, gains: np.ndarray) -> plt.Axes:
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    looks = [("black", "-"), ("#D55E00", "--"), ("#0072B2", "-.")]
    steps = np.arange(1, HORIZON + 1)
    for (name, losses), (color, style) in zip(curves.items(), looks, strict=True):
        left.plot(steps, losses.mean(axis=0), style, color=color, label=name)
    left.set(
        xlabel="step of a stream",
        ylabel=f"½ (d - o)², mean of {STREAMS} streams",
        yscale="log",
        xticks=(1, 5, 10, 15, 20),
    )
    left.legend(frameon=False, title="modifying units", loc="center right")
    chosen = np.argsort(gains)[np.linspace(0, len(gains) - 1, 7).astype(int)]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(chosen)))
    for stream, color in zip(chosen, colors, strict=True):
        right.plot(steps, paths[stream], color=color, marker=".", label=f"{gains[stream]:+.2f}")
    right.set(
        xlabel="step of a stream",
        ylabel="weight from input to output",
        xticks=(1, 5, 10, 15, 20),
    )
    right.legend(frameon=False, title="gain a", bbox_to_anchor=(1, 1), loc="upper left")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return left


def main() -> None:
    streams = jax.vmap(sample)(jax.random.split(jax.random.key(1), STREAMS))
    gains = np.asarray(streams["targets"][:, 0, 0] / streams["inputs"][:, 0, 0])
    start = time.process_time()
    phi, without = meta_train(True), meta_train(False)
    seconds = time.process_time() - start
    on, off = hyper.self_referential(1, 1), hyper.self_referential(1, 1, modifying=False)
    runs = {
        "on": run(on.bind(phi), streams),
        "off, trained without": run(off.bind(without), streams),
        "switched off": run(off.bind(phi), streams),
    }
    curves = {name: np.asarray(errors) for name, (errors, _) in runs.items()}
    paths = np.asarray(runs["on"][1])
    content = {
        "streams": STREAMS,
        "meta_steps": STEPS,
        "cpu_seconds_of_both_trainings": seconds,
        "sum_of_losses": {name: float(rows.sum(axis=1).mean()) for name, rows in curves.items()},
        "last_loss": {name: float(rows[:, -1].mean()) for name, rows in curves.items()},
        "correlation_of_the_last_weight_with_the_gain": float(
            np.corrcoef(paths[:, -1], gains)[0, 1]
        ),
        "curves": {name: rows.mean(axis=0).tolist() for name, rows in curves.items()},
    }
    command = "python benchmarks/hyper/self_referential.py"
    _report.publish("hyper/self_referential", command, content, draw(curves, paths, gains))
    for name, loss in content["last_loss"].items():
        print(f"modifying units {name}: last loss {loss:.2g}")


if __name__ == "__main__":
    main()
