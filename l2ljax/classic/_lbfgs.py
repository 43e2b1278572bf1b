"""L-BFGS: BFGS from the last few differences only, without a matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from l2ljax import _checks
from l2ljax._programs import in_one_program
from l2ljax.classic._bfgs import first_scale, measure_pair, require_min_cosine
from l2ljax.classic._common import (
    Hyperparameter,
    LearningRate,
    Updates,
    accumulator,
    require_params,
)
from l2ljax.classic._line_search import LineSearch, descend
from l2ljax.classic._vectors import add_scaled, inner, widen, working_dtype
from l2ljax.core import Params


class LBFGSState(NamedTuple):
    r"""The state of `scale_by_lbfgs`; all that is float is float32 or wider.

    Attributes:
        count: updates made so far, int32[].
        pairs: pairs accepted so far, int32[]; the next one goes into slot `pairs % memory_size`.
        params: $w_{t-1}$, a tree like the params.
        gradient: $g_{t-1}$, likewise.
        steps: the last $s$, a tree like the params with a leading axis [memory_size].
        changes: the last $y$, likewise.
        rho: $1 / s^\top y$ of each pair, [memory_size]; 0 where there is none.
        scale: $s^\top y / y^\top y$ of the newest pair, [].
    """

    count: Int[Array, ""]  # type: ignore[assignment]
    pairs: Int[Array, ""]
    params: PyTree
    gradient: PyTree
    steps: PyTree
    changes: PyTree
    rho: Float[Array, " m"]
    scale: Float[Array, ""]


def lbfgs(
    learning_rate: LearningRate = 1.0,
    memory_size: int = 10,
    line_search: LineSearch = "strong_wolfe",
    min_cosine: Hyperparameter = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""L-BFGS: the direction of `bfgs` from the last $m$ pairs, in memory $O(mD)$.

    $$w_t = w_{t-1} - \alpha_t \eta_t H_t g_t$$

    $H_t$ is what $(s^\top y / y^\top y) I$, of the newest pair, becomes by BFGS updates with the
    last $m$ pairs; two loops over these compute $H_t g_t$ without a matrix. Pairs are skipped
    as in `bfgs`, and the first step is the same. So is what derivatives see of the line search.
    Every leaf has its own memory, sharded as it is.

    Args:
        learning_rate: as in `bfgs`.
        memory_size: $m$, the number of pairs kept. Default 10.
        line_search: as in `bfgs`.
        min_cosine: as in `bfgs`.

    Returns:
        As in `bfgs`.

    Raises:
        ValueError: as in `bfgs`; `memory_size` is not a whole number of at least 1.

    Reference:
        Nocedal and Wright, *Numerical optimization*, 2006, algorithms 7.4 and 7.5; Liu and
        Nocedal, *On the limited memory BFGS method for large scale optimization*, 1989.

    A narrow valley, of which gradient descent needs thousands of steps to see the end:

    >>> def valley(w):
    ...     return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2
    >>> tx, w = lbfgs(), jnp.array([-1.2, 1.0])
    >>> state, value_and_grad = tx.init(w), optax.value_and_grad_from_state(valley)
    >>> @jax.jit
    ... def step(w, state):
    ...     value, grad = value_and_grad(w, state=state)
    ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=valley)
    ...     return optax.apply_updates(w, updates), state
    >>> print(f"{valley(w):.1f}")
    24.2
    >>> for _ in range(36):
    ...     w, state = step(w, state)
    >>> print(f"{valley(w):.1f} at {w[0]:.1f}, {w[1]:.1f}")
    0.0 at 1.0, 1.0
    """
    return descend("lbfgs", scale_by_lbfgs(memory_size, min_cosine), learning_rate, line_search)


