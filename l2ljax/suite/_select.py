"""Which tasks a benchmark has."""

from collections.abc import Mapping, Sequence

from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax.core import Task
from l2ljax.suite._tasks import SUITE, SuiteTask

Tasks = TypeAliasType("Tasks", str | Sequence[str] | Mapping[str, SuiteTask | Task])
"""`"small"`, `"full"`, names of tasks of the suite, or tasks by name."""


def select(tasks: Tasks = "small") -> dict[str, SuiteTask]:
    """The tasks of a benchmark by name.

    Args:
        tasks: `"small"`, those of the suite that read no files but those of this package and of
            scikit-learn; `"full"`, all of them; names of some; or tasks by name, where a `Task`
            stands for a `SuiteTask` of 200 steps with minibatches.

    Returns:
        The tasks, in their order.

    Raises:
        ValueError: for no tasks, an unknown name or what is no task.

    >>> len(select("small")), len(select("full")), [*select(["wine", "iris"])]
    (12, 17, ['wine', 'iris'])
    """
    if isinstance(tasks, Mapping):
        chosen = {name: _suite_task(name, task) for name, task in tasks.items()}
    elif isinstance(tasks, str):
        _checks.choice("suite", tasks, ["small", "full"])
        small = tasks == "small"
        chosen = {name: task for name, task in SUITE.items() if not (small and task.needs_data)}
    else:
        for name in tasks:
            _checks.choice("suite", name, SUITE)
        chosen = {name: SUITE[name] for name in tasks}
    if not chosen:
        raise ValueError("suite must have at least one task, got none")
    return chosen


def _suite_task(name: str, task: SuiteTask | Task) -> SuiteTask:
    if isinstance(task, SuiteTask):
        return task
    if not isinstance(task, Task):
        raise ValueError(
            f"suite[{name!r}] must be a suite.SuiteTask or a core.Task, got {type(task)}"
        )
    return SuiteTask(description=name, make=lambda data_dir: task)
