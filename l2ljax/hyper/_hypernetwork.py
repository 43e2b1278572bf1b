"""Hypernetworks: functions from metaparameters to the weights of another network."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks, networks
from l2ljax._shown import one_line
from l2ljax.core import Key, Params, Phi, Problem, Scalar, Task, as_partial, closure

Draw = Callable[[Key], Params]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    r"""A function $w_\phi(\lambda)$ from metaparameters to the params of any other function.

    Attributes:
        init: `init(key) -> phi`, draws the hypernetwork's own weights.
        apply: `apply(phi, lam) -> params`.

    A straight line for each weight:

    >>> line = Hypernetwork(init=lambda key: (jnp.zeros(2), jnp.ones(2)),
    ...                     apply=lambda phi, lam: phi[0] + lam * phi[1])
    >>> print(line.apply(line.init(jax.random.key(0)), 3.0))
    [3. 3.]
    """

    init: Callable[[Key], Phi]
    apply: Callable[[Phi, PyTree], Params]

    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_partial(self.init))
        object.__setattr__(self, "apply", as_partial(self.apply))


class _Layout(NamedTuple):
    """How a vector is cut into the leaves of a tree; hashable."""

    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)


def _layout(init: Draw) -> _Layout:
    tree = jax.eval_shape(init, jax.random.key(0))
    _checks.floating_leaves("init", tree)
    leaves, structure = jax.tree.flatten(tree)
    return _Layout(
        structure, tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype for leaf in leaves)
    )


def _assemble(parts: Sequence[Array], layout: _Layout) -> Params:
    """The tree whose leaves are these vectors, cut to size."""
    leaves = [
        part[: math.prod(shape)].reshape(shape).astype(dtype)
        for part, shape, dtype in zip(parts, layout.shapes, layout.dtypes, strict=True)
    ]
    return jax.tree.unflatten(layout.structure, leaves)


def mlp_hypernetwork(
    init: Draw,
    size: int,
    *,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    output_scale: float = 0.1,
) -> Hypernetwork:
    r"""A fully connected hypernetwork; with no hidden layer, a linear one.

    $$w_\phi(\lambda) = W_L\, \sigma(\dots \sigma(W_1 \lambda + b_1) \dots) + b_L$$

    A narrow hidden layer is a bottleneck: from 7,850 metaparameters through `hidden=(10,)` to as
    many weights are 164,860 numbers instead of 62 million.

    Args:
        init: `init(key) -> params`, draws weights of the other network, which $b_L$ begins with.
        size: how many numbers λ holds; any tree of arrays with so many will do.
        hidden: units of each hidden layer.
        activation: "sigmoid", "tanh", "relu" or "elu".
        output_scale: c, how much λ matters at first: $W_L$ begins as N(0, c²/fan-in).

    Returns:
        A hypernetwork; `phi` is as from `networks.mlp_init`.

    Raises:
        ValueError: for sizes below 1, an unknown activation, a scale that is not positive or params
            that are not real floating-point numbers.

    Reference:
        Lorraine and Duvenaud (2018), 'Stochastic hyperparameter optimization through
        hypernetworks': its networks are 1-50-7850, linear, and 7850-10-7850.

    >>> network = mlp_hypernetwork(lambda key: {"w": jnp.zeros((2, 3))}, size=1, hidden=(50,))
    >>> phi = network.init(jax.random.key(0))
    >>> network.apply(phi, jnp.array(0.5))["w"].shape
    (2, 3)
    """
    _checks.count("size", size)
    for units in hidden:
        _checks.count("hidden", units)
    _checks.choice("activation", activation, networks.ACTIVATIONS)
    _checks.positive("output_scale", output_scale)
    layout = _layout(init)
    architecture = {
        "hidden": tuple(hidden),
        "outputs": sum(layout.sizes),
        "activation": activation,
    }
    return Hypernetwork(
        init=closure(
            _mlp_init, as_partial(init), size=size, scale=float(output_scale), **architecture
        ),
        apply=closure(_mlp_apply, size=size, layout=layout, **architecture),
    )


def _mlp_init(init: Partial, key: Key, *, size: int, scale: float, **architecture: object) -> Phi:
    first_key, network_key = jax.random.split(key)
    phi = networks.mlp_init(network_key, jnp.zeros((1, size)), **architecture)  # type: ignore
    kernel = scale * phi[f"Dense_{len(phi) - 1}"]["kernel"]
    first, _ = ravel_pytree(init(first_key))
    return {**phi, f"Dense_{len(phi) - 1}": {"kernel": kernel, "bias": first}}


def _mlp_apply(
    phi: Phi, lam: PyTree, *, size: int, layout: _Layout, **architecture: object
) -> Params:
    weights = networks.mlp_apply(phi, _vector(lam, size)[None], **architecture)[0]  # type: ignore
    return _assemble(jnp.split(weights, np.cumsum(layout.sizes)[:-1]), layout)


def _vector(lam: PyTree, size: int) -> Float[Array, " size"]:
    vector, _ = ravel_pytree(lam)
    if vector.size != size:
        raise ValueError(f"lam must hold size={size} numbers, got {vector.size}")
    return vector


def interpolating_hypernetwork(
    init: Draw, low: float, high: float, *, knots: int = 2
) -> Hypernetwork:
    r"""Weights at knots along one metaparameter, and straight lines between them.

    $$w_\phi(\lambda) = \sum_{k=0}^{K-1} \max(0, 1 - |(K-1)e - k|)\, C_k, \qquad
      e = \frac{\lambda - \lambda_{low}}{\lambda_{high} - \lambda_{low}}$$

    Two knots make it linear, $C_1 e + C_0 (1 - e)$. Beyond the ends the weights stay.

    Args:
        init: `init(key) -> params`, draws the weights at a knot.
        low: λ at the first knot.
        high: λ at the last knot; for a metaparameter on a logarithmic scale these are logarithms.
        knots: K, evenly spaced.

    Returns:
        A hypernetwork; `phi` is a tree like the params with a leading axis of knots, and λ any tree
        that holds one number.

    Raises:
        ValueError: for fewer than two knots, or `high` that is not above `low`.

    Reference:
        Grebenkova, Bakhteev and Strijov (2021), 'Variational deep learning model optimization with
        complexity control': linear, and piecewise linear with 6 knots.

    >>> network = interpolating_hypernetwork(lambda key: jax.random.normal(key, (2,)), 0.0, 1.0)
    >>> phi = jnp.array([[0.0, 0.0], [4.0, 8.0]])
    >>> print(network.apply(phi, 0.25), network.apply(phi, 2.0))
    [1. 2.] [4. 8.]
    """
    _checks.count("knots", knots, least=2)
    _checks.finite("low", low)
    _checks.finite("high", high)
    if not high > low:
        raise ValueError(f"high must be above low={low}, got {high}")
    _layout(init)
    return Hypernetwork(
        init=closure(_knots_init, as_partial(init), knots=knots),
        apply=closure(_knots_apply, low=float(low), high=float(high), knots=knots),
    )


def _knots_init(init: Partial, key: Key, *, knots: int) -> Phi:
    return jax.vmap(init)(jax.random.split(key, knots))


def _knots_apply(phi: Phi, lam: PyTree, *, low: float, high: float, knots: int) -> Params:
    place = (knots - 1) * jnp.clip((_vector(lam, 1)[0] - low) / (high - low), 0, 1)
    hats = jnp.maximum(0, 1 - jnp.abs(place - jnp.arange(knots)))
    return jax.tree.map(lambda leaf: jnp.tensordot(hats.astype(leaf.dtype), leaf, 1), phi)


def self_tuning_hypernetwork(init: Draw, size: int) -> Hypernetwork:
    r"""The structured best response of self-tuning networks: λ scales the units of each layer.

    $$W(\lambda) = W_e + \operatorname{diag}(V \lambda)\, W_h$$

    for every leaf, where $V\lambda$ has a value for each unit of the last axis (the outputs of a
    Flax kernel, all of a bias). It has twice the weights of the network and `size` numbers a unit,
    however many weights a unit has.

    Args:
        init: `init(key) -> params`, draws $W_e$ and $W_h$; V begins at zero.
        size: how many numbers λ holds; any tree of arrays with so many will do.

    Returns:
        A hypernetwork; `phi` is `{"elementwise": params, "hyper": params, "response": ...}`, the
        last a tree like the params with leaves `[size, units]`.

    Raises:
        ValueError: for a size below 1, or params that are not real floating-point numbers.

    Reference:
        MacKay et al. (2019), 'Self-tuning networks: bilevel optimization of hyperparameters using
        structured best-response functions', section 3.

    >>> network = self_tuning_hypernetwork(lambda key: {"kernel": jnp.ones((3, 2))}, size=1)
    >>> phi = network.init(jax.random.key(0))
    >>> phi["response"] = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> print(network.apply(phi, jnp.array(0.5))["kernel"][0])
    [1.5 2. ]
    """
    _checks.count("size", size)
    _layout(init)
    return Hypernetwork(
        init=closure(_tuning_init, as_partial(init), size=size),
        apply=closure(_tuning_apply, size=size),
    )


def _tuning_init(init: Partial, key: Key, *, size: int) -> Phi:
    elementwise, hyper = (init(k) for k in jax.random.split(key))
    response = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape[-1:]), leaf.dtype), elementwise
    )
    return {"elementwise": elementwise, "hyper": hyper, "response": response}


def _tuning_apply(phi: Phi, lam: PyTree, *, size: int) -> Params:
    vector = _vector(lam, size)
    return jax.tree.map(
        lambda free, scaled, response: free + (vector.astype(free.dtype) @ response) * scaled,
        phi["elementwise"],
        phi["hyper"],
        phi["response"],
    )


def static_hypernetwork(
    init: Draw,
    *,
    block: tuple[int, int] = (16, 64),
    embedding: int = 4,
    width: int = 16,
    size: int = 0,
) -> Hypernetwork:
    r"""Two small layers, shared by all layers of a network, that make its weights.

    $$a_i = W_i z_j + B_i, \qquad K_i = \langle W_{out}, a_i \rangle + B_{out}$$

    with a learned embedding $z_j$ for each block j of weights, and i numbering the rows of a block.
    Leaves larger than a block have several embeddings, and what is left of the last one is cut off.
    With metaparameters the embedding becomes $(z_j, \lambda)$.

    Args:
        init: `init(key) -> params`, the structure of the weights; they begin with a variance of
            1/fan-in (fan-in: all axes but the last) or, for vectors, of 1/length.
        block: rows and columns of a block.
        embedding: numbers of $z_j$.
        width: numbers of $a_i$.
        size: how many numbers λ holds; none makes the hypernetwork static: λ is `()`.

    Returns:
        A hypernetwork; `phi` is `{"embeddings": f[blocks, embedding], "rows": f[rows, embedding +
        size, width], "row_biases": f[rows, width], "out": f[width, columns],
        "out_bias": f[columns]}`. `generated(task, network)` is how to train it.

    Raises:
        ValueError: for sizes below 1, or params that are not real floating-point numbers.

    Reference:
        Ha, Dai and Le (2017), 'HyperNetworks', section 3.1.

    >>> network = static_hypernetwork(lambda key: jnp.zeros((100, 100)))
    >>> phi = network.init(jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(phi)), network.apply(phi, ()).size
    (2408, 10000)
    """
    for name, number in [("embedding", embedding), ("width", width)]:
        _checks.count(name, number)
    _checks.count("size", size, least=0)
    rows, columns = block
    _checks.count("block", rows)
    _checks.count("block", columns)
    layout = _layout(init)
    blocks = tuple(-(-leaf // (rows * columns)) for leaf in layout.sizes)
    return Hypernetwork(
        init=closure(
            _static_init,
            blocks=sum(blocks),
            block=(rows, columns),
            embedding=embedding,
            size=size,
            width=width,
        ),
        apply=closure(_static_apply, blocks=blocks, layout=layout, size=size),
    )


def _static_init(
    key: Key, *, blocks: int, block: tuple[int, int], embedding: int, size: int, width: int
) -> Phi:
    (rows, columns), seen = block, embedding + size
    keys = jax.random.split(key, 3)
    return {
        "embeddings": jax.random.normal(keys[0], (blocks, embedding)),
        "rows": jax.random.normal(keys[1], (rows, seen, width)) / math.sqrt(seen),
        "row_biases": jnp.zeros((rows, width)),
        "out": jax.random.normal(keys[2], (width, columns)) / math.sqrt(width),
        "out_bias": jnp.zeros(columns),
    }


def _static_apply(
    phi: Phi, lam: PyTree, *, blocks: tuple[int, ...], layout: _Layout, size: int
) -> Params:
    inputs = phi["embeddings"]
    if size:
        same = jnp.broadcast_to(_vector(lam, size), (len(inputs), size))
        inputs = jnp.concatenate([inputs, same.astype(inputs.dtype)], axis=1)
    a = jnp.einsum("je,iew->jiw", inputs, phi["rows"]) + phi["row_biases"]
    made = a @ phi["out"] + phi["out_bias"]
    parts = [
        part.ravel() / math.sqrt(math.prod(shape[:-1]) if len(shape) > 1 else max(shape, default=1))
        for part, shape in zip(jnp.split(made, np.cumsum(blocks)[:-1]), layout.shapes, strict=True)
    ]
    return _assemble(parts, layout)


def generated(task: Task, network: Hypernetwork, lam: PyTree = ()) -> Task:
    r"""The same task in the weights of a hypernetwork: $f(w_\phi(\lambda))$ as a function of φ.

    Args:
        task: any task.
        network: what makes its params.
        lam: λ, fixed; `()` for a static hypernetwork.

    Returns:
        A task whose params are φ; any optimizer trains it.

    >>> import l2ljax as l2l
    >>> task = l2l.tasks.mlp_classifier(l2l.tasks.digits())
    >>> small = generated(task, static_hypernetwork(lambda key: task.init(key, ())))
    >>> sum(leaf.size for leaf in jax.tree.leaves(small.init(jax.random.key(0), ())))
    2388
    """
    measures = [task.loss] if task.objective is task.loss else [task.loss, task.objective]
    return Task(
        task.sample,
        closure(_generated_init, network),
        *(closure(_generated_loss, measure, network, lam) for measure in measures),
    )


def _generated_init(network: Hypernetwork, key: Key, problem: Problem) -> Phi:
    del problem
    return network.init(key)


def _generated_loss(
    loss: Partial, network: Hypernetwork, lam: PyTree, phi: Phi, problem: Problem, key: Key
) -> Scalar:
    return loss(network.apply(phi, lam), problem, key)
