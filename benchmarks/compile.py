"""How long programs take to trace, lower and compile, and that it does not grow with the work.

    python benchmarks/compile.py

`update` of the LSTM optimizer alone for 1,000,000 params in 4 leaves and in 400, with the CPU's
program where it was built, and with the LSTM by XLA; on the paper's MLP `meta.unroll`,
`meta.unroll_batch` and meta-training (`meta.make_step`) with other horizons, truncations, batches
of problems and sizes of the data set than the first row's. Seconds are those of the processor in
this process, all threads together, and of the clock; each is the median of several turns, in which
the rows of a table take part one after the other, without any cache of compiled programs. The
larger of both ratios is judged.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np

import l2ljax as l2l
from l2ljax import kernels

KEY = jax.random.key(0)
SIZE = 1_000_000
# Leaves of the sizes and shapes that repeat in the blocks of a network.
SHAPES = {4: [(500, 500)], 400: [(25, 100), (2500,), (50, 50), (100, 25)]}
# A single problem compiles faster than several, which compile alike however many.
USUAL = {"horizon": 100, "batch": 16, "examples": 10_000}
OTHERS = [{"horizon": 1000}, {"batch": 1}, {"batch": 256}, {"examples": 50_000}]
TRUNCATION = {"truncation": 20}
OTHER_TRUNCATION = {"horizon": 1000, "truncation": 200}
# What 100 times the leaves may cost; everything else is to stay the same.
MOST = {"leaves": 2.0, "leaves, XLA": 2.0, "unroll": 1.25, "unroll_batch": 1.25, "train": 1.25}


def update_of(leaves: int, fused: bool | None) -> Callable[[], Any]:
    opt = l2l.learned.lstm(fused=fused)
    tx = opt.bind(opt.init(KEY))
    shapes = SHAPES[leaves]
    params = {
        f"{i:03}": jax.ShapeDtypeStruct(shapes[i % len(shapes)], jnp.float32) for i in range(leaves)
    }
    state = jax.eval_shape(tx.init, params)
    return lambda: jax.jit(tx.update).lower(params, state, params)


def paper_mlp(examples: int) -> l2l.Task:
    images = np.zeros((examples, 28, 28, 1), np.uint8)
    split = l2l.tasks.Split(images, np.zeros(examples, np.int32), maximum=255)
    return l2l.tasks.mlp_classifier(l2l.tasks.Dataset(train=split, name="no images", classes=10))


def unroll_of(horizon: int) -> Callable[[], Any]:
    opt, task = l2l.learned.lstm(), paper_mlp(USUAL["examples"])

    @jax.jit
    def run(tx: Any, task: l2l.Task, key: jax.Array) -> Any:
        return l2l.meta.unroll(tx, task, task.sample(key), key, horizon=horizon)

    return lambda: run.lower(opt.bind(opt.init(KEY)), task, KEY)


def unroll_batch_of(horizon: int, batch: int, examples: int) -> Callable[[], Any]:
    opt = l2l.learned.lstm()
    return functools.partial(
        l2l.meta.unroll_batch.lower,
        opt.bind(opt.init(KEY)),
        paper_mlp(examples),
        KEY,
        horizon=horizon,
        problems=batch,
    )


def step_of(horizon: int, truncation: int, batch: int, examples: int) -> Callable[[], Any]:
    step, state = l2l.meta.make_step(
        l2l.learned.lstm(),
        paper_mlp(examples),
        key=KEY,
        batch=batch,
        estimator=l2l.meta.truncated(horizon=horizon, truncation=truncation),
    )
    # The records are arguments, as they are where `make_step` jits.
    run = jax.jit(lambda step, state, key: step(state, key))
    return lambda: run.lower(step, state, KEY)


def seconds(lower: Callable[[], Any]) -> tuple[float, float]:
    """Of the processor and of the clock, from the function to the executable."""
    jax.clear_caches()
    processor, clock = time.process_time(), time.perf_counter()
    lower().compile()
    return time.process_time() - processor, time.perf_counter() - clock


def in_turns(programs: dict[str, Callable[[], Any]], turns: int) -> list[dict[str, Any]]:
    """A row for each program, with its ratio to the first, turn by turn."""
    seconds(next(iter(programs.values())))
    taken = np.array([[seconds(lower) for lower in programs.values()] for _ in range(turns)])
    ratios = np.median(taken / taken[:, :1], axis=0)
    return [
        {
            "program": name,
            "processor_s": float(np.median(taken[:, i, 0])),
            "clock_s": float(np.median(taken[:, i, 1])),
            "processor_ratio": float(ratios[i, 0]),
            "clock_ratio": float(ratios[i, 1]),
        }
        for i, name in enumerate(programs)
    ]


def titled(
    name: str, make: Callable[..., Callable[[], Any]], several: list[dict[str, int]]
) -> dict[str, Callable[[], Any]]:
    """A program for each of several sizes, by a title that tells them."""
    return {
        f"{name}, " + ", ".join(f"{key} {size}" for key, size in sizes.items()): make(**sizes)
        for sizes in several
    }


def tables() -> dict[str, Callable[[], dict[str, Callable[[], Any]]]]:
    """The programs of each table; the first of one is what its others are held against."""
    run = [{**USUAL, **other} for other in ({}, *OTHERS)]
    trained = [{**TRUNCATION, **USUAL, **other} for other in ({}, *OTHERS, OTHER_TRUNCATION)]
    horizons = [{"horizon": sizes["horizon"]} for sizes in run[:2]]
    return {
        "leaves": lambda: {f"update, {n} leaves": update_of(n, None) for n in SHAPES},
        "leaves, XLA": lambda: {f"update, XLA, {n} leaves": update_of(n, False) for n in SHAPES},
        "unroll": lambda: titled("unroll", unroll_of, horizons),
        "unroll_batch": lambda: titled("unroll_batch", unroll_batch_of, run),
        "train": lambda: titled("train", step_of, trained),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=MOST, help="one table, and write nothing")
    arguments = parser.parse_args()
    _report.compile_anew()
    content: dict[str, Any] = {"command": "python benchmarks/compile.py", "turns": arguments.turns}
    if not kernels.load():
        print("the CPU's program was not built: the first two tables are both XLA's")
    for name, programs in tables().items():
        if arguments.only not in (None, name):
            continue
        rows = in_turns(programs(), arguments.turns)
        worst = max(max(row["processor_ratio"], row["clock_ratio"]) for row in rows)
        content[name] = {"rows": rows, "worst_ratio": worst, "most": MOST[name]}
        for row in rows:
            print(
                f"{row['program']:70} {row['processor_s']:6.2f} s of the processor, "
                f"{row['clock_s']:6.2f} s; ratios {row['processor_ratio']:.2f}, "
                f"{row['clock_ratio']:.2f}"
            )
        verdict = "is within" if worst <= MOST[name] else "exceeds"
        print(f"{name}: the largest ratio {worst:.2f} {verdict} {MOST[name]}")
    if arguments.only is None:
        print(_report.write("compile.json", content))


if __name__ == "__main__":
    main()
