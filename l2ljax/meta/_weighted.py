"""Weighted sums of estimators."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax.core import (
    ArrayLike,
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Task,
    as_partial,
    closure,
)
from l2ljax.meta._episodes import member_key
from l2ljax.meta._perturbations import Perturbing, pairs_of
from l2ljax.meta._segments import EstimatorFactory, make_estimator

Term = TypeAliasType("Term", tuple[optax.ScalarOrSchedule, EstimatorFactory])
"""A weight, or a schedule of the number of calls made before, and what it weighs."""


class WeightedState(NamedTuple):
    """What a sum of estimators carries.

    Attributes:
        calls: calls of `estimate` made, i32[].
        members: the state of each member.
    """

    calls: Int[Array, ""]
    members: tuple[Any, ...]


def weighted(terms: Sequence[Term] | Mapping[str, Term]) -> EstimatorFactory:
    r"""The weighted sum of several estimators.

    $$L(\phi) = \sum_i \lambda_i(n)\, L_i(\phi), \qquad
      \widehat\nabla L = \sum_i \lambda_i(n)\, \widehat\nabla L_i$$

    at call n = 0, 1, … Every member is run in every call, also where its weight is zero.

    Args:
        terms: pairs of a weight and an estimator factory, in a sequence, or a mapping by name. A
            weight is a number or an optax schedule, whose count is that of calls: an imitation
            that fades has `optax.linear_schedule(1.0, 0.0, 500)`.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`. Its `aux` holds, for each member, its `loss`
        and its own `aux` below its name or number: `imitation/loss`, or `1/loss`. Member 0 gets
        the key of the call, so that a sum of one estimator is that estimator; member i gets
        `fold_in(key, 2**31 + 1 + i)`, so that they draw different problems.

    Raises:
        ValueError: for no terms, one that is no such pair, or a weight that is not finite.

    >>> import l2ljax as l2l
    >>> from l2ljax.meta import imitation, truncated
    >>> factory = weighted({
    ...     "loss": (1.0, truncated(horizon=4, truncation=2)),
    ...     "imitation": (optax.linear_schedule(1.0, 0.0, 500),
    ...                   imitation(optax.sgd(0.01), horizon=4, truncation=2)),
    ... })
    >>> opt = l2l.LearnedOptimizer(init=lambda key: jnp.float32(0.02), bind=optax.sgd)
    >>> est = factory(opt, l2l.tasks.quadratic(dim=2))
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, _ = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> parts = estimate.aux["loss/loss"], estimate.aux["imitation/loss"]
    >>> bool(jnp.isclose(estimate.loss, sum(parts)))
    True
    """
    named = terms if isinstance(terms, Mapping) else {str(i): t for i, t in enumerate(terms)}
    if not named:
        raise ValueError("terms must have at least one pair of a weight and an estimator, got none")
    for name, term in named.items():
        if not isinstance(term, tuple | list) or len(term) != 2 or not callable(term[1]):
            _checks.refuse(f"term {name!r}", term, "a pair of a weight and an estimator factory")
        _checks.finite(f"the weight of {name!r}", term[0])
    weights = tuple(
        as_partial(weight) if callable(weight) else jnp.asarray(weight)
        for weight, _ in named.values()
    )

    def sum_of(factories: Sequence[EstimatorFactory]) -> EstimatorFactory:
        def factory(
            opt: LearnedOptimizer,
            task: Task | LearnedTask,
            batch: int = 1,
            axis: str | None = None,
        ) -> Estimator:
            members = tuple(
                make_estimator(factory, opt, task, batch, axis) for factory in factories
            )
            return Estimator(
                init=closure(_init, members),
                estimate=closure(_estimate, weights, members, names=tuple(named)),
            )

        return factory

    factories = [factory for _, factory in named.values()]
    pairs = pairs_of(factories)
    if not pairs:
        return sum_of(factories)
    by_pairs = [factory.by_pairs for factory in factories]  # type: ignore[attr-defined]
    return Perturbing(sum_of(factories), sum_of(by_pairs), pairs)


def _init(members: tuple[Estimator, ...], key: Key, phi: Phi) -> WeightedState:
    states = tuple(member.init(member_key(key, i), phi) for i, member in enumerate(members))
    return WeightedState(jnp.zeros((), jnp.int32), states)


def _estimate(
    weights: tuple[Any, ...],
    members: tuple[Estimator, ...],
    phi: Phi,
    state: WeightedState,
    key: Key,
    *,
    names: tuple[str, ...],
) -> tuple[Estimate, WeightedState]:
    aux: dict[str, Any] = {}
    estimates, states = [], []
    for i, member in enumerate(members):
        found, member_state = member.estimate(phi, state.members[i], member_key(key, i))
        weight = weights[i](state.calls) if callable(weights[i]) else weights[i]
        estimates.append(_scaled(weight, (found.loss, found.grad)))
        states.append(member_state)
        aux |= {f"{names[i]}/loss": found.loss}
        aux |= {f"{names[i]}/{name}": value for name, value in found.aux.items()}
    loss, grad = jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), *estimates)
    calls = optax.safe_increment(state.calls)
    return Estimate(loss, grad, aux), WeightedState(calls, tuple(states))


def _scaled(weight: ArrayLike, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(weight, leaf.dtype) * leaf, tree)
