"""Spaces of settings: what may be chosen, and where in the unit cube it lies.

Every method of search works in the unit cube, an axis a setting; here points of it become settings
and back.
"""

import dataclasses
import math
from collections.abc import Hashable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import TypeAliasType

from l2ljax import _checks


@dataclasses.dataclass(frozen=True)
class Axis:
    """What one setting may be; made by `uniform`, `log_uniform`, `integer` and `choice`.

    Attributes:
        kind: the name of the function that made it.
        low: the smallest number.
        high: the largest.
        options: those of a choice; their places are numbers from 0.
        static: whether an objective gets a Python value, that shapes may depend on, instead of an
            array.
        step: the distance of whole numbers.
        log: whether whole numbers are as probable as their logarithms are apart.
    """

    kind: str
    low: float
    high: float
    options: tuple[Hashable, ...] = ()
    static: bool = False
    step: int = 1
    log: bool = False

    @property
    def size(self) -> int | None:
        """How many values there are; None for a range of real numbers."""
        if self.kind not in ("integer", "choice"):
            return None
        return int(self.high - self.low) // self.step + 1

    @property
    def log_ends(self) -> tuple[float, float] | None:
        """The logarithms at 0 and 1 of whole numbers on a logarithmic scale, each ±½; or None."""
        return (math.log(self.low - 0.5), math.log(self.high + 0.5)) if self.log else None

    def at(self, units: np.ndarray) -> np.ndarray:
        """The numbers at places in [0, 1]; those of whole numbers fill parts of it.

        The parts are equal, or on a logarithmic scale as long as log(n + ½) - log(n - ½).
        """
        if self.log_ends is not None:
            start, end = self.log_ends
            numbers = np.floor(np.exp(start + units * (end - start)) + 0.5)
            return np.clip(numbers, self.low, self.high).astype(np.int64)
        if self.size is not None:
            places = np.minimum(np.floor(units * self.size), self.size - 1)
            return (self.low + self.step * places).astype(np.int64)
        if self.kind == "log_uniform":
            numbers = np.exp(np.log(self.low) + units * np.log(self.high / self.low))
        else:
            numbers = self.low + units * (self.high - self.low)
        # Rounding may lead out.
        return np.clip(numbers, self.low, self.high)

    def unit(self, numbers: np.ndarray) -> np.ndarray:
        """Where in [0, 1] numbers lie, whole ones inside their part."""
        if self.log_ends is not None:
            start, end = self.log_ends
            return (np.log(numbers) - start) / (end - start)
        if self.size is not None:
            return ((numbers - self.low) // self.step + 0.5) / self.size
        if self.kind == "log_uniform":
            return np.log(numbers / self.low) / np.log(self.high / self.low)
        return (numbers - self.low) / (self.high - self.low)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Settings, as a user sees them: numbers, or options."""
        if self.kind != "choice":
            return numbers
        column = np.empty(len(numbers), object)
        column[:] = [self.options[i] for i in numbers]
        return column

    def describe(self) -> dict[str, Any]:
        """Plain JSON values that are others for another axis."""
        description = {"kind": self.kind, "static": self.static}
        if self.kind == "choice":
            return description | {"options": [_label(option) for option in self.options]}
        scale = {"step": self.step} if self.step > 1 else {"log": True} if self.log else {}
        return description | {"low": self.low, "high": self.high, **scale}


Space = TypeAliasType("Space", Mapping[str, Axis])


def uniform(low: float, high: float) -> Axis:
    """A real number, each as probable as another.

    Args:
        low: the smallest.
        high: the largest.

    Returns:
        An axis of a space; the objective gets a floating-point array, f[].

    Raises:
        ValueError: for bounds that are not finite numbers or not in this order.

    >>> uniform(-1, 1).at(np.array([0.0, 0.5, 1.0]))
    array([-1.,  0.,  1.])
    """
    _checks.number("low", low)
    _checks.number("high", high)
    _require_order(low, high)
    return Axis("uniform", float(low), float(high))


def log_uniform(low: float, high: float) -> Axis:
    """A positive number whose logarithm is as probable as another: rates, penalties.

    Args:
        low: the smallest, above zero.
        high: the largest.

    Returns:
        An axis of a space; the objective gets a floating-point array, f[].

    Raises:
        ValueError: for bounds that are not positive numbers or not in this order.

    >>> log_uniform(1e-4, 1.0).at(np.array([0.0, 0.5, 1.0]))
    array([1.e-04, 1.e-02, 1.e+00])
    """
    for name, value in [("low", low), ("high", high)]:
        _checks.number(name, value)
        _checks.positive(name, value)
    _require_order(low, high)
    return Axis("log_uniform", float(low), float(high))


def integer(low: int, high: int, *, step: int = 1, log: bool = False, static: bool = False) -> Axis:
    """A whole number, each as probable as another, or each logarithm: widths, batches, depths.

    Args:
        low: the smallest; above zero with `log`.
        high: the largest; it is included.
        step: the distance of one number to the next; `high` is some steps above `low`.
        log: whether a number n is as probable as log(n + ½) - log(n - ½) is large: as many between
            10 and 100 as between 100 and 1,000. Not with steps.
        static: whether shapes depend on it, as on a width: the objective then gets an `int`, and
            is compiled for each one. Otherwise it gets an array, i[].

    Returns:
        An axis of a space.

    Raises:
        ValueError: for bounds that are not whole numbers, not in this order or no whole steps
            apart, or a logarithmic scale with steps or from below 1.

    >>> integer(1, 4).at(np.array([0.0, 0.3, 0.5, 1.0]))
    array([1, 2, 3, 4])
    >>> integer(16, 64, step=16).at(np.array([0.0, 0.3, 0.5, 1.0]))
    array([16, 32, 48, 64])
    >>> integer(1, 1000, log=True).at(np.array([0.0, 0.3, 0.5, 1.0]))
    array([   1,    5,   22, 1000])
    """
    for name, value in [("low", low), ("high", high)]:
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    _require_order(low, high)
    _checks.count("step", step)
    if (high - low) % step:
        raise ValueError(
            f"high must be whole steps of {step} above low={low!r}, got {high!r}; the last such "
            f"number is {high - (high - low) % step}"
        )
    if log and step > 1:
        raise ValueError(f"step must be 1 on a logarithmic scale, got {step!r}")
    if log and low < 1:
        raise ValueError(f"low must be at least 1 on a logarithmic scale, got {low!r}")
    return Axis("integer", int(low), int(high), static=bool(static), step=int(step), log=bool(log))


def choice(*options: Hashable) -> Axis:
    """One of several values, in no order: an activation, a structure, a method.

    Args:
        *options: what there is to choose from; hashable and different from each other.

    Returns:
        An axis of a space; the objective gets the option itself, and is compiled for each.

    Raises:
        ValueError: for no options, equal ones, or ones that are not hashable.

    >>> choice("relu", "tanh").values(np.array([1, 0, 1])).tolist()
    ['tanh', 'relu', 'tanh']
    """
    if not options:
        raise ValueError("options must have at least one entry, got none")
    for option in options:
        if not isinstance(option, Hashable):
            raise ValueError(f"options must be hashable, got {option!r}")
    if len({_label(option) for option in options}) < len(options):
        raise ValueError(f"options must differ from each other, got {options!r}")
    return Axis("choice", 0, len(options) - 1, tuple(options), static=True)


def _require_order(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"high must be above low={low!r}, got {high!r}")


def _label(option: Hashable) -> str:
    """What an option is called, the same in every process."""
    if callable(option) and hasattr(option, "__qualname__"):
        return f"{option.__module__}.{option.__qualname__}"
    return repr(option)


def require_space(space: Any) -> None:
    """Requires settings with a name each, all of them made by the functions of this file."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space must be a mapping with at least one setting, got {space!r}")
    for name, axis in space.items():
        if not isinstance(axis, Axis):
            raise ValueError(
                f"space[{name!r}] must be made by uniform, log_uniform, integer or choice, "
                f"got {axis!r}"
            )


