"""What an update costs beside optax and torch: time, compile time, memory, and XLA's own counts.

    python benchmarks/updates.py
    python benchmarks/updates.py --torch PYTHON      # an interpreter that has torch

1,000,000 params in 4 leaves and in 400. One step updates and applies, with params and state
donated. Ours and the others run in turns in one run, compiled before the clock starts; figures are
medians of the ratios of neighbouring turns, with a 95 % interval of that median (bootstrap).
Compile time is from the Python function to the executable, without any cache, in turns too. torch
runs its foreach implementation, in a process of its own that waits while ours work.
"""

import argparse
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2ljax import classic

SIZE = 1_000_000
LEAVES = [4, 400]
# name: ours, optax's, and what torch calls it.
METHODS: dict[str, tuple[Any, Any, tuple[str, dict[str, Any]] | None]] = {
    "gradient_descent": (
        classic.gradient_descent(0.1),
        optax.sgd(0.1),
        ("SGD", {"lr": 0.1}),
    ),
    "momentum": (
        classic.momentum(0.1),
        optax.sgd(0.1, momentum=0.9),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ),
    "momentum_rate_outside": (
        classic.momentum(0.1, rate_inside=False),
        optax.sgd(0.1, momentum=0.9),
        None,
    ),
    "nesterov": (
        classic.nesterov(0.1),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ),
    "adagrad": (
        classic.adagrad(0.1),
        optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-6),
        ("Adagrad", {"lr": 0.1}),
    ),
    "rmsprop": (
        classic.rmsprop(0.1),
        optax.rmsprop(0.1),
        None,
    ),
    "rmsprop_eps_outside": (
        classic.rmsprop(0.1, eps_in_sqrt=False),
        optax.rmsprop(0.1, eps_in_sqrt=False),
        ("RMSprop", {"lr": 0.1, "alpha": 0.9}),
    ),
    "rmsprop_centered_momentum": (
        classic.rmsprop(0.1, centered=True, momentum=0.9),
        optax.rmsprop(0.1, centered=True, momentum=0.9),
        ("RMSprop", {"lr": 0.1, "alpha": 0.9, "centered": True, "momentum": 0.9}),
    ),
    "adadelta": (
        classic.adadelta(),
        optax.adadelta(1.0, rho=0.95),
        ("Adadelta", {"rho": 0.95}),
    ),
    "adam": (
        classic.adam(0.1),
        optax.adam(0.1),
        ("Adam", {"lr": 0.1}),
    ),
    "adamw": (
        classic.adamw(0.1),
        optax.adamw(0.1, weight_decay=1e-2),
        ("AdamW", {"lr": 0.1}),
    ),
    "amsgrad": (
        classic.amsgrad(0.1, bias_correction="before_max"),
        optax.amsgrad(0.1),
        ("Adam", {"lr": 0.1, "amsgrad": True}),
    ),
    "lbfgs_without_line_search": (
        classic.lbfgs(0.1, line_search=None),
        optax.lbfgs(0.1, linesearch=None),
        None,
    ),
}

# XLA's compile time is quadratic in the leaves of optax's L-BFGS: 400 take minutes.
FEWER_LEAVES = {"lbfgs_without_line_search": 40}


