"""What calls with equal arguments leave behind: compilations, memory maps and memory.

    python benchmarks/repeated_calls.py
    python benchmarks/repeated_calls.py --calls 20 --out /tmp/repeated_calls.json

All that a call is given is made anew in it, as in a loop of a user's: tasks, optimizers, estimators
and functions. From the third call on nothing is to be compiled, and nothing to be kept. One row
has a function that cannot be told from others, since a list may have changed: it is compiled in
each call, and its programs are released (there are `_programs.MOST_KEPT` of an entry point before
the first one is).
"""

import argparse
import gc
import pathlib
import time
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import optax

import l2ljax as l2l
from l2ljax._programs import MOST_KEPT

KEY = jax.random.key(0)
# Of the process, which has other parts: from the third call on, per 1,000 calls.
MOST_MAPS = 64
MOST_MIB = 32.0
SHOWN = (1, 2, 3, 10, 30, 100, 300, 1000)

compilations = 0


def _count(event: str, duration: float, **rest: Any) -> None:
    global compilations
    compilations += event == "/jax/core/compile/backend_compile_duration"


def valley(w: jax.Array) -> jax.Array:
    return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


def train(meta_optimizer: Any = None) -> None:
    l2l.meta.train(
        l2l.learned.lstm((4,)),
        l2l.tasks.quadratic(2),
        key=KEY,
        steps=2,
        batch=2,
        chunk=2,
        meta_optimizer=meta_optimizer,
        estimator=l2l.meta.truncated(horizon=4, truncation=2),
    )


def train_by_what_cannot_be_told() -> None:
    rates = [0.1]
    train(optax.sgd(lambda count: rates[0]))


def make_step() -> None:
    step, state = l2l.meta.make_step(
        l2l.learned.lstm((4,)),
        l2l.tasks.quadratic(2),
        key=KEY,
        estimator=l2l.meta.truncated(horizon=4, truncation=2),
    )
    step(state, KEY)


def compare() -> None:
    l2l.evaluate.compare(
        {
            "adam": l2l.classic.adam(0.1),
            "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
            "tuned": l2l.evaluate.Tunable(l2l.classic.gradient_descent, [0.01, 0.1, 1.0]),
        },
        l2l.tasks.quadratic(2),
        key=KEY,
        steps=4,
        problems=2,
        window=1,
    )


def minimize() -> None:
    l2l.classic.minimize(
        l2l.classic.adam(0.1), lambda w, batch: valley(w), jnp.zeros(2), steps=4, tolerance=0.0
    )


def updates(make: Callable[[], Any]) -> Callable[[], None]:
    """One update outside `jit`, by an optimizer that is made anew."""
    value_and_grad = jax.jit(jax.value_and_grad(valley))
    params = jnp.array([-1.2, 1.0])

    def call() -> None:
        tx = make()
        state = tx.init(params)
        value, grad = value_and_grad(params)
        tx.update(grad, state, params, value=value, grad=grad, value_fn=lambda w: valley(w))

    return call


def tell() -> None:
    optimizer = l2l.hyper.ask_tell(l2l.learned.load("surrogate-2d"), [(-1.0, 1.0)] * 2)
    optimizer.tell(optimizer.init(), 1.0)


def minimize_black_box() -> None:
    l2l.hyper.minimize_black_box(
        l2l.learned.load("black-box-2d"), lambda x: valley(x), [(-2.0, 2.0)] * 2, horizon=4
    )


def unroll() -> None:
    task = l2l.tasks.quadratic(2)
    l2l.meta.unroll(l2l.classic.adam(0.1), task, task.sample(KEY), KEY, horizon=4)


CALLS: dict[str, Callable[[], None]] = {
    "meta.train": train,
    "meta.train, a chain": lambda: train(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    ),
    "meta.make_step": make_step,
    "evaluate.compare": compare,
    "classic.minimize": minimize,
    "lbfgs": updates(l2l.classic.lbfgs),
    "newton, cg": updates(lambda: l2l.classic.newton(solver="cg")),
    "saddle_free_newton, lanczos": updates(
        lambda: l2l.classic.saddle_free_newton(solver="lanczos")
    ),
    "hyper.ask_tell, surrogate-2d": tell,
    "hyper.minimize_black_box": minimize_black_box,
    "meta.unroll": unroll,
}
RELEASED = {"meta.train, a function of a list": train_by_what_cannot_be_told}


def maps() -> int | None:
    """The memory maps of this process; None where the system does not tell."""
    path = pathlib.Path("/proc/self/maps")
    return len(path.read_text().splitlines()) if path.exists() else None


def resident_mib() -> float | None:
    """The memory of this process; None where the system does not tell."""
    path = pathlib.Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return round(int(found[0]) / 1024, 1) if found else None


def measure(name: str, call: Callable[[], None], calls: int, steady: int) -> dict[str, Any]:
    """Calls again and again, and looks at the process in between.

    Args:
        name: of the row.
        call: what is called.
        calls: how often.
        steady: calls after which nothing is to grow.
    """
    before, points = compilations, []
    begin = time.perf_counter()
    for i in range(1, calls + 1):
        call()
        if i in {*SHOWN, steady, calls}:
            gc.collect()
            points.append(
                {
                    "call": i,
                    "compilations": compilations - before,
                    "maps": maps(),
                    "resident_mib": resident_mib(),
                }
            )
    first = next(point for point in points if point["call"] == steady)
    grown = {
        what: None if first[what] is None else round(points[-1][what] - first[what], 1)
        for what in ("compilations", "maps", "resident_mib")
    }
    row = {
        "name": name,
        "points": points,
        "from_call": steady,
        "grown": grown,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    print(f"{name:34} {calls:5} calls, from call {steady} on: {grown}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument(
        "--released", type=int, default=200, help="calls of what is compiled each time"
    )
    parser.add_argument("--only", nargs="*", help="rows by the beginnings of their names")
    parser.add_argument("--out", default="repeated_calls.json")
    args = parser.parse_args()
    jax.monitoring.register_event_duration_secs_listener(_count)

    def asked(name: str) -> bool:
        return not args.only or name.startswith(tuple(args.only))

    rows = [measure(name, call, args.calls, 3) for name, call in CALLS.items() if asked(name)]
    # What is released is first kept.
    released = [
        measure(name, call, args.released, MOST_KEPT + 1)
        for name, call in RELEASED.items()
        if asked(name) and args.released > MOST_KEPT + 1
    ]
    flat = all(
        row["grown"]["compilations"] == 0
        and (row["grown"]["maps"] or 0) <= MOST_MAPS
        and (row["grown"]["resident_mib"] or 0) <= MOST_MIB
        for row in rows
    ) and all((row["grown"]["maps"] or 0) <= MOST_MAPS for row in released)
    path = _report.write(
        args.out,
        {
            "command": "python benchmarks/repeated_calls.py",
            "calls": args.calls,
            "rows": rows,
            "released": released,
            "most_maps": MOST_MAPS,
            "most_mib": MOST_MIB,
            "flat": flat,
        },
    )
    print("flat" if flat else "grows", path)
    raise SystemExit(not flat)


if __name__ == "__main__":
    main()
