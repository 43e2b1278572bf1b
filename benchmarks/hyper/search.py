"""Grid, random, quasi-random and Bayesian search: Adam on the digits, and the model's structure.

    python benchmarks/hyper/search.py                                 # two minutes on one core
    python benchmarks/hyper/search.py expected-best --searches 10     # one picture, smaller

Three pictures, of validation losses after 100 steps of an MLP on the digits:

- *Low effective dimension* (Bergstra and Bengio, 2012, figure 1): of Adam's rate and ε only the
  rate matters. Nine trials of a grid have three rates, nine random ones have nine. Both are drawn
  10,000 times on a measured surface, in a box of rates of four decades at a random place: where a
  grid lies is luck, too.
- *The expected best of n trials* of Adam's rate and decays: of random search the exact formula, of
  the others the mean and the middle 95 % of 32 searches; of a grid the one that n allows.
- *A categorical space*: hidden layers, activation and rate, one search of 32 trials a method: an
  example, not a comparison.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import _digits
import jax
import numpy as np
from matplotlib import pyplot as plt

from l2ljax import classic, hyper

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

COLORS = {
    "grid": "#999999",
    "random": "#E69F00",
    "quasi-random": "#009E73",
    "Bayesian": "#0072B2",
}
TRIALS, RANDOM, AT_ONCE = 64, 512, 4
DRAWS = 10_000
SURFACE = {"learning_rate": hyper.log_uniform(1e-5, 10), "eps": hyper.log_uniform(1e-10, 1e-4)}
POINTS = {"learning_rate": 97, "eps": 9}
DECADES = 4
STRUCTURE = {
    "hidden": hyper.choice((10,), (40,), (20, 20)),
    "activation": hyper.choice("sigmoid", "tanh", "relu"),
    "learning_rate": hyper.log_uniform(1e-3, 1.0),
}


def low_dimension(searches: int) -> dict[str, Any]:
    """The best of nine, of grids and of random points on one surface."""
    del searches
    objective = _digits.on_the_same_problems(
        hyper.objective(
            classic.adam,
            _digits.train(),
            steps=_digits.STEPS,
            problems=_digits.PROBLEMS,
            validation=_digits.validation(),
        )
    )
    key, method = jax.random.key(0), hyper.grid(POINTS)
    result = hyper.search(objective, SURFACE, key=key, method=method, trials=2000, at_once=32)
    surface = result.values.reshape(*POINTS.values())
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 6 - DECADES, (DRAWS, 1))

    def best(rates: np.ndarray, eps: np.ndarray) -> np.ndarray:
        # To the nearest measured point: a sixteenth of a decade, and three quarters of one.
        i = np.round((start + DECADES * rates) * 16).astype(int)
        return surface[i, np.round(eps * 8).astype(int)].min(axis=1)

    places = np.array([0.0, 0.5, 1.0])
    grid = best(np.repeat(places, 3)[None], np.tile(places, 3)[None])
    random = best(rng.uniform(size=(DRAWS, 9)), rng.uniform(size=(DRAWS, 9)))
    effect = {
        name: float(np.std(np.log(surface.mean(axis=1 - i)))) for i, name in enumerate(POINTS)
    }
    return {
        "surface": surface.tolist(),
        "std_of_log_loss_along": effect,
        "grid": {"mean": grid.mean(), "quartiles": np.quantile(grid, [0.25, 0.75]).tolist()},
        "random": {"mean": random.mean(), "quartiles": np.quantile(random, [0.25, 0.75]).tolist()},
        "grid_over_random": grid.mean() / random.mean(),
    }


def expected_best(searches: int) -> dict[str, Any]:
    """Validation loss against the number of trials, for four methods."""
    objective, space = _digits.adam_objective(), _digits.SPACE

    def curve(method: str, seed: int) -> dict[str, Any]:
        begin = time.perf_counter()
        runs = np.stack(
            [
                hyper.search(
                    objective,
                    space,
                    key=jax.random.key(seed + i),
                    method=method,
                    trials=TRIALS,
                    at_once=AT_ONCE,
                ).best_so_far
                for i in range(searches)
            ]
        )
        low, high = np.quantile(runs, [0.025, 0.975], axis=0)
        return {
            "mean": runs.mean(axis=0).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "seconds_a_search": (time.perf_counter() - begin) / searches,
        }

    random = hyper.search(objective, space, key=jax.random.key(0), trials=RANDOM, at_once=AT_ONCE)
    expected = random.expected_best()
    grids = {}
    for each in range(2, 5):
        result = hyper.search(
            objective,
            space,
            key=jax.random.key(0),
            method=hyper.grid(each),
            at_once=AT_ONCE,
            trials=64,
        )
        grids[each**3] = result.value
    return {
        "grid": grids,
        "random": {name: x[:TRIALS].tolist() for name, x in expected._asdict().items()},
        "quasi-random": curve("quasi_random", 100),
        "Bayesian": curve("bayesian", 200),
        "searches": searches,
        "best_of_all_random": {"trials": RANDOM, "value": random.value, "settings": random.best},
    }


def structure(searches: int) -> dict[str, Any]:
    """Hidden layers, activation and rate."""
    del searches
    # Many programs that run for less than a second: to optimize them takes twenty times as long.
    jax.config.update("jax_disable_most_optimizations", True)
    objective = _digits.on_the_same_problems(
        hyper.objective(
            classic.adam,
            _digits.family("train", _digits.BATCH),
            steps=_digits.STEPS,
            problems=_digits.PROBLEMS,
            validation=_digits.family("validation", None),
            task_settings=["hidden", "activation"],
        )
    )
    rows = {}
    for name in ("random", "bayesian"):
        result = hyper.search(
            objective, STRUCTURE, key=jax.random.key(3), method=name, trials=32, at_once=8
        )
        columns = {setting: column.tolist() for setting, column in result.trials.items()}
        rows[name] = {
            "trials": columns,
            "values": result.values.tolist(),
            "best": result.best,
            "value": result.value,
        }
    return rows


def draw_low_dimension(found: dict[str, Any]) -> plt.Axes:
    """One box: where nine trials of each look, and what they see of the rate."""
    surface = np.array(found["surface"])
    rates, eps = np.geomspace(1e-5, 10, POINTS["learning_rate"]), np.geomspace(1e-10, 1e-4, 9)
    low, high = 10**-4.5, 10**-0.5
    places = np.geomspace(low, high, 3)
    rng = np.random.default_rng(3)
    trials = {
        "grid": (np.repeat(places, 3), np.tile([1e-10, 1e-7, 1e-4], 3)),
        "random": (low * (high / low) ** rng.uniform(size=9), 10 ** rng.uniform(-10, -4, 9)),
    }
    _, axes = plt.subplots(
        2, 2, figsize=(8, 5), layout="constrained", sharex=True, sharey="row", height_ratios=[1, 2]
    )
    level = np.log10(surface.T)
    for (name, (x, y)), (above, below) in zip(trials.items(), axes.T, strict=True):
        profile = np.exp(np.log(surface).mean(axis=1))
        above.plot(rates, profile, color="black", linewidth=1.5)
        seen = np.interp(np.log(x), np.log(rates), profile)
        above.plot(
            x, seen, "o", color=COLORS[name], markeredgecolor="black", clip_on=False, zorder=5
        )
        above.vlines(x, 0.05, seen, color=COLORS[name], linewidth=0.8)
        distinct = len(np.unique(x))
        above.set_title(f"{name}: nine trials, {distinct} rates")
        mesh = below.pcolormesh(
            rates, eps, level, cmap="viridis_r", shading="nearest", vmin=-1.05, vmax=0.55
        )
        below.plot(x, y, "o", color=COLORS[name], markeredgecolor="white", clip_on=False, zorder=5)
        above.set(xscale="log", yscale="log", ylim=(0.05, 8))
        below.set(xscale="log", yscale="log", xlim=(low, high), ylim=(1e-10, 1e-4))
        below.set_xlabel("learning rate")
        above.spines[["top", "right"]].set_visible(False)
        above.set_yticks([0.1, 1], ["0.1", "1"])
    axes[0, 0].set_ylabel("validation loss")
    axes[1, 0].set_ylabel("Adam's ε")
    bar = plt.colorbar(mesh, ax=axes[1], label="validation loss")
    ticks = [0.1, 0.2, 0.5, 1, 2]
    bar.set_ticks(np.log10(ticks), labels=[f"{tick:g}" for tick in ticks])
    return axes[1, 0]


def draw_expected_best(found: dict[str, Any]) -> plt.Axes:
    _, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    n = np.arange(1, TRIALS + 1)
    for name in ("random", "quasi-random", "Bayesian"):
        curve, color = found[name], COLORS[name]
        of = "exact" if name == "random" else f"{found['searches']} searches"
        ax.plot(n, curve["mean"], color=color, linewidth=1.8, label=f"{name} ({of})")
        ax.fill_between(n, curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
    grids = found["grid"]
    ax.plot([*map(int, grids)], [*grids.values()], "s", color="black", label="grid of n points")
    ax.set(xscale="log", yscale="log", xlabel="trials n", ylabel="best validation loss")
    ax.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    # A mean of few trials is that of the worst ones, far above.
    ax.set_ylim(0.075, 5)
    ax.minorticks_off()
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, title="mean and middle 95 %")
    return ax


def draw_structure(found: dict[str, Any]) -> plt.Axes:
    _, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", sharex=True, sharey=True)
    colors = {"sigmoid": "#D55E00", "tanh": "#009E73", "relu": "#0072B2"}
    markers = {(10,): "o", (40,): "s", (20, 20): "^"}
    for ax, (name, row) in zip(axes, found.items(), strict=True):
        columns = row["trials"]
        rows = zip(*columns.values(), row["values"], strict=True)
        for hidden, activation, rate, value in rows:
            ax.plot(
                rate,
                value,
                markers[tuple(hidden)],
                color=colors[activation],
                markersize=6,
                alpha=0.8,
            )
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        best = row["best"]
        layers = "-".join(map(str, best["hidden"]))
        ax.set_title(f"{name}: {row['value']:.3f} by {layers}, {best['activation']}")
        ax.grid(alpha=0.25, which="both", linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("validation loss")
    for activation, color in colors.items():
        axes[0].plot([], [], "o", color=color, label=activation)
    for hidden, marker in markers.items():
        layers = "-".join(map(str, hidden))
        axes[0].plot([], [], marker, color="black", mfc="white", label=f"hidden {layers}")
    axes[0].get_figure().legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    return axes[0]


def report_low_dimension(found: dict[str, Any]) -> str:
    return f"best of nine trials, grid over random: {found['grid_over_random']:.3f}"


def report_expected_best(found: dict[str, Any]) -> str:
    lines = [f"best of so many trials by a grid: {found['grid']}"]
    for name in ("random", "quasi-random", "Bayesian"):
        means = found[name]["mean"]
        shown = ", ".join(f"{n}: {means[n - 1]:.4f}" for n in (8, 16, 32, 64))
        lines.append(f"{name}, on average: {shown}")
    return "\n".join(lines)


def report_structure(found: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {row['value']:.4f} at {row['best']}" for name, row in found.items())


PARTS = {
    "low-dimension": (low_dimension, report_low_dimension, draw_low_dimension),
    "expected-best": (expected_best, report_expected_best, draw_expected_best),
    "structure": (structure, report_structure, draw_structure),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {[*PARTS]}; default: all")
    parser.add_argument("--searches", type=int, default=32, help="of the expected best")
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        run, report, draw = PARTS[name]
        begin = time.process_time()
        found = run(arguments.searches)
        command = f"python benchmarks/hyper/search.py {name}"
        if name == "expected-best":
            command += f" --searches {arguments.searches}"
        print(report(found))
        content = {"cpu_seconds": time.process_time() - begin, **found}
        _report.publish(f"hyper/search-{name}", command, content, draw(found))


if __name__ == "__main__":
    main()
