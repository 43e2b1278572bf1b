"""Widths and depths: the paper's study of final losses on MNIST as the architecture changes.

    python benchmarks/paper/sweep.py --data-dir DATA      # resumable: type it again
    python benchmarks/paper/sweep.py --data-dir DATA --weights runs/mine      # goes to runs/paper

The optimizer that was trained on one layer of 20 sigmoid units, and Adam, RMSprop, SGD and NAG
with rates tuned on each architecture, after 100 steps; mean over 20 fresh problems.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import jax
from matplotlib import pyplot as plt

from l2ljax import evaluate, learned, plots, tasks

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

WIDTHS = (5, 10, 20, 40, 80)
DEPTHS = (1, 2, 3)
SHIPPED = "robust-mnist"


def cell(tx: Any, data: tasks.Dataset, width: int, depth: int) -> dict[str, Any]:
    """One architecture: final losses of the learned optimizer and of the best baseline."""
    start = time.perf_counter()
    four = evaluate.baselines(["SGD", "RMSprop", "Adam", "Nesterov"])
    comparison = evaluate.compare(
        {"learned": tx, **four},
        tasks.mlp_classifier(data, (width,) * depth, split="validation"),
        key=jax.random.key(1_000_000),
        problems=20,
        tuning_problems=8,
    )
    best = comparison.best_rival
    return {
        "width": width,
        "depth": depth,
        "ratio": best.ratio,
        "low": best.ratio_low,
        "high": best.ratio_high,
        "best": best.name,
        "seconds": time.perf_counter() - start,
        **{row.name: row.final for row in comparison.rows},
    }


def draw(cells: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Final losses against width, a colour for each depth."""
    _, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for depth, color in zip(DEPTHS, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        row = [c for c in cells if c["depth"] == depth]
        widths = [c["width"] for c in row]
        layers = f"{depth} layer{'s' * (depth > 1)}"
        ax.plot(widths, [c["learned"] for c in row], "o-", color=color, label=f"learned, {layers}")
        best = [c[c["best"]] for c in row]
        ax.plot(widths, best, "s--", color=color, mfc="white", label=f"best of four, {layers}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    losses = (0.2, 0.3, 0.5, 1.0)
    ax.set_yticks(losses, [str(loss) for loss in losses])
    ax.minorticks_off()
    ax.set_xlabel("sigmoid units a layer")
    ax.set_ylabel("final loss after 100 steps")
    ax.set_title("MNIST: trained on one layer of 20 units")
    ax.legend(frameon=False, ncols=2)
    plots.save(ax, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--weights", default=SHIPPED, help="name or folder; default: %(default)s")
    arguments = parser.parse_args()
    opt, phi, _ = learned.restore(arguments.weights)
    tx, mark = opt.bind(phi), _report.fingerprint(opt, phi)
    data = tasks.mnist(arguments.data_dir, validation=30_000)
    # An unfinished sweep is kept by the weights that it was begun with.
    partial = pathlib.Path("runs") / f"mnist-sweep-{mark}.json"
    cells = json.loads(partial.read_text()) if partial.exists() else []
    for depth in DEPTHS:
        for width in WIDTHS:
            if any((c["width"], c["depth"]) == (width, depth) for c in cells):
                continue
            cells.append(cell(tx, data, width, depth))
            print(f"{depth} x {width:2}: {cells[-1]['ratio']:.3f} against {cells[-1]['best']}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(cells))
    shipped = arguments.weights == SHIPPED
    command = "python benchmarks/paper/sweep.py --data-dir DATA"
    content = {
        "command": command if shipped else f"{command} --weights FOLDER",
        "weights": pathlib.Path(arguments.weights).resolve().name,
        "fingerprint": mark,
        "cells": cells,
    }
    path = _report.write(_report.paper_folder(shipped) / "mnist-sweep.json", content)
    draw(cells, path.with_suffix(".png"))
    partial.unlink()
    print(path)


if __name__ == "__main__":
    main()
