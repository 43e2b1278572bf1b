"""What weights that ship do beyond the lengths and networks of their training, on MNIST.

    python benchmarks/long_runs.py --data-dir DATA    # resumable: type it again

Networks of ReLU, minibatches of 128, five problems (initial params and minibatches), the same for
all. `general` (trained on at most 1,000 steps) on 784-32-10 for 1,000 and for 10,000 steps: as it
is, with the ramp of `num_steps=`, with `scale=0.25`, and behind `learned.guarded`, beside Adam at
1e-3. `robust-mnist` (trained on 784-20-10 of sigmoid, 100 and 200 steps) on 784-128-10 for 100 and
2,000 steps. Nothing is tuned. A loss is the mean of those after the last 10 updates.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import _report
import jax
import numpy as np
import optax

import l2ljax as l2l

KEPT = pathlib.Path("runs") / "long-runs"
PROBLEMS = 5
KEY = jax.random.key(3_000_000)

Make = Callable[[int], optax.GradientTransformation]
load = l2l.learned.load

GENERAL: dict[str, Make] = {
    "Adam at 1e-3": lambda steps: l2l.classic.adam(1e-3),
    "general": lambda steps: load("general"),
    "general, num_steps": lambda steps: load("general", num_steps=steps),
    "general, scale 0.25": lambda steps: load("general", scale=0.25),
    "general, guarded": lambda steps: l2l.learned.guarded(load("general")),
}
ROBUST: dict[str, Make] = {
    "Adam at 1e-3": lambda steps: l2l.classic.adam(1e-3),
    "robust-mnist": lambda steps: load("robust-mnist"),
    "robust-mnist, num_steps": lambda steps: load("robust-mnist", num_steps=steps),
}
# The units of the network, the lengths of runs, the optimizers.
PANELS: dict[str, tuple[int, tuple[int, ...], dict[str, Make]]] = {
    "general": (32, (1_000, 10_000), GENERAL),
    "robust-mnist": (128, (100, 2_000), ROBUST),
}


def measure(
    panel: str, name: str, make: Make, units: int, steps: int, dataset: l2l.tasks.Dataset
) -> dict[str, Any]:
    """The final loss of each problem; None where it is not finite."""
    settings = {"panel": panel, "optimizer": name, "units": units, "steps": steps}
    words = "-".join(name.replace(",", "").split())

    def run() -> dict[str, Any]:
        task = l2l.tasks.mlp_classifier(dataset, (units,), "relu", batch_size=128)
        curves = l2l.evaluate.curves(make(steps), task, key=KEY, steps=steps, problems=PROBLEMS)
        finals = np.asarray(curves)[:, -10:].mean(1)
        return {"finals": [float(final) if np.isfinite(final) else None for final in finals]}

    row = _report.kept(KEPT / f"{panel}-{words}-{steps}.json", settings, run)
    return settings | {"finals": row["finals"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST", required=True)
    arguments = parser.parse_args()
    dataset = l2l.tasks.mnist(arguments.data_dir)
    rows = []
    for panel, (units, lengths, optimizers) in PANELS.items():
        for steps in lengths:
            for name, make in optimizers.items():
                rows.append(measure(panel, name, make, units, steps, dataset))
                finals = [np.inf if loss is None else loss for loss in rows[-1]["finals"]]
                between = f"[{min(finals):.3f}, {max(finals):.3f}]"
                line = f"{units:4} units {steps:6} steps  {name:32} {np.mean(finals):.3f} {between}"
                print(line, flush=True)
    command = "python benchmarks/long_runs.py --data-dir DATA"
    print(_report.write("long_runs.json", {"command": command, "rows": rows}))


if __name__ == "__main__":
    main()