def scale_by_lbfgs(
    memory_size: int = 10, min_cosine: Hyperparameter = 1e-8
) -> optax.GradientTransformation:
    r"""The direction $H_t g_t$ of `lbfgs`, to be chained with a rate or a line search.

    Args:
        memory_size: as in `lbfgs`.
        min_cosine: as in `lbfgs`.

    Returns:
        A transformation from gradients to directions; it does not change their sign. Its update
        needs params.

    Raises:
        ValueError: as in `lbfgs`.

    One pair remembers one direction of two:

    >>> tx, w = scale_by_lbfgs(memory_size=1), jnp.array([1.0, 1.0])
    >>> state = tx.init(w)
    >>> for _ in range(5):
    ...     direction, state = tx.update(jnp.array([1.0, 10.0]) * w, state, w)
    ...     w = w - direction
    ...     print(f"{jnp.abs(w).max():.3f}", end=" ")
    0.900 0.808 0.346 0.202 0.209
    """
    _checks.count("memory_size", memory_size)
    require_min_cosine(min_cosine)

    def init(params: Params) -> LBFGSState:
        _checks.floating_leaves("params", params)
        dtype = working_dtype(params)

        # Nothing twice: a buffer that stands in two places of a state cannot be donated.
        def memory() -> PyTree:
            zeros = accumulator(params, dtype)
            return jax.tree.map(lambda z: jax.lax.broadcast(z, (memory_size,)), zeros)

        return LBFGSState(
            count=jnp.zeros((), jnp.int32),
            pairs=jnp.zeros((), jnp.int32),
            params=accumulator(params, dtype),
            gradient=accumulator(params, dtype),
            steps=memory(),
            changes=memory(),
            rho=jnp.zeros(memory_size, dtype),
            scale=jnp.zeros((), dtype),
        )

    def update(
        updates: Updates, state: LBFGSState, params: Params | None = None
    ) -> tuple[Updates, LBFGSState]:
        _checks.state(state, LBFGSState)
        params = require_params("lbfgs", params)
        updates, params = _checks.gradients(updates, params, state.gradient, real=True)
        dtype = state.rho.dtype
        w, g = widen((params, updates), dtype)
        s = jax.tree.map(jnp.subtract, w, state.params)
        y = jax.tree.map(jnp.subtract, g, state.gradient)
        pair = measure_pair(s, y, min_cosine, state.count > 0)
        slot = state.pairs % memory_size

        def remember(memory: Array, new: Array) -> Array:
            return memory.at[slot].set(jnp.where(pair.accepted, new, memory[slot]))

        steps, changes, rho = jax.tree.map(
            remember, (state.steps, state.changes, state.rho), (s, y, pair.rho)
        )
        pairs = jnp.where(pair.accepted, optax.safe_increment(state.pairs), state.pairs)
        scale = jnp.where(pair.accepted, pair.scale, state.scale)
        first = jnp.where(pairs == 0, first_scale(g), scale)
        # From the oldest pair to the newest; where there is none yet, rho is 0.
        order = (pairs + jnp.arange(memory_size, dtype=jnp.int32)) % memory_size

        def pick(slot: Array) -> tuple[PyTree, PyTree, Array]:
            return jax.tree.map(lambda memory: memory[slot], (steps, changes, rho))

        def backward(q: PyTree, slot: Array) -> tuple[PyTree, Array]:
            s, y, rho = pick(slot)
            alpha = rho * inner(s, q)
            return add_scaled(q, -alpha, y), alpha

        def forward(r: PyTree, slot_alpha: tuple[Array, Array]) -> tuple[PyTree, None]:
            slot, alpha = slot_alpha
            s, y, rho = pick(slot)
            return add_scaled(r, alpha - rho * inner(y, r), s), None

        q, alphas = jax.lax.scan(backward, g, order, reverse=True)
        r = jax.tree.map(lambda q: first * q, q)
        d, _ = jax.lax.scan(forward, r, (order, alphas))
        return optax.tree.cast_like(d, updates), LBFGSState(
            optax.safe_increment(state.count), pairs, w, g, steps, changes, rho, scale
        )

    return optax.GradientTransformation(init, in_one_program(update))
