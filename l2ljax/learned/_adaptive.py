"""What LSTM optimizers share whose inputs are Adam's averages: the averages, and the update."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks, kernels
from l2ljax.core import (
    Key,
    LearnedOptimizer,
    Params,
    Phi,
    Spec,
    closure,
)
from l2ljax.learned import _coordinates
from l2ljax.learned._preprocess import log_sign, require_p
from l2ljax.learned._sequences import kind_of
from l2ljax.learned._tiles import tiled
from l2ljax.networks import (
    coordinate_dense_apply,
    coordinate_dense_init,
    lstm_apply,
    lstm_carry,
    lstm_init,
    lstm_noting,
    lstm_sequence,
)


class AdaptiveMemory(NamedTuple):
    """Averages and the network's memory of one batch of coordinates.

    Attributes:
        means: running means of the gradient, one row for each decay, float[decays, *coordinates];
            float32, or float64 where params or φ are.
        square: running mean of the squared gradient, float[*coordinates].
        layers: for each LSTM layer `(cell, hidden)`, each float[units, *coordinates].
    """

    means: Array
    square: Array
    layers: tuple[tuple[Array, Array], ...]


class AdaptiveState(NamedTuple):
    """Averages and the network's memory of each coordinate.

    Attributes:
        count: updates made, i32[].
        means: as in `AdaptiveMemory`, one column a coordinate of the small leaves, in their order.
        square: likewise.
        layers: likewise.
        large: the memory of each large leaf, with the axes of the leaf; see `layout` of `lstm`.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    means: Array
    square: Array
    layers: tuple[tuple[Array, Array], ...]
    large: tuple[AdaptiveMemory, ...] = ()

    @property
    def networks(self) -> tuple[tuple[tuple[Array, Array], ...], ...]:
        """The LSTM's memories of each batch of coordinates."""
        return (self.layers, *(memory.layers for memory in self.large))


@dataclasses.dataclass(frozen=True)
class Design:
    """A network and its inputs.

    Attributes:
        hidden: units of each LSTM layer, as `_checks.counts` gives them.
        encoder: units of a dense layer with ELU before the LSTM; 0: none.
        decays: of the running means of the gradient.
        decay_square: of the running mean of its square.
        eps: ε beside the root.
        logarithms: whether the gradient and its means are inputs themselves, by `log_sign`.
        p: of `log_sign`.
        output_scale: the network's output is multiplied by it.
        bounded: whether tanh comes before that.
        wait_for_gradient: whether a coordinate stands still until its first gradient, as in `lstm`.
        state_dtype: of the network's state between steps, by name, see `lstm`.
        fused: as in `lstm`.
        layout: as in `lstm`.
    """

    hidden: tuple[int, ...]
    encoder: int
    decays: tuple[float, ...]
    decay_square: float
    eps: float
    logarithms: bool
    p: float
    output_scale: float
    bounded: bool
    wait_for_gradient: bool
    state_dtype: str | None = None
    fused: bool | None = None
    layout: str = "auto"

    def __post_init__(self) -> None:
        if not self.hidden:
            raise ValueError("hidden must have at least one layer, got ()")
        if not self.decays:
            raise ValueError("b1 must have at least one decay, got ()")
        for decay in self.decays:
            _checks.fraction("b1", decay)
        _checks.fraction("b2", self.decay_square)
        _checks.positive("eps", self.eps)
        require_p(self.p)
        _checks.positive("output_scale", self.output_scale)
        _checks.choice("wait_for_gradient", self.wait_for_gradient, [True, False])
        _checks.choice("fused", self.fused, [None, True, False])
        _checks.choice("layout", self.layout, _coordinates.LAYOUTS)

    @property
    def features(self) -> int:
        """Inputs of one coordinate."""
        signals = 1 + len(self.decays)
        return signals * (3 if self.logarithms else 1)

    def optimizer(self, name: str, **arguments: Any) -> LearnedOptimizer:
        """The learned optimizer that a factory of this name returns for these arguments."""
        return LearnedOptimizer(
            init=closure(_draw, design=self),
            bind=closure(_bind, design=self),
            spec=Spec(name=name, arguments=arguments),
        )


