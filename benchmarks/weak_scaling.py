"""Weak scaling, shown for correctness: as many more problems as there are devices or processes.

    python benchmarks/weak_scaling.py      # under two minutes on two cores

Five meta-steps on quadratics with 4 problems a device: on one device, on a mesh of 2, 4 and 8
virtual devices of one process, and on one of 2 processes that find each other on localhost. Their
meta-losses are held against those of one device that has the same whole batch to itself: a batch is
drawn alike on any number of devices, so all that may differ is how sums are rounded. Each row is
made by processes of its own.

Virtual devices share the cores of one machine, so the time of a step says how much more work there
was and what sharing costs, and nothing about devices of their own: it is information, and nothing
is judged by it.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import _report
import jax
import numpy as np
from jax.sharding import AxisType

import l2ljax as l2l

PROBLEMS, STEPS, ROUNDS = 4, 5, 20
# Devices that share a batch, and what they are held against: one device, with as many problems.
DEVICES = (1, 2, 4, 8)
# Of meta-losses in single precision after a few updates of φ: sums over the batch differ in order.
TOLERANCE = 1e-5


def measure(batch: int) -> dict[str, Any]:
    """Meta-losses of the first steps on all devices there are, and the time of later ones."""
    devices = jax.device_count()
    mesh = None
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("problems",), axis_types=(AxisType.Auto,))
    step, state = l2l.meta.make_step(
        l2l.learned.lstm(preprocess=None),
        l2l.tasks.quadratic(),
        key=jax.random.key(0),
        batch=batch,
        estimator=l2l.meta.truncated(horizon=20, truncation=20),
        mesh=mesh,
    )
    losses, seconds = [], []
    for i in range(STEPS + ROUNDS):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, jax.random.key(i)))
        seconds.append(time.perf_counter() - start)
        if i < STEPS:
            losses.append(float(metrics["loss"]))
    return {
        "processes": jax.process_count(),
        "devices": devices,
        "batch": batch,
        "losses": losses,
        "ms_a_step_and_problem": 1e3 * float(np.median(seconds[STEPS:])) / batch,
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def in_processes(processes: int, devices: int, batch: int) -> dict[str, Any]:
    """What the first of so many processes measures, each with so many devices.

    Raises:
        RuntimeError: with what it printed, if one of them fails.
    """
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, __file__, "--batch", str(batch)]
    if processes > 1:
        words += ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
    started = [
        subprocess.Popen(
            [*words, "--process", str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, printed, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of {processes} failed:\n{errors}")
    return json.loads(printed[0][0].strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch is not None:
        if arguments.coordinator is not None:
            jax.distributed.initialize(
                arguments.coordinator, arguments.processes, arguments.process
            )
        print(json.dumps(measure(arguments.batch)))
        return
    alone = {n: in_processes(1, 1, PROBLEMS * n) for n in DEVICES}
    rows = []
    for processes, devices in [*((1, n) for n in DEVICES[1:]), (2, 1)]:
        batch = PROBLEMS * processes * devices
        row = in_processes(processes, devices, batch)
        expected = alone[processes * devices]["losses"]
        row["largest_difference"] = max(
            abs(a / b - 1) for a, b in zip(row["losses"], expected, strict=True)
        )
        row["equal"] = row["largest_difference"] <= TOLERANCE
        rows.append(row)
        print(
            f"{processes} process{'es' * (processes > 1)}, {row['devices']} devices, "
            f"{batch} problems: meta-losses "
            f"{'are' if row['equal'] else 'ARE NOT'} those of one device "
            f"(largest relative difference {row['largest_difference']:.1e}); "
            f"{row['ms_a_step_and_problem']:.2f} ms a step and problem, one device with as many "
            f"problems {alone[processes * devices]['ms_a_step_and_problem']:.2f}",
            flush=True,
        )
    content = {
        "command": "python benchmarks/weak_scaling.py",
        "steps": STEPS,
        "tolerance": TOLERANCE,
        "equal": all(row["equal"] for row in rows),
        "one_device": list(alone.values()),
        "rows": rows,
    }
    print(_report.write("weak_scaling.json", content))


if __name__ == "__main__":
    main()
