"""Momentum with a learned rate and decay for each step, exact enough to be run backwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax.core import (
    CoordinatewiseTransformation,
    Params,
    Phi,
    ReversibleOptimizer,
    Spec,
    closure,
)
from l2ljax.learned._hyperparameters import check_values, init_phi

UNITS = ReversibleOptimizer.DECAY_UNITS


class ReversibleMomentumState(NamedTuple):
    """The state of `reversible_momentum`.

    Attributes:
        count: updates made so far, i32[].
        velocity: v, a tree like the params.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    velocity: Params


def reversible_momentum(
    *,
    horizon: int,
    learning_rate: float = 0.1,
    decay: float = 0.9,
    like: Params | None = None,
) -> ReversibleOptimizer:
    r"""Momentum that learns its schedules, and that `meta.reversible` can run backwards.

    $$v_{t+1} = \hat\gamma_t v_t - (1 - \hat\gamma_t) \nabla_t, \qquad
      \theta_{t+1} = \theta_t + \alpha_t v_{t+1}, \qquad
      \hat\gamma_t = \frac{\lfloor 2^{16} \gamma_t + 1/2 \rfloor}{2^{16}}$$

    with $\phi$ holding $\log\alpha_t$ and $\log(\gamma_t / (1 - \gamma_t))$. The rounded decay is
    one that integers can be multiplied by and divided by again; to the derivative it is γ.

    Args:
        horizon: steps T that have a rate and a decay of their own; after them the last ones stay.
        learning_rate: α at the beginning, positive.
        decay: γ at the beginning, in (0, 1).
        like: if given, every leaf of params with this structure (arrays, or `jax.eval_shape` of
            them) has its own schedules.

    Returns:
        A `core.ReversibleOptimizer`: `phi` is `{"learning_rate": f[T], "decay": f[T]}`, with `like`
        trees of these. Its transformation is an ordinary one. It can be saved if there is no
        `like`.

    Raises:
        ValueError: for a horizon below 1, a rate that is not positive, a decay outside (0, 1); from
            `init` of the transformation, for params of another structure than `like` or with
            leaves that are not floating-point.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), 'Gradient-based hyperparameter optimization through
        reversible learning', algorithm 1, with the authors' 1 - γ before the gradient.

    >>> opt = reversible_momentum(horizon=3, learning_rate=1.0, decay=0.5)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> state = tx.init(jnp.zeros(1))
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.ones(1), state)
    ...     print(updates)
    [-0.5]
    [-0.75]
    [-0.875]
    """
    _checks.count("horizon", horizon)
    check_values({"learning_rate": learning_rate, "decay": decay})
    values = {"learning_rate": float(learning_rate), "decay": float(decay)}
    structure = None if like is None else jax.tree.structure(like)
    return ReversibleOptimizer(
        init=closure(init_phi, values=tuple(values.items()), horizon=horizon, structure=structure),
        bind=closure(_bind, structure=structure),
        spec=None
        if like is not None
        else Spec(name="reversible_momentum", arguments={"horizon": horizon, **values}),
        coefficients=closure(_coefficients, structure=structure),
    )


def _coefficients(
    phi: Phi, params: Params, times: Int[Array, "..."], *, structure: Any
) -> tuple[Params, Params]:
    """α and γ̂ for every leaf of the params, at these steps."""
    leaves, present = jax.tree.flatten(params)
    if structure is not None and present != structure:
        raise ValueError(f"params must have the structure of like, {structure}, got {present}")

    def at(schedules: Any, value: Any) -> Params:
        columns = jax.tree.leaves(schedules)
        columns = columns * len(leaves) if structure is None else columns
        values = [value(column[jnp.minimum(times, column.size - 1)]) for column in columns]
        return jax.tree.unflatten(present, values)

    return at(phi["learning_rate"], jnp.exp), at(phi["decay"], _rounded)


def _rounded(free: Float[Array, "..."]) -> Float[Array, "..."]:
    decay = jax.nn.sigmoid(free)
    numerator = jnp.clip(jnp.floor(decay * UNITS + 0.5), 1, UNITS)
    # This way round the sum is exact.
    return jax.lax.stop_gradient(numerator / UNITS) + (decay - jax.lax.stop_gradient(decay))


def _bind(phi: Phi, *, structure: Any) -> CoordinatewiseTransformation:
    return CoordinatewiseTransformation(
        init=closure(_init, phi, structure=structure),
        update=closure(_update, phi, structure=structure),
    )


def _init(phi: Phi, params: Params, *, structure: Any) -> ReversibleMomentumState:
    _checks.inexact_leaves("params", params)
    count = jnp.zeros((), jnp.int32)
    _coefficients(phi, params, count, structure=structure)
    # Of a Python number `zeros_like` alone gives a weak type, which the first update would change.
    velocity = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.result_type(w)), params)
    return ReversibleMomentumState(count, velocity)


def _update(
    phi: Phi,
    updates: Params,
    state: ReversibleMomentumState,
    params: Params | None = None,
    *,
    structure: Any,
) -> tuple[Params, ReversibleMomentumState]:
    _checks.state(state, ReversibleMomentumState)
    updates, _ = _checks.gradients(updates, params, state.velocity)
    rates, decays = _coefficients(phi, updates, state.count, structure=structure)

    def accelerate(decay: Array, v: Array, g: Array) -> Array:
        decay = decay.astype(v.dtype)
        return decay * v - (1 - decay) * g

    velocity = jax.tree.map(accelerate, decays, state.velocity, updates)
    updates = jax.tree.map(lambda rate, v: rate.astype(v.dtype) * v, rates, velocity)
    return updates, ReversibleMomentumState(optax.safe_increment(state.count), velocity)
