"""Episodes that begin where another optimizer has come to."""

import dataclasses

import jax
import optax
from jaxtyping import Array, Int

from l2ljax import _checks
from l2ljax._programs import compiled
from l2ljax.core import Key, Params, Problem, Task, Transformation, as_pytree, closure


def warm_start(task: Task, tx: Transformation, *, steps: int) -> Task:
    r"""The task from params that another optimizer has already trained for a while.

    $$\tilde\theta_0 = \theta_n, \qquad \theta_{t+1} = \theta_t + u_t(\nabla f(\theta_t)),
    \qquad n \sim U\{0, \dots, N\}$$

    Late training looks different: small gradients under the noise of minibatches. Meta-training
    sees it here in short episodes, without the memory and the variance of long ones.

    Args:
        task: any task.
        tx: what makes the first n updates, a transformation that needs only gradients; best one
            that is tuned on the task.
        steps: N, the most of them.

    Returns:
        A task; loss and objective are those of `task`, and `init` runs the n steps. Problems that
        are drawn under `jax.vmap` wait for the one with the largest n.

    Raises:
        ValueError: for `steps` below 1.

    >>> import l2ljax as l2l
    >>> plain = l2l.tasks.quadratic(dim=2)
    >>> task = warm_start(plain, l2l.classic.gradient_descent(0.05), steps=50)
    >>> key = jax.random.key(0)
    >>> problem = task.sample(key)
    >>> first, later = plain.init(key, problem), task.init(key, problem)
    >>> bool(task.loss(later, problem, key) < task.loss(first, problem, key))
    True
    """
    _checks.count("steps", steps)
    run = closure(_warmed, steps=steps)
    return dataclasses.replace(task, init=closure(compiled, run, task, as_pytree(tx)))


def _warmed(
    task: Task, tx: optax.GradientTransformation, key: Key, problem: Problem, *, steps: int
) -> Params:
    # θ₀ is the task's own for this key; the two other draws do not disturb it.
    count_key, loss_key = jax.random.split(jax.random.fold_in(key, 2**31))
    count = jax.random.randint(count_key, (), 0, steps + 1)
    params = task.init(key, problem)

    def step(
        t: Int[Array, ""], carry: tuple[Params, optax.OptState]
    ) -> tuple[Params, optax.OptState]:
        params, state = carry
        gradients = jax.grad(task.loss)(params, problem, jax.random.fold_in(loss_key, t))
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, count, step, (params, tx.init(params)))[0]
