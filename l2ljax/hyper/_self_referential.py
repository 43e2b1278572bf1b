"""A network that reads and writes its own weights: Schmidhuber's self-referential matrix."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._programs import compiled
from l2ljax.core import (
    Key,
    LearnedOptimizer,
    Params,
    Phi,
    Scalar,
    Task,
    Transformation,
    as_pytree,
    closure,
)
from l2ljax.hyper._whole_episodes import whole_episodes
from l2ljax.meta import Episode, EstimatorFactory


class SelfReferentialState(NamedTuple):
    """The network as it is now.

    Attributes:
        weights: w(t), f[units, inputs + outputs + 2 + units]: a row for each unit, a column for
            each input, evaluation, the value read, a bias, and each unit.
        units: what the units put out last, f[units]: outputs, hidden units, Δ, the analyzing and
            the modifying units.
        val: the weight that was read last, f[].
    """

    weights: Float[Array, "units all"]
    units: Float[Array, " units"]
    val: Float[Array, ""]


def self_referential(
    inputs: int, outputs: int, hidden: int = 2, sharpness: float = 2.0, modifying: bool = True
) -> LearnedOptimizer:
    r"""A recurrent network whose weights are variables that it can read and write itself.

    $$l_k(t) = f_k\Big(\sum_l w_{kl}(t)\, l_l(t - 1)\Big), \qquad
    \mathrm{val}(t) = \sum_{ij} g(\lVert \mathrm{ana}(t) - \mathrm{adr}(w_{ij}) \rVert^2)\,
    w_{ij}(t)$$

    $$w_{ij}(t + 1) = w_{ij}(t) + \Delta(t)\,
    g(\lVert \mathrm{mod}(t) - \mathrm{adr}(w_{ij}) \rVert^2), \qquad g(x) = e^{-\kappa x}$$

    The units l are inputs, the evaluation of the last outputs, the weight val that was read last, a
    bias; outputs and Δ (with $f$ the identity and tanh), hidden units (tanh), and the analyzing and
    modifying units ana and mod (sigmoid), which point at weights: adr(w_ij) are the binary numbers
    of i and j, ⌈log₂⌉ bits each. Inputs of this step are seen at once, those of units one step
    later. φ is w(1), so what is learned is a network that learns, by rules of its own.

    The bound transformation maps a stream: `update` takes f[inputs + outputs], the inputs and the
    evaluation $d - o$ of the last outputs, and returns f[outputs].

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        hidden: number of hidden units.
        sharpness: κ, how narrow the peak of g is: a weight of the next address has $e^{-\kappa}$.
        modifying: whether Δ does anything; without, w(t) = w(1).

    Returns:
        A learned optimizer; train it by `meta.train` with `hyper.stream`.

    Raises:
        ValueError: for a number of units below 1, or a sharpness that is not positive.

    Reference:
        Schmidhuber (1993), 'A neural network that embeds its own meta-levels', ICNN.

    >>> opt = self_referential(inputs=1, outputs=1)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> state = tx.init(jnp.zeros(1))
    >>> output, new = tx.update(jnp.array([0.5, 0.0]), state)
    >>> output.shape, state.weights.shape, bool(jnp.any(new.weights != state.weights))
    ((1,), (24, 28), True)
    """
    for name, value in [("inputs", inputs), ("outputs", outputs), ("hidden", hidden)]:
        _checks.count(name, value)
    _checks.positive("sharpness", sharpness)
    sizes = _Sizes.of(int(inputs), int(outputs), int(hidden))
    return LearnedOptimizer(
        init=closure(_draw, sizes=sizes),
        bind=closure(_bind, sizes=sizes, sharpness=float(sharpness), modifying=bool(modifying)),
    )


class _Sizes(NamedTuple):
    """Numbers of units, and bits of the number of one."""

    inputs: int
    outputs: int
    hidden: int
    bits: int

    @classmethod
    def of(cls, inputs: int, outputs: int, hidden: int) -> "_Sizes":
        """With as many bits as all units take, those that hold the bits among them."""
        bits = 1
        while 2**bits < cls(inputs, outputs, hidden, bits).columns:
            bits += 1
        return cls(inputs, outputs, hidden, bits)

    @property
    def rows(self) -> int:
        """Outputs, hidden, Δ, and two addresses of two numbers each."""
        return self.outputs + self.hidden + 1 + 4 * self.bits

    @property
    def columns(self) -> int:
        """Inputs, evaluation, val, bias, and the units of the rows."""
        return self.inputs + self.outputs + 2 + self.rows


def _draw(key: Key, *, sizes: _Sizes) -> Phi:
    shape = (sizes.rows, sizes.columns)
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(sizes.columns)


def _bind(phi: Phi, **settings: Any) -> optax.GradientTransformation:
    return optax.GradientTransformation(
        init=closure(_init, phi), update=closure(_update, **settings)
    )


def _init(phi: Phi, params: Params) -> SelfReferentialState:
    del params
    return SelfReferentialState(phi, jnp.zeros(len(phi), phi.dtype), jnp.zeros((), phi.dtype))


def _update(
    updates: Params,
    state: SelfReferentialState,
    params: Params | None = None,
    *,
    sizes: _Sizes,
    sharpness: float,
    modifying: bool,
) -> tuple[Params, SelfReferentialState]:
    del params
    _checks.state(state, SelfReferentialState)
    weights = state.weights
    bias = jnp.ones((), weights.dtype)
    seen = jnp.concatenate([updates, jnp.stack([state.val, bias]), state.units])
    net = weights @ seen
    ends = np.cumsum([sizes.outputs, sizes.hidden, 1])
    output, hidden, change, pointers = jnp.split(net, ends)
    hidden, change, pointers = jnp.tanh(hidden), jnp.tanh(change), jax.nn.sigmoid(pointers)
    ana, mod = pointers.reshape(2, 2, sizes.bits)
    rows, columns = _pointed_at(ana, weights.shape, sharpness)
    val = rows @ weights @ columns
    if modifying:
        rows, columns = _pointed_at(mod, weights.shape, sharpness)
        weights = weights + change * rows[:, None] * columns
    units = jnp.concatenate([output, hidden, change, pointers])
    return output, SelfReferentialState(weights, units, val)


def _pointed_at(
    pointer: Float[Array, "2 bits"], shape: tuple[int, ...], sharpness: float
) -> list[Array]:
    """How much each row and each column is meant; g of both distances is the product."""
    bits = np.arange(pointer.shape[1])
    found = []
    for part, size in zip(pointer, shape, strict=True):
        numbers = np.arange(size)[:, None] >> bits & 1
        distances = jnp.sum((part - numbers.astype(part.dtype)) ** 2, axis=1)
        found.append(jnp.exp(-sharpness * distances))
    return found


def run_stream(
    tx: Transformation,
    inputs: Float[Array, "horizon inputs"],
    targets: Float[Array, "horizon outputs"],
) -> tuple[Float[Array, "horizon outputs"], SelfReferentialState]:
    """The outputs of a network that hears after each how far it was off.

    Args:
        tx: from f[inputs + outputs], inputs and the evaluation of the last outputs, to outputs.
        inputs: of each step.
        targets: what the outputs ought to be.

    Returns:
        The outputs, and the state after each step, with a leading axis of steps.
    """
    return compiled(_run_stream, as_pytree(tx), inputs, targets)


def _run_stream(
    tx: optax.GradientTransformation, inputs: Array, targets: Array
) -> tuple[Array, SelfReferentialState]:
    def step(carry: tuple[Any, Array], at: tuple[Array, Array]) -> Any:
        (state, evaluation), (seen, target) = carry, at
        output, state = tx.update(jnp.concatenate([seen, evaluation]), state)
        return (state, target - output), (output, state)

    start = (tx.init(targets[0]), jnp.zeros_like(targets[0]))
    _, (outputs, states) = jax.lax.scan(step, start, (inputs, targets))
    return outputs, states


def stream() -> EstimatorFactory:
    r"""The exact meta-gradient of a network that learns from a stream while it runs.

    $$L(\phi) = \frac12 \sum_t \lVert \mathrm{eval}(t) \rVert^2, \qquad
    \mathrm{eval}(t) = d(t) - o(t)$$

    averaged over problems. A problem of the task is `{"inputs": f[T, inputs], "targets":
    f[T, outputs]}`, a stream; the task's `init` and `loss` are not used.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`; `aux` has `losses`, f[T].

    Raises:
        ValueError: from the factory, for a batch below 1.

    Reference:
        Schmidhuber (1993), 'A neural network that embeds its own meta-levels', ICNN.

    The output is a multiple of the input, another one in each stream:

    >>> def sample(key):
    ...     inputs = jax.random.uniform(key, (5, 1))
    ...     return {"inputs": inputs, "targets": jax.random.normal(key) * inputs}
    >>> task = Task(sample, init=lambda key, problem: (), loss=lambda params, problem, key: 0.0)
    >>> opt = self_referential(inputs=1, outputs=1)
    >>> est, phi = stream()(opt, task, batch=4), opt.init(jax.random.key(0))
    >>> estimate, _ = est.estimate(phi, (), jax.random.key(1))
    >>> estimate.grad.shape, estimate.aux["losses"].shape
    ((24, 28), (5,))
    """
    return whole_episodes(_measure)


def _measure(
    tx: optax.GradientTransformation, task: Task, episode: Episode
) -> tuple[Scalar, dict[str, Array]]:
    del task
    targets = episode.problem["targets"]
    outputs, _ = run_stream(tx, episode.problem["inputs"], targets)
    losses = jnp.sum((targets - outputs) ** 2, axis=1) / 2
    return losses.sum(), {"losses": losses}
