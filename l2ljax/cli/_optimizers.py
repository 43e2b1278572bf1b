"""Learned optimizers that words name: a user's own by `module:name`, and saved ones."""

import importlib
import inspect
import os
import sys
from typing import Any

from l2ljax import _checks, learned
from l2ljax.core import LearnedOptimizer, Phi


def named(place: str) -> Any:
    """What a user's own module has, which Python finds, or which lies here.

    Args:
        place: `module:name`.

    Raises:
        ValueError: if `place` has another form, or the module has no such name.
        ImportError: if the module cannot be imported.
    """
    module, _, name = place.partition(":")
    if not module or not name:
        raise ValueError(f"--optimizer must be MODULE:NAME, such as mine:make, got {place!r}")
    # `python -m` looks into the working directory, an installed program does not.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ImportError(f"--optimizer must name a module, got {place!r}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = _checks.near(part, vars(found))
            raise ValueError(f"--optimizer must name what {module} has, got {name!r}{near}")
        found = getattr(found, part)
    return found


def imported(place: str) -> LearnedOptimizer:
    """A learned optimizer of a user's own.

    Args:
        place: `module:name`, where `name` is a `LearnedOptimizer` or a function without arguments
            that makes one.

    Raises:
        ValueError: as `named`, or if what it names is something else.
        ImportError: as `named`.
    """
    found = named(place)
    if callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ValueError(
                f"--optimizer must name a function without arguments, got {place!r}: {error}"
            ) from error
        found = found()
    if not isinstance(found, LearnedOptimizer):
        _checks.refuse(
            "--optimizer", found, f"a LearnedOptimizer or a function that makes one at {place}"
        )
    return found


def restore(
    weights: str, opt: LearnedOptimizer | None, own: LearnedOptimizer | None = None
) -> tuple[LearnedOptimizer, Phi, dict[str, Any]]:
    """As `learned.restore`, with an option for optimizers that no card rebuilds.

    Args:
        weights: a folder or a name.
        opt: the optimizer, whatever the card names.
        own: the optimizer if the card names none.

    Raises:
        ValueError: if the card names none and there is none.
    """
    if opt is None and learned.read_card(weights).get("optimizer", weights) is None:
        if own is None:
            raise ValueError(
                f"--optimizer must be MODULE:NAME of the optimizer of {weights}, got none: its "
                "card names none of l2ljax.learned"
            )
        opt = own
    return learned.restore(weights, opt=opt)
