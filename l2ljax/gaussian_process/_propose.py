"""The point of the unit cube that an acquisition function likes best."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._programs import compiled
from l2ljax.core import Key, as_partial, closure
from l2ljax.gaussian_process._acquisitions import ACQUISITIONS, score
from l2ljax.gaussian_process._process import GaussianProcess, posterior

WIDTHS = (0.1, 0.03, 0.01, 0.003)
"""Standard deviations of the candidates around the best one so far, round by round."""


def propose(
    gp: GaussianProcess,
    key: Key,
    *,
    acquisition: str = "expected_improvement",
    margin: float | Array = 0.0,
    kappa: float | Array = 2.0,
    candidates: int = 512,
    units: Float[Array, "capacity dim"] | None = None,
    embed: Callable[[Float[Array, "n dim"]], Float[Array, "n features"]] | None = None,
) -> Float[Array, " dim"]:
    r"""Where in the unit cube to evaluate next.

    The best of candidates, half of them uniform, half of them around the best point so far; then
    four times the best of those around it, nearer each time. No gradient is needed, so points may
    be rounded by `embed`. For Thompson sampling, whose function is drawn at all candidates jointly,
    there are no further rounds.

    The best value so far is the lowest posterior mean of the points: the lowest of noisy values
    would be too good.

    Args:
        gp: what `fit` returned, of points as `embed` makes them.
        key: draws the candidates.
        acquisition: "expected_improvement", "probability_of_improvement", "lower_confidence_bound"
            or "thompson".
        margin: ξ of the first two, in standard deviations of the values.
        kappa: κ of the bound.
        candidates: points of a round.
        units: the points that the process has seen, in the cube; None: as it has them.
        embed: from the cube to the points of the process; None: they are the same.

    Returns:
        A point of the cube. To be called under `jax.jit`; `jax.vmap` proposes for many searches.

    Raises:
        ValueError: for no key, an unknown acquisition, no candidates, or a negative margin or κ.

    >>> from l2ljax import gaussian_process
    >>> x = jnp.array([[0.0], [0.3], [0.8], [1.0]])
    >>> gp = jax.jit(gaussian_process.fit)(x, (x[:, 0] - 0.6) ** 2)
    >>> print(f"{jax.jit(propose)(gp, jax.random.key(0))[0]:.1f}")
    0.6
    """
    _checks.key("key", key)
    _checks.choice("acquisition", acquisition, ACQUISITIONS)
    _checks.non_negative("margin", margin)
    _checks.non_negative("kappa", kappa)
    _checks.count("candidates", candidates)
    run = closure(_propose, acquisition=acquisition, candidates=candidates)
    # Numbers of Python's stay what they are to the dtypes of others.
    embedding = None if embed is None else as_partial(embed)
    return compiled(run, gp, key, margin, kappa, units, embedding)


def _propose(
    gp: GaussianProcess,
    key: Key,
    margin: float | Array,
    kappa: float | Array,
    units: Array | None,
    embed: Callable[[Array], Array] | None,
    *,
    acquisition: str,
    candidates: int,
) -> Array:
    units = gp.points if units is None else units
    shape, dtype = (candidates, units.shape[1]), units.dtype
    uniform_key, near_key, draw_key, *keys = jax.random.split(key, 3 + len(WIDTHS))
    widths = jnp.array(WIDTHS, dtype)

    mean, _ = posterior(gp, gp.points)
    mean = jnp.where(gp.present, mean, jnp.inf)
    best = jnp.min(mean)

    def best_of(units: Array) -> Array:
        scores = score(
            gp,
            units if embed is None else embed(units),
            # Before any point there is nothing to improve on.
            jnp.where(jnp.isfinite(best), best, gp.shift),
            draw_key,
            acquisition=acquisition,
            margin=margin,
            kappa=kappa,
        )
        return units[jnp.argmax(scores)]

    def near(point: Array, width: Array, key: Key) -> Array:
        return jnp.clip(point[None] + width * jax.random.normal(key, shape, dtype), 0, 1)

    half = jnp.arange(candidates)[:, None] % 2 == 0
    around = near(units[jnp.argmin(mean)], jnp.resize(widths, (candidates, 1)), near_key)
    first = best_of(jnp.where(half, jax.random.uniform(uniform_key, shape, dtype), around))
    if acquisition == "thompson":
        return first

    def refine(point: Array, round: tuple[Array, Array]) -> tuple[Array, None]:
        width, key = round
        return best_of(jnp.concatenate([point[None], near(point, width, key)])), None

    found, _ = jax.lax.scan(refine, first, (widths, jnp.stack(keys)))
    return found
