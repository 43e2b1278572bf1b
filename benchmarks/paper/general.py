"""`general` as it ships, untuned, against Adam with its rate tuned, on tasks it never saw.

    python benchmarks/paper/general.py --data-dir DATA             # resumable: type it again
    python benchmarks/paper/general.py --tasks iris wine --weights runs/general

The tasks are those of `l2ljax.suite`. Adam is tuned for each over 11 rates of four decades, on
other problems of the task; a best rate on the edge widens the grid. Both then run on the same 20
fresh problems. A task's ratio is general's final loss over Adam's, the mean of the losses after
the last 10 updates, mean over problems; its interval is a 95 % bootstrap over problems. General
*diverges* on a problem that it leaves at a loss no lower than the one it began with.

Each task that is done is kept in `runs/held-out`, by the weights that it was done with, and each
tuning of Adam, which knows of no weights, in `results/paper/tunings`; when all tasks are there,
they are written to `results/paper`, the lost ones too; those of other weights to `runs/paper`.
"""

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax import classic, evaluate, learned, meta, plots
from l2ljax.core import Task
from l2ljax.suite import SUITE, SuiteTask

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

FLOOR = 1.05
WINDOW = 10
AIM = 0.9
ADAM = evaluate.Tunable(classic.adam, np.geomspace(1e-4, 1.0, 11))
KEPT = pathlib.Path("runs") / "held-out"
TUNINGS = _report.RESULTS / "paper" / "tunings" / "general"
KEY = jax.random.key(2_000_000)
# Adam is tuned on other problems than it is compared on.
TUNING_KEY = jax.random.fold_in(KEY, 2**32 - 1)


def tuned_adam(name: str, held_out: SuiteTask, task: Task) -> tuple[evaluate.Tuning, float]:
    """Adam's tuning on a task, and the seconds that it took."""
    return _report.kept_tuning(
        TUNINGS / f"{name}.json",
        ADAM,
        task,
        key=TUNING_KEY,
        steps=held_out.steps,
        problems=held_out.tuning_problems,
        window=WINDOW,
    )


def measure(
    tx: optax.GradientTransformation, name: str, held_out: SuiteTask, data_dir: str | None
) -> dict[str, Any]:
    """One row of the table, as plain JSON values: what is not finite is None."""
    task = held_out.make(data_dir)
    tuning, seconds = tuned_adam(name, held_out, task)
    start = time.perf_counter()
    comparison = evaluate.compare(
        {"general": tx, "Adam": ADAM},
        task,
        key=KEY,
        steps=held_out.steps,
        problems=held_out.problems,
        window=WINDOW,
        tunings={"Adam": tuning},
    )
    general, adam = comparison.to_dict()["rows"]
    losses = comparison.curves["general"]
    # Written so that NaN counts.
    learns = meta.final_loss(jnp.asarray(losses), WINDOW) < losses[:, 0]
    params = jax.eval_shape(task.init, jax.random.key(0), ())
    return {
        "description": held_out.description,
        "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "steps": held_out.steps,
        "problems": held_out.problems,
        "start": float(losses[:, 0].mean()),
        "general": general["final"],
        "adam": adam["final"],
        "ratio": adam["ratio"],
        "low": adam["ratio_low"],
        "high": adam["ratio_high"],
        "rate": tuning.best["learning_rate"],
        "on_edge": tuning.on_edge,
        "diverged": int(held_out.problems - learns.sum()),
        "seconds": seconds + time.perf_counter() - start,
    }


def number(value: float | None) -> float:
    """JSON has no infinities; a ratio that is None was one."""
    return math.inf if value is None else value


