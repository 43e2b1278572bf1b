"""Early stopping: score φ on fresh problems and keep the best one."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax.core import (
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Scalar,
    Task,
    closure,
)
from l2ljax.meta._binding import bind, tasks_of
from l2ljax.meta._episodes import member_key
from l2ljax.meta._progress import TrainState
from l2ljax.meta._unroll import unroll_batch


def final_loss(
    losses: Float[Array, "*problems times"], window: int = 10
) -> Float[Array, "*problems"]:
    """The final loss of each run: the mean of the losses after its last `window` updates.

    Args:
        losses: the losses at θ₀ … θ_T.
        window: 10 for minibatch tasks, 1 for deterministic ones.

    Returns:
        One number a problem.

    Raises:
        ValueError: for a window below 1 or above the number of updates T.

    >>> print(final_loss(jnp.array([[9.0, 4.0, 2.0, 1.0]]), window=2))
    [1.5]
    """
    _checks.count("window", window)
    if window >= losses.shape[-1]:
        raise ValueError(f"window must be at most the {losses.shape[-1] - 1} steps, got {window}")
    return losses[..., -window:].mean(axis=-1)


def validation(
    opt: LearnedOptimizer,
    task: Task | LearnedTask | Sequence[Task | LearnedTask],
    *,
    key: Key,
    horizon: int | Sequence[int] = 100,
    problems: int = 32,
    window: int | Sequence[int] = 10,
) -> Callable[[Phi], Scalar]:
    r"""A score of φ for `train(validate=...)`: its mean final loss on fixed fresh problems.

    For several tasks, whose losses may have other scales, it is the mean over tasks of

    $$\log \frac{\text{mean final loss}}{\text{mean loss at } \theta_0}$$

    where both means are over problems: e^score is the factor to which losses fall, whatever their
    units. Losses must be positive for that.

    Args:
        opt: the learned optimizer.
        task: the task, best on data that meta-training does not draw from; or several.
        key: draws the problems; they are the same ones in every call. Task i > 0 of several draws
            its own with `fold_in(key, 2**31 + 1 + i)`.
        horizon: inner steps of a run; for several tasks also one number for each.
        problems: number of problems, of each task.
        window: the final loss is the mean over the last `window` updates: 10 for minibatch tasks,
            1 for deterministic ones; for several tasks also one number for each.

    Returns:
        A compiled function of φ; infinite where a run diverged.

    Raises:
        ValueError: for no task, a size below 1, a window larger than the horizon, or another number
            of them than of tasks.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.lstm()
    >>> score = validation(opt, l2l.tasks.quadratic(), key=jax.random.key(0), problems=4, window=1)
    >>> score(opt.init(jax.random.key(1))).shape
    ()
    """
    _checks.key("key", key)
    _checks.count("problems", problems)
    tasks = tasks_of(task)
    if not tasks:
        raise ValueError("task must be a Task or a sequence of them, got none")
    settings = list(
        zip(
            _for_each("horizon", horizon, len(tasks)),
            _for_each("window", window, len(tasks)),
            strict=True,
        )
    )
    for steps, last in settings:
        if last > steps:
            raise ValueError(f"window must be at most horizon={steps}, got {last}")
    if isinstance(task, Task | LearnedTask):
        steps, last = settings[0]
        return closure(_score, opt, task, key, horizon=steps, problems=problems, window=last)
    return closure(_score_several, opt, tasks, key, problems=problems, settings=tuple(settings))


def _for_each(name: str, value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number for each of `count` tasks."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count:
        raise ValueError(
            f"{name} must be one number, or one for each of {count} tasks, got {value!r}"
        )
    for number in values:
        _checks.count(name, number)
    return values


def _score(
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    key: Key,
    phi: Phi,
    *,
    horizon: int,
    problems: int,
    window: int,
) -> Scalar:
    tx, bound = bind(opt, task, phi)
    losses = unroll_batch(tx, bound, key, horizon=horizon, problems=problems)
    score = final_loss(losses, window).mean()
    return jnp.where(jnp.isfinite(score), score, jnp.inf)


def _score_several(
    opt: LearnedOptimizer,
    tasks: tuple[Task | LearnedTask, ...],
    key: Key,
    phi: Phi,
    *,
    problems: int,
    settings: tuple[tuple[int, int], ...],
) -> Scalar:
    scores = []
    for i, (task, (horizon, window)) in enumerate(zip(tasks, settings, strict=True)):
        tx, bound = bind(opt, task, phi)
        losses = unroll_batch(tx, bound, member_key(key, i), horizon=horizon, problems=problems)
        # Logarithms of means: one problem that is solved exactly does not decide alone.
        first, last = losses[:, 0].mean(), final_loss(losses, window).mean()
        # All of them solved exactly is the best there is, but a score is finite.
        last = jnp.where(last == 0, jnp.finfo(last.dtype).tiny, last)
        scores.append(jnp.log(last) - jnp.log(first))
    score = jnp.mean(jnp.stack(scores))
    return jnp.where(jnp.isfinite(score), score, jnp.inf)


@program()
def consider(
    validate: Callable[[Phi], Scalar], state: TrainState
) -> tuple[TrainState, Float[Array, ""]]:
    """Scores the present φ, keeps it if it is the best so far, and counts if it is not.

    Args:
        validate: a `Partial`; lower is better.
        state: the state of meta-training.

    Returns:
        The state with its selection brought up to date, and the score.

    Raises:
        ValueError: for a score that is not one floating-point number.
    """
    score = jnp.asarray(validate(state.phi))
    if score.shape or not jnp.issubdtype(score.dtype, jnp.floating):
        raise ValueError(
            f"validate must return one floating-point number, got {score.dtype}{list(score.shape)}"
        )
    score = score.astype(state.best_score.dtype)
    better = score < state.best_score
    best_phi = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.phi, state.best_phi)
    state = state._replace(
        best_phi=best_phi,
        best_score=jnp.where(better, score, state.best_score),
        stale=jnp.where(better, 0, state.stale + 1),
    )
    return state, score
