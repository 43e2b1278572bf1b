"""Comparing optimizers over the tasks of a suite."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import jax
from tqdm import tqdm

from l2ljax import _checks
from l2ljax import suite as suites
from l2ljax.core import Key
from l2ljax.evaluate._arguments import noted, require_task
from l2ljax.evaluate._benchmark_result import Benchmark, TaskResults
from l2ljax.evaluate._kept import Store
from l2ljax.evaluate._measure import (
    ADAM,
    Bench,
    Clock,
    measured,
    measured_yardstick,
    plan,
    yardstick,
)
from l2ljax.evaluate._rivals import Entrant
from l2ljax.evaluate._rivals import rivals as default_rivals

SEED = 2_000_000
"""Of the problems that all figures of this suite are of."""


def benchmark(
    optimizers: Mapping[str, Entrant],
    suite: suites.Tasks = "small",
    *,
    rivals: Mapping[str, Entrant] | None = None,
    data_dir: str | pathlib.Path | None = None,
    resume: str | os.PathLike[str] | None = None,
    key: Key | None = None,
    steps: int | None = None,
    problems: int | None = None,
    confidence: float = 0.95,
    clock: Clock | None = None,
    progress: bool = False,
) -> Benchmark:
    """Runs optimizers on the tasks of a suite, beside Adam with a tuned rate and other rivals.

    The yardstick `"Adam"` is always there: its rate is tuned for each task over 11 constant ones,
    on other problems than those that are compared. All optimizers then run on the same problems.
    The *final loss* is the mean of the last 5 % of losses, of 10 at least (of deterministic tasks
    the last one), and the mean over problems; losses must be positive. A run with a loss that is
    not finite has an infinite one. See `Benchmark` for what is reported.

    Args:
        optimizers: by name, transformations; `Tunable` ones, which are tuned as Adam is; or
            functions of the number of steps that return one of these, such as
            `lambda steps: learned.load("general", num_steps=steps)` and what `cosine` returns.
        suite: `"small"`, `"full"`, names of tasks, or tasks by name: see `suite.select`.
        rivals: entries that stand beside them; default: `rivals()`, Adam with a cosine schedule.
        data_dir: the folder with MNIST and CIFAR-10, which `"full"` reads; without it they are
            downloaded.
        resume: a folder where each result is kept as JSON. What is there is not run again if
            nothing that it depends on has changed: optimizer, weights, task, data, problems.
        key: draws the problems; default: those of the published figures.
        steps: of each run; default: as each task has it.
        problems: of each task; default likewise.
        confidence: of intervals.
        clock: a function that returns seconds, such as `time.perf_counter`; without one nothing is
            timed.
        progress: whether to show a bar.

    Returns:
        A `Benchmark`; `print` shows its table.

    Raises:
        ValueError: for no optimizers, one of another kind, a name that is there twice, an unknown
            task, sizes below 1, a confidence outside (0, 1) or what is no key.
        ImportError: for a task that needs a package that is not installed.
        FileNotFoundError: for a `data_dir` without the data.

    >>> import l2ljax as l2l, optax
    >>> result = benchmark({"sgd": optax.sgd(0.02)}, {"bowl": l2l.tasks.quadratic(2)}, rivals={},
    ...                    steps=20, problems=8)
    >>> [row.optimizer for row in result.summary]
    ['sgd', 'Adam']
    """
    _checks.probability("confidence", confidence)
    key = jax.random.key(SEED) if key is None else key
    _checks.key("key", key)
    entrants = _entrants(optimizers, default_rivals() if rivals is None else rivals)
    for size, number in (("steps", steps), ("problems", problems)):
        if number is not None:
            _checks.count(size, number)
    entries = {
        name: dataclasses.replace(
            entry,
            steps=entry.steps if steps is None else steps,
            problems=entry.problems if problems is None else problems,
        )
        for name, entry in suites.select(suite).items()
    }
    # Whatever can be refused is refused before the first run.
    for entry in entries.values():
        for name, entrant in entrants.items():
            plan(name, entrant, entry.steps)
    results: dict[str, TaskResults] = {}
    bar = tqdm(total=len(entries) * (1 + len(entrants)), disable=not progress, unit="run")
    with bar:
        for task_name, entry in entries.items():
            task = entry.make(data_dir)
            require_task(f"suite[{task_name!r}]", task)
            store = Store(None if resume is None else pathlib.Path(resume) / task_name)
            bench = Bench(entry, task, key, store, clock)
            bar.set_postfix_str(f"{task_name}: {ADAM}")
            found = yardstick(bench)
            adam = measured_yardstick(found, bench)
            bar.update()
            rows = {}
            for name, entrant in entrants.items():
                bar.set_postfix_str(f"{task_name}: {name}")
                with noted(f"optimizers[{name!r}] on {task_name}"):
                    rows[name] = measured(name, plan(name, entrant, entry.steps), bench)
                bar.update()
            results[task_name] = TaskResults(entry, rows | {ADAM: adam}, found.envelope)
    return Benchmark(results, ADAM, confidence)


def _entrants(
    optimizers: Mapping[str, Entrant], rivals: Mapping[str, Entrant]
) -> dict[str, Entrant]:
    for label, entrants in (("optimizers", optimizers), ("rivals", rivals)):
        if not isinstance(entrants, Mapping):
            raise ValueError(f"{label} must be a mapping from names, got {type(entrants)}")
    if not optimizers:
        raise ValueError("optimizers must have at least one entry, got none")
    for name in optimizers:
        if name in rivals:
            raise ValueError(f"optimizers must have other names than rivals, got {name!r} in both")
    if ADAM in (*optimizers, *rivals):
        raise ValueError(f"{ADAM!r} must be the yardstick, whose rate is tuned: choose other names")
    return {**optimizers, **rivals}
