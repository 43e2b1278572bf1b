"""Where to look next, by what a model believes: acquisition functions, all for minimisation."""

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from l2ljax.core import Key
from l2ljax.gaussian_process._process import GaussianProcess, posterior, sample

ACQUISITIONS = (
    "expected_improvement",
    "probability_of_improvement",
    "lower_confidence_bound",
    "thompson",
)
"""What `propose` takes."""


def expected_improvement(
    mean: Float[Array, "*n"],
    std: Float[Array, "*n"],
    best: Float[Array, ""],
    margin: float | Array = 0.0,
) -> Float[Array, "*n"]:
    r"""By how much the value will be below the best one, on average.

    $$E[\max(f^* - \xi - f, 0)] = (f^* - \mu - \xi)\, \Phi(z) + \sigma \varphi(z), \qquad
      z = \frac{f^* - \mu - \xi}{\sigma}$$

    and $\max(f^* - \mu - \xi, 0)$ where σ is zero.

    Args:
        mean: μ of a normal belief about each value.
        std: σ, zero or more.
        best: $f^*$, the lowest value so far.
        margin: ξ, by how much to be better at least.

    Returns:
        Zero or more; the largest is where to look next.

    Reference:
        Jones, Schonlau and Welch (1998), 'Efficient global optimization of expensive black-box
        functions', equation 15.

    >>> mean, std = jnp.array([1.0, 1.0, 0.5]), jnp.array([0.0, 1.0, 0.0])
    >>> print(expected_improvement(mean, std, jnp.array(1.0)).round(1))
    [0.  0.4 0.5]
    """
    gain, z, certain = _standardise(mean, std, best, margin)
    improvement = gain * norm.cdf(z) + std * norm.pdf(z)
    # In the far tail the two terms cancel, to no less than nothing.
    return jnp.maximum(jnp.where(certain, gain, improvement), 0)


def probability_of_improvement(
    mean: Float[Array, "*n"],
    std: Float[Array, "*n"],
    best: Float[Array, ""],
    margin: float | Array = 0.0,
) -> Float[Array, "*n"]:
    r"""How probably the value will be below the best one.

    $$P(f < f^* - \xi) = \Phi\left(\frac{f^* - \mu - \xi}{\sigma}\right)$$

    and zero or one where σ is zero.

    Args:
        mean: μ of a normal belief about each value.
        std: σ, zero or more.
        best: $f^*$, the lowest value so far.
        margin: ξ; without it, what is a little better for certain is preferred to all else.

    Returns:
        In [0, 1]; the largest is where to look next.

    Reference:
        Kushner (1964), 'A new method of locating the maximum point of an arbitrary multipeak curve
        in the presence of noise'.

    >>> mean, std = jnp.array([1.0, 1.0, 0.5]), jnp.array([0.0, 1.0, 0.0])
    >>> print(probability_of_improvement(mean, std, jnp.array(1.0)))
    [0.  0.5 1. ]
    """
    gain, z, certain = _standardise(mean, std, best, margin)
    return jnp.where(certain, (gain > 0).astype(z.dtype), norm.cdf(z))


def _standardise(
    mean: Array, std: Array, best: Array, margin: float | Array
) -> tuple[Array, Array, Array]:
    """The gain on average, in standard deviations, and where there are none."""
    gain = best - mean - margin
    certain = std <= 0
    # Divided by one there, so that no derivative is NaN.
    return gain, gain / jnp.where(certain, 1, std), certain


def lower_confidence_bound(
    mean: Float[Array, "*n"], std: Float[Array, " n"], kappa: float | Array = 2.0
) -> Float[Array, "*n"]:
    r"""What the value may be at best: $\mu - \kappa \sigma$.

    Args:
        mean: μ of a normal belief about each value.
        std: σ, zero or more.
        kappa: κ; more of it explores more.

    Returns:
        The bound; the smallest is where to look next.

    Reference:
        Srinivas, Krause, Kakade and Seeger (2010), 'Gaussian process optimization in the bandit
        setting'.

    >>> print(lower_confidence_bound(jnp.array([1.0, 1.0]), jnp.array([0.0, 1.0])))
    [ 1. -1.]
    """
    return mean - kappa * std


def score(
    gp: GaussianProcess,
    at: Float[Array, "n dim"],
    best: Float[Array, ""],
    key: Key,
    *,
    acquisition: str,
    margin: float | Array,
    kappa: float | Array,
) -> Float[Array, " n"]:
    """How much looking at each point promises; the largest is where to look next.

    Args:
        gp: what is believed.
        at: the points.
        best: the lowest value so far.
        key: draws Thompson's function.
        acquisition: one of `ACQUISITIONS`.
        margin: ξ, in standard deviations of the values.
        kappa: κ.
    """
    if acquisition == "thompson":
        return -sample(gp, at, key)
    mean, std = posterior(gp, at)
    if acquisition == "lower_confidence_bound":
        return -lower_confidence_bound(mean, std, kappa)
    improve = {
        "expected_improvement": expected_improvement,
        "probability_of_improvement": probability_of_improvement,
    }[acquisition]
    return improve(mean, std, best, margin * gp.scale)
