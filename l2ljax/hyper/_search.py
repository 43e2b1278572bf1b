"""Search for settings: propose, evaluate in compiled batches, keep, go on."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm
from typing_extensions import TypeAliasType

from l2ljax import _checks, checkpoint
from l2ljax._programs import program
from l2ljax.core import Key, Scalar, as_partial
from l2ljax.hyper._bayesian import bayesian
from l2ljax.hyper._methods import Method, grid, quasi_random, random, words
from l2ljax.hyper._optuna import optuna
from l2ljax.hyper._search_result import SearchResult
from l2ljax.hyper._space import Space, numbers_at, require_space, units_of

Objective = TypeAliasType("Objective", Callable[[dict[str, Any], Key], Scalar])

_NOTE = """\
JAX traces the objective, to evaluate several trials in one compiled program. One that cannot be
traced takes hyper.search(..., traceable=False): it is called for one trial after another."""

METHODS: dict[str, Callable[[], Method]] = {
    "grid": grid,
    "random": random,
    "quasi_random": quasi_random,
    "bayesian": bayesian,
    "optuna": optuna,
}


def search(
    objective: Objective,
    space: Space,
    *,
    key: Key,
    method: str | Method = "random",
    trials: int = 50,
    at_once: int | None = None,
    traceable: bool = True,
    resume: str | os.PathLike[str] | None = None,
    catch: tuple[type[Exception], ...] = (),
    progress: bool = False,
) -> SearchResult:
    """Looks for the settings with the lowest value of an objective.

    Trials are evaluated in batches, under `jax.vmap` in one compiled program. Settings that shapes
    depend on, and choices, cannot be mapped: those of a batch that agree in them are one call, and
    each combination of them is compiled. A call has a power of two of trials, or `at_once`; what is
    missing is filled up, so that few programs are compiled.

    Every trial gets the same key: settings are compared on the same problems. An objective that is
    not finite is recorded as it is, and never best.

    Args:
        objective: `objective(settings, key) -> scalar`, lower is better. `settings` holds arrays by
            name, and Python values of what is static.
        space: what `uniform`, `log_uniform`, `integer` and `choice` made, by name.
        key: of the method's draws and of the objective.
        method: "grid", "random", "quasi_random", "bayesian", "optuna", or what the function of that
            name made with arguments.
        trials: how many; a grid may have fewer.
        at_once: trials of a batch, evaluated side by side. A method that learns from trials does
            so after each batch. Default: 8, or 1 if the objective is not traceable.
        traceable: whether JAX can trace the objective. One that cannot be traced, such as the score
            of a scikit-learn model, is called for one trial after another, and gets Python values.
        resume: a JSON file that is written whole after every batch. One that is there already is
            gone on from, and the result is that of a search that was never interrupted, also if it
            now has more trials. That the objective is the same, whoever gives it sees to.
        catch: exceptions of the objective that make the trials of its call NaN, such as
            `jax.errors.JaxRuntimeError` for want of memory. Others end the search.
        progress: whether to show a bar over trials.

    Returns:
        A `SearchResult`.

    Raises:
        ValueError: for an empty space, sizes below 1, an unknown method, what is no key, an
            objective that is not a scalar, a file of another space, method, key or batch (it says
            which), one that is damaged, or one that cannot be written.

    >>> from l2ljax import hyper
    >>> space = {"x": hyper.uniform(-2, 2), "power": hyper.choice(2, 4)}
    >>> def objective(settings, key):
    ...     return (settings["x"] - 1) ** settings["power"] + 1 / settings["power"]
    >>> result = search(objective, space, key=jax.random.key(0), method="grid", trials=18)
    >>> result.best, result.value
    ({'x': 1.0, 'power': 4}, 0.25)
    """
    require_space(space)
    _checks.key("key", key)
    _checks.count("trials", trials)
    if at_once is None:
        at_once = 8 if traceable else 1
    _checks.count("at_once", at_once)
    if isinstance(method, str):
        _checks.choice("method", method, METHODS)
        method = METHODS[method]()
    elif not isinstance(method, Method):
        raise ValueError(f"method must be one of {[*METHODS]} or made by one, got {method!r}")
    method_key, objective_key = jax.random.split(key)
    propose = method.start(space, method_key, trials)
    identity = {
        "space": {name: axis.describe() for name, axis in space.items()},
        "method": {"name": method.name, **method.settings},
        "key": words(key),
        "at_once": at_once,
    }
    file = None if resume is None else pathlib.Path(resume)
    numbers, values = _read(file, identity, space)
    if file is not None and len(values) < trials:
        # Now, and not only after the first batch, which would be lost.
        try:
            _write(file, identity, numbers, values)
        except OSError as error:
            raise ValueError(
                f"resume must be a file that can be written, got {file}: {error}"
            ) from error
    bar = tqdm(total=trials, initial=len(values), unit="trial", disable=not progress)
    with bar:
        while len(values) < trials:
            # Batches begin at multiples of their size, so that a search of more trials passes
            # through the same ones; of the last one only a part is evaluated.
            begin = len(values) - len(values) % at_once
            known = {name: column[:begin] for name, column in numbers.items()}
            units = propose(units_of(space, known), values[:begin], at_once)
            batch = numbers_at(space, units[len(values) - begin : trials - begin])
            if traceable:
                found = _evaluate_all(objective, space, batch, objective_key, at_once, catch)
            else:
                found = _evaluate_each(objective, space, batch, objective_key, catch)
            if not len(found):
                break
            numbers = {name: np.append(numbers[name], batch[name]) for name in space}
            values = np.append(values, found)
            if file is not None:
                _write(file, identity, numbers, values)
            bar.set_postfix_str(f"best {SearchResult.of(space, numbers, values).value:.4g}")
            bar.update(len(found))
    numbers = {name: column[:trials] for name, column in numbers.items()}
    return SearchResult.of(space, numbers, values[:trials])


def _evaluate_each(
    objective: Objective,
    space: Space,
    batch: dict[str, np.ndarray],
    key: Key,
    catch: tuple[type[Exception], ...],
) -> Float[np.ndarray, " n"]:
    """The value of each trial, by a call of its own with Python values."""
    columns = [axis.values(batch[name]).tolist() for name, axis in space.items()]
    values = np.full(len(columns[0]), np.nan)
    for i, row in enumerate(zip(*columns, strict=True)):
        try:
            value = objective(dict(zip(space, row, strict=True)), key)
        except catch:
            continue
        _checks.scalar_value("objective", value)
        try:
            values[i] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"objective must return a number, got {value!r}") from None
    return values


def _evaluate_all(
    objective: Objective,
    space: Space,
    batch: dict[str, np.ndarray],
    key: Key,
    at_once: int,
    catch: tuple[type[Exception], ...],
) -> Float[np.ndarray, " n"]:
    """The value of each trial, those with the same static settings together."""
    static = {n: axis.values(batch[n]).tolist() for n, axis in space.items() if axis.static}
    mapped = [name for name in space if not space[name].static]
    count = len(next(iter(batch.values())))
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in range(count):
        groups.setdefault(tuple(int(batch[name][i]) for name in static), []).append(i)
    values = np.full(count, np.nan)
    for members in groups.values():
        size = min(at_once, 2 ** int(np.ceil(np.log2(len(members)))))
        padded = np.resize(members, size)
        try:
            found = _evaluate(
                as_partial(objective),
                {name: jnp.asarray(batch[name][padded]) for name in mapped},
                key,
                static=tuple((name, column[members[0]]) for name, column in static.items()),
                size=size,
            )
            values[members] = np.asarray(found, np.float64)[: len(members)]
        except catch:
            pass
    return values


@program("static", "size")
def _evaluate(
    objective: Objective,
    mapped: dict[str, Array],
    key: Key,
    *,
    static: tuple[tuple[str, Any], ...],
    size: int,
) -> Float[Array, "{size}"]:
    def evaluate(mapped: dict[str, Array]) -> Scalar:
        try:
            value = objective(mapped | dict(static), key)
        except Exception as error:
            # Libraries that see that it is no number have errors of their own.
            if isinstance(error, TypeError | jax.errors.JAXIndexError) or "Tracer" in str(error):
                error.add_note(_NOTE)
            raise
        _checks.scalar_value("objective", value)
        real = jnp.issubdtype(jnp.result_type(value), jnp.floating)
        return jnp.asarray(value, None if real else float)

    return jax.vmap(evaluate, axis_size=size)(mapped)


def _write(
    file: pathlib.Path,
    identity: dict[str, Any],
    numbers: dict[str, np.ndarray],
    values: np.ndarray,
) -> None:
    content = {
        **identity,
        # Options by their place; JSON has no infinities and no NaN.
        "trials": {name: column.tolist() for name, column in numbers.items()},
        "values": [value if np.isfinite(value) else str(value) for value in values.tolist()],
    }
    checkpoint.write_file(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read(
    file: pathlib.Path | None, identity: dict[str, Any], space: Space
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The trials that a file holds; none if there is none."""
    if file is None or not file.exists():
        empty = np.zeros((0, len(space)))
        return numbers_at(space, empty), np.zeros(0)
    with _damage_named(file):
        kept = json.loads(file.read_text(encoding="utf-8"))
        same = {name: kept[name] for name in identity}
    # As JSON has them: tuples are lists.
    for name, asked in json.loads(json.dumps(identity)).items():
        if same[name] != asked:
            raise ValueError(
                f"resume must be a file of this search, but the {name} of {file} is "
                f"{same[name]}, not {asked}"
            )
    with _damage_named(file):
        values = np.array([_value(value) for value in kept["values"]], np.float64)
        return _columns(kept["trials"], space, len(values)), values


