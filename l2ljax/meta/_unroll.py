"""The inner loop: optimize one problem with one transformation, as a single `lax.scan`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax._programs import compiled, program
from l2ljax.core import (
    CoordinatewiseTransformation,
    Key,
    Params,
    Problem,
    Scalar,
    Task,
    Transformation,
    as_pytree,
    closure,
)
from l2ljax.meta._episodes import Episode, begin_episodes


def unroll(
    tx: Transformation,
    task: Task,
    problem: Problem,
    key: Key,
    *,
    horizon: int,
    second_derivatives: bool = False,
) -> tuple[Float[Array, "{horizon}+1"], Params]:
    r"""Optimizes one problem for `horizon` steps.

    $$\theta_{t+1} = \theta_t + u(\nabla_t, s_t; \phi), \qquad \nabla_t = \nabla f_t(\theta_t)$$

    where $f_t$ is the loss on the minibatch of step t. The loss of $\theta_{t+1}$ is measured on
    minibatch t + 1, never on the one whose gradient made the update: an optimizer trained on that
    would learn to overfit the batch.

    Transformations that take `value`, `grad` or `value_fn` as extra arguments get them.

    Args:
        tx: any optax transformation.
        task: the family that `problem` comes from.
        problem: what `task.sample` returned.
        key: the episode's key; θ₀ and the minibatches come from it.
        horizon: inner steps T.
        second_derivatives: whether the derivative of ∇_t with respect to φ is kept. Off, gradients
            are constants to the meta-gradient (Andrychowicz et al., 2016, section 2.1).

    Returns:
        The objective at θ₀ … θ_T, `[horizon + 1]`, and θ_T.

    Raises:
        ValueError: if `horizon` is not a whole number of at least 1, or `key` is no PRNG key.

    >>> import l2ljax as l2l
    >>> task = l2l.tasks.quadratic(dim=2)
    >>> key = jax.random.key(0)
    >>> losses, _ = unroll(optax.sgd(0.05), task, task.sample(key), key, horizon=50)
    >>> bool(losses[-1] < losses[0])
    True
    """
    _checks.count("horizon", horizon)
    _checks.key("key", key)
    run = closure(_unroll, horizon=int(horizon), second_derivatives=bool(second_derivatives))
    return compiled(run, as_pytree(tx), task, problem, key)


def _unroll(
    tx: optax.GradientTransformation,
    task: Task,
    problem: Problem,
    key: Key,
    *,
    horizon: int,
    second_derivatives: bool,
) -> tuple[Float[Array, "{horizon}+1"], Params]:
    _, init_key, loss_key = jax.random.split(key, 3)
    params = task.init(init_key, problem)
    losses, params, _ = advance(
        update_rule(tx, task, batched=False),
        task,
        Episode(problem, params, loss_key),
        tx.init(params),
        jnp.zeros((), jnp.int32),
        steps=horizon,
        second_derivatives=second_derivatives,
        batched=False,
    )
    return losses, params


def unroll_batch(
    tx: Transformation, task: Task, key: Key, *, horizon: int, problems: int
) -> Float[Array, "{problems} {horizon}+1"]:
    """The objective of `problems` fresh problems at θ₀ … θ_T, in one compiled program.

    Args:
        tx: any optax transformation.
        task: the family that problems come from.
        key: problem i uses `fold_in(key, i)`.
        horizon: inner steps T.
        problems: number of problems.

    Returns:
        One run a row.
    """
    return _unroll_batch(as_pytree(tx), task, key, horizon=horizon, problems=problems)


@program("horizon", "problems")
def _unroll_batch(
    tx: optax.GradientTransformation, task: Task, key: Key, *, horizon: int, problems: int
) -> Float[Array, "{problems} {horizon}+1"]:
    episode = begin_episodes(task, key, problems)
    losses, _, _ = advance(
        update_rule(tx, task, batched=True),
        task,
        episode,
        init_batch(tx, episode.params),
        jnp.zeros((), jnp.int32),
        steps=horizon,
        second_derivatives=False,
        batched=True,
    )
    return losses.T


def init_batch(tx: optax.GradientTransformation, params: Params) -> Any:
    """The state of `tx` for a batch of problems, whose params have a leading axis."""
    if isinstance(tx, CoordinatewiseTransformation):
        return tx.init(params)
    return jax.vmap(tx.init)(params)


def update_rule(
    tx: optax.GradientTransformation,
    task: Task,
    *,
    batched: bool,
    num_steps: int | Int[Array, ""] | None = None,
) -> Callable[..., tuple[Params, Any]]:
    """How `tx` updates one problem, or a batch of them, at an inner step.

    Args:
        tx: any optax transformation; one that takes extra arguments gets them.
        task: where the function of such a transformation comes from.
        batched: whether all trees have a leading axis of problems, and `opt_state` is that of
            `init_batch`.
        num_steps: inner steps of the episode, for a transformation that plans a run; None: it is
            not told.

    Returns:
        `update(gradient, opt_state, params, value, problem, loss_key, t) -> (updates, opt_state)`.
    """
    told = {} if num_steps is None else {"num_steps": num_steps}

    def update(
        gradient: Params,
        opt_state: Any,
        params: Params,
        value: Array,
        problem: Problem,
        loss_key: Array,
        t: Array,
    ) -> tuple[Params, Any]:
        if not isinstance(tx, optax.GradientTransformationExtraArgs):
            return tx.update(gradient, opt_state, params)
        key = jax.random.fold_in(loss_key, t)
        return tx.update(
            gradient,
            opt_state,
            params,
            value=value,
            grad=gradient,
            value_fn=lambda params: task.loss(params, problem, key),
            **told,
        )

    if batched and not isinstance(tx, CoordinatewiseTransformation):
        return jax.vmap(update, in_axes=(0, 0, 0, 0, 0, 0, None))
    return update


def advance(
    update: Callable[..., tuple[Params, Any]],
    task: Task,
    episode: Episode,
    opt_state: Any,
    start: Int[Array, ""],
    *,
    steps: int,
    second_derivatives: bool,
    batched: bool,
    nested: bool = False,
) -> tuple[Float[Array, "{steps}+1 *batch"], Params, Any]:
    """Takes an episode, or a batch of them, from inner step `start` to `start + steps`.

    The scan is outside and `vmap` inside: mapped over the batch are the losses, and the update of
    a transformation that is not coordinate-wise.

    Args:
        update: what `update_rule` returned, or another function like it.
        task: the task of the episode.
        episode: the problem, the present params and the key of its losses.
        opt_state: the present state that `update` takes.
        start: inner steps that are already done.
        steps: inner steps to take.
        second_derivatives: as in `unroll`.
        batched: whether the leaves of `episode` have a leading axis of problems.
        nested: whether the backward pass keeps the states of √steps steps and computes those
            between them again, so that its memory grows with √steps.

    Returns:
        The objective at θ_start … θ_{start+steps}, the last params and the last state.
    """
    problem, params, loss_key = episode
    step, measure = inner_step(
        update, task, problem, loss_key, second_derivatives=second_derivatives, batched=batched
    )
    times = start + jnp.arange(steps, dtype=jnp.int32)
    loop = _nested_scan if nested else jax.lax.scan
    (params, opt_state), losses = loop(step, (params, opt_state), times)
    last = measure(params, start + steps)
    return jnp.concatenate([losses, last[None]]), params, opt_state


def inner_step(
    update: Callable[..., tuple[Params, Any]],
    task: Task,
    problem: Problem,
    loss_key: Array,
    *,
    second_derivatives: bool,
    batched: bool,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """One inner step of an episode, and the measurement alone; arguments as in `advance`.

    Returns:
        `step((params, opt_state), t) -> ((params, opt_state), objective)` and
        `measure(params, t) -> objective`.
    """

    def measure(
        params: Params, problem: Problem, loss_key: Key, t: Array
    ) -> tuple[Scalar, Scalar, Params]:
        """The objective, the loss and its gradient at step t."""
        key = jax.random.fold_in(loss_key, t)
        at = params if second_derivatives else jax.lax.stop_gradient(params)
        value, gradient = jax.value_and_grad(task.loss)(at, problem, key)
        if task.objective is not task.loss:
            return task.objective(params, problem, key), value, gradient
        if second_derivatives:
            return value, value, gradient
        return _value_with_gradient(value, gradient, params), value, gradient

    def move(gradient: Params, opt_state: Any, params: Params, *rest: Any) -> tuple[Params, Any]:
        updates, opt_state = update(gradient, opt_state, params, *rest)
        return optax.apply_updates(params, updates), opt_state

    if batched:
        measure = jax.vmap(measure, in_axes=(0, 0, 0, None))
    # The backward pass recomputes the update from one gradient and one state a step instead of
    # storing what is inside. Inside scan CSE cannot undo that, and its barriers cost time.
    move = jax.checkpoint(move, prevent_cse=False)

    def step(carry: tuple[Params, Any], t: Array) -> tuple[tuple[Params, Any], Array]:
        params, opt_state = carry
        objective, value, gradient = measure(params, problem, loss_key, t)
        return move(gradient, opt_state, params, value, problem, loss_key, t), objective

    return step, lambda params, t: measure(params, problem, loss_key, t)[0]


def _nested_scan(step: Callable[..., Any], carry: Any, times: Int[Array, " steps"]) -> Any:
    """`jax.lax.scan` in about √steps blocks, whose inner states are computed again backwards."""
    size = math.isqrt(len(times) - 1) + 1
    # Blocks that do not come out even need a branch in each step, and that three times the memory.
    even = [n for n in range((size + 1) // 2, 2 * size + 1) if len(times) % n == 0]
    if even:
        size = min(even, key=lambda n: n + len(times) // n)
    blocks = -(-len(times) // size)
    # The step is recomputed as a whole: of a block then only its states are kept, not what a
    # second derivative of the loss needs besides.
    step = jax.checkpoint(step, prevent_cse=False)
    padding = blocks * size - len(times)
    exists = jnp.arange(blocks * size) < len(times)
    output = jax.eval_shape(step, carry, times[0])[1]

    def step_or_wait(carry: Any, time: tuple[Array, Array]) -> tuple[Any, Any]:
        t, exists = time
        if not padding:
            return step(carry, t)
        nothing = jnp.zeros(output.shape, output.dtype)
        return jax.lax.cond(exists, step, lambda carry, t: (carry, nothing), carry, t)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(carry: Any, times: tuple[Array, Array]) -> tuple[Any, Any]:
        return jax.lax.scan(step_or_wait, carry, times)

    shaped = (jnp.pad(times, (0, padding)).reshape(blocks, size), exists.reshape(blocks, size))
    carry, outputs = jax.lax.scan(block, carry, shaped)
    return carry, outputs.reshape(blocks * size, *outputs.shape[2:])[: len(times)]


@jax.custom_jvp
def _value_with_gradient(value: Scalar, gradient: Params, params: Params) -> Scalar:
    """f(θ) from its known value and gradient: differentiating it runs no second backward pass."""
    del gradient, params
    return value


@_value_with_gradient.defjvp
def _value_with_gradient_jvp(primals: tuple, tangents: tuple) -> tuple[Scalar, Scalar]:
    value, gradient, _ = primals
    _, _, direction = tangents
    return value, optax.tree.vdot(gradient, direction).astype(value.dtype)