def judge(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What all rows say together; the median of an even number is between the middle two."""
    ratios = [number(row["ratio"]) for row in rows.values()]
    median = float(np.median(ratios))
    return {
        "tasks": len(rows),
        "median_ratio": median if math.isfinite(median) else None,
        "won": sum(ratio < 1 for ratio in ratios),
        "diverged": [name for name, row in rows.items() if row["diverged"]],
        "floor": FLOOR,
        "aim": AIM,
    }


def line(name: str, row: Mapping[str, Any]) -> str:
    low, ratio, high = (number(row[key]) for key in ("low", "ratio", "high"))
    general, adam = number(row["general"]), number(row["adam"])
    notes = " (edge)" * row["on_edge"]
    if row["diverged"]:
        notes += f", general diverged on {row['diverged']} of {row['problems']}"
    return (
        f"{name:18} {ratio:7.3f} [{low:.3f}, {high:.3f}]  "
        f"general {general:.4g}, Adam {adam:.4g} at rate {row['rate']:.2g}{notes}"
    )


def say(verdict: Mapping[str, Any]) -> str:
    """One line: the median ratio, and whether that is enough."""
    median, diverged = number(verdict["median_ratio"]), verdict["diverged"]
    if diverged:
        outcome = f"falls short of the floor: diverges on {', '.join(diverged)}"
    else:
        outcome = _report.outcome(median, verdict["floor"], verdict["aim"])
    return (
        f"general / tuned Adam: median {median:.3f} over {verdict['tasks']} tasks, "
        f"lower on {verdict['won']}; {outcome}"
    )


def done(name: str, file: pathlib.Path) -> bool:
    """Whether a row is there, of as many problems as are asked for now."""
    return file.exists() and json.loads(file.read_text())["problems"] == SUITE[name].problems


def write(
    folder: pathlib.Path, rows: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Any]
) -> pathlib.Path:
    """The table and its figure, best ratio first."""
    content = {
        "command": "python benchmarks/paper/general.py --data-dir DATA",
        "weights": weights,
        "seconds": sum(row["seconds"] for row in rows.values()),
        "verdict": judge(rows),
        "rows": rows,
    }
    path = _report.write(folder / "general.json", content)
    order = sorted(rows, key=lambda name: number(rows[name]["ratio"]))
    axes = plots.ratios(
        order,
        [number(rows[name]["ratio"]) for name in order],
        [(number(rows[name]["low"]), number(rows[name]["high"])) for name in order],
    )
    axes.set_xlabel("final loss, general untuned / Adam tuned")
    plots.save(axes, path.with_suffix(".png"))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="general", help="name or folder; default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=SUITE, default=[*SUITE], metavar="TASK")
    parser.add_argument("--data-dir", help="folder with MNIST and CIFAR-10")
    parser.add_argument("--force", action="store_true", help="do again what is done")
    arguments = parser.parse_args(argv)
    try:
        opt, phi, card = learned.restore(arguments.weights)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    tx, mark = opt.bind(phi), _report.fingerprint(opt, phi)
    files = {name: KEPT / mark / f"{name}.json" for name in SUITE}
    pending = [name for name in arguments.tasks if arguments.force or not done(name, files[name])]
    lacking = [name for name in pending if SUITE[name].needs_data]
    if lacking and arguments.data_dir is None:
        parser.error(f"--data-dir is needed by {', '.join(lacking)}")
    for name in arguments.tasks:
        if name in pending:
            row = measure(tx, name, SUITE[name], arguments.data_dir)
            files[name].parent.mkdir(parents=True, exist_ok=True)
            files[name].write_text(json.dumps(row, indent=2, allow_nan=False) + "\n")
        print(line(name, json.loads(files[name].read_text())), flush=True)
    missing = [name for name, file in files.items() if not done(name, file)]
    if missing:
        print(f"not written: {', '.join(missing)} not done yet")
        return
    rows = {name: json.loads(file.read_text()) for name, file in files.items()}
    folder = _report.paper_folder(arguments.weights == "general")
    path = write(folder, rows, {"fingerprint": mark, "trained_on": card.get("trained_on")})
    print(f"{say(judge(rows))}\n{path}")


if __name__ == "__main__":
    main()
