"""Celo-Adam: Adam with the rate that Celo's scheduler sets."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned import _celo_schedule, _coordinates
from l2ljax.learned._celo import LARGEST, require_value

B1, B2 = 0.9, 0.999


class CeloAdamState(NamedTuple):
    """What Celo-Adam remembers.

    Attributes:
        schedule: that of its scheduler.
        means: running means of the gradient, a tree like params; float32, or float64 where params
            or φ are.
        squares: running means of its square, likewise.
    """

    schedule: _celo_schedule.CeloScheduleState
    means: Params
    squares: Params


def celo_adam(num_steps: int) -> LearnedOptimizer:
    r"""Adam whose rate is set by the scheduler of `celo`.

    $$\theta_{t+1} = \theta_t - \frac{10^{-3} s_t \hat m_t}{10^{-8} + \sqrt{\hat v_t + 10^{-10}}},
    \qquad s_t = \tfrac{1}{10} e^{\mathrm{LSTM}_\phi(\text{loss}, t / T)}$$

    with β₁ = 0.9, β₂ = 0.999, corrected for their bias. Gradients are clipped to ±1000.

    Args:
        num_steps: T, the steps planned; as in `celo`.

    Returns:
        A learned optimizer; `init(key)` draws φ (35,706 weights), `bind(phi)` is a transformation
        with state `CeloAdamState`, 2 floats a coordinate. Its `update` needs `value`, the loss that
        the gradients are of.

    Raises:
        ValueError: for `num_steps` below 1; from `update`, without `value`; from `init` and
            `update`, for params with leaves that are not floating-point.

    Reference:
        Moudgil, Knyazev, Lajoie and Belilovsky (2025), 'Celo: Training versatile learned optimizers
        on a compute diet'; Kingma and Ba (2015), algorithm 1.

    >>> opt = celo_adam(num_steps=100)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> params = jnp.ones(2)
    >>> updates, state = tx.update(3 * params, tx.init(params), params, value=9.0)
    >>> bool(jnp.allclose(updates, -1e-4, rtol=0.3)), updates.shape
    (True, (2,))
    """
    _checks.count("num_steps", num_steps)
    return LearnedOptimizer(
        init=closure(_draw),
        bind=closure(_bind, planned=int(num_steps)),
        spec=Spec(name="celo_adam", arguments={"num_steps": int(num_steps)}),
    )


def _draw(key: Key) -> Phi:
    return {"schedule": _celo_schedule.draw(key)}


def _bind(phi: Phi, *, planned: int) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, phi), update=closure(_update, phi, planned=planned)
    )


def _init(phi: Phi, params: Params) -> CeloAdamState:
    _checks.floating_leaves("params", params)
    dtype = _coordinates.working_dtype(phi, params)
    means, squares = (
        jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), params) for _ in range(2)
    )
    return CeloAdamState(_celo_schedule.start(phi["schedule"], dtype), means, squares)


def _update(
    phi: Phi,
    updates: Params,
    state: CeloAdamState,
    params: Params | None = None,
    *,
    planned: int,
    value: Any = None,
    num_steps: int | Array | None = None,
    **others: Any,
) -> tuple[Params, CeloAdamState]:
    del others
    _checks.state(state, CeloAdamState)
    require_value("celo_adam", value)
    updates, _ = _checks.gradients(updates, params, state.means, real=True)
    dtype = state.schedule.means.dtype
    phi = _coordinates.cast(phi, dtype)
    schedule, scale = _celo_schedule.step(
        phi["schedule"],
        state.schedule,
        jnp.asarray(value),
        num_steps=planned if num_steps is None else num_steps,
    )
    gradients = jax.tree.map(lambda g: jnp.clip(g.astype(dtype), -LARGEST, LARGEST), updates)
    b1, b2 = jnp.asarray(B1, dtype), jnp.asarray(B2, dtype)
    means = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.means, gradients)
    squares = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.squares, gradients)
    time = schedule.count.astype(dtype)
    first, second = 1 - b1**time, 1 - b2**time

    def move(mean: Float[Array, "*shape"], square: Float[Array, "*shape"], like: Any) -> Array:
        root = 1e-8 + jnp.sqrt(square / second + 1e-10)
        return (-1e-3 * scale * (mean / first) / root).astype(like.dtype)

    return jax.tree.map(move, means, squares, updates), CeloAdamState(schedule, means, squares)
