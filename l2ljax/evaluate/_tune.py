"""Tuning a hand-designed optimizer by grid search, all settings at once."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax._shown import one_line
from l2ljax.core import Key, Task, Transformation, as_partial, as_pytree, closure
from l2ljax.evaluate._arguments import require_factory, require_task
from l2ljax.meta import final_loss, unroll_batch

Factory = TypeAliasType("Factory", Callable[..., Transformation])
Grid = TypeAliasType("Grid", Sequence[float] | np.ndarray | Array | Mapping[str, Sequence[float]])

RATE = "learning_rate"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The scores of a grid.

    Attributes:
        best: the setting with the lowest score, by argument name; one that diverged if all did.
        score: its score, the mean final loss; infinite if every setting diverged.
        points: for each argument the value at every point of the grid, f64[points].
        scores: the score of every point, f64[points]; infinite where a run diverged.
        on_edge: whether the best rate is the largest or the smallest one tried, which makes it no
            result: a better one may lie outside.
    """

    best: dict[str, float]
    score: float
    points: dict[str, np.ndarray]
    scores: np.ndarray
    on_edge: bool

    __repr__ = one_line


def tune(
    factory: Factory,
    task: Task,
    grid: Grid,
    *,
    key: Key,
    steps: int = 100,
    problems: int = 16,
    window: int = 10,
    widen: int = 3,
    at_once: int | None = None,
) -> Tuning:
    """Finds the setting with the lowest mean final loss, `vmap`ped over the grid.

    A best learning rate on the edge of the grid widens it: as many rates again, at the same ratio,
    beyond that edge.

    Args:
        factory: makes the optimizer: `factory(rate)`, or `factory(**setting)` if `grid` is a
            mapping. It is called with traced numbers.
        task: the family that problems are drawn from.
        grid: learning rates; or values for each argument, of which every combination is tried.
        key: draws the problems; all settings see the same ones.
        steps: inner steps T.
        problems: number of problems.
        window: the final loss is the mean over the last `window` updates: 10 for minibatch tasks,
            1 for deterministic ones.
        widen: how many times the grid is widened at the most.
        at_once: settings that run side by side; None: all. Less of a large model is faster on a
            CPU, and needs less memory anywhere; scores do not depend on it.

    Returns:
        A `Tuning`.

    Raises:
        ValueError: for an empty grid, a learning rate that is not positive, a value that is not
            finite, a size below 1, a window larger than `steps`, or what is no factory, no task or
            no key.

    >>> import l2ljax as l2l
    >>> rates = [1e-4, 1e-3, 1e-2, 1e-1]
    >>> tuning = tune(l2l.classic.gradient_descent, l2l.tasks.quadratic(), rates, window=1,
    ...               key=jax.random.key(0), steps=20)
    >>> tuning.best
    {'learning_rate': 0.01}
    """
    require_factory("factory", factory)
    require_task("task", task)
    _checks.key("key", key)
    for name, value in [("steps", steps), ("problems", problems), ("window", window)]:
        _checks.count(name, value)
    _checks.count("widen", widen, least=0)
    if at_once is not None:
        _checks.count("at_once", at_once)
    if window > steps:
        raise ValueError(f"window must be at most steps={steps}, got {window}")
    values = require_grid(grid)
    make = maker(factory, grid)

    def score(curves: np.ndarray) -> np.ndarray:
        return np.asarray(final_loss(jnp.asarray(curves), window))

    found = explore(
        make,
        task,
        values,
        key=key,
        score=score,
        steps=steps,
        problems=problems,
        widen=widen,
        at_once=at_once,
    )
    best = int(np.argmin(found.scores))
    return Tuning(
        best={name: float(column[best]) for name, column in found.points.items()},
        score=float(found.scores[best]),
        points=found.points,
        scores=found.scores,
        on_edge=found.on_edge,
    )


class Explored(NamedTuple):
    """What a grid, widened where that was needed, led to.

    Attributes:
        points: as in `Tuning`.
        scores: likewise.
        curves: the mean loss over problems at θ₀ … θ_T, f32[points, steps + 1].
        on_edge: as in `Tuning`.
    """

    points: dict[str, np.ndarray]
    scores: np.ndarray
    curves: np.ndarray
    on_edge: bool


