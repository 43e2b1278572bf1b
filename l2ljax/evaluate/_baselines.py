"""The hand-designed optimizers that a learned one has to beat."""

from collections.abc import Sequence

import numpy as np

from l2ljax import _checks, classic
from l2ljax.evaluate._compare import Tunable
from l2ljax.evaluate._tune import Factory

_FACTORIES: dict[str, Factory] = {
    "SGD": classic.gradient_descent,
    "momentum": classic.momentum,
    "Nesterov": classic.nesterov,
    "RMSprop": classic.rmsprop,
    "Adam": classic.adam,
}

# Four decades each, around what each method wants; a best rate on an edge widens the grid anyway.
_LOWEST = {"SGD": 1e-3, "momentum": 1e-3, "Nesterov": 1e-3, "RMSprop": 1e-4, "Adam": 1e-4}


def baselines(
    names: Sequence[str] = tuple(_FACTORIES), *, decades: int = 4, per_decade: int = 4
) -> dict[str, Tunable]:
    """The usual baselines, to be tuned by `compare`.

    Args:
        names: of "SGD", "momentum", "Nesterov", "RMSprop" and "Adam".
        decades: how many decades of learning rates each grid spans.
        per_decade: rates a decade.

    Returns:
        For each name a `Tunable` over `decades * per_decade + 1` rates (17 by default) from 1e-3
        (SGD, momentum, Nesterov) or 1e-4 (RMSprop, Adam) up; other arguments at their defaults.

    Raises:
        ValueError: for an unknown name, one name that is no sequence, or sizes below 1.

    >>> grid = baselines(["Adam"])["Adam"].grid
    >>> len(grid), grid[0], grid[-1]
    (17, 0.0001, 1.0)
    """
    _checks.count("decades", decades)
    _checks.count("per_decade", per_decade)
    if isinstance(names, str):
        raise ValueError(f"names must be a sequence of names, got {names!r}; try [{names!r}]")
    for name in names:
        _checks.choice("names", name, _FACTORIES)
    steps = np.arange(decades * per_decade + 1) / per_decade
    return {
        name: Tunable(_FACTORIES[name], tuple((_LOWEST[name] * 10.0**steps).tolist()))
        for name in names
    }
