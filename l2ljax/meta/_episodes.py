"""How an episode draws its randomness: one rule for every estimator and for evaluation.

An episode's key is split into (problem, init, loss). Inner step t uses `fold_in(loss_key, t)` for
loss and gradient alike. Problem i of a batch uses `fold_in(key, i)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from l2ljax.core import Key, Params, Problem, Task


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


def begin(task: Task, key: Key) -> Episode:
    """Draws a problem and θ₀ from an episode's key."""
    problem_key, init_key, loss_key = jax.random.split(key, 3)
    problem = task.sample(problem_key)
    return Episode(problem, task.init(init_key, problem), loss_key)


def batch_keys(key: Key, batch: int) -> Shaped[Array, "batch *words"]:
    """The episodes' keys of a batch: `fold_in(key, i)` for problem i."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
