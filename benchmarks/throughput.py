"""How fast meta-training is: inner steps and coordinate-updates a second, compile time, memory.

    python benchmarks/throughput.py                                   # both problems
    python benchmarks/throughput.py --data-dir DATA --study first_study.py

Quadratics: 128 functions of 10 coordinates; MNIST: one MLP 784-20-10 with 15,910 coordinates. The
paper's LSTM (2x20), episodes of 100 steps, truncation 20, Adam on φ, through `meta.make_step` with
all that a user gets. An inner step is counted once for the whole batch of problems. Each problem
runs in a process of its own, so that its peak memory is its own; with `--study` another script
that prints a JSON line with `steps_per_s` runs in turns with ours. Without MNIST's files, random
images of the same shape stand in: the work is the same.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import _data
import _report
import jax
import numpy as np
import optax

import l2ljax as l2l

HORIZON, TRUNCATION = 100, 20


def problem(name: str, data_dir: str | None) -> tuple[l2l.LearnedOptimizer, l2l.Task, int, int]:
    """The optimizer, the task, its batch and the coordinates of the whole batch."""
    if name == "quadratics":
        return l2l.learned.lstm(preprocess=None), l2l.tasks.quadratic(), 128, 1280
    task = l2l.tasks.mlp_classifier(_data.mnist(data_dir))
    return l2l.learned.lstm(), task, 1, 15_910


def measure(name: str, data_dir: str | None, episodes: int, repeats: int) -> dict[str, Any]:
    """Compiles and warms up outside the clock, then times `repeats` rounds of `episodes`."""
    opt, task, batch, coordinates = problem(name, data_dir)
    step, state = l2l.meta.make_step(
        opt,
        task,
        key=jax.random.key(0),
        batch=batch,
        meta_optimizer=optax.adam(1e-3),
        estimator=l2l.meta.truncated(horizon=HORIZON, truncation=TRUNCATION),
    )
    keys = iter(jax.random.split(jax.random.key(1), 2 + (repeats + 1) * episodes * 5))
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, next(keys)))
    first = time.perf_counter() - start

    def one_round(state: Any) -> Any:
        for _ in range(episodes * HORIZON // TRUNCATION):
            state, _ = step(state, next(keys))
        return jax.block_until_ready(state)

    state = one_round(state)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        state = one_round(state)
        seconds.append(time.perf_counter() - start)
    steps = episodes * HORIZON
    median = float(np.median(seconds))
    return {
        "problem": name,
        "steps_per_s": steps / median,
        "steps_per_s_low": steps / max(seconds),
        "steps_per_s_high": steps / min(seconds),
        "coordinate_updates_per_s": steps * coordinates / median,
        "first_call_s": first,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_own_process(command: list[str]) -> dict[str, Any]:
    """The JSON of a process's last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--study", type=pathlib.Path, help="a script to run in turns with ours")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", choices=["quadratics", "mnist"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = [] if arguments.data_dir is None else ["--data-dir", arguments.data_dir]
    if arguments.one:
        episodes, repeats = {"quadratics": (10, 5), "mnist": (2, 5)}[arguments.one]
        print(json.dumps(measure(arguments.one, arguments.data_dir, episodes, repeats)))
        return
    rows = []
    for name in ("quadratics", "mnist"):
        ours, study = [], []
        for _ in range(arguments.turns):
            ours.append(in_own_process([sys.executable, __file__, "--one", name, *data]))
            if arguments.study is not None:
                where = (
                    [] if arguments.data_dir is None else ["--data", f"{arguments.data_dir}/mnist"]
                )
                command = [sys.executable, str(arguments.study), name, *where]
                study.append(in_own_process(command)["steps_per_s"])
        row = sorted(ours, key=lambda row: row["steps_per_s"])[len(ours) // 2]
        if study:
            ratios = [a["steps_per_s"] / b for a, b in zip(ours, study, strict=True)]
            row |= {"study_steps_per_s": float(np.median(study))}
            row |= {"ratio_to_study": float(np.median(ratios)), "ratios": ratios}
        rows.append(row)
        print(json.dumps(row, indent=2))
    print(_report.write("throughput.json", {"command": " ".join(sys.argv), "rows": rows}))


if __name__ == "__main__":
    main()
