"""Celo: a small network for each coordinate, and one that schedules the whole run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned import _celo_schedule, _coordinates
from l2ljax.networks import coordinate_mlp_apply, coordinate_mlp_init

DECAYS = (0.9, 0.99, 0.999)
MEAN_SQUARE_DECAY = 0.999
FEATURES = 30
HIDDEN = (4, 4)
LARGEST = 1000.0
"""Gradients are clipped to it."""


class CeloMemory(NamedTuple):
    """Averages of one leaf.

    Attributes:
        momenta: $m$ for each decay, float[3, *shape]; float32, or float64 where params or φ are.
        mean_square: $v$, float[*shape].
        rows: $R$ for each decay, float[3, *shape] where the largest axis has the size 1; of a leaf
            with less than two axes that of all coordinates.
        columns: $C$ likewise, with the second largest axis; None for less than two axes.
    """

    momenta: Array
    mean_square: Array
    rows: Array
    columns: Array | None


class CeloState(NamedTuple):
    """What Celo remembers.

    Attributes:
        schedule: that of its scheduler.
        leaves: that of each leaf, in their order.
    """

    schedule: _celo_schedule.CeloScheduleState
    leaves: tuple[CeloMemory, ...]


def celo(num_steps: int) -> LearnedOptimizer:
    r"""Celo: the network of a coordinate says where to, an LSTM of the whole model how far.

    $$\theta_{t+1} = \theta_t - 10^{-3} s_t \operatorname{rms}(\theta_t)\, d\, e^{a / 1000}, \qquad
    (d, a) = \mathrm{MLP}_\phi(x), \qquad
    s_t = \tfrac{1}{10} e^{\mathrm{LSTM}_\phi(\text{loss}, t / T)}$$

    with the root mean square $\operatorname{rms}(\theta) = \sqrt{\operatorname{mean} \theta^2 +
    10^{-9}}$ over the leaf. The 30 inputs x of a coordinate, with three decays β = 0.9, 0.99, 0.999
    and none of the averages corrected for their bias, are

    - $g$, $g$ clipped to ±0.1, $\theta$, the momenta $m_\beta$ and the mean square $v$ (.999);
    - $m_\beta / \sqrt{v + 10^{-6}}$, $1 / \sqrt{v + 10^{-6}}$;
    - $g u_\beta$ with Adafactor's factor u, $g / \sqrt{v + 10^{-6}}$;
    - for each β the averages of the squares over the largest axis, R, and over the second largest,
      C, then $1 / \sqrt{R + 10^{-8}}$ and $1 / \sqrt{C + 10^{-8}}$, and $m_\beta u_\beta$,

    each divided by its root mean square over the leaf. The inputs of the LSTM, one for all leaves,
    are the part of the run that is over, and for ten running means of the loss how far each is
    above the lowest value that it had. Gradients are clipped to ±1000.

    Args:
        num_steps: T, the steps planned. A run that is longer goes on with what the scheduler says
            at its end. `update(..., num_steps=...)` overrides it, also by a traced number; so
            meta-training tells it the steps of an episode.

    Returns:
        A learned optimizer; `init(key)` draws φ (35,925 weights, 219 of them a coordinate's),
        `bind(phi)` is a transformation with state `CeloState`, 4 floats a coordinate and more for
        rows and columns. Its `update` needs params and `value`, the loss that the gradients are of.

    Raises:
        ValueError: for `num_steps` below 1; from `update`, without params or `value`; from `init`
            and `update`, for params with leaves that are not floating-point.

    Reference:
        Moudgil, Knyazev, Lajoie and Belilovsky (2025), 'Celo: Training versatile learned optimizers
        on a compute diet'.

    It moves leaves in proportion to their size, whatever that of the loss:

    >>> opt = celo(num_steps=100)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> for scale in (1.0, 100.0):
    ...     params = {"w": scale * jnp.arange(1.0, 7.0).reshape(3, 2)}
    ...     state = tx.init(params)
    ...     updates, state = tx.update(params, state, params, value=scale**2)
    ...     print(jnp.linalg.norm(updates["w"]) / scale < 1e-2, state.schedule.count)
    True 1
    True 1
    """
    _checks.count("num_steps", num_steps)
    return LearnedOptimizer(
        init=closure(_draw),
        bind=closure(_bind, planned=int(num_steps)),
        spec=Spec(name="celo", arguments={"num_steps": int(num_steps)}),
    )


def _draw(key: Key) -> Phi:
    network, schedule = jax.random.split(key)
    return {
        "mlp": coordinate_mlp_init(network, features=FEATURES, hidden=HIDDEN, outputs=2),
        "schedule": _celo_schedule.draw(schedule),
    }


def _bind(phi: Phi, *, planned: int) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, phi), update=closure(_update, phi, planned=planned)
    )


def _init(phi: Phi, params: Params) -> CeloState:
    _checks.floating_leaves("params", params)
    dtype = _coordinates.working_dtype(phi, params)
    count = len(DECAYS)

    def averages(shape: tuple[int, ...]) -> tuple[Array, Array]:
        return jnp.zeros((count, *shape), dtype), jnp.zeros(shape, dtype)

    _, like_leaves = _coordinates.zeros(params, averages, "leaves")
    schedule = _celo_schedule.start(phi["schedule"], dtype)
    if not isinstance(like_leaves, tuple):
        # As with the large leaves of other optimizers, one leaf stands for all.
        return CeloState(schedule, like_leaves)
    memories = []
    for leaf, (momenta, mean_square) in zip(jax.tree.leaves(params), like_leaves, strict=True):
        rows, columns = list(jnp.shape(leaf)), list(jnp.shape(leaf))
        axes = largest_axes(jnp.shape(leaf))
        if axes is not None:
            rows[axes[0]] = columns[axes[1]] = 1
        memories.append(
            CeloMemory(
                momenta,
                mean_square,
                jnp.zeros((count, *rows), dtype),
                None if axes is None else jnp.zeros((count, *columns), dtype),
            )
        )
    return CeloState(schedule, tuple(memories))


def _update(
    phi: Phi,
    updates: Params,
    state: CeloState,
    params: Params | None = None,
    *,
    planned: int,
    value: Any = None,
    num_steps: int | Array | None = None,
    **others: Any,
) -> tuple[Params, CeloState]:
    del others
    _checks.state(state, CeloState)
    if params is None:
        raise ValueError("celo needs params: call tx.update(gradients, state, params, value=loss)")
    require_value("celo", value)
    updates, params = _checks.gradients(updates, params, real=True)
    dtype = state.schedule.means.dtype
    phi = _coordinates.cast(phi, dtype)
    schedule, scale = _celo_schedule.step(
        phi["schedule"],
        state.schedule,
        jnp.asarray(value),
        num_steps=planned if num_steps is None else num_steps,
    )
    gradients, positions = (
        [jnp.asarray(leaf, dtype) for leaf in jax.tree.leaves(tree)] for tree in (updates, params)
    )
    _coordinates.require_fit([memory.mean_square.shape for memory in state.leaves], gradients)
    step = closure(_step, phi["mlp"], scale)
    found = _coordinates.each_leaf(step, state.leaves, gradients, positions)
    leaves, steps = zip(*found, strict=True) if found else ((), ())
    moved = [
        part.astype(jax.dtypes.result_type(leaf))
        for part, leaf in zip(steps, jax.tree.leaves(updates), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(updates), moved), CeloState(schedule, leaves)


def require_value(name: str, value: Any) -> None:
    """Requires the loss that the scheduler sees."""
    if value is None:
        raise ValueError(
            f"{name} needs the loss: call tx.update(gradients, state, params, value=loss), got none"
        )


def largest_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The largest axis and the second largest, of equal ones the last first; None for less."""
    if len(shape) < 2:
        return None
    second, first = np.argsort(shape, kind="stable")[-2:].tolist()
    return first, second


def _step(
    network: Phi,
    scale: Float[Array, ""],
    memory: CeloMemory,
    gradient: Float[Array, "*shape"],
    position: Float[Array, "*shape"],
) -> tuple[CeloMemory, Float[Array, "*shape"]]:
    """The new averages and the update of one leaf."""
    dtype = gradient.dtype
    gradient = jnp.clip(gradient, -LARGEST, LARGEST)
    beta = jnp.asarray(DECAYS, dtype).reshape(-1, *[1] * gradient.ndim)
    momenta = beta * memory.momenta + (1 - beta) * gradient[None]
    decay = jnp.asarray(MEAN_SQUARE_DECAY, dtype)
    mean_square = decay * memory.mean_square + (1 - decay) * gradient**2
    inverse_root = jax.lax.rsqrt(mean_square + 1e-6)
    squares = (gradient**2 + 1e-30)[None]
    axes, kept = largest_axes(gradient.shape), None
    if axes is None:
        rows = columns = beta * memory.rows + (1 - beta) * squares
        factor = _inverse_root(rows + 1e-9)
        # The same number, whose derivative is finite where all gradients were zero.
        momenta_over_root = 2.0**50 * momenta * jax.lax.rsqrt(2.0**100 * rows)
    else:
        first, second = (axis + 1 for axis in axes)
        rows = beta * memory.rows + (1 - beta) * _mean(squares, first)
        columns = beta * jnp.asarray(memory.columns) + (1 - beta) * _mean(squares, second)
        kept = columns
        factor = _inverse_root(rows / (_mean(rows, second) + 1e-9)) * _inverse_root(columns)
        momenta_over_root = momenta * factor
    features = [
        gradient[None],
        jnp.clip(gradient, -0.1, 0.1)[None],
        position[None],
        momenta,
        mean_square[None],
        momenta * inverse_root[None],
        inverse_root[None],
        gradient[None] * factor,
        (gradient * inverse_root)[None],
        rows,
        columns,
        jax.lax.rsqrt(rows + 1e-8),
        jax.lax.rsqrt(columns + 1e-8),
        momenta_over_root,
    ]
    over_leaf = tuple(range(1, gradient.ndim + 1))
    normalized = [
        x * jax.lax.rsqrt(1e-5 + _mean(x**2, over_leaf)) * jnp.ones_like(gradient[None])
        for x in features
    ]
    direction, size = coordinate_mlp_apply(network, jnp.concatenate(normalized))
    length = 1e-3 * scale * jnp.sqrt(jnp.sum(position**2) / max(1, position.size) + 1e-9)
    step = length * direction * jnp.exp(1e-3 * size)
    return CeloMemory(momenta, mean_square, rows, kept), -step


def _mean(x: Array, axes: int | tuple[int, ...]) -> Array:
    """The mean over axes, which stay with the size 1; zero over empty ones."""
    total = jnp.sum(x, axes, keepdims=True)
    return total / max(1, x.size // max(1, total.size))


def _inverse_root(x: Array) -> Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
