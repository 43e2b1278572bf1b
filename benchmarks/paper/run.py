"""The experiments of 'Learning to learn by gradient descent by gradient descent', one a panel.

    python benchmarks/paper/run.py mnist-relu --data-dir DATA
    python benchmarks/paper/run.py all --data-dir DATA       # those without a result yet
    python benchmarks/paper/run.py table                     # what the results say

Weights are those that ship, or `--weights NAME=FOLDER`: results then go to runs/paper, and those of
what ships stay.

Every baseline is tuned on other problems of the panel's task, over 17 rates (11 for CIFAR and art)
of four decades or more; a best rate on the edge widens the grid. The paper's four (SGD, RMSprop,
Adam, NAG) are what a ratio is taken of; NAG and momentum with tuned decay, AdamW and AMSGrad stand
beside them, but not for CIFAR and art: without them a panel of CIFAR takes up to an hour.
Final loss: the mean of the losses after the last 10 updates (quadratics: after the last), mean over
fresh problems; intervals are 95 % bootstraps over problems.

Each tuning that is done is kept in `results/paper/tunings` and not done again: a panel that was
interrupted, or whose weights are new, goes on from there. Remove it to tune again.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from panels import PANELS, Panel
from tqdm import tqdm

from l2ljax import classic, evaluate, learned, plots
from l2ljax.core import Task

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

RESULTS = _report.RESULTS / "paper"
TUNINGS = RESULTS / "tunings"
FOUR = ("SGD", "RMSprop", "Adam", "NAG")
DECAYS = (0.8, 0.9, 0.95, 0.99)
KEY = jax.random.key(1_000_000)
# Baselines are tuned on other problems than they are compared on.
TUNING_KEY = jax.random.fold_in(KEY, 2**32 - 1)


def baselines(panel: Panel) -> dict[str, evaluate.Tunable]:
    """The paper's four, then the stronger ones."""
    if panel.costly:
        slow, fast = np.geomspace(1e-3, 10.0, 11), np.geomspace(1e-4, 1.0, 11)
        return {
            "SGD": evaluate.Tunable(classic.gradient_descent, slow),
            "RMSprop": evaluate.Tunable(classic.rmsprop, fast),
            "Adam": evaluate.Tunable(classic.adam, fast),
            "NAG": evaluate.Tunable(classic.nesterov, slow),
        }
    plain = evaluate.baselines(["SGD", "RMSprop", "Adam", "Nesterov"])
    rates = {name: tunable.grid for name, tunable in plain.items()}
    slow = {"learning_rate": np.geomspace(1e-4, 1.0, 17), "decay": DECAYS}
    return {
        **{name: plain[name] for name in ("SGD", "RMSprop", "Adam")},
        "NAG": plain["Nesterov"],
        "NAG, tuned decay": evaluate.Tunable(classic.nesterov, slow),
        "momentum, tuned decay": evaluate.Tunable(classic.momentum, slow),
        "AdamW": evaluate.Tunable(classic.adamw, rates["Adam"]),
        "AMSGrad": evaluate.Tunable(classic.amsgrad, rates["Adam"]),
    }


def tune(name: str, panel: Panel, task: Task) -> tuple[dict[str, evaluate.Tuning], float]:
    """The tunings of a panel's baselines, and the seconds that they took."""
    tunings, total = {}, 0.0
    for baseline, tunable in tqdm(baselines(panel).items(), desc="tuning", unit="optimizer"):
        tunings[baseline], seconds = _report.kept_tuning(
            TUNINGS / name / f"{baseline}.json",
            tunable,
            task,
            key=TUNING_KEY,
            steps=panel.steps,
            problems=panel.tuning_problems,
            window=panel.window,
            at_once=1 if panel.costly else None,
        )
        total += seconds
    return tunings, total


def run(name: str, panel: Panel, data_dir: str | None, folders: dict[str, str]) -> None:
    """Tunes, compares, and writes `NAME.json` and `NAME.png`."""
    optimizers: dict[str, Any] = {
        weights: learned.load(folders.get(weights, weights)) for weights in panel.weights
    }
    task = panel.task(data_dir)
    tunings, tuning_seconds = tune(name, panel, task)
    start = time.perf_counter()
    comparison = evaluate.compare(
        {**optimizers, **baselines(panel)},
        task,
        key=KEY,
        steps=panel.steps,
        problems=panel.problems,
        window=panel.window,
        tunings=tunings,
        progress=True,
    )
    print(f"\n{panel.title}\n\n{comparison}\n")
    best = min(
        (row for row in comparison.rows if row.name in FOUR),
        key=lambda row: (row.diverged > 0, row.final),
    )
    first = comparison.rows[0]
    verdict = {
        "learned": first.name,
        "best_of_four": best.name,
        "final": first.final,
        "baseline": best.final,
        "ratio": best.ratio,
        "low": best.ratio_low,
        "high": best.ratio_high,
        "paper": panel.paper,
        "floor": panel.floor,
        "aim": panel.aim,
        "diverged": first.diverged,
        "against_all": max(row.ratio for row in comparison.rows if row.setting is not None),
    }
    content = {
        "command": f"python benchmarks/paper/run.py {name}"
        + " --weights" * bool(folders)
        + "".join(f" {weights}={folder}" for weights, folder in folders.items()),
        "seconds": tuning_seconds + time.perf_counter() - start,
        "verdict": verdict,
        **comparison.to_dict(),
    }
    path = _report.write(_report.paper_folder(not folders) / f"{name}.json", content)
    axes = plots.curves(comparison)
    axes.set_title(panel.title)
    plots.save(axes, path.with_suffix(".png"))
    print(f"{say(name, verdict)}\n{path}")


def say(name: str, verdict: dict[str, Any]) -> str:
    """One line: the paper's ratio, ours, and whether that is enough."""
    ratio = verdict["ratio"]
    if verdict["diverged"]:
        outcome = f"falls short: diverges on {verdict['diverged']} problems"
    else:
        outcome = _report.outcome(ratio, verdict["floor"], verdict["aim"])
    paper = "-" if verdict["paper"] is None else f"{verdict['paper']:.2f}"
    return (
        f"{name}: paper {paper}, here {ratio:.3f} [{verdict['low']:.3f}, {verdict['high']:.3f}] "
        f"({verdict['learned']} {verdict['final']:.4g}, {verdict['best_of_four']} "
        f"{verdict['baseline']:.4g}); {outcome}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panel", choices=[*PANELS, "all", "table"])
    parser.add_argument("--data-dir", help="folder with MNIST and CIFAR-10")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    folders = dict(word.split("=", 1) for word in arguments.weights)
    if arguments.panel == "table":
        for name in PANELS:
            if (RESULTS / f"{name}.json").exists():
                print(say(name, json.loads((RESULTS / f"{name}.json").read_text())["verdict"]))
        return
    for name, panel in PANELS.items():
        missing = not (RESULTS / f"{name}.json").exists()
        if name == arguments.panel or (arguments.panel == "all" and missing):
            run(name, panel, arguments.data_dir, folders)


if __name__ == "__main__":
    main()
