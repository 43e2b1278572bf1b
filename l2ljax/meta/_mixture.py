"""Meta-training on several tasks: every call draws one of them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Task,
    closure,
)
from l2ljax.meta._binding import tasks_of
from l2ljax.meta._episodes import TASK_DRAW, member_key
from l2ljax.meta._perturbations import pairs_of
from l2ljax.meta._segments import EstimatorFactory, make_estimator
from l2ljax.meta._truncated import truncated


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What `mixture` returns: a factory that takes several tasks.

    Attributes:
        estimators: one factory for all tasks, or one for each.
        weights: how often each task is drawn, relative to the others; None: equally often.
        normalize: "gradient", or None.
    """

    estimators: EstimatorFactory | tuple[EstimatorFactory, ...]
    weights: tuple[float, ...] | None = None
    normalize: str | None = None

    @property
    def pairs(self) -> tuple[int, ...]:
        """As in `meta.EstimatorFactory`; none where devices cannot share perturbations alone."""
        if isinstance(self.estimators, tuple):
            return pairs_of(self.estimators)
        return pairs_of([self.estimators])

    @property
    def by_pairs(self) -> "Mixture":
        """As in `meta.EstimatorFactory`, where there are `pairs`."""
        return dataclasses.replace(
            self, estimators=jax.tree.map(lambda factory: factory.by_pairs, self.estimators)
        )

    def __call__(
        self,
        opt: LearnedOptimizer,
        tasks: Task | LearnedTask | Sequence[Task | LearnedTask],
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        """Makes the estimator.

        Args:
            opt: the learned optimizer.
            tasks: what it is trained on; they may differ in everything. Learned ones share one ψ,
                which the first of them draws.
            batch: problems of one meta-gradient, of any task.
            axis: as in `meta.EstimatorFactory`.

        Returns:
            The estimator; its state is a tuple of the members' states.

        Raises:
            ValueError: for no tasks, another number of estimators or weights than of tasks, or
                tasks of which some have metaparameters and some have not.
        """
        if isinstance(tasks, Task | LearnedTask) or (isinstance(tasks, Sequence) and not tasks):
            found = "one Task" if isinstance(tasks, Task | LearnedTask) else repr(tasks)
            raise ValueError(f"tasks must be a sequence of at least one Task, got {found}")
        tasks = tasks_of(tasks)
        count = len(tasks)
        learned = sum(isinstance(task, LearnedTask) for task in tasks)
        if learned not in (0, count):
            raise ValueError(
                f"tasks must all be learned ones, or none, got {learned} LearnedTask of {count}"
            )
        if isinstance(self.estimators, tuple):
            _require_length("estimators", self.estimators, count)
            factories = self.estimators
        else:
            factories = (self.estimators,) * count
        weights = None
        if self.weights is not None:
            _require_length("weights", self.weights, count)
            weights = jnp.asarray(self.weights, jnp.float32)
        members = tuple(
            make_estimator(factory, opt, task, batch, axis)
            for factory, task in zip(factories, tasks, strict=True)
        )
        return Estimator(
            init=closure(_init, members),
            estimate=closure(_estimate, members, weights, normalize=self.normalize),
        )


def mixture(
    estimators: EstimatorFactory | Sequence[EstimatorFactory] | None = None,
    *,
    weights: Sequence[float] | None = None,
    normalize: str | None = None,
) -> Mixture:
    r"""Every call draws one of several tasks and estimates the meta-gradient on it.

    $$i \sim p, \qquad L(\phi) = L_i(\phi)$$

    in one compiled program, in which the other tasks' branches do not run and their episodes wait.
    Tasks may differ in architecture, shapes and, by estimators of their own, in horizon.
    `meta.train(opt, [task_a, task_b], ...)` does this; the mixture itself is needed for weights,
    for estimators that differ and for `normalize`.

    Args:
        estimators: one factory, applied to each task, or one for each; default `meta.truncated()`.
        weights: how often each task is drawn, in proportion; default: equally often. The draw is
            from `fold_in(key, 2**31 + 1)`, and the task's estimator gets the key of the call.
        normalize: None, or "gradient": each meta-gradient is divided by its norm. Tasks whose
            losses have different scales then move φ by as much as each other; so does a task that
            has nothing more to teach.

    Returns:
        A factory `(opt, tasks, batch=1) -> Estimator`. Its `aux` holds `task`, i32[]: the number of
        the task drawn; and of the members' `aux` what all of them have, in one shape and dtype
        (`losses`, for example, if all segments have one length). The rest is dropped.

    Raises:
        ValueError: for no estimator, weights that are negative or all zero, or an unknown
            normalization.

    >>> import l2ljax as l2l
    >>> tasks = [l2l.tasks.quadratic(dim=2), l2l.tasks.quadratic(dim=3)]
    >>> factory = mixture(truncated(horizon=4, truncation=2), weights=[0.0, 1.0])
    >>> opt = l2l.learned.lstm()
    >>> result = l2l.meta.train(opt, tasks, key=jax.random.key(0), steps=3, estimator=factory)
    >>> print(result.history["task"])
    [1 1 1]
    """
    if isinstance(estimators, Sequence):
        estimators = tuple(estimators)
        if not estimators:
            raise ValueError("estimators must have at least one factory, got none")
    if weights is not None:
        _checks.non_negative("weights", weights)
        weights = tuple(float(weight) for weight in weights)
        _checks.positive("the sum of weights", sum(weights))
    _checks.choice("normalize", normalize, [None, "gradient"])
    return Mixture(estimators or truncated(), weights, normalize)


def _require_length(name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{name} must have one entry for each of {count} tasks, got {len(values)}")


def _init(members: tuple[Estimator, ...], key: Key, phi: Phi) -> tuple[Any, ...]:
    return tuple(member.init(member_key(key, i), phi) for i, member in enumerate(members))


@jax.jit
def _of_member(member: Estimator, phi: Phi, state: Any, key: Key) -> tuple[Estimate, Any]:
    """For its cache of traces: `_estimate` asks for shapes first, and then for the values."""
    return member.estimate(phi, state, key)


def _estimate(
    members: tuple[Estimator, ...],
    weights: Float[Array, " tasks"] | None,
    phi: Phi,
    states: tuple[Any, ...],
    key: Key,
    *,
    normalize: str | None,
) -> tuple[Estimate, tuple[Any, ...]]:
    shapes = [
        jax.eval_shape(_of_member, member, phi, state, key)[0]
        for member, state in zip(members, states, strict=True)
    ]
    names = _common([shape.aux for shape in shapes])
    dtype = jnp.result_type(*(shape.loss for shape in shapes))

    def branch(i: int) -> Callable[[], tuple[Estimate, tuple[Any, ...]]]:
        def run() -> tuple[Estimate, tuple[Any, ...]]:
            found, state = _of_member(members[i], phi, states[i], key)
            aux = {name: found.aux[name] for name in names}
            estimate = Estimate(found.loss.astype(dtype), found.grad, aux)
            return estimate, (*states[:i], state, *states[i + 1 :])

        return run

    index = jax.random.choice(jax.random.fold_in(key, TASK_DRAW), len(members), p=weights)
    index = index.astype(jnp.int32)
    found, states = jax.lax.switch(index, [branch(i) for i in range(len(members))])
    grad = _unit(found.grad) if normalize == "gradient" else found.grad
    return Estimate(found.loss, grad, {**found.aux, "task": index}), states


def _common(auxes: list[dict[str, Any]]) -> tuple[str, ...]:
    """The names of what all members report in one shape and dtype."""

    def kind(value: Any) -> Any:
        leaves, structure = jax.tree.flatten(value)
        return structure, [(np.shape(leaf), leaf.dtype) for leaf in leaves]

    first, *rest = auxes
    return tuple(
        name
        for name, value in first.items()
        if all(name in aux and kind(aux[name]) == kind(value) for aux in rest)
    )


def _unit(grad: Phi) -> Phi:
    """The direction of a gradient; zero stays zero, and what is not finite becomes NaN."""
    largest = functools.reduce(
        jnp.maximum, (jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(grad))
    )
    # Scaled before it is squared: the square of a large gradient is infinite, and g / ∞ is zero.
    scaled = jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1), grad)
    norm = optax.tree.norm(scaled)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), scaled)
