"""Antithetic perturbations of φ, and the slope that their meta-losses show."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax.core import Estimator, Key, LearnedOptimizer, LearnedTask, Phi, Task
from l2ljax.meta._episodes import PERTURBATION_DRAW
from l2ljax.meta._segments import EstimatorFactory


@dataclasses.dataclass(frozen=True)
class Perturbing:
    """A factory whose devices may share the perturbations of φ, see `EstimatorFactory`.

    Attributes:
        by_problems: what it is otherwise: each device has a part of the problems.
        by_pairs: each device has all problems, and a part of the pairs.
        pairs: antithetic pairs of each estimator in it.
    """

    by_problems: EstimatorFactory
    by_pairs: EstimatorFactory
    pairs: tuple[int, ...]

    def __call__(
        self,
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        """Makes the estimator; arguments as in `EstimatorFactory`."""
        return self.by_problems(opt, task, batch, axis)


def pairs_of(factories: Iterable[EstimatorFactory]) -> tuple[int, ...]:
    """The pairs of all estimators that factories make, or none where some have no pairs."""
    found = [getattr(factory, "pairs", ()) for factory in factories]
    return sum(found, ()) if all(found) else ()


def check(std: float, pairs: int) -> None:
    """Refuses what cannot perturb anything.

    Raises:
        ValueError: for a deviation that is not one positive number, or no pair.
    """
    if np.ndim(std):
        _checks.refuse("std", std, "one positive number")
    _checks.positive("std", std)
    _checks.count("pairs", pairs)


def here(pairs: int, axis: str | None) -> int:
    """How many of the pairs a device has."""
    return pairs if axis is None else pairs // jax.lax.axis_size(axis)


def draw(
    key: Key, phi: Phi, pairs: int, axis: str | None = None
) -> PyTree[Float[Array, "pairs ..."]]:
    """Standard normal noise for each pair and each meta-parameter, from the key of a call.

    Args:
        key: of the call, the same on every device.
        phi: what is perturbed.
        pairs: of all devices together.
        axis: the axis of devices that share the pairs, in order; None: all are here.

    Returns:
        The noise of this device's pairs.
    """
    leaves, structure = jax.tree.flatten(phi)
    keys = jax.random.split(jax.random.fold_in(key, PERTURBATION_DRAW), max(1, len(leaves)))
    noise = [
        jax.random.normal(keys[i], (pairs, *jnp.shape(leaf)), jnp.result_type(leaf))
        for i, leaf in enumerate(leaves)
    ]
    if axis is not None:
        # All is drawn, and most let go: the noise of a pair is the same on any number of devices.
        size = here(pairs, axis)
        first = size * jax.lax.axis_index(axis)
        noise = [jax.lax.dynamic_slice_in_dim(leaf, first, size) for leaf in noise]
    return jax.tree.unflatten(structure, noise)


def both_ways(phi: Phi, noise: PyTree[Float[Array, "pairs ..."]], std: float) -> Phi:
    """φ + σε of all pairs, then φ - σε of all pairs, on a new first axis."""
    return jax.tree.map(
        lambda leaf, noise: jnp.asarray(leaf)[None] + std * jnp.concatenate([noise, -noise]),
        phi,
        noise,
    )


def slope(
    losses: Float[Array, " runs"], noise: PyTree[Float[Array, "pairs ..."]], std: float
) -> Phi:
    r"""The estimate $\frac1N\sum_i \frac{L_i^+ - L_i^-}{2\sigma}\,\xi_i$.

    Args:
        losses: in the order of `both_ways`.
        noise: ξ.
        std: σ.
    """
    above, below = jnp.split(losses, 2)
    weights = (above - below) / (2 * std * above.size)
    return jax.tree.map(
        lambda noise: jnp.tensordot(weights.astype(noise.dtype), noise, axes=1), noise
    )
