"""What it costs in quality to hold a learned optimizer's state in bfloat16.

    python benchmarks/state_dtype.py --data-dir DATA      # resumable: type it again

The weights that ship, with `state_dtype="bfloat16"` and without, on the same fresh problems: the
ratio of final losses with its 95 % interval (bootstrap over problems), and the bytes of state for
each coordinate. Weights were trained with a state in float32.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import _report
import jax

from l2ljax import evaluate, learned, tasks
from l2ljax.core import Task

KEPT = pathlib.Path("runs/state_dtype")
KEY = jax.random.key(2_000_000)


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: weights by name, a task, and how long and how often it runs."""

    weights: str
    title: str
    task: Task
    steps: int
    problems: int
    window: int = 10


def cases(data_dir: str) -> dict[str, Case]:
    mnist = tasks.load("mnist", data_dir).evaluation
    digits = tasks.mlp_classifier(tasks.digits(), (32,), "relu", split="test")
    return {
        "quadratics": Case("lstm-quadratic", "quadratics", tasks.quadratic(), 100, 1024, window=1),
        "mnist": Case("robust-mnist", "MNIST, 20 sigmoid units", mnist, 100, 32),
        "mnist-2000": Case("robust-mnist", "MNIST, 20 sigmoid units", mnist, 2000, 4),
        "digits": Case("general", "digits, 32 ReLU units", digits, 200, 64),
        "digits-2000": Case("general", "digits, 32 ReLU units", digits, 2000, 16),
    }


def bytes_a_coordinate(weights: str, **settings: Any) -> float:
    size = 10_000
    tx = learned.load(weights, **settings)
    state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((size,), "float32"))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / size


def measure(case: Case) -> dict[str, Any]:
    half = learned.load(case.weights, state_dtype="bfloat16")
    comparison = evaluate.compare(
        {"bfloat16": half, "float32": learned.load(case.weights)},
        case.task,
        key=KEY,
        steps=case.steps,
        problems=case.problems,
        window=case.window,
    )
    row, other = comparison.rows
    return {
        "weights": case.weights,
        "task": case.title,
        "steps": case.steps,
        "problems": case.problems,
        "bfloat16": row.final,
        "float32": other.final,
        "ratio": other.ratio,
        "low": other.ratio_low,
        "high": other.ratio_high,
        "diverged": row.diverged,
        "bytes_a_coordinate": {
            "bfloat16": bytes_a_coordinate(case.weights, state_dtype="bfloat16"),
            "float32": bytes_a_coordinate(case.weights),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with MNIST")
    arguments = parser.parse_args()
    rows = {}
    for name, case in cases(arguments.data_dir).items():
        opt, phi, _ = learned.restore(case.weights)
        mark = _report.fingerprint(opt, phi)
        settings = {"weights": case.weights, "fingerprint": mark, "problems": case.problems}
        file = KEPT / mark / f"{name}.json"
        rows[name] = _report.kept(file, settings, lambda case=case: measure(case))
        row = rows[name]
        size = row["bytes_a_coordinate"]
        print(
            f"{row['weights']} on {row['task']}, {row['steps']} steps: {row['ratio']:.4f} "
            f"[{row['low']:.4f}, {row['high']:.4f}] times the loss with float32 "
            f"({row['bfloat16']:.4g}, {row['float32']:.4g}); "
            f"{size['bfloat16']:.0f} bytes a coordinate instead of {size['float32']:.0f}"
        )
    command = "python benchmarks/state_dtype.py --data-dir DATA"
    print(_report.write("state_dtype.json", {"command": command, "rows": rows}))


if __name__ == "__main__":
    main()
