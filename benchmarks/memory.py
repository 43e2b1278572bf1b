"""What a meta-gradient needs in memory, against the horizon.

    python benchmarks/memory.py            # from the compiled programs: minutes
    python benchmarks/memory.py --run      # and 10,000 steps of `full`, run, with their peak

Momentum has a rate and a decay for each step (`learned.reversible_momentum`, γ = 0.9), on an MLP
784-25-10 with 19,885 params. *scan + grad* is reverse mode through a plain `jax.lax.scan`;
`truncated` over the whole episode keeps every state and computes the update again; `full` keeps √T
of them; `reversible` keeps none. LSTM is the paper's (2x20), on an MLP 784-20-10 with 15,910.
Bytes are the compiler's count of temporary buffers (`memory_analysis().temp_size_in_bytes`); the
peak is the process's, JAX and data set included.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import _data
import _report
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import l2ljax as l2l
from l2ljax import meta

DECAY = 0.9
HORIZONS = (64, 256, 1024, 4096)
LONG = 10_000
KEY = jax.random.key(0)


def temporary(function: Callable[..., Any], *args: Any) -> int:
    """Bytes of the temporary buffers of a compiled program."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def estimator_bytes(
    factory: meta.EstimatorFactory, opt: l2l.LearnedOptimizer, task: l2l.Task
) -> int:
    estimator, phi = factory(opt, task), jax.eval_shape(opt.init, KEY)
    return temporary(estimator.estimate, phi, jax.eval_shape(estimator.init, KEY, phi), KEY)


def naive_bytes(opt: l2l.LearnedOptimizer, task: l2l.Task, horizon: int) -> int:
    """Reverse mode through a plain scan."""

    def meta_loss(phi: Any, key: jax.Array) -> jax.Array:
        tx, problem = opt.bind(phi), task.sample(key)
        params = task.init(key, problem)

        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            at = jax.random.fold_in(key, t)
            loss, gradient = jax.value_and_grad(task.loss)(params, problem, at)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        _, losses = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(horizon))
        return losses.sum()

    return temporary(jax.grad(meta_loss), jax.eval_shape(opt.init, KEY), KEY)


def momentum_bytes(task: l2l.Task, horizon: int) -> dict[str, int]:
    opt = l2l.learned.reversible_momentum(horizon=horizon, decay=DECAY)
    whole = meta.truncated(horizon=horizon, truncation=horizon, second_derivatives=True)
    return {
        "scan + grad": naive_bytes(opt, task, horizon),
        "truncated": estimator_bytes(whole, opt, task),
        "full": estimator_bytes(meta.full(horizon=horizon), opt, task),
        "reversible": estimator_bytes(meta.reversible(horizon=horizon, min_decay=DECAY), opt, task),
    }


def run_long(opt: l2l.LearnedOptimizer, task: l2l.Task) -> dict[str, float]:
    """One gradient of `full` over 10,000 steps: seconds, and the peak of the process."""
    estimator, phi = meta.full(horizon=LONG)(opt, task), opt.init(KEY)
    start = time.perf_counter()
    estimate, _ = jax.jit(estimator.estimate)(phi, estimator.init(KEY, phi), KEY)
    norm = float(optax.tree.norm(estimate.grad))
    return {
        "seconds": time.perf_counter() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "grad_norm_is_finite": bool(jnp.isfinite(norm)),
    }


def draw(momentum: dict[int, dict[str, int]], lstm: dict[int, int]) -> plt.Axes:
    axes = plt.figure(figsize=(7, 4.5)).add_subplot()
    for name in next(iter(momentum.values())):
        sizes = [row[name] / 2**20 for row in momentum.values()]
        axes.plot([*momentum], sizes, marker="o", label=f"momentum, {name}")
    sizes = [size / 2**20 for size in lstm.values()]
    axes.plot([*lstm], sizes, marker="s", color="black", label="LSTM, full")
    axes.set(xscale="log", yscale="log", xlabel="horizon T", ylabel="temporary memory, MiB")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST; default: random images")
    parser.add_argument("--run", action="store_true", help="also run 10,000 steps of full")
    arguments = parser.parse_args()
    data = _data.mnist(arguments.data_dir)
    wide = l2l.tasks.mlp_classifier(data, (25,), batch_size=128)
    momentum = {horizon: momentum_bytes(wide, horizon) for horizon in HORIZONS}
    for horizon, row in momentum.items():
        shown = ", ".join(f"{name} {size / 2**20:.2f}" for name, size in row.items())
        print(f"T = {horizon}, MiB: {shown}", flush=True)
    opt, task = l2l.learned.lstm(), l2l.tasks.mlp_classifier(data)
    lstm = {
        horizon: estimator_bytes(meta.full(horizon=horizon), opt, task)
        for horizon in (100, 1000, LONG)
    }
    print("LSTM, full, MiB:", {horizon: round(size / 2**20, 1) for horizon, size in lstm.items()})
    content: dict[str, Any] = {
        "momentum_bytes": momentum,
        "reversible_over_naive": {
            horizon: row["reversible"] / row["scan + grad"] for horizon, row in momentum.items()
        },
        "lstm_full_bytes": lstm,
    }
    if arguments.run:
        content["lstm_full_run"] = run_long(opt, task)
        print(content["lstm_full_run"])
    command = "python benchmarks/memory.py" + " --run" * arguments.run
    _report.publish("memory", command, content, draw(momentum, lstm))


if __name__ == "__main__":
    main()