def tree(leaves: int, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    size = SIZE // leaves
    return {f"{i:03}": jnp.asarray(rng.normal(size=size), jnp.float32) for i in range(leaves)}


def steps_of(tx: optax.GradientTransformation) -> Callable[..., Any]:
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled(tx: optax.GradientTransformation, params: Any) -> tuple[Any, float]:
    """The executable, and the seconds from the function to it."""
    state = jax.eval_shape(tx.init, params)
    jax.clear_caches()
    start = time.perf_counter()
    step = jax.jit(steps_of(tx), donate_argnums=(0, 1)).lower(params, state, params).compile()
    return step, time.perf_counter() - start


class Runner:
    """Takes turns of many steps from where the last turn ended."""

    def __init__(self, tx: optax.GradientTransformation, step: Any, leaves: int) -> None:
        self.params, self.gradients = tree(leaves, 0), tree(leaves, 1)
        # Copies, since optax's L-BFGS begins with one buffer in two places.
        self.state, self.step = jax.tree.map(jnp.copy, tx.init(self.params)), step

    def turn(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.params, self.state = self.step(self.params, self.state, self.gradients)
        jax.block_until_ready((self.params, self.state))
        return (time.perf_counter() - start) / steps


class TorchRunner:
    """The same in another process, which has torch."""

    def __init__(self, python: str, leaves: int, method: tuple[str, dict[str, Any]]) -> None:
        worker = pathlib.Path(__file__).with_name("_torch_worker.py")
        setting = json.dumps({"size": SIZE, "leaves": leaves, "method": method})
        self.process = subprocess.Popen(
            [python, str(worker), setting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, steps: int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Seconds of both and the ratio ours / theirs; who begins a pair alternates, too."""
    a, b = [], []
    for pair in range(pairs):
        for runner, seconds in [(ours, a), (theirs, b)][:: 1 if pair % 2 else -1]:
            seconds.append(runner())
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {
        "ours_s": float(np.median(a)),
        "theirs_s": float(np.median(b)),
        **_report.median_ratio(ratios),
    }


def cost(step: Any) -> dict[str, float]:
    analysis = step.cost_analysis()
    return {"flops": analysis["flops"], "bytes_accessed": analysis["bytes accessed"]}


def program(step: Any) -> str:
    """XLA's optimized program, without what only speaks of the Python code that it came from."""
    text = re.sub(r", (metadata|frontend_attributes|origin)=\{[^}]*\}", "", step.as_text())
    lines = [line for line in text.splitlines() if " = " in line or "->" in line]
    body = "\n".join(line for line in lines if not line.startswith("HloModule"))
    names: dict[str, str] = {}
    return re.sub(
        r"%?[a-zA-Z_][\w.-]*\.\d+|%[\w.-]+",
        lambda m: names.setdefault(m.group().lstrip("%"), f"n{len(names)}"),
        body,
    )


def bytes_of(state: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def row(name: str, leaves: int, python: str | None, quick: bool) -> dict[str, Any]:
    ours, theirs, torch_method = METHODS[name]
    params = tree(leaves, 0)
    pairs, compile_pairs, steps = (3, 2, 5) if quick else (21, 7, 40)
    if leaves > 100 and not quick:
        pairs, compile_pairs, steps = 9, 7, 10
    if name in FEWER_LEAVES:
        steps = min(steps, 3)
    our_step, their_step = compiled(ours, params)[0], compiled(theirs, params)[0]
    a, b = Runner(ours, our_step, leaves), Runner(theirs, their_step, leaves)
    a.turn(steps), b.turn(steps)
    result: dict[str, Any] = {
        "method": name,
        "leaves": leaves,
        "time": in_turns(lambda: a.turn(steps), lambda: b.turn(steps), pairs),
        "compile": in_turns(
            lambda: compiled(ours, params)[1], lambda: compiled(theirs, params)[1], compile_pairs
        ),
        "state_bytes": {
            "ours": bytes_of(jax.eval_shape(ours.init, params)),
            "theirs": bytes_of(jax.eval_shape(theirs.init, params)),
        },
        "same_program": program(our_step) == program(their_step),
        "cost": {"ours": cost(our_step), "theirs": cost(their_step)},
    }
    if python is not None and torch_method is not None:
        torch = TorchRunner(python, leaves, torch_method)
        torch.turn(steps)
        result["torch"] = in_turns(lambda: a.turn(steps), lambda: torch.turn(steps), pairs)
        torch.close()
    return result


def show(row: dict[str, Any]) -> str:
    def ratio(key: str) -> str:
        r = row.get(key)
        return f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" if r else "-"

    flops = row["cost"]["ours"]["flops"] / max(row["cost"]["theirs"]["flops"], 1)
    moved = row["cost"]["ours"]["bytes_accessed"] / row["cost"]["theirs"]["bytes_accessed"]
    state = row["state_bytes"]["ours"] - row["state_bytes"]["theirs"]
    return (
        f"{row['method']:26} {row['leaves']:4} time {row['time']['ours_s'] * 1e3:6.2f} ms "
        f"{ratio('time')}  compile {row['compile']['ours_s']:5.2f} s {ratio('compile')}  "
        f"flops {flops:.2f} bytes {moved:.2f} state {state:+d} B "
        f"{'same program' if row['same_program'] else ''}  torch {ratio('torch')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--leaves", nargs="+", type=int, default=LEAVES)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch")
    parser.add_argument("--quick", action="store_true", help="a few turns, and write nothing")
    arguments = parser.parse_args()
    _report.compile_anew()
    rows = []
    for leaves in arguments.leaves:
        for name in arguments.methods:
            fewer = min(leaves, FEWER_LEAVES.get(name, leaves))
            rows.append(row(name, fewer, arguments.torch, arguments.quick))
            print(show(rows[-1]), flush=True)
    if not arguments.quick:
        command = "python benchmarks/updates.py"
        if arguments.methods != list(METHODS):
            command += f" --methods {' '.join(arguments.methods)}"
        if arguments.leaves != LEAVES:
            command += f" --leaves {' '.join(map(str, arguments.leaves))}"
        # Without the folder, which is one machine's.
        command += " --torch PYTHON" * (arguments.torch is not None)
        print(_report.write("updates.json", {"command": command, "rows": rows}))


if __name__ == "__main__":
    main()
