"""Antithetic perturbations of φ, and the slope that their meta-losses show."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax.core import Key, Phi
from l2ljax.meta._episodes import PERTURBATION_DRAW


def check(std: float, pairs: int) -> None:
    """Refuses what cannot perturb anything.

    Raises:
        ValueError: for a deviation that is not positive, or no pair.
    """
    _checks.positive("std", std)
    _checks.count("pairs", pairs)


def draw(key: Key, phi: Phi, pairs: int) -> PyTree[Float[Array, "pairs ..."]]:
    """Standard normal noise for each pair and each meta-parameter, from the key of a call."""
    leaves, structure = jax.tree.flatten(phi)
    keys = jax.random.split(jax.random.fold_in(key, PERTURBATION_DRAW), max(1, len(leaves)))
    noise = [
        jax.random.normal(keys[i], (pairs, *jnp.shape(leaf)), jnp.result_type(leaf))
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, noise)


def both_ways(phi: Phi, noise: PyTree[Float[Array, "pairs ..."]], std: float) -> Phi:
    """φ + σε of all pairs, then φ - σε of all pairs, on a new first axis."""
    return jax.tree.map(
        lambda leaf, noise: leaf + std * jnp.concatenate([noise, -noise]), phi, noise
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
