"""How fast meta-training and applying are: steps a second, compile time, memory.

    python benchmarks/throughput.py                                   # ours alone
    python benchmarks/throughput.py --data-dir DATA --first-study first_study.py --devices 2 \\
        --torch PYTHON                                                # an interpreter with torch

Quadratics: 128 functions of 10 coordinates; MNIST: one MLP 784-20-10 with 15,910 coordinates. The
paper's LSTM (2x20), episodes of 100 steps, truncation 20, Adam on φ, through `meta.make_step` with
all that a user gets, ten or two episodes in one compiled scan, as `meta.train` has many meta-steps
in one call. An inner step is counted once for the whole batch of problems. Apply: one update of
1,002,660 coordinates in 1, 4 and 400 leaves, with params and state donated; the first study, which
knows one flat array only, stands beside each in one leaf.

Each problem runs in a process of its own, so that its peak memory is its own; others run in turns
with ours: the first study, and torch (`_torch_training.py`). With `--devices` a mesh of so many
host devices shares the quadratics, as it does in the study; MNIST has one problem, which no mesh
can share. Without MNIST's files, random images of the same shape stand in: the work is the same.
Ours runs with the CPU's program of `l2ljax.kernels` where it was built (`l2ljax build`), in turns
with itself without it ("xla").

The operations that a step must do are counted: a product and an addition for each weight and
coordinate, forwards and, in meta-training, twice more backwards, and five transcendentals for each
unit and coordinate, which are kept. The peaks of the machine are measured before each problem, and
the highest count: a product of matrices, and tanh of numbers in the cache. From both follows a
limit, as if a step were nothing but these, each at its peak. What is measured of meta-training goes
to `throughput.json`, of applying to `apply.json`.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import _data
import _report
import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2ljax as l2l
from l2ljax import kernels

HORIZON, TRUNCATION = 100, 20
COORDINATES = 1_002_660
LEAVES = {"apply-1": 1, "apply-4": 4, "apply-400": 400}
PROBLEMS = ("quadratics", "mnist", *LEAVES)
FLAT = "the first study holds all coordinates in one leaf, beside any number of ours"


def optimizer(name: str, fused: bool | None) -> l2l.LearnedOptimizer:
    """The LSTM that a problem is given."""
    return l2l.learned.lstm(preprocess="log_sign" if name == "mnist" else None, fused=fused)


def problem(name: str, data_dir: str | None) -> tuple[l2l.Task, int, int]:
    """The task, its batch and the coordinates of the whole batch."""
    if name == "quadratics":
        return l2l.tasks.quadratic(), 128, 1280
    return l2l.tasks.mlp_classifier(_data.mnist(data_dir)), 1, 15_910


def operations(opt: l2l.LearnedOptimizer, coordinates: int, training: bool) -> dict[str, float]:
    """What a step must do, with what the derivative needs kept; the optimizee's part left out."""
    phi = opt.init(jax.random.key(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(phi) if leaf.ndim == 2)
    units = sum(len(cell) for cell, _ in opt.bind(phi).init(jnp.zeros(1)).layers)
    return {
        "flops": 2.0 * weights * coordinates * (3 if training else 1),
        "transcendentals": 5.0 * units * coordinates,
    }


def measure(
    name: str,
    data_dir: str | None,
    episodes: int,
    repeats: int,
    devices: int,
    fused: bool | None,
) -> dict[str, Any]:
    """Compiles and warms up outside the clock, then times `repeats` rounds of `episodes`."""
    task, batch, coordinates = problem(name, data_dir)
    mesh = jax.make_mesh((devices,), ("problems",)) if devices > 1 and batch > 1 else None
    opt = optimizer(name, fused)
    step, state = l2l.meta.make_step(
        opt,
        task,
        key=jax.random.key(0),
        batch=batch,
        meta_optimizer=optax.adam(1e-3),
        estimator=l2l.meta.truncated(horizon=HORIZON, truncation=TRUNCATION),
        mesh=mesh,
    )
    one_round = jax.jit(jax.lax.scan)
    keys = jax.random.split(jax.random.key(1), (2 + repeats, episodes * HORIZON // TRUNCATION))
    seconds = []
    for some in keys:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(one_round(step, state, some))
        seconds.append(time.perf_counter() - start)
    # The first one compiles, the second one warms up.
    first, _, *seconds = seconds
    steps = episodes * HORIZON
    median = float(np.median(seconds))
    return {
        "problem": name,
        "devices": 1 if mesh is None else devices,
        "fused": fused is not False and kernels.load(),
        "steps_per_s": steps / median,
        "steps_per_s_low": steps / max(seconds),
        "steps_per_s_high": steps / min(seconds),
        "coordinate_updates_per_s": steps * coordinates / median,
        "first_call_s": first,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **operations(opt, coordinates, training=True),
    }


def measure_apply(name: str, coordinates: int, repeats: int, fused: bool | None) -> dict[str, Any]:
    """One update and its addition to the params, on the random gradients of one draw."""
    sizes = [len(part) for part in np.array_split(np.arange(coordinates), LEAVES[name])]
    rng = np.random.default_rng(0)
    gradients = {
        f"{i:03}": jnp.asarray(rng.normal(size=size), jnp.float32) for i, size in enumerate(sizes)
    }
    params = jax.tree.map(jnp.zeros_like, gradients)
    opt = optimizer(name, fused)
    tx = opt.bind(opt.init(jax.random.key(0)))
    state = jax.jit(tx.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    compiled = step.lower(params, state, gradients).compile()
    first = time.perf_counter() - start
    params, state = jax.block_until_ready(compiled(params, state, gradients))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        params, state = jax.block_until_ready(compiled(params, state, gradients))
        seconds.append(time.perf_counter() - start)
    return {
        "problem": name,
        "devices": 1,
        "fused": fused is not False and kernels.load(),
        "steps_per_s": 1 / float(np.median(seconds)),
        "steps_per_s_low": 1 / max(seconds),
        "steps_per_s_high": 1 / min(seconds),
        "coordinate_updates_per_s": coordinates / float(np.median(seconds)),
        "first_call_s": first,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **operations(opt, coordinates, training=False),
    }


def peaks() -> dict[str, float]:
    """What the machine reaches: FLOP/s of a product 2048³, tanh/s of numbers in the cache."""

    def best(function: Any, x: jax.Array, repeats: int) -> float:
        run = jax.jit(function)
        jax.block_until_ready(run(x))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(run(x))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    square = best(lambda x: x @ x, jnp.ones((2048, 2048)), 10)
    rounds = 200

    def tanh_often(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, rounds, lambda _, x: jnp.tanh(x), x)

    elementwise = best(tanh_often, jnp.ones(2**16), 10)
    return {"flops_per_s": 2 * 2048**3 / square, "tanh_per_s": rounds * 2**16 / elementwise}


def limit(row: dict[str, Any], peaks: dict[str, float]) -> dict[str, float]:
    """Steps a second if the counted operations took all the time, and the part of it reached."""
    seconds = row["flops"] / peaks["flops_per_s"]
    seconds += row["transcendentals"] / peaks["tanh_per_s"]
    return {"steps_per_s": 1 / seconds, "reached": row["steps_per_s"] * seconds}


def in_own_process(command: list[str], environment: Mapping[str, str] = {}) -> dict[str, Any]:
    """The JSON of a process's last line."""
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def rivals(name: str, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The commands that run in turns with ours; the first study makes its devices itself."""
    found = {}
    kind = name.split("-")[0]
    if arguments.first_study is not None:
        data = [] if arguments.data_dir is None else ["--data", f"{arguments.data_dir}/mnist"]
        devices = ["--devices", str(arguments.devices if name == "quadratics" else 1)]
        found["first_study"] = [sys.executable, str(arguments.first_study), kind, *devices, *data]
    if arguments.torch is not None and kind != "apply":
        worker = pathlib.Path(__file__).with_name("_torch_training.py")
        found["torch"] = [arguments.torch, str(worker), kind]
    return found


def beside(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of another that ran in turns with ours, turn by turn."""
    ratios = [a["steps_per_s"] / b["steps_per_s"] for a, b in zip(ours, theirs, strict=True)]
    return {
        "steps_per_s": float(np.median([row["steps_per_s"] for row in theirs])),
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        **{name: theirs[0][name] for name in ("version", "threads") if name in theirs[0]},
    }


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the script before anything is measured where a rival could not run."""
    study = arguments.first_study
    if study is None:
        return
    if not study.is_file():
        parser.error(f"--first-study must be a script, got {study}, which is no file")
    if "mnist" in arguments.problems and arguments.data_dir is None:
        parser.error("--first-study reads MNIST from --data-dir, which is missing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with a folder `mnist`")
    parser.add_argument(
        "--first-study", type=pathlib.Path, help="a script to run in turns with ours"
    )
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--devices", type=int, default=1, help="host devices; default: %(default)s")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--quick", action="store_true", help="little of each, and write nothing")
    parser.add_argument("--xla", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=[*PROBLEMS, "peaks"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check(parser, arguments)
    _report.compile_anew()
    quick = arguments.quick
    fused = False if arguments.xla else None
    if arguments.one == "peaks":
        print(json.dumps(peaks()))
        return
    if arguments.one in LEAVES:
        sizes = (8_000, 2) if quick else (COORDINATES, 9)
        print(json.dumps(measure_apply(arguments.one, *sizes, fused)))
        return
    if arguments.one:
        rounds = (1, 1) if quick else {"quadratics": (10, 5), "mnist": (2, 5)}[arguments.one]
        found = measure(arguments.one, arguments.data_dir, *rounds, arguments.devices, fused)
        print(json.dumps(found))
        return
    passed = [] if arguments.data_dir is None else ["--data-dir", arguments.data_dir]
    passed += ["--devices", str(arguments.devices), *["--quick"] * quick]
    rows = []
    machine: list[dict[str, float]] = []
    for name in arguments.problems:
        machine.append(in_own_process([sys.executable, __file__, "--one", "peaks"]))
        command = [sys.executable, __file__, "--one", name, *passed]
        devices = arguments.devices if name == "quadratics" else 1
        environment = {"JAX_NUM_CPU_DEVICES": str(devices)} if devices > 1 else {}
        others = {
            "xla": functools.partial(in_own_process, [*command, "--xla"], environment),
            **{
                other: functools.partial(in_own_process, rival)
                for other, rival in rivals(name, arguments).items()
            },
        }
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[dict[str, Any]]] = {other: [] for other in others}
        for _ in range(1 if quick else arguments.turns):
            ours.append(in_own_process(command, environment))
            for other, run in others.items():
                theirs[other].append(run())
        row = sorted(ours, key=lambda row: row["steps_per_s"])[len(ours) // 2]
        row |= {other: beside(ours, found) for other, found in theirs.items()}
        rows.append(row)
        print(json.dumps(row, indent=2), flush=True)
    limits = {peak: max(found[peak] for found in machine) for peak in machine[0]}
    print(json.dumps(limits))
    for row in rows:
        row["limit"] = limit(row, limits)
        print(row["problem"], json.dumps(row["limit"]))
    if not quick:
        command = f"python benchmarks/throughput.py --devices {arguments.devices}"
        command += f" --turns {arguments.turns}"
        if arguments.problems != list(PROBLEMS):
            command += f" --problems {' '.join(arguments.problems)}"
        # Without the folders, which are one machine's.
        command += " --data-dir DATA" * (arguments.data_dir is not None)
        command += " --first-study PATH" * (arguments.first_study is not None)
        command += " --torch PYTHON" * (arguments.torch is not None)
        content = {"command": command, "turns": arguments.turns, "peaks": limits}
        applied = [row for row in rows if row["problem"] in LEAVES]
        trained = [row for row in rows if row not in applied]
        if trained:
            print(_report.write("throughput.json", {**content, "rows": trained}))
        if applied:
            note = {"note": FLAT} if arguments.first_study is not None else {}
            print(_report.write("apply.json", {**content, **note, "rows": applied}))


if __name__ == "__main__":
    main()
