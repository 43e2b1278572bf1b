"""One optimizer on one task of a benchmark, and the yardstick: Adam with tuned rates."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from l2ljax import _checks, classic
from l2ljax.core import (
    Key,
    Task,
    Transformation,
    as_pytree,
    closure,
    is_transformation,
    require_transformation,
)
from l2ljax.evaluate._compare import Tunable
from l2ljax.evaluate._fingerprint import fingerprint
from l2ljax.evaluate._kept import Store
from l2ljax.evaluate._rivals import RATES, Entrant
from l2ljax.evaluate._statistics import envelope
from l2ljax.evaluate._tune import explore, losses_at, maker, mean_curves, require_grid
from l2ljax.meta import final_loss
from l2ljax.suite import SuiteTask

Clock: TypeAlias = Callable[[], float]

ADAM = "Adam"
"""The name of the yardstick."""


class Measurement(NamedTuple):
    """What one optimizer did on one task.

    Attributes:
        start: the mean loss at θ₀.
        final: the final loss on each problem, f64[problems]; infinite where a loss of the run is
            not finite.
        setting: the tuned arguments, or None for an optimizer without any.
        on_edge: whether tuning ended on the edge of its grid.
        params: the number of parameters of the task.
        state_bytes: size of the optimizer's state for one problem.
        seconds: wall-clock of one step of one problem, with the loss and its gradient, run side by
            side with the other problems; None without a clock.
    """

    start: float
    final: Float[np.ndarray, " problems"]
    setting: dict[str, float] | None
    on_edge: bool
    params: int
    state_bytes: int
    seconds: float | None


class Yardstick(NamedTuple):
    """Adam at constant rates on the tuning problems of a task.

    Attributes:
        rate: the rate of the lowest final loss.
        on_edge: whether it is the lowest or the highest one that was tried.
        envelope: what the best rate at each step reaches, over twice the steps of the task; see
            `_statistics.envelope`.
    """

    rate: float
    on_edge: bool
    envelope: Float[np.ndarray, " times"]


class Bench(NamedTuple):
    """A task that is ready to run.

    Attributes:
        entry: how it is run.
        task: the task.
        key: draws the problems that optimizers are compared on.
        store: where results are kept.
        clock: seconds, or None.
    """

    entry: SuiteTask
    task: Task
    key: Key
    store: Store
    clock: Clock | None

    @property
    def tuning_key(self) -> Key:
        """Folded with a number that no batch of problems reaches: other problems for tuning."""
        return jax.random.fold_in(self.key, 2**32 - 1)


def plan(name: str, entrant: Entrant, steps: int) -> Transformation | Tunable:
    """The optimizer of an entry for a run of `steps` steps."""
    label = f"optimizers[{name!r}]"
    found: Any = entrant
    if callable(entrant) and not is_transformation(entrant):
        _require_plan(label, entrant)
        found = entrant(steps)
        label = f"{label}({steps})"
    if not isinstance(found, Tunable):
        require_transformation(label, found, ", a Tunable or a function of the number of steps")
    return found


def _require_plan(label: str, function: Callable[..., Any]) -> None:
    """Refuses what takes a learning rate where the number of steps is passed."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except ValueError:
        return
    if first == "learning_rate":
        raise ValueError(
            f"{label} must be a transformation, a Tunable or a function of the number of steps, "
            "got one of a learning rate; evaluate.Tunable(it, rates) tunes it"
        )


def yardstick(bench: Bench) -> Yardstick:
    """Tunes Adam, and runs it for twice the steps at each rate."""
    entry, steps = bench.entry, bench.entry.steps
    make = maker(classic.adam, RATES)

    def score(curves: np.ndarray) -> np.ndarray:
        return np.asarray(final_loss(jnp.asarray(curves[:, : steps + 1]), entry.window))

    run = {"steps": 2 * steps, "problems": entry.tuning_problems}

    def measure() -> dict[str, Any]:
        found = explore(
            make, bench.task, require_grid(RATES), key=bench.tuning_key, score=score, **run
        )
        best = int(np.argmin(found.scores))
        return {
            "rate": float(found.points["learning_rate"][best]),
            "on_edge": found.on_edge,
            "envelope": [_plain(loss) for loss in envelope(found.curves)],
        }

    settings = {**run, "window": entry.window, "rates": list(RATES)}
    settings["program"] = _tuning_program(make, bench, {"learning_rate": [*RATES]}, 2 * steps)
    kept = bench.store.get(f"{ADAM}-rates", settings, measure)
    return Yardstick(kept["rate"], kept["on_edge"], _numbers(kept["envelope"]))