def _draw(key: Key, *, design: Design) -> Phi:
    if not design.encoder:
        return lstm_init(key, features=design.features, hidden=design.hidden)
    _checks.key("key", key)
    encoder_key, lstm_key = jax.random.split(key)
    return {
        "encoder": coordinate_dense_init(
            encoder_key, features=design.features, units=design.encoder
        ),
        "lstm": lstm_init(lstm_key, features=design.encoder, hidden=design.hidden),
    }


def _bind(phi: Phi, *, design: Design) -> optax.GradientTransformation:
    kind = kind_of(phi, design.fused, design.state_dtype)
    return kind(
        init=closure(_init, phi, design=design), update=closure(_update, phi, design=design)
    )


def _init(phi: Phi, params: Params, *, design: Design) -> AdaptiveState:
    _checks.floating_leaves("params", params)
    dtype = _coordinates.working_dtype(phi, params)
    stored = jnp.dtype(design.state_dtype or dtype)

    def make(shape: tuple[int, ...]) -> AdaptiveMemory:
        return AdaptiveMemory(
            jnp.zeros((len(design.decays), *shape), dtype),
            jnp.zeros(shape, dtype),
            lstm_carry(shape, stored, hidden=design.hidden),
        )

    pool, large = _coordinates.zeros(params, make, design.layout)
    zero = jnp.zeros((), jnp.int32)
    return AdaptiveState(zero, pool.means, pool.square, pool.layers, large)


def _update(
    phi: Phi,
    updates: Params,
    state: AdaptiveState,
    params: Params | None = None,
    *,
    design: Design,
    sequence: bool = False,
    notes: Sequence[kernels.Notes] | None = None,
) -> tuple[Any, ...]:
    """One update, or those of a sequence of gradients, with notes, see `SequenceTransformation`."""
    _checks.state(state, AdaptiveState)
    updates, _ = _checks.gradients(updates, params, real=True)
    dtype = state.square.dtype
    memories = [AdaptiveMemory(state.means, state.square, state.layers), *state.large]
    batches, unbatch = _coordinates.ways(dtype, design.layout, sequence=sequence)
    gradients = batches(updates)
    found = [memory.square.shape for memory in memories]
    _coordinates.require_fit(found, gradients, leading=int(sequence))
    times = optax.safe_increment(state.count)
    if sequence:
        times += jnp.arange(len(gradients[0]), dtype=jnp.int32)
    step = closure(
        _steps if sequence else _step if notes is None else _noting,
        _coordinates.cast(phi, dtype),
        times.astype(dtype),
        design=design,
    )
    if notes is None:
        found = _coordinates.each(step if sequence else tiled(step), memories, gradients)
    else:
        found = _coordinates.each(step, memories, gradients, notes)
    (pool, *large), steps, *noted = zip(*found, strict=True)
    new = AdaptiveState(times.reshape(-1)[-1], pool.means, pool.square, pool.layers, tuple(large))
    return unbatch(list(steps), updates), new, *map(list, noted)


def _step(
    phi: Phi,
    t: Float[Array, ""],
    memory: AdaptiveMemory,
    gradient: Float[Array, "*coordinates"],
    *,
    design: Design,
) -> tuple[AdaptiveMemory, Float[Array, "*coordinates"]]:
    """The new memory and the updates of one batch of coordinates."""
    averages, (inputs, idle) = _average((memory.means, memory.square), (t, gradient), design=design)
    network, inputs = _encoded(phi, inputs, design)
    layers, output = lstm_apply(
        network,
        _coordinates.cast(memory.layers, gradient.dtype),
        inputs,
        hidden=design.hidden,
        fused=design.fused,
    )
    layers = _coordinates.cast(layers, memory.layers[0][0].dtype)
    return AdaptiveMemory(*averages, layers), _scaled(output, idle, design)


