"""Tasks that learn: where they begin, what they penalise, the data that they train on.

Each function adds an entry of its name to ψ, a dictionary, and takes a task or what another of them
has made: `learned_l2(learned_init_scale(task))` has ψ = `{"init_scale": ..., "l2": ...}`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.core import Key, LearnedTask, Params, Problem, Scalar, Task, closure
from l2ljax.tasks._dataset import Split

_EXTENTS = ("params", "leaf", "coordinate")


def learned_init_scale(
    task: Task | LearnedTask, scale: float = 1.0, *, per: str = "leaf"
) -> LearnedTask:
    r"""The task with learned scales of its initial params.

    $$\tilde\theta_0 = e^\psi \odot \theta_0$$

    Args:
        task: any task, best one whose θ₀ is standard normal, such as
            `mlp_classifier(dataset, init_std=1.0)`; or a learned one.
        scale: $e^\psi$ at the beginning, positive.
        per: "leaf": each leaf of the params has a scale; "params": all of them share one;
            "coordinate": each coordinate has its own.

    Returns:
        A learned task; `psi["init_scale"]` holds logarithms, a tree like the params of `f[]`, or
        one `f[]`, or a tree of the params' shapes.

    Raises:
        ValueError: for a scale that is not positive, an unknown `per`, or ψ that has such scales.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), section 3.1: 'initialization scales' of each layer.

    >>> import l2ljax as l2l
    >>> task = learned_init_scale(l2l.tasks.quadratic(dim=2), 10.0)
    >>> key = jax.random.key(0)
    >>> psi = task.init(key)
    >>> problem = task.bind(psi).sample(key)
    >>> larger, plain = task.bind(psi), task.bind({"init_scale": jnp.zeros(())})
    >>> print(larger.init(key, problem) / plain.init(key, problem))
    [10. 10.]
    """
    _checks.positive("scale", scale)
    _checks.choice("per", per, _EXTENTS)
    return _extended(
        task,
        "init_scale",
        closure(_logs, value=math.log(scale), per=per),
        closure(_with_scales, per=per),
    )


def learned_init(task: Task | LearnedTask) -> LearnedTask:
    r"""The task with learned initial params, the same in all episodes.

    $$\tilde\theta_0 = \psi$$

    Args:
        task: any task with floating-point params, or a learned one; its θ₀ of one problem is the
            first ψ.

    Returns:
        A learned task; `psi["init"]` is a tree like the params.

    Raises:
        ValueError: for params that are not floating-point, or ψ that has initial params.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), section 2; for many tasks at once Finn, Abbeel and
        Levine (2017), 'Model-agnostic meta-learning for fast adaptation of deep networks'.

    >>> import l2ljax as l2l
    >>> task = learned_init(l2l.tasks.quadratic(dim=2))
    >>> psi = task.init(jax.random.key(0))
    >>> bool((task.bind(psi).init(jax.random.key(1), None) == psi["init"]).all())
    True
    """
    return _extended(task, "init", closure(_first_params), closure(_with_params))


def learned_l2(
    task: Task | LearnedTask, penalty: float = 1e-3, *, per: str = "params"
) -> LearnedTask:
    r"""The task with a learned L2 penalty in its loss, and none in its objective.

    $$\tilde f(\theta) = f(\theta) + \sum_i e^{\psi_i} \theta_i^2$$

    What an optimizer minimises is penalised; the meta-loss measures the task's objective, which for
    a penalty worth learning is on other data: `dataclasses.replace(train, objective=held_out.loss)`
    with two tasks on two splits.

    Args:
        task: any task, or a learned one.
        penalty: $e^\psi$ at the beginning, positive.
        per: "params": one penalty for all; "leaf": one for each leaf of the params; "coordinate":
            one for each weight.

    Returns:
        A learned task; `psi["l2"]` holds logarithms: `f[]`, a tree like the params of these, or a
        tree of the params' shapes.

    Raises:
        ValueError: for a penalty that is not positive, an unknown `per`, or ψ that has penalties.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), section 3.2: 'a separate L2 regularization
        hyperparameter for each weight'.

    >>> import l2ljax as l2l
    >>> plain = l2l.tasks.quadratic(dim=2)
    >>> task = learned_l2(plain, 0.5)
    >>> key, params = jax.random.key(0), jnp.array([1.0, 2.0])
    >>> bound, problem = task.bind(task.init(key)), plain.sample(key)
    >>> more = bound.loss(params, problem, key) - bound.objective(params, problem, key)
    >>> print(f"{more:.3f}")  # 0.5 (1² + 2²)
    2.500
    """
    _checks.positive("penalty", penalty)
    _checks.choice("per", per, _EXTENTS)
    return _extended(
        task,
        "l2",
        closure(_logs, value=math.log(penalty), per=per),
        closure(_with_penalty, per=per),
    )


def learned_data(task: Task | LearnedTask, validation: Task) -> LearnedTask:
    r"""The task with learned training inputs; labels stay as they are.

    $$\tilde f(\theta) = \frac1{|B|} \sum_{i \in B} \ell(\mathrm{apply}(\theta, \psi_i), y_i)$$

    Args:
        task: one that `supervised`, `mlp_classifier` or `convnet_classifier` made on the examples
            to begin with, such as ten blank images with ten labels, `batch_size=None`; or a
            learned one over it.
        validation: a task of the same params on real data, whose objective the meta-loss measures.

    Returns:
        A learned task; `psi["data"]` is f[n, ...], the inputs as the model takes them: images in
        [0, 1] where `Split.maximum` says so, though nothing keeps them there.

    Raises:
        ValueError: for a task whose loss has no data of this kind, or several; for inputs that are
            no floating-point numbers; or ψ that has data.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), section 3.3: 'optimizing training data'.

    >>> import l2ljax as l2l
    >>> digits = l2l.tasks.digits()
    >>> blank = l2l.tasks.Split(jnp.zeros((10, 8, 8, 1)), jnp.arange(10))
    >>> ten = l2l.tasks.Dataset(train=blank, classes=10)
    >>> train = l2l.tasks.mlp_classifier(ten, (), batch_size=None)
    >>> held_out = l2l.tasks.mlp_classifier(digits, (), split="validation")
    >>> task = learned_data(train, held_out)
    >>> task.init(jax.random.key(0))["data"].shape
    (10, 8, 8, 1)
    """
    base = task if isinstance(task, Task) else jax.eval_shape(_any_bound, task, jax.random.key(0))
    splits = _splits(base.loss)
    if len(splits) != 1:
        raise ValueError(
            "task must be one that tasks.supervised makes, with the data of one split in its loss, "
            f"got {len(splits)} splits"
        )
    _checks.floating_leaves("inputs", jax.eval_shape(Split.examples, splits[0])[0])
    return _extended(
        task, "data", closure(_first_inputs), closure(_with_inputs, validation.objective)
    )


def _extended(
    task: Task | LearnedTask, name: str, draw: Partial, change: Callable[[Task, Any], Task]
) -> LearnedTask:
    """The task with one more entry in ψ.

    Args:
        task: what `change` changes; a learned one keeps its entries.
        name: of the entry.
        draw: `draw(task, key) -> value`, the first value, for a bound task.
        change: `change(task, value) -> task`.
    """
    if isinstance(task, LearnedTask):
        present = jax.eval_shape(task.init, jax.random.key(0))
        if not isinstance(present, dict):
            raise ValueError(
                f"task must have a dictionary for ψ to have {name!r} added, got {type(present)}"
            )
        if name in present:
            raise ValueError(f"task must have no {name!r} in ψ yet, got {sorted(present)}")
    return LearnedTask(
        init=closure(_init, task, draw, name=name), bind=closure(_bind, task, change, name=name)
    )


def _init(task: Task | LearnedTask, draw: Partial, key: Key, *, name: str) -> dict[str, Any]:
    if isinstance(task, Task):
        return {name: draw(task, key)}
    inner, own = jax.random.split(key)
    psi = task.init(inner)
    return {**psi, name: draw(task.bind(psi), own)}


def _bind(task: Task | LearnedTask, change: Partial, psi: dict[str, Any], *, name: str) -> Task:
    rest = {key: value for key, value in psi.items() if key != name}
    return change(task if isinstance(task, Task) else task.bind(rest), psi[name])


def _any_bound(task: LearnedTask, key: Key) -> Task:
    return task.bind(task.init(key))


def _first_params(task: Task, key: Key) -> Params:
    problem_key, init_key = jax.random.split(key)
    params = task.init(init_key, task.sample(problem_key))
    _checks.floating_leaves("params", params)
    return params


def _logs(task: Task, key: Key, *, value: float, per: str) -> Any:
    """The logarithm of a positive number, as often as it is learned."""
    if per == "params":
        return jnp.full((), value)
    like = jax.eval_shape(_first_params, task, key)
    return jax.tree.map(
        lambda leaf: jnp.full(leaf.shape if per == "coordinate" else (), value, leaf.dtype), like
    )


def _scaled(logs: Any, values: Params, per: str) -> Params:
    """Each value times the exponential of its logarithm."""
    if per == "params":
        logs = jax.tree.map(lambda leaf: logs, values)
    return jax.tree.map(lambda log, leaf: jnp.exp(log).astype(leaf.dtype) * leaf, logs, values)


def _with_scales(task: Task, logs: Any, *, per: str) -> Task:
    return dataclasses.replace(task, init=closure(_scaled_init, task.init, logs, per=per))


def _scaled_init(init: Partial, logs: Any, key: Key, problem: Problem, *, per: str) -> Params:
    return _scaled(logs, init(key, problem), per)


def _with_params(task: Task, first: Params) -> Task:
    return dataclasses.replace(task, init=closure(_given_init, first))


def _given_init(first: Params, key: Key, problem: Problem) -> Params:
    del key, problem
    return first


def _with_penalty(task: Task, logs: Any, *, per: str) -> Task:
    return dataclasses.replace(task, loss=closure(_penalised, task.loss, logs, per=per))


def _penalised(
    loss: Partial, logs: Any, params: Params, problem: Problem, key: Key, *, per: str
) -> Scalar:
    value = loss(params, problem, key)
    squares = _scaled(logs, jax.tree.map(jnp.square, params), per)
    return value + sum(jnp.sum(leaf).astype(value.dtype) for leaf in jax.tree.leaves(squares))


def _is_split(node: Any) -> bool:
    return isinstance(node, Split)


def _splits(loss: Callable[..., Scalar]) -> list[Split]:
    """The data that a loss carries."""
    return [node for node in jax.tree.leaves(loss, is_leaf=_is_split) if _is_split(node)]


def _first_inputs(task: Task, key: Key) -> Array:
    del key
    inputs, _ = _splits(task.loss)[0].examples()
    return inputs


def _with_inputs(objective: Callable[..., Scalar], task: Task, inputs: Array) -> Task:
    def exchanged(node: Any) -> Any:
        return Split(inputs, node.labels) if _is_split(node) else node

    loss = jax.tree.map(exchanged, task.loss, is_leaf=_is_split)
    return dataclasses.replace(task, loss=loss, objective=objective)
