"""Integers that momentum can be multiplied into and out of again without losing a bit.

A number x is the integer ⌊x 2⁴⁸⌋ of 64 bits. Multiplying it by n/2¹⁶ shifts out up to 16 bits, and
to divide by n and have the same number again, those bits must be somewhere: an *information buffer*
of 64 bits beside each number takes them in, and most of their room back out, since a product by n
has room for log₂ n bits. What stays is log₂(2¹⁶/n) bits a step. A full buffer goes to a stack.

Integers and their floats have 64 bits whatever `jax_enable_x64` says, in this file alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from l2ljax.core import ReversibleOptimizer

FRACTION = 48
DENOMINATOR = ReversibleOptimizer.DECAY_UNITS
DECAY_BITS = DENOMINATOR.bit_length() - 1
LARGEST = 2.0 ** (62 - FRACTION)
"""Numbers of this size and above overflow."""

# The largest buffer that can take in 16 bits more.
_FULL = (2**63 - DENOMINATOR) // DENOMINATOR

Fixed = Int[Array, "..."]


class Exact(NamedTuple):
    """One leaf of the params on its way.

    Attributes:
        params: θ in units of 2⁻⁴⁸.
        velocity: v, likewise.
        buffer: what products by γ have shifted out, an integer a number.
        stack: buffers that were full, a leading axis of places; the last one is for what nobody
            needs.
    """

    params: Fixed
    velocity: Fixed
    buffer: Fixed
    stack: Fixed


class Coefficients(NamedTuple):
    """What one leaf's step takes; all steps have a leading axis.

    Attributes:
        rate: α.
        decay: γ = n/2¹⁶.
        numerator: n, i32.
        spill: whether the buffer is emptied before the step.
        height: of the stack before it, i32.
    """

    rate: Array
    decay: Array
    numerator: Array
    spill: Array
    height: Array


def start(params: Float[Array, "..."], capacity: int) -> Exact:
    """A leaf at rest."""
    with jax.enable_x64(True):
        fixed = _to_fixed(params)
        nothing = jnp.zeros_like(fixed)
        return Exact(fixed, nothing, nothing, jnp.zeros((capacity + 1, *fixed.shape), jnp.int64))


def ahead(exact: Exact, now: Coefficients, gradient: Float[Array, "..."]) -> Exact:
    """One step of momentum."""
    params, velocity, buffer, stack = exact
    with jax.enable_x64(True):
        place = jnp.where(now.spill, now.height, stack.shape[0] - 1)
        stack = stack.at[place].set(buffer)
        buffer = jnp.where(now.spill, 0, buffer)
        velocity, buffer = multiply(velocity, buffer, now.numerator)
        velocity = velocity - _scaled(1 - now.decay, _to_fixed(gradient))
        return Exact(params + _scaled(now.rate, velocity), velocity, buffer, stack)


def params_before(exact: Exact, now: Coefficients) -> Exact:
    """The params before a step, still with the velocity after it."""
    with jax.enable_x64(True):
        return exact._replace(params=exact.params - _scaled(now.rate, exact.velocity))


def back(exact: Exact, now: Coefficients, gradient: Float[Array, "..."]) -> Exact:
    """A step undone, after `params_before` and with the gradient there."""
    params, velocity, buffer, stack = exact
    with jax.enable_x64(True):
        velocity = velocity + _scaled(1 - now.decay, _to_fixed(gradient))
        velocity, buffer = divide(velocity, buffer, now.numerator)
        buffer = jnp.where(now.spill, stack[jnp.minimum(now.height, stack.shape[0] - 1)], buffer)
        return Exact(params, velocity, buffer, stack)


def is_at_rest(exact: Exact, params: Fixed) -> Bool[Array, ""]:
    """Whether the leaf is at these params as `start` made it, bit for bit."""
    with jax.enable_x64(True):
        same = jnp.all(exact.params == params)
        return same & jnp.all(exact.velocity == 0) & jnp.all(exact.buffer == 0)


def to_float(x: Fixed, dtype: jnp.dtype) -> Float[Array, "..."]:
    """The number of this dtype that is nearest."""
    with jax.enable_x64(True):
        return (x.astype(jnp.float64) * 2.0**-FRACTION).astype(dtype)


def _to_fixed(x: Float[Array, "..."]) -> Fixed:
    return jnp.floor(x.astype(jnp.float64) * 2.0**FRACTION).astype(jnp.int64)


def _scaled(factor: Float[Array, ""], x: Fixed) -> Fixed:
    return jnp.floor(factor.astype(jnp.float64) * x.astype(jnp.float64)).astype(jnp.int64)


def multiply(x: Fixed, buffer: Fixed, n: Int[Array, ""]) -> tuple[Fixed, Fixed]:
    """X n/2¹⁶, and the buffer with what that loses."""
    with jax.enable_x64(True):
        n = n.astype(jnp.int64)
        buffer = buffer * DENOMINATOR + (x & (DENOMINATOR - 1))
        # A shift rounds down, also below zero.
        return (x >> DECAY_BITS) * n + buffer % n, buffer // n


def divide(x: Fixed, buffer: Fixed, n: Int[Array, ""]) -> tuple[Fixed, Fixed]:
    """What `multiply` was given."""
    with jax.enable_x64(True):
        n = n.astype(jnp.int64)
        whole = x // n
        buffer = buffer * n + (x - whole * n)
        return whole * DENOMINATOR + (buffer & (DENOMINATOR - 1)), buffer >> DECAY_BITS


def spills(numerators: Int[Array, " steps"]) -> tuple[Array, Array]:
    """Before which multiplications the buffer has to be emptied, and the stack's height then.

    A bound of the buffer, the same for all numbers that share n: B ← ⌊(2¹⁶ B + 2¹⁶ - 1) / n⌋.

    Returns:
        bool[steps] and i32[steps].
    """
    with jax.enable_x64(True):

        def step(bound: Array, n: Array) -> tuple[Array, Array]:
            spill = bound > _FULL
            bound = jnp.where(spill, 0, bound)
            return (bound * DENOMINATOR + DENOMINATOR - 1) // n, spill

        _, spill = jax.lax.scan(step, jnp.zeros((), jnp.int64), numerators.astype(jnp.int64))
        return spill, jnp.cumsum(spill.astype(jnp.int32)) - spill


def capacity(steps: int, numerator: int) -> int:
    """How often the buffer is emptied in so many multiplications by n/2¹⁶, n at least this."""
    bound = count = 0
    for _ in range(steps):
        if bound > _FULL:
            bound, count = 0, count + 1
        bound = (bound * DENOMINATOR + DENOMINATOR - 1) // numerator
    return count


def quantised(decay: float) -> int:
    """The numerator of a decay."""
    return int(np.clip(math.floor(decay * DENOMINATOR + 0.5), 1, DENOMINATOR))
