"""Checks of what all functions of this room take."""

import contextlib
from collections.abc import Iterator
from typing import Any

from l2ljax.core import LearnedTask, Task


def require_task(name: str, task: Any) -> None:
    """Refuses what is no task, and says how to come by one."""
    if isinstance(task, Task):
        return
    hint = ""
    if isinstance(task, str):
        hint = "; `tasks.load(name)` has two of the catalogue, `.train` and `.evaluation`"
    elif isinstance(getattr(task, "evaluation", None), Task):
        hint = "; its `.evaluation` is one"
    elif isinstance(task, LearnedTask):
        hint = "; its `bind(psi)` is one"
    raise ValueError(f"{name} must be a core.Task, got {_shown(task)}{hint}")


def require_factory(name: str, factory: Any) -> None:
    """Refuses what cannot be called, such as an optimizer that is made already."""
    if not callable(factory):
        raise ValueError(
            f"{name} must be a function that makes an optax transformation, as classic.adam does, "
            f"got {_shown(factory)}"
        )


def _shown(value: Any) -> str:
    """A short value as it is; of others the type, since records hold whole data sets."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


@contextlib.contextmanager
def noted(where: str) -> Iterator[None]:
    """Says in every error where it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {where}")
        raise
