r"""The inner loop where gradients are constants, differentiated by replaying the optimizer.

Without ∂∇/∂φ the params after t steps are $\theta_t = \theta_0 + \sum_{s<t} u_s$, and updates u
depend on φ by way of the optimizer alone. So the gradient by an update is known once the episode
has run: the sum of the losses' gradients after it. What is left is the derivative of the optimizer
along gradients that are all known, which a `core.ReplayableTransformation` computes at once, where
backpropagation through the loop goes step by step and keeps the state of each. Only what it asks
for is noted on the way forwards.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from l2ljax.core import Key, Params, Problem, ReplayableTransformation, Scalar, Task
from l2ljax.meta._episodes import Episode


def replays(tx: optax.GradientTransformation, params: Params) -> bool:
    """Whether `advance_replaying` serves: updates are then added to params as they are."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return isinstance(tx, ReplayableTransformation) and dtypes == {jnp.dtype("float32")}


def advance_replaying(
    tx: ReplayableTransformation,
    task: Task,
    episode: Episode,
    opt_state: Any,
    start: Int[Array, ""],
    *,
    steps: int,
) -> tuple[Float[Array, "{steps}+1 batch"], Params, Any]:
    """`advance` of a batch of episodes without second derivatives.

    Differentiable backwards, once, by the arrays of `tx`, the first params and the state; the task,
    problems and keys are constants.

    Args:
        tx: the transformation.
        task: the task of the episodes.
        episode: problems, present params and keys of losses, with a leading axis of problems.
        opt_state: the present state.
        start: inner steps that are already done.
        steps: inner steps to take.

    Returns:
        As `advance`.
    """
    problem, params, loss_key = episode
    return _run(steps, tx, (task, problem, loss_key, start), params, opt_state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(steps: int, tx: Any, constants: Any, params: Params, opt_state: Any) -> Any:
    return _recorded(steps, tx, constants, params, opt_state, None)[0]


def _recorded(
    steps: int, tx: Any, constants: Any, params: Params, opt_state: Any, notes: Any
) -> tuple[Any, tuple[Params, Params, Params, Any]]:
    """What `advance` returns; the gradients of each step, and those of the objective, the last.

    And the notes of all steps, if there is room for them.
    """
    task, problem, loss_key, start = constants
    measure = jax.vmap(functools.partial(_measure, task), in_axes=(0, 0, 0, None))

    def step(carry: tuple[Params, Any, Any], t: Array) -> tuple[tuple[Params, Any, Any], Any]:
        params, opt_state, notes = carry
        objective, gradient, slope = measure(params, problem, loss_key, t)
        updates, opt_state, notes = tx.noting(gradient, opt_state, notes)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, notes), (objective, gradient, slope)

    times = start + jnp.arange(steps, dtype=jnp.int32)
    (params, opt_state, notes), (losses, gradients, slopes) = jax.lax.scan(
        step, (params, opt_state, notes), times
    )
    last, gradient, slope = measure(params, problem, loss_key, start + steps)
    if task.objective is task.loss:
        slopes, slope = gradients, gradient
    losses = jnp.concatenate([losses, last[None]])
    return (losses, params, opt_state), (gradients, slopes, slope, notes)


def _measure(
    task: Task, params: Params, problem: Problem, loss_key: Key, t: Array
) -> tuple[Scalar, Params, Params | None]:
    """The objective at step t, the gradient of the loss, and that of the objective if another."""
    key = jax.random.fold_in(loss_key, t)
    value, gradient = jax.value_and_grad(task.loss)(params, problem, key)
    if task.objective is task.loss:
        return value, gradient, None
    objective, slope = jax.value_and_grad(task.objective)(params, problem, key)
    return objective, gradient, slope


def _forwards(steps: int, tx: Any, constants: Any, params: Params, opt_state: Any) -> Any:
    notes = tx.notes(opt_state, steps)
    results, kept = _recorded(steps, tx, constants, params, opt_state, notes)
    return results, (tx, opt_state, *kept)


def _backwards(steps: int, kept: Any, by_results: Any) -> Any:
    tx, opt_state, gradients, slopes, last_slope, notes = kept
    by_losses, by_params, by_state = by_results

    def before(by_params: Params, at: tuple[Array, Params]) -> tuple[Params, Params]:
        by_loss, slope = at
        return _add_products(by_params, by_loss, slope), by_params

    by_params = _add_products(by_params, by_losses[-1], last_slope)
    by_params, by_updates = jax.lax.scan(
        before, by_params, (by_losses[:-1], slopes), length=steps, reverse=True
    )
    _, pull_back = jax.vjp(lambda tx, state: tx.replay(gradients, state, notes), tx, opt_state)
    by_tx, by_state = pull_back((by_updates, by_state))
    return by_tx, None, by_params, by_state


_run.defvjp(_forwards, _backwards)


def _add_products(tree: PyTree, by_loss: Float[Array, " batch"], slope: PyTree) -> PyTree:
    """Tree + by_loss · slope, each problem's number with its part of the tree."""
    return jax.tree.map(
        lambda a, g: a + by_loss.reshape(-1, *[1] * (g.ndim - 1)).astype(g.dtype) * g, tree, slope
    )