@contextlib.contextmanager
def _damage_named(file: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"resume must be a file that a search left, got {file}: {error!r}"
        ) from error


def _value(value: Any) -> float:
    """A value as `_write` leaves it."""
    odd = isinstance(value, str) and value not in ("nan", "inf", "-inf")
    if odd or isinstance(value, bool):
        raise ValueError(f"a value must be a number, got {value!r}")
    return float(value)


def _columns(trials: Any, space: Space, count: int) -> dict[str, np.ndarray]:
    """The settings of all trials, each in its range."""
    if sorted(trials) != sorted(space):
        raise ValueError(f"trials must have the settings {[*space]}, got {[*trials]}")
    numbers = {}
    for name, axis in space.items():
        column = np.array(trials[name])
        if column.shape != (count,) or column.dtype.kind not in "iuf":
            raise ValueError(f"trials[{name!r}] must hold {count} numbers, as many as values")
        whole = axis.size is None or bool(((column - axis.low) % axis.step == 0).all())
        if not whole or not ((column >= axis.low) & (column <= axis.high)).all():
            raise ValueError(
                f"trials[{name!r}] must hold {'' if axis.size is None else 'whole '}numbers from "
                f"{axis.low} to {axis.high}{f' in steps of {axis.step}' if axis.step > 1 else ''}, "
                f"got {column.tolist()}"
            )
        numbers[name] = column.astype(np.float64 if axis.size is None else np.int64)
    return numbers
