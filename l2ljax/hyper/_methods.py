"""Methods of search that do not look at results: grids, random and quasi-random points."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._shown import one_line
from l2ljax.core import Key
from l2ljax.hyper._space import Axis, Space

Proposer = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""`propose(units, values, count) -> units`: the next `count` points of the unit cube, f64[count,
dim], after trials at points f64[n, dim] with values f64[n]; fewer of them end the search. The
values may hold infinities and NaN. n is a multiple of `count`."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How a search finds the settings to try.

    Attributes:
        name: what it is.
        settings: its arguments, plain JSON values: results on disk belong to them.
        start: `start(space, key, trials) -> propose`, see `Proposer`. What it proposes depends on
            the space, the key, the trials so far and the settings alone.
    """

    name: str
    settings: dict[str, Any]
    start: Callable[[Space, Key, int], Proposer]

    __repr__ = one_line


def grid(points: int | Mapping[str, int] | None = None) -> Method:
    """Every combination of evenly spaced values, from bound to bound; all options of a choice.

    Args:
        points: values of each setting, one number or one by name; of whole numbers no more than
            there are. None: as many as all trials allow, the same for each.

    Returns:
        A method for `search`, which ends with the last combination.

    Raises:
        ValueError: for numbers below 1; from `search` for names that the space does not have, or
            for more combinations than trials.

    >>> from l2ljax.hyper import choice, uniform
    >>> space = {"x": uniform(0, 1), "mode": choice("a", "b")}
    >>> print(grid(3).start(space, jax.random.key(0), 50)(np.zeros((0, 2)), np.zeros(0), 4))
    [[0.   0.25]
     [0.   0.75]
     [0.5  0.25]
     [0.5  0.75]]
    """
    for number in points.values() if isinstance(points, Mapping) else [points]:
        if number is not None:
            _checks.count("points", number)
    settings = {"points": dict(points) if isinstance(points, Mapping) else points}
    return Method("grid", settings, lambda space, key, trials: _grid(space, trials, points))


def _grid(space: Space, trials: int, points: int | Mapping[str, int] | None) -> Proposer:
    given = points if isinstance(points, Mapping) else dict.fromkeys(space, points)
    for name in given:
        _checks.choice("points", name, space)

    def counts(each: int) -> list[int]:
        found = []
        for name, axis in space.items():
            number = given.get(name) or each
            if axis.size is not None:
                number = axis.size if axis.kind == "choice" else min(number, axis.size)
            found.append(number)
        return found

    each = 1
    while math.prod(counts(each + 1)) <= trials and counts(each + 1) != counts(each):
        each += 1
    if math.prod(counts(each)) > trials:
        raise ValueError(
            f"trials must be at least the {math.prod(counts(each))} points of the grid, "
            f"got {trials}"
        )
    columns = [_spaced(axis, n) for axis, n in zip(space.values(), counts(each), strict=True)]
    units = np.array([*itertools.product(*columns)])
    return lambda known, values, count: units[len(known) : len(known) + count]


def _spaced(axis: Axis, number: int) -> np.ndarray:
    """Evenly spaced places on an axis, from end to end; a single one stands in the middle."""
    places = np.linspace(0, 1, number) if number > 1 else np.array([0.5])
    if axis.size is None:
        return places
    if axis.log:
        # Small numbers are further apart than the places: those that agree are one.
        ends = axis.unit(np.array([axis.low, axis.high]))
        return axis.unit(np.unique(axis.at(ends[0] + places * (ends[1] - ends[0]))))
    return (np.floor(places * (axis.size - 1) + 0.5) + 0.5) / axis.size


def random() -> Method:
    """Independent draws, uniform in every setting's own measure.

    Where few of the settings matter, it tries more values of those than a grid does: of n trials
    all n differ, on every axis.

    Returns:
        A method for `search`.

    Reference:
        Bergstra and Bengio (2012), 'Random search for hyper-parameter optimization'.

    >>> from l2ljax.hyper import uniform
    >>> propose = random().start({"x": uniform(0, 1)}, jax.random.key(0), 50)
    >>> propose(np.zeros((0, 1)), np.zeros(0), 3).shape
    (3, 1)
    """

    def start(space: Space, key: Key, trials: int) -> Proposer:
        del trials

        def propose(units: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
            del values
            drawn = _draw(key, len(units) + np.arange(count), dim=len(space))
            return np.asarray(drawn, np.float64)

        return propose

    return Method("random", {}, start)


@jax.jit(static_argnames="dim")
def _draw(key: Key, numbers: Array, *, dim: int) -> Float[Array, "n dim"]:
    """Each trial has a draw of its own, whatever the batch."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (dim,)))(numbers)


def quasi_random() -> Method:
    r"""Points that fill the cube more evenly than independent ones: Halton's sequence, scrambled.

    Coordinate j of point i has the digits of i in the j-th prime base, mirrored at the point and
    permuted at random, place by place:

    $$u_{ij} = \sum_{k \ge 0} \pi_{jk}(d_k)\, b_j^{-k-1}, \qquad i = \sum_{k \ge 0} d_k\, b_j^k .$$

    Each point alone is uniform in the cube.

    Returns:
        A method for `search`.

    Reference:
        Halton (1960), 'On the efficiency of certain quasi-random sequences of points in evaluating
        multi-dimensional integrals'; Owen (2017), 'A randomized Halton algorithm in R'.

    >>> from l2ljax.hyper import uniform
    >>> propose = quasi_random().start({"x": uniform(0, 1)}, jax.random.key(0), 50)
    >>> np.sort(np.floor(4 * propose(np.zeros((0, 1)), np.zeros(0), 4)[:, 0]))  # each quarter once
    array([0., 1., 2., 3.])
    """

    def start(space: Space, key: Key, trials: int) -> Proposer:
        del trials
        return lambda units, values, count: halton(key, len(space), len(units), count)

    return Method("quasi_random", {}, start)


def halton(key: Key, dim: int, first: int, count: int) -> Float[np.ndarray, "{count} {dim}"]:
    """Points `first` to `first + count - 1` of the scrambled sequence."""
    units = np.zeros((count, dim))
    for axis, base in enumerate(_primes(dim)):
        draws = np.random.default_rng([*words(key), axis])
        rest, weight = first + np.arange(count), 1.0
        # Beyond 2⁻⁵³ digits are lost in float64; those of zero are permuted, too.
        while weight > 2**-53:
            permutation = draws.permutation(base)
            rest, digits = np.divmod(rest, base)
            weight /= base
            units[:, axis] += weight * permutation[digits]
    return np.minimum(units, 1 - 2**-53)


def words(key: Key) -> list[int]:
    """The numbers that a key stands for."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key).tolist()


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found
