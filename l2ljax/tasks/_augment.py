"""Random reparametrisation of a task, so that what is learned on it does not depend on scales."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax.core import Key, Params, Problem, Scalar, Task, closure


def augment(
    task: Task,
    *,
    coordinate: float = 0.0,
    leaf: float = 0.0,
    params: float = 0.0,
    loss: float = 0.0,
) -> Task:
    r"""The task in params and losses of random scales.

    $$\tilde f(\tilde\theta) = s\, f(c \odot \tilde\theta), \qquad
    \tilde\theta_0 = \theta_0 / c, \qquad \log c_{li} = a_{li} + b_l + e$$

    with $a_{li} \sim U[-A, A]$ for each coordinate i of leaf l, $b_l \sim U[-B, B]$ for each leaf,
    $e \sim U[-E, E]$ and $\log s \sim U[-S, S]$ for each problem. Gradients are then $s c$ times
    the task's, and good steps $1 / c$ times: an optimizer that is meta-trained here can rely on
    neither. Only the loss is scaled by s, not the objective, so that no problem outweighs another
    in the meta-loss.

    Args:
        task: any task with floating-point params.
        coordinate: A, non-negative; the paper's 3 makes scales from 1/20 to 20.
        leaf: B, non-negative.
        params: E, non-negative: all params together.
        loss: S, non-negative.

    Returns:
        A task; `problem` is `(problem of task, c, s)`, with c a tree like the params. Its
        evaluation is that of `task`: compare on the task itself.

    Raises:
        ValueError: for a range that is negative or not finite; from `init` for params that are
            not floating-point.

    Reference:
        Lv, Jiang and Li (2017), section 4.3 ('random scaling'), for coordinates; Metz et al.
        (2022) for whole tensors.

    >>> import l2ljax as l2l
    >>> plain = l2l.tasks.quadratic(dim=2)
    >>> task = augment(plain, coordinate=1.0)
    >>> problem = task.sample(jax.random.key(0))
    >>> params, key = jnp.ones(2), jax.random.key(1)
    >>> inner, scales, _ = problem
    >>> bool(task.loss(params, problem, key) == plain.loss(scales * params, inner, key))
    True
    """
    ranges = {"coordinate": coordinate, "leaf": leaf, "params": params, "loss": loss}
    for name, value in ranges.items():
        _checks.non_negative(name, value)
    sample = closure(_sample, task, **{name: float(value) for name, value in ranges.items()})
    parts = (sample, closure(_init, task), closure(_loss, task))
    if loss == 0 and task.objective is task.loss:
        # It stays one object, so that nothing is computed twice.
        return Task(*parts)
    return Task(*parts, closure(_objective, task))


def _sample(
    task: Task, key: Key, *, coordinate: float, leaf: float, params: float, loss: float
) -> tuple[Problem, PyTree, Float[Array, ""]]:
    problem_key, scale_key, loss_key = jax.random.split(key, 3)
    problem = task.sample(problem_key)
    leaves, structure = jax.tree.flatten(jax.eval_shape(task.init, key, problem))
    whole = _uniform(jax.random.fold_in(scale_key, len(leaves)), (), params)

    def scale(number: int, like: jax.ShapeDtypeStruct) -> Array:
        own, shared = jax.random.split(jax.random.fold_in(scale_key, number))
        log = _uniform(own, like.shape, coordinate) + _uniform(shared, (), leaf) + whole
        return jnp.exp(log).astype(like.dtype)

    scales = [scale(number, like) for number, like in enumerate(leaves)]
    return problem, jax.tree.unflatten(structure, scales), jnp.exp(_uniform(loss_key, (), loss))


def _uniform(key: Key, shape: tuple[int, ...], bound: float) -> Array:
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _init(task: Task, key: Key, problem: tuple[Problem, PyTree, Array]) -> Params:
    inner, scales, _ = problem
    params = task.init(key, inner)
    _checks.floating_leaves("params", params)
    return jax.tree.map(jnp.divide, params, scales)


def _at(params: Params, scales: PyTree) -> Params:
    return jax.tree.map(jnp.multiply, scales, params)


def _loss(task: Task, params: Params, problem: tuple[Problem, PyTree, Array], key: Key) -> Scalar:
    inner, scales, loss_scale = problem
    value = task.loss(_at(params, scales), inner, key)
    return loss_scale.astype(value.dtype) * value


def _objective(
    task: Task, params: Params, problem: tuple[Problem, PyTree, Array], key: Key
) -> Scalar:
    inner, scales, _ = problem
    return task.objective(_at(params, scales), inner, key)
