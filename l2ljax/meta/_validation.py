"""Early stopping: score φ on fresh problems and keep the best one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, LearnedOptimizer, Phi, Scalar, Task, as_pytree, closure
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
    task: Task,
    *,
    key: Key,
    horizon: int = 100,
    problems: int = 32,
    window: int = 10,
) -> Callable[[Phi], Scalar]:
    """A score of φ for `train(validate=...)`: its mean final loss on fixed fresh problems.

    Args:
        opt: the learned optimizer.
        task: the task, best on data that meta-training does not draw from.
        key: draws the problems; they are the same ones in every call.
        horizon: inner steps of a run.
        problems: number of problems.
        window: the final loss is the mean over the last `window` updates: 10 for minibatch tasks,
            1 for deterministic ones.

    Returns:
        A compiled function of φ; infinite where a run diverged.

    Raises:
        ValueError: for a size below 1, or a window larger than the horizon.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.lstm()
    >>> score = validation(opt, l2l.tasks.quadratic(), key=jax.random.key(0), problems=4, window=1)
    >>> score(opt.init(jax.random.key(1))).shape
    ()
    """
    for name, value in [("horizon", horizon), ("problems", problems), ("window", window)]:
        _checks.count(name, value)
    if window > horizon:
        raise ValueError(f"window must be at most horizon={horizon}, got {window}")
    return closure(_score, opt, task, key, horizon=horizon, problems=problems, window=window)


def _score(
    opt: LearnedOptimizer,
    task: Task,
    key: Key,
    phi: Phi,
    *,
    horizon: int,
    problems: int,
    window: int,
) -> Scalar:
    tx = as_pytree(opt.bind(phi))
    losses = unroll_batch(tx, task, key, horizon=horizon, problems=problems)
    score = final_loss(losses, window).mean()
    return jnp.where(jnp.isfinite(score), score, jnp.inf)


@jax.jit
def consider(
    validate: Callable[[Phi], Scalar], state: TrainState
) -> tuple[TrainState, Float[Array, ""]]:
    """Scores the present φ, keeps it if it is the best so far, and counts if it is not.

    Args:
        validate: a `Partial`; lower is better.
        state: the state of meta-training.

    Returns:
        The state with its selection brought up to date, and the score.
    """
    score = jnp.asarray(validate(state.phi), state.best_score.dtype)
    better = score < state.best_score
    best_phi = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.phi, state.best_phi)
    state = state._replace(
        best_phi=best_phi,
        best_score=jnp.where(better, score, state.best_score),
        stale=jnp.where(better, 0, state.stale + 1),
    )
    return state, score
