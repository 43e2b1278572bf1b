"""How an episode draws its randomness: one rule for every estimator and for evaluation.

An episode's key is split into (problem, init, loss). Inner step t uses `fold_in(loss_key, t)` for
loss and gradient alike. Problem i of a batch uses `fold_in(key, i)`.

What else an estimator draws from that key, it folds numbers of 2³¹ and above into it: no batch has
so many problems, so problems are the same with or without such draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from l2ljax import _checks
from l2ljax.core import Key, Params, Problem, Task

HORIZON_DRAW = 2**31
"""Folded into the key that begins an episode, for the draw of its horizon."""

TASK_DRAW = 2**31 + 1
"""Folded into the key of a call, for the draw of one of several tasks."""

PERTURBATION_DRAW = 2**32 - 1
"""Folded into the key of a call, for the draw of perturbations of φ."""


class Episode(NamedTuple):
    """The start of one optimization run.

    Attributes:
        problem: the sampled function.
        params: θ₀.
        loss_key: the key that inner steps fold their number into.
    """

    problem: Problem
    params: Params
    loss_key: Key


def begin_episode(task: Task, key: Key) -> Episode:
    """Draws a problem and θ₀ from an episode's key.

    Args:
        task: the family that the problem comes from.
        key: split into (problem, init, loss).

    Returns:
        The start; inner step t uses `fold_in(loss_key, t)`.

    >>> import l2ljax as l2l
    >>> episode = begin_episode(l2l.tasks.quadratic(dim=3), jax.random.key(0))
    >>> episode.params.shape
    (3,)
    """
    _checks.key("key", key)
    problem_key, init_key, loss_key = jax.random.split(key, 3)
    problem = task.sample(problem_key)
    return Episode(problem, task.init(init_key, problem), loss_key)


def begin_episodes(task: Task, key: Key, batch: int, axis: str | None = None) -> Episode:
    """Draws problems and θ₀ of a batch, as every estimator does.

    Args:
        task: the family that problems come from.
        key: problem i begins with `episode_keys(key, batch, axis)[i]`.
        batch: number of problems, on this device.
        axis: as in `episode_keys`.

    Returns:
        The starts, each array with a leading axis of `batch`.

    >>> import l2ljax as l2l
    >>> begin_episodes(l2l.tasks.quadratic(dim=3), jax.random.key(0), batch=4).params.shape
    (4, 3)
    """
    return jax.vmap(begin_episode, in_axes=(None, 0))(task, episode_keys(key, batch, axis))


def episode_keys(key: Key, batch: int, axis: str | None = None) -> Shaped[Array, "batch *words"]:
    """The episodes' keys of a batch: `fold_in(key, i)` for problem i.

    Args:
        key: the key that begins the episodes.
        batch: number of problems, on this device.
        axis: the axis of devices that the problems are split over, in order; None: all are here.
    """
    _checks.key("key", key)
    numbers = jnp.arange(batch)
    if axis is not None:
        numbers += batch * jax.lax.axis_index(axis)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def member_key(key: Key, member: int) -> Key:
    """The key of one of several members: for the first the key itself, else folded with 2³¹+1+i."""
    return key if member == 0 else jax.random.fold_in(key, 2**31 + 1 + member)