def numbers_at(space: Space, units: Float[np.ndarray, "n dim"]) -> dict[str, np.ndarray]:
    """The numbers at points of the unit cube, a column for each setting."""
    return {name: axis.at(units[:, i]) for i, (name, axis) in enumerate(space.items())}


def units_of(space: Space, numbers: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n dim"]:
    """Where in the unit cube numbers lie."""
    return np.stack([axis.unit(numbers[name]) for name, axis in space.items()], axis=1)


def embed(
    units: Float[Array, "n dim"],
    *,
    sizes: tuple[int | None, ...],
    choices: tuple[bool, ...],
    log_ends: tuple[tuple[float, float] | None, ...],
) -> Float[Array, "n features"]:
    """Points of the cube as a model of the objective should see them.

    Whole numbers are rounded, as the objective sees them. An option of a choice is an axis of its
    own, and all options are equally far apart, by one.

    Args:
        units: the points.
        sizes: of each axis, `Axis.size`.
        choices: whether each axis is a choice.
        log_ends: of each axis, `Axis.log_ends`.
    """
    columns = []
    for column, size, is_choice, ends in zip(units.T, sizes, choices, log_ends, strict=True):
        if size is None:
            columns.append(column[:, None])
            continue
        if ends is not None:
            start, end = ends
            number = jnp.floor(jnp.exp(start + column * (end - start)) + 0.5)
            columns.append(((jnp.log(number) - start) / (end - start))[:, None])
            continue
        place = jnp.minimum(jnp.floor(column * size), size - 1)
        if is_choice:
            options = jnp.arange(size, dtype=units.dtype)[None]
            columns.append((place[:, None] == options).astype(units.dtype) / 2**0.5)
        else:
            columns.append((place[:, None] + 0.5) / size)
    return jnp.concatenate(columns, axis=1)