def explore(
    make: Partial,
    task: Task,
    values: dict[str, list[float]],
    *,
    key: Key,
    score: Callable[[np.ndarray], np.ndarray],
    steps: int,
    problems: int,
    widen: int = 3,
    at_once: int | None = None,
) -> Explored:
    """Runs every point of a grid, and of what lies beyond the edge that the best rate is on.

    Args:
        make: from `maker`.
        task: as in `tune`.
        values: of each argument, see `require_grid`.
        key: as in `tune`.
        score: the score of each mean curve; what is not finite counts as infinite.
        steps: as in `tune`.
        problems: likewise.
        widen: likewise.
        at_once: likewise.
    """
    points: dict[str, list[float]] = {name: [] for name in values}
    scores: list[float] = []
    curves: list[np.ndarray] = []
    beyond: list[float] | None = None
    for _ in range(1 + widen):
        block = list(itertools.product(*values.values()))
        columns = dict(zip(values, np.array(block, np.float64).T, strict=True))
        arrays = {name: jnp.asarray(column) for name, column in columns.items()}
        found = np.asarray(
            mean_curves(make, task, key, arrays, steps=steps, problems=problems, at_once=at_once)
        )
        curves.append(found)
        for name, column in columns.items():
            points[name].extend(column.tolist())
        losses = score(found)
        scores.extend(np.where(np.isfinite(losses), losses, np.inf).tolist())
        beyond = _beyond(points, scores, values)
        if beyond is None:
            break
        values = values | {RATE: beyond}
    return Explored(
        {name: np.array(column) for name, column in points.items()},
        np.array(scores),
        np.concatenate(curves),
        beyond is not None,
    )


def curves_at(
    factory: Factory,
    grid: Grid,
    setting: Mapping[str, float],
    task: Task,
    *,
    key: Key,
    steps: int,
    problems: int,
) -> Float[Array, "{problems} {steps}+1"]:
    """The `curves` of an optimizer with a setting of the grid; one program serves them all."""
    return losses_at(maker(factory, grid), task, key, dict(setting), steps=steps, problems=problems)


@program("steps", "problems")
def losses_at(
    make: Partial,
    task: Task,
    key: Key,
    setting: dict[str, Array],
    *,
    steps: int,
    problems: int,
) -> Float[Array, "{problems} {steps}+1"]:
    """`curves_at` of what `maker` makes; the setting is no part of the program."""
    tx = as_pytree(make(**setting), "what factory makes")
    return unroll_batch(tx, task, key, horizon=steps, problems=problems)


def maker(factory: Factory, grid: Grid) -> Partial:
    """A function of a setting's values by name."""
    return (
        as_partial(factory) if isinstance(grid, Mapping) else closure(_by_rate, as_partial(factory))
    )


def _by_rate(factory: Partial, learning_rate: Array) -> Transformation:
    """Calls a factory with the rate as its first argument, whatever its name."""
    return factory(learning_rate)


def require_grid(grid: Grid) -> dict[str, list[float]]:
    """The values of each argument; refuses what are no numbers that make sense."""
    columns = grid if isinstance(grid, Mapping) else {RATE: grid}
    if not columns:
        raise ValueError("grid must have at least one argument, got none")
    values: dict[str, list[float]] = {}
    for name, column in columns.items():
        label = "grid" if column is grid else f"grid[{name!r}]"
        try:
            array = np.asarray(column, np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{label} must be a sequence of numbers, got {column!r}")
        if name == RATE:
            _checks.positive(label, column)
            array = np.sort(array)
        _checks.finite(label, array)
        values[name] = array.tolist()
    return values


def _beyond(
    points: dict[str, list[float]], scores: list[float], values: dict[str, list[float]]
) -> list[float] | None:
    """The rates beyond the edge that the best one lies on, or None if it lies inside."""
    if RATE not in values or len(values[RATE]) < 2:
        return None
    rates, block = points[RATE], values[RATE]
    # Where everything diverged, smaller rates are what is left to try.
    best = rates[int(np.argmin(scores))] if np.isfinite(min(scores)) else min(rates)
    ratio = (block[-1] / block[0]) ** (1 / (len(block) - 1))
    powers = np.arange(1, len(block) + 1)
    if best == max(rates):
        return (best * ratio**powers).tolist()
    if best == min(rates):
        return np.sort(best / ratio**powers).tolist()
    return None


@program("steps", "problems", "at_once")
def mean_curves(
    make: Partial,
    task: Task,
    key: Key,
    points: dict[str, Array],
    *,
    steps: int,
    problems: int,
    at_once: int | None,
) -> Float[Array, "points {steps}+1"]:
    """The mean loss over problems at θ₀ … θ_T of every point of a grid, in one program."""

    def run(point: dict[str, Array]) -> Float[Array, " times"]:
        return losses_at(make, task, key, point, steps=steps, problems=problems).mean(axis=0)

    if at_once is None:
        return jax.vmap(run)(points)
    return jax.lax.map(run, points, batch_size=None if at_once == 1 else at_once)
