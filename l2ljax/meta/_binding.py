"""What φ stands for: an optimizer's meta-parameters, or with a `LearnedTask` those and the task's.

Everything in this room that turns φ into a transformation and a task does it here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax.tree_util import Partial

from l2ljax import _checks
from l2ljax.core import Key, LearnedOptimizer, LearnedTask, Phi, Task, as_pytree, closure


def bind(
    opt: LearnedOptimizer, task: Task | LearnedTask, phi: Phi
) -> tuple[optax.GradientTransformation, Task]:
    """The transformation and the task at φ."""
    own, psi = split(task, phi)
    return as_pytree(opt.bind(own), "what opt binds"), task_at(task, psi)


def split(task: Task | LearnedTask, phi: Phi) -> tuple[Phi, Any]:
    """The optimizer's part of φ, and the task's: ψ, or `()` for a task that learns nothing."""
    if not isinstance(task, LearnedTask):
        return phi, ()
    if not isinstance(phi, Mapping) or set(phi) != {"optimizer", "task"}:
        raise ValueError(
            'phi must be {"optimizer": ..., "task": ...} for a LearnedTask, got a tree of '
            f"{jax.tree.structure(phi)}"
        )
    return phi["optimizer"], phi["task"]


def join(task: Task | LearnedTask, own: Phi, psi: Any) -> Phi:
    """The φ of which `split` returns these parts."""
    return {"optimizer": own, "task": psi} if isinstance(task, LearnedTask) else own


def task_at(task: Task | LearnedTask, psi: Any) -> Task:
    """The task at ψ."""
    return task.bind(psi) if isinstance(task, LearnedTask) else task


def tasks_of(task: Any) -> tuple[Task | LearnedTask, ...]:
    """The tasks that an argument holds, one or several.

    Raises:
        ValueError: for what is neither a task nor a sequence of them.
    """
    if isinstance(task, Task | LearnedTask):
        return (task,)
    if isinstance(task, Sequence) and all(isinstance(one, Task | LearnedTask) for one in task):
        return tuple(task)
    expected = "a Task, a LearnedTask or a sequence of them"
    if hasattr(task, "train"):
        expected += ", such as the `train` of a family"
    _checks.refuse("task", task, expected)


def drawing(
    opt: LearnedOptimizer, task: Task | LearnedTask | Sequence[Task | LearnedTask]
) -> Partial:
    """A function of a key that draws the first φ; of several learned tasks the first draws ψ."""
    first = tasks_of(task)[0]
    if isinstance(first, LearnedTask):
        return closure(_draw, opt.init, first.init)
    return opt.init  # type: ignore[return-value]  # wrapped by the record


def _draw(opt_init: Partial, task_init: Partial, key: Key) -> Phi:
    own, psi = jax.random.split(key)
    return {"optimizer": opt_init(own), "task": task_init(psi)}


def require_second_derivatives(task: Task | LearnedTask, second_derivatives: bool) -> None:
    """Refuses to hold gradients constant where they depend on ψ.

    Raises:
        ValueError: for a learned task without second derivatives.
    """
    if isinstance(task, LearnedTask) and not second_derivatives:
        raise ValueError(
            "second_derivatives must be True for a LearnedTask: the gradients of its loss depend "
            "on its metaparameters, got False"
        )
