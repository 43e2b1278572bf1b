"""One job, five ways: Adam's rate and both decays for the digits, by search and by hypergradients.

    python benchmarks/hyper/tuning.py      # about three minutes on one core

What is tuned is the validation loss of an MLP after 100 steps, the mean of two starts. Searches
have 64 trials, four at once. The hypergradient (`learned.hyperparameters`, `meta.full`) goes down
from Adam's defaults; RMAD (`learned.reversible_momentum`, `meta.reversible`) from momentum's, rate
0.1 and decay 0.9, and learns a rate and a decay for each step. A meta-step of them sees two fresh
starts, and counts as one evaluation: what it costs more shows in seconds. The loss of each is that
of the best so far. Everything is compiled before the clock starts; what that took is in the table
too. At the end the best of each are measured on 64 fresh starts.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import _digits
import jax
import numpy as np
import optax
from matplotlib import pyplot as plt

from l2ljax import hyper, learned, meta

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

EVALUATIONS, AT_ONCE, FRESH = 64, 4, 64
KEY, FRESH_KEY = jax.random.key(0), jax.random.key(9)
STYLES = {
    "grid": ("#999999", "-"),
    "random": ("#E69F00", "-"),
    "Bayesian": ("#0072B2", "-"),
    "hypergradient": ("#D55E00", "--"),
    "RMAD, momentum": ("#009E73", "-."),
}


def search(method: str, objective: Any, key: jax.Array) -> tuple[np.ndarray, Any]:
    """The best validation loss after each evaluation, and the settings."""
    result = hyper.search(
        objective, _digits.SPACE, key=key, method=method, trials=EVALUATIONS, at_once=AT_ONCE
    )
    return result.best_so_far, result.best


def descend(
    opt: Any, estimator: Any, rate: float, objective: Any, key: jax.Array
) -> tuple[Callable[[], Any], Callable[[list[Any]], np.ndarray]]:
    """A function that makes all φ, and one that gives their validation losses."""
    task = dataclasses.replace(_digits.train(), objective=_digits.validation().loss)
    step, first = meta.make_step(
        opt,
        task,
        key=key,
        batch=_digits.PROBLEMS,
        meta_optimizer=optax.adam(rate),
        estimator=estimator,
    )

    def run() -> list[Any]:
        state, phis = first, []
        for i in range(EVALUATIONS):
            state, _ = step(state, jax.random.fold_in(key, i))
            phis.append(state.phi)
        return jax.block_until_ready(phis)

    measure = jax.jit(lambda phi: objective({"phi": phi}, key))
    return run, lambda phis: np.array([float(measure(phi)) for phi in phis])


def of_phi(opt: Any, **settings: Any) -> Any:
    """Validation loss of a learned optimizer by its φ."""
    return hyper.objective(
        lambda phi: opt.bind(phi),
        _digits.train(),
        steps=_digits.STEPS,
        **{"problems": _digits.PROBLEMS, "validation": _digits.validation()} | settings,
    )


def clock(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def on_fresh_starts(objective: Callable[..., Any], settings: dict[str, Any]) -> dict[str, float]:
    """Losses that nothing was tuned on."""
    found = {}
    for split in ("validation", "test"):
        loss = objective(validation=_digits.validation(split=split), problems=FRESH)
        found[f"fresh_{split}"] = float(jax.jit(loss)(settings, FRESH_KEY))
    return found


def adam_objective(**settings: Any) -> Any:
    return hyper.objective(_digits.adam, _digits.train(), steps=_digits.STEPS, **settings)


def main() -> None:
    rows: dict[str, dict[str, Any]] = {}
    objective = _digits.adam_objective()
    for name, method in [("grid", "grid"), ("random", "random"), ("Bayesian", "bayesian")]:
        _, first = clock(lambda method=method: search(method, objective, KEY))
        (losses, best), seconds = clock(lambda method=method: search(method, objective, KEY))
        fresh = on_fresh_starts(adam_objective, best)
        row = {"losses": losses.tolist(), "seconds": seconds, "compile_seconds": first - seconds}
        rows[name] = row | {"settings": best} | fresh

    weights = meta.final_weights(_digits.STEPS)
    adam = learned.hyperparameters("adam", learning_rate=1e-3, b1=0.9, b2=0.999)
    momentum = learned.reversible_momentum(horizon=_digits.STEPS, learning_rate=0.1, decay=0.9)
    for name, opt, estimator, rate in [
        ("hypergradient", adam, meta.full(horizon=_digits.STEPS, step_weights=weights), 0.2),
        (
            "RMAD, momentum",
            momentum,
            meta.reversible(horizon=_digits.STEPS, step_weights=weights),
            # At 0.2 losses rise to hundreds after 40 meta-steps.
            0.05,
        ),
    ]:
        objective = _digits.on_the_same_problems(of_phi(opt))
        run, measure = descend(opt, estimator, rate, objective, KEY)
        _, first = clock(run)
        phis, seconds = clock(run)
        losses = measure(phis)
        best = phis[int(np.argmin(losses))]
        losses = np.minimum.accumulate(losses)
        fresh = on_fresh_starts(lambda opt=opt, **settings: of_phi(opt, **settings), {"phi": best})
        row = {"losses": losses.tolist(), "seconds": seconds, "compile_seconds": first - seconds}
        values = jax.tree.map(lambda x: np.asarray(x).tolist(), best)
        rows[name] = row | {"phi": values} | fresh

    header = ["", "8", "16", "32", "64", "fresh", "test", "s", "compile s"]
    print("validation loss after so many evaluations, and on fresh starts")
    print(" ".join(f"{cell:>14}" for cell in header))
    for name, row in rows.items():
        cells = [row["losses"][n - 1] for n in (8, 16, 32)] + [row["losses"][-1]]
        cells += [row[key] for key in ("fresh_validation", "fresh_test")]
        cells += [row["seconds"], row["compile_seconds"]]
        print(" ".join([f"{name:>14}", *(f"{cell:14.3f}" for cell in cells)]))
    command = "python benchmarks/hyper/tuning.py"
    _report.publish("hyper/tuning", command, {"rows": rows}, draw(rows))


def draw(rows: dict[str, dict[str, Any]]) -> plt.Axes:
    """Validation loss against evaluations, and against seconds."""
    _, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for name, row in rows.items():
        losses = np.array(row["losses"])
        n = np.arange(1, len(losses) + 1)
        color, line = STYLES[name]
        axes[0].plot(n, losses, line, color=color, linewidth=1.8, label=name)
        axes[1].plot(n * row["seconds"] / len(n), losses, line, color=color, linewidth=1.8)
    axes[0].set(yscale="log", xscale="log", ylabel="validation loss", xlabel="evaluations")
    axes[0].set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes[1].set(xscale="log", xlabel="seconds, compiled before")
    axes[0].set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axes[0].tick_params(which="minor", left=False, bottom=False)
    axes[1].xaxis.set_major_formatter("{x:g}")
    for ax in axes:
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return axes[0]


if __name__ == "__main__":
    main()
