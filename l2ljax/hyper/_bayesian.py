"""Bayesian optimization: a model of the objective says where to look next."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from l2ljax import _checks, gaussian_process
from l2ljax.core import Key
from l2ljax.hyper._methods import Method, Proposer, halton
from l2ljax.hyper._space import Space, embed

LEAST_CAPACITY = 32


def bayesian(
    acquisition: str = "expected_improvement",
    *,
    margin: float = 0.0,
    kappa: float = 2.0,
    initial: int | None = None,
    candidates: int = 512,
) -> Method:
    """Trials where a Gaussian process of all trials so far promises most.

    The first trials are quasi-random. Then a process is fitted to each batch
    (`gaussian_process.fit`), and where it promises most is the next trial
    (`gaussian_process.propose`). For several trials at once that one is believed to have its
    posterior mean, and so on.

    Values far above the median, by more than three times what the best one lies below it, count as
    that much above: of settings that diverge it matters only that they are bad. Values that are
    not finite count as the worst finite one.

    Args:
        acquisition: "expected_improvement", "probability_of_improvement", "lower_confidence_bound"
            or "thompson".
        margin: ξ of the first two, in standard deviations of the values.
        kappa: κ of the bound.
        initial: the number of quasi-random trials at first, rounded up to whole batches; None:
            twice as many as settings.
        candidates: points at which each round of a proposal looks.

    Returns:
        A method for `search`.

    Raises:
        ValueError: for an unknown acquisition, sizes below 1, a margin or κ that is negative.

    Reference:
        Shahriari et al. (2016), 'Taking the human out of the loop'; several at once: Ginsbourger,
        Le Riche and Carraro (2010), 'Kriging is well-suited to parallelize optimization'.

    >>> bayesian("thompson").settings["acquisition"]
    'thompson'
    """
    _checks.choice("acquisition", acquisition, gaussian_process.ACQUISITIONS)
    _checks.non_negative("margin", margin)
    _checks.non_negative("kappa", kappa)
    _checks.count("candidates", candidates)
    if initial is not None:
        _checks.count("initial", initial)
    settings = {
        "acquisition": acquisition,
        "margin": margin,
        "kappa": kappa,
        "candidates": candidates,
    }

    def start(space: Space, key: Key, trials: int) -> Proposer:
        del trials
        first_key, next_key = jax.random.split(key)
        kinds = {
            "sizes": tuple(axis.size for axis in space.values()),
            "choices": tuple(axis.kind == "choice" for axis in space.values()),
            "log_ends": tuple(axis.log_ends for axis in space.values()),
        }

        def propose(units: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
            known = len(units)
            if known < (2 * len(space) if initial is None else initial):
                return halton(first_key, len(space), known, count)
            # A power of two: a search needs few programs, and its first ones are small.
            capacity = max(LEAST_CAPACITY, 2 ** int(np.ceil(np.log2(known + count))))
            room = capacity - known
            found = _propose(
                jnp.pad(jnp.asarray(units, float), ((0, room), (0, 0))),
                jnp.pad(jnp.asarray(_tame(values), float), (0, room)),
                jnp.arange(capacity) < known,
                jax.random.fold_in(next_key, known),
                count=count,
                **kinds,
                **settings,
            )
            return np.asarray(found, np.float64)

        return propose

    return Method("bayesian", settings | {"initial": initial}, start)


def _tame(values: np.ndarray) -> np.ndarray:
    """Values whose bad half does not decide what their differences are."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros_like(values)
    median, best = np.median(finite), finite.min()
    bound = median + 3 * (median - best) if best < median else np.inf
    return np.minimum(np.where(np.isfinite(values), values, finite.max()), bound)


@jax.jit(
    static_argnames=(
        "count",
        "sizes",
        "choices",
        "log_ends",
        "acquisition",
        "margin",
        "kappa",
        "candidates",
    )
)
def _propose(
    units: Float[Array, "capacity dim"],
    values: Float[Array, " capacity"],
    present: Bool[Array, " capacity"],
    key: Key,
    *,
    count: int,
    sizes: tuple[int | None, ...],
    choices: tuple[bool, ...],
    log_ends: tuple[tuple[float, float] | None, ...],
    acquisition: str,
    margin: float,
    kappa: float,
    candidates: int,
) -> Float[Array, "count dim"]:
    """The next points; those not there have room at the end."""
    to_features = functools.partial(embed, sizes=sizes, choices=choices, log_ends=log_ends)
    hyperparameters = gaussian_process.fit(to_features(units), values, present).hyperparameters
    known = present.sum()
    Carry = tuple[Array, Array]

    def step(carry: Carry, i: Array) -> tuple[Carry, Array]:
        units, values = carry
        gp = gaussian_process.condition(
            to_features(units), values, hyperparameters, jnp.arange(len(values)) < known + i
        )
        unit = gaussian_process.propose(
            gp,
            jax.random.fold_in(key, i),
            acquisition=acquisition,
            margin=margin,
            kappa=kappa,
            candidates=candidates,
            units=units,
            embed=to_features,
        )
        belief, _ = gaussian_process.posterior(gp, to_features(unit[None]))
        return (units.at[known + i].set(unit), values.at[known + i].set(belief[0])), unit

    _, found = jax.lax.scan(step, (units, values), jnp.arange(count))
    return found
