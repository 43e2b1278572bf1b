"""What a search minimises: the loss that an optimizer with these settings reaches on a task."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.tree_util import Partial

from l2ljax import _checks
from l2ljax.core import Key, Scalar, Task, Transformation, as_partial, closure
from l2ljax.meta import begin_episode, episode_keys, final_loss, unroll, unroll_batch

Family = Task | Callable[..., Task]


def objective(
    factory: Callable[..., Transformation],
    task: Family,
    *,
    steps: int = 100,
    problems: int = 4,
    window: int = 10,
    validation: Family | None = None,
    task_settings: Sequence[str] = (),
) -> Partial:
    """An objective for `search`: the final loss of an optimizer, by its settings.

    Args:
        factory: makes the optimizer: `factory(**settings)`.
        task: the family that problems are drawn from; with `task_settings` a function of those.
        steps: inner steps T.
        problems: number of problems; every trial sees the same ones.
        window: the final loss is the mean over the last `window` updates: 10 for minibatch tasks,
            1 for deterministic ones.
        validation: a task with the same params, such as one of another split; its objective at θ_T
            is then the value, and `window` is not used. With `task_settings` a function of those.
        task_settings: names of the settings that go to `task` and `validation` instead of
            `factory`: a width, an activation.

    Returns:
        `objective(settings, key)`, whose arrays are leaves: data sets are no constants of compiled
        programs.

    Raises:
        ValueError: for sizes below 1 or a window larger than `steps`.

    >>> import l2ljax as l2l
    >>> loss = objective(l2l.classic.gradient_descent, l2l.tasks.quadratic(), steps=20, window=1)
    >>> space = {"learning_rate": l2l.hyper.log_uniform(1e-3, 1)}
    >>> result = l2l.hyper.search(loss, space, key=jax.random.key(0), method="grid", trials=7)
    >>> print(result)
    3.542 at learning_rate=0.01, the best of 7 trials, 2 of them not finite
    """
    for name, value in [("steps", steps), ("problems", problems), ("window", window)]:
        _checks.count(name, value)
    if window > steps:
        raise ValueError(f"window must be at most steps={steps}, got {window}")
    return closure(
        _objective,
        as_partial(factory),
        _as_pytree(task),
        None if validation is None else _as_pytree(validation),
        steps=steps,
        problems=problems,
        window=window,
        task_settings=tuple(task_settings),
    )


def _as_pytree(family: Family) -> Family:
    return family if isinstance(family, Task) else as_partial(family)


def _objective(
    factory: Callable[..., optax.GradientTransformation],
    task: Family,
    validation: Family | None,
    settings: dict[str, Any],
    key: Key,
    *,
    steps: int,
    problems: int,
    window: int,
    task_settings: tuple[str, ...],
) -> Scalar:
    of_task = {name: settings[name] for name in task_settings}
    tx = factory(**{n: value for n, value in settings.items() if n not in of_task})
    task = task if isinstance(task, Task) else task(**of_task)
    if validation is None:
        losses = unroll_batch(tx, task, key, horizon=steps, problems=problems)
        return final_loss(losses, window).mean()
    judge = validation if isinstance(validation, Task) else validation(**of_task)

    def validate(key: Key) -> Scalar:
        problem, _, loss_key = begin_episode(task, key)
        _, params = unroll(tx, task, problem, key, horizon=steps)
        return judge.objective(params, problem, jax.random.fold_in(loss_key, steps))

    return jax.vmap(validate)(episode_keys(key, problems)).mean()
