"""Celo's scheduler: one LSTM for the whole model sets how long steps are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from l2ljax.core import Key, Phi
from l2ljax.networks import coordinate_dense_apply, coordinate_dense_init, lstm_apply, lstm_init

UNITS = 64
FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
"""Parts of the run around which the inputs of time change their sign."""

AVERAGES = 10
"""Running means of the loss, over 10 to `num_steps` steps."""

FEATURES = len(FRACTIONS) + AVERAGES - 1
_HIGHEST = 1e12


class CeloScheduleState(NamedTuple):
    """What the scheduler remembers of a run.

    Attributes:
        count: updates made so far, int32[].
        means: running means of the loss, corrected for their bias, float[10]; float32, or float64
            where params or φ are.
        minima: the lowest value that each had, float[10].
        cell: of the LSTM, float[64].
        hidden: likewise.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    means: Float[Array, " averages"]
    minima: Float[Array, " averages"]
    cell: Float[Array, " units"]
    hidden: Float[Array, " units"]


def draw(key: Key) -> Phi:
    """Draws the scheduler's weights; its first factor is then near 0.1."""
    first, second, lstm = jax.random.split(key, 3)
    return {
        "linear_1": coordinate_dense_init(first, features=FEATURES, units=UNITS),
        "linear_2": coordinate_dense_init(second, features=FEATURES, units=UNITS),
        "cell": jnp.zeros(UNITS, jnp.float32),
        "hidden": jnp.zeros(UNITS, jnp.float32),
        "lstm": lstm_init(lstm, features=UNITS, hidden=(UNITS,)),
    }


def start(phi: Phi, dtype: jnp.dtype) -> CeloScheduleState:
    """The state before the first step."""
    return CeloScheduleState(
        count=jnp.zeros((), jnp.int32),
        means=jnp.zeros(AVERAGES, dtype),
        minima=jnp.full(AVERAGES, _HIGHEST, dtype),
        # Copies: who donates a state keeps the weights.
        cell=jnp.array(phi["cell"], dtype, copy=True),
        hidden=jnp.array(phi["hidden"], dtype, copy=True),
    )


def step(
    phi: Phi, state: CeloScheduleState, value: Float[Array, ""], *, num_steps: int | Array
) -> tuple[CeloScheduleState, Float[Array, ""]]:
    """The factor of the steps' length from the loss and the part of the run that is over.

    Args:
        phi: from `draw`, in the dtype of the state.
        state: from `start` or the step before.
        value: the loss that the gradient is of.
        num_steps: the steps planned; a traced number is taken in the dtype of the state.

    Returns:
        The new state and the factor.
    """
    dtype = state.means.dtype
    time = state.count.astype(dtype)
    # Running means with the decays exp(-1 / lengths).
    if isinstance(num_steps, jax.Array):
        num_steps = num_steps.astype(dtype)
        lengths = 10 ** jnp.linspace(1, jnp.log10(num_steps), AVERAGES, dtype=dtype)
    else:
        lengths = jnp.asarray(np.logspace(1, np.log10(num_steps), AVERAGES), dtype)
    before, after, gain = (-jnp.expm1(-n / lengths) for n in (time, time + 1, 1))
    # The bias of the means before this step as it is after it: so the weights were trained.
    cap = 2 * jnp.abs(jnp.max(state.means * before / after))
    value = value.astype(dtype)
    value = jnp.where(state.count == 0, value, jnp.minimum(cap, value))
    # Of a loss that stays as it is, so do these exactly: their differences are inputs.
    means = state.means + gain / after * (value - state.means)
    minima = jnp.minimum(state.minima, means)
    longer = jnp.maximum(1e-8, means[1:] - minima[:-1])
    trend = jnp.clip((means - minima)[:-1] / longer - 1, -1, 1)
    trend = jnp.where(state.count < 2, jnp.zeros_like(trend), trend)
    passed = jnp.tanh(10 * (time / num_steps - jnp.asarray(FRACTIONS, dtype)))
    inputs = jnp.concatenate([passed, trend])
    mixed = coordinate_dense_apply(phi["linear_2"], inputs)
    mixed += jax.nn.relu(coordinate_dense_apply(phi["linear_1"], inputs))
    ((cell, hidden),), logarithm = lstm_apply(
        phi["lstm"], ((state.cell, state.hidden),), mixed, hidden=(UNITS,), fused=False
    )
    new = CeloScheduleState(state.count + 1, means, minima, cell, hidden)
    return new, 0.1 * jnp.exp(logarithm)