def measured(name: str, optimizer: Transformation | Tunable, bench: Bench) -> Measurement:
    """Tunes an optimizer, if it is a `Tunable`, and runs it on the problems of a task."""
    entry = bench.entry
    settings: dict[str, Any] = {"steps": entry.steps, "window": entry.window}
    settings |= {"problems": entry.problems}
    if not isinstance(optimizer, Tunable):
        given = closure(_given, as_pytree(optimizer))
        settings["program"] = _program(given, bench, {})
        return _read(bench.store.get(name, settings, lambda: _run(given, bench, {})))

    make, values = maker(*optimizer), require_grid(optimizer.grid)
    settings |= {"tuning_problems": entry.tuning_problems, "grid": values}
    settings["program"] = _tuning_program(make, bench, values, entry.steps)

    def score(curves: np.ndarray) -> np.ndarray:
        return np.asarray(final_loss(jnp.asarray(curves), entry.window))

    def measure() -> dict[str, Any]:
        found = explore(
            make,
            bench.task,
            values,
            key=bench.tuning_key,
            score=score,
            steps=entry.steps,
            problems=entry.tuning_problems,
        )
        best = int(np.argmin(found.scores))
        setting = {argument: float(column[best]) for argument, column in found.points.items()}
        return _run(make, bench, setting) | {"setting": setting, "on_edge": found.on_edge}

    return _read(bench.store.get(name, settings, measure))


def measured_yardstick(found: Yardstick, bench: Bench) -> Measurement:
    """Adam at its best rate on the problems of a task."""
    make, setting = maker(classic.adam, RATES), {"learning_rate": found.rate}
    settings = {
        "steps": bench.entry.steps,
        "window": bench.entry.window,
        "problems": bench.entry.problems,
        "rate": found.rate,
        "program": _program(make, bench, setting),
    }
    kept = bench.store.get(ADAM, settings, lambda: _run(make, bench, setting))
    return _read(kept | {"setting": setting, "on_edge": found.on_edge})


def _given(tx: Transformation) -> Transformation:
    return tx


def _arguments(make: Partial, bench: Bench, setting: Mapping[str, float]) -> tuple[Any, ...]:
    numbers = {name: jnp.asarray(value) for name, value in setting.items()}
    return make, bench.task, bench.key, numbers


def _program(make: Partial, bench: Bench, setting: Mapping[str, float]) -> str:
    def run(*arguments: Any) -> Array:
        return losses_at(*arguments, steps=bench.entry.steps, problems=bench.entry.problems)

    return fingerprint(run, *_arguments(make, bench, setting))


def _tuning_program(
    make: Partial, bench: Bench, values: Mapping[str, list[float]], steps: int
) -> str:
    point = {name: jnp.asarray(column[:1]) for name, column in values.items()}

    def run(*arguments: Any) -> Array:
        problems = bench.entry.tuning_problems
        return mean_curves(*arguments, steps=steps, problems=problems, at_once=None)

    digest = fingerprint(run, make, bench.task, bench.tuning_key, point)
    # The problems that are compared, too.
    return digest + fingerprint(lambda key: key, bench.key)


def _run(make: Partial, bench: Bench, setting: Mapping[str, float]) -> dict[str, Any]:
    """The plain JSON values of a `Measurement`."""
    entry, arguments = bench.entry, _arguments(make, bench, setting)
    static = {"steps": entry.steps, "problems": entry.problems}
    compiled = losses_at.lower(*arguments, **static).compile()
    start = None if bench.clock is None else bench.clock()
    losses = np.asarray(compiled(*arguments), np.float64)
    seconds = None
    if bench.clock is not None and start is not None:
        seconds = (bench.clock() - start) / (entry.steps * entry.problems)
    final = losses[:, -entry.window :].mean(axis=1)
    final = np.where(np.isfinite(losses).all(axis=1), final, np.inf)
    problem = jax.eval_shape(bench.task.sample, bench.key)
    params = jax.eval_shape(bench.task.init, bench.key, problem)
    state = jax.eval_shape(lambda params: make(**arguments[-1]).init(params), params)
    return {
        "start": _plain(losses[:, 0].mean()),
        "final": [_plain(loss) for loss in final],
        "setting": None,
        "on_edge": False,
        "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "seconds": seconds,
    }


def _plain(value: float) -> float | None:
    """JSON has no infinities: they become None."""
    return float(value) if np.isfinite(value) else None


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if value is None else value for value in values], np.float64)


def _read(kept: Mapping[str, Any]) -> Measurement:
    (start,) = _numbers([kept["start"]])
    return Measurement(**{**kept, "final": _numbers(kept["final"]), "start": float(start)})


def require_sizes(entry: SuiteTask, name: str) -> None:
    """Requires sizes of a task that can be run."""
    for size in ("steps", "problems", "tuning_problems"):
        _checks.count(f"{size} of {name}", getattr(entry, size))