def _noting(
    phi: Phi,
    t: Float[Array, ""],
    memory: AdaptiveMemory,
    gradient: Float[Array, "*coordinates"],
    notes: kernels.Notes,
    *,
    design: Design,
) -> tuple[AdaptiveMemory, Float[Array, "*coordinates"], kernels.Notes]:
    """`_step` with notes."""
    averages, (inputs, idle) = _average((memory.means, memory.square), (t, gradient), design=design)
    network, inputs = _encoded(phi, inputs, design)
    layers, output, notes = lstm_noting(network, memory.layers, inputs, notes, hidden=design.hidden)
    return AdaptiveMemory(*averages, layers), _scaled(output, idle, design), notes


def _steps(
    phi: Phi,
    times: Float[Array, " steps"],
    memory: AdaptiveMemory,
    gradients: Float[Array, "steps *coordinates"],
    notes: kernels.Notes | None = None,
    *,
    design: Design,
) -> tuple[AdaptiveMemory, Float[Array, "steps *coordinates"]]:
    """The memory after many steps and the updates of each."""
    averages, (inputs, idle) = jax.lax.scan(
        functools.partial(_average, design=design),
        (memory.means, memory.square),
        (times, gradients),
    )
    encoded = functools.partial(_encoded, design=design)
    network, inputs = jax.vmap(encoded, in_axes=(None, 0), out_axes=(None, 0))(phi, inputs)
    layers, outputs = lstm_sequence(network, memory.layers, inputs, notes, hidden=design.hidden)
    return AdaptiveMemory(*averages, layers), _scaled(outputs, idle, design)


def _average(
    averages: tuple[Array, Array], at: tuple[Float[Array, ""], Array], *, design: Design
) -> tuple[tuple[Array, Array], tuple[Float[Array, "features *coordinates"], Array | None]]:
    """The running means with the gradient of step t, and what is seen of them.

    That is the network's inputs, and with `wait_for_gradient` which coordinates stand still.
    """
    means, square = averages
    t, gradient = at
    decays = jnp.asarray(design.decays, gradient.dtype).reshape(-1, *[1] * gradient.ndim)
    means = decays * means + (1 - decays) * gradient[None]
    decay_square = jnp.asarray(design.decay_square, gradient.dtype)
    square = decay_square * square + (1 - decay_square) * gradient**2
    inputs = _inputs(gradient, means / (1 - decays**t), square / (1 - decay_square**t), design)
    idle = _coordinates.idle(gradient, [means, square]) if design.wait_for_gradient else None
    return (means, square), (inputs, idle)


def _encoded(phi: Phi, inputs: Array, design: Design) -> tuple[Phi, Array]:
    """The weights of the LSTM, and what it gets."""
    if not design.encoder:
        return phi, inputs
    return phi["lstm"], jax.nn.elu(coordinate_dense_apply(phi["encoder"], inputs))


def _scaled(output: Array, idle: Array | None, design: Design) -> Array:
    step = design.output_scale * (jnp.tanh(output) if design.bounded else output)
    return step if idle is None else jnp.where(idle, 0, step)


def _inputs(
    gradient: Float[Array, "*coordinates"],
    means: Float[Array, "decays *coordinates"],
    square: Float[Array, "*coordinates"],
    design: Design,
) -> Float[Array, "features *coordinates"]:
    signals = jnp.concatenate([gradient[None], means])
    # ε under the root: its derivative at zero is then finite, and √v + ε is within ε of it.
    normalized = signals * jax.lax.rsqrt(square + design.eps**2)[None]
    if not design.logarithms:
        return normalized
    logarithms, signs = log_sign(signals, p=design.p)
    return jnp.concatenate([normalized, logarithms, signs])
