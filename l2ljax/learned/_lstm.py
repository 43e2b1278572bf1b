"""The coordinate-wise LSTM of 'Learning to learn by gradient descent by gradient descent'."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from l2ljax import _checks, kernels
from l2ljax.core import DTypeLike, LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned import _coordinates
from l2ljax.learned._preprocess import log_sign, require_p
from l2ljax.learned._sequences import kind_of
from l2ljax.learned._tiles import tiled
from l2ljax.networks import lstm_apply, lstm_carry, lstm_init, lstm_noting, lstm_sequence

Preprocess = Callable[[Array], Array]


Layers: TypeAlias = tuple[tuple[Array, Array], ...]


class LSTMState(NamedTuple):
    """The network's memory of each coordinate.

    Attributes:
        layers: for each layer `(cell, hidden)`, each float[units, coordinates], one column a
            coordinate of the small leaves, in their order; `state_dtype`, or float32, float64
            where params or φ are.
        large: the same of each large leaf, float[units, *shape], see `layout`.
        seen: with `wait_for_gradient` which coordinates have had a gradient, bool[coordinates] of
            the small leaves and bool[*shape] of each large one; else ().
    """

    layers: Layers
    large: tuple[Layers, ...] = ()
    seen: tuple[Array, ...] = ()

    @property
    def networks(self) -> tuple[Layers, ...]:
        """The memories of each batch of coordinates."""
        return (self.layers, *self.large)


def lstm(
    hidden: Sequence[int] = (20, 20),
    preprocess: str | Preprocess | None = "log_sign",
    output_scale: float = 0.1,
    *,
    p: float = 10.0,
    input_scale: float = 1.0,
    averaging: int = 0,
    wait_for_gradient: bool = False,
    state_dtype: DTypeLike | None = None,
    fused: bool | None = None,
    layout: str = "auto",
) -> LearnedOptimizer:
    r"""An LSTM proposes each coordinate's update.

    $$\theta_{t+1} = \theta_t + g_t, \qquad (g_t, h_{t+1}) = m(\nabla_t, h_t, \phi)$$

    One small network m, its weights φ shared by all coordinates and its state h_t kept for each.
    Params may be any tree of floating-point leaves (scalars, empty leaves and mixed dtypes too);
    updates have the dtypes of the gradients.

    Args:
        hidden: units of each LSTM layer; the paper's two layers of 20 by default.
        preprocess: what the network sees of a gradient ∇.
            `"log_sign"`: (log|∇|/p, sgn ∇) or, where |∇| < e^-p, (-1, e^p ∇) (appendix A);
            `"scale"`: `input_scale` · ∇, the paper's simpler strategy; None: ∇ itself; or a
            function from an array of gradients to features on a new leading axis.
        output_scale: the network's output is multiplied by it; the paper has 0.1 on MNIST, the
            authors' code 0.01 there and 1 on quadratics.
        p: of `"log_sign"`; 10 in the paper, 5 in the authors' code.
        input_scale: of `"scale"`.
        averaging: units of each layer that are global averaging cells. They are cells like others
            and keep a memory c for each coordinate, but what they put out, h, is replaced by its
            mean over all coordinates of all leaves, for the next layer and the next step: so
            coordinates share what they know, the norm of the gradient for instance. With any, the
            optimizer is no longer coordinate-wise, a NaN in one coordinate reaches all, and
            inside `optax.masked` the mean is over the leaves that are left.
        wait_for_gradient: whether a coordinate stands still until its first gradient that is not
            zero, where the network's output need not be: rows of an embedding that no data have,
            weights of dead units. All else moves as without it; it takes a byte of state per
            coordinate. Off by default, as in the paper and in training; on in weights that ship.
        state_dtype: of the state between steps, such as `jnp.bfloat16`, which halves it; None: that
            of the computation, float32, or float64 where params or φ are.
        fused: whether a program of `l2ljax.kernels` runs a step, in single precision and without
            averaging cells. None: that of the CPU, once `l2ljax build` has built it, in a process
            with one device or inside `jax.shard_map(..., check_vma=False)`, as
            `meta.train(mesh=...)` is; True: that of an NVIDIA GPU, too, which was never measured,
            has no derivatives forwards, and not for params that are split over devices; False:
            none. Results are the same up to rounding, and it is no part of `spec`.
        layout: how the state is laid out. `"leaves"`: each leaf's with the axes of the leaf, behind
            that of the units, so that a leaf that is split over devices has a state that is split
            alike; `"flat"`: that of all leaves in one array, which takes least time to compile and
            to run where there are many small leaves; `"auto"`: flat for leaves of less than 2¹⁸
            coordinates, and for all with averaging cells. Results are the same up to rounding, and
            it is no part of `spec`.

    Returns:
        A learned optimizer; `init(key)` draws φ (5,141 weights by default), `bind(phi)` is an
        ordinary transformation with state `LSTMState`, 80 floats a coordinate by default.

    Raises:
        ValueError: for a size below 1, an unknown preprocessing, a scale or p that is not
            positive, a p of 87 or more, where e^-p leaves single precision, more averaging units
            than a layer has, a `state_dtype` that is not floating-point, an unknown `fused` or
            one that is True with averaging units, an unknown layout, or `"leaves"` with averaging
            units; from `init` and `update`, for params with leaves that are not floating-point;
            from `update`, for a state of params of other sizes.

    Reference:
        Andrychowicz et al. (2016), sections 2 and 2.1, appendix A; `averaging`: appendix B,
        'LSTM+GAC'.

    >>> opt = lstm()
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state)
    >>> updates["w"].shape, state.layers[0][0].shape
    ((3, 2), (20, 8))
    """
    hidden = _checks.counts("hidden", hidden)
    if not hidden:
        raise ValueError("hidden must have at least one layer, got ()")
    if not callable(preprocess):
        _checks.choice("preprocess", preprocess, ["log_sign", "scale", None])
    _checks.positive("output_scale", output_scale)
    require_p(p)
    _checks.positive("input_scale", input_scale)
    _checks.count("averaging", averaging, least=0)
    _checks.choice("fused", fused, [None, True, False])
    if averaging and fused:
        raise ValueError(f"fused must be off with averaging cells, got {fused} and {averaging=}")
    if averaging > min(hidden):
        raise ValueError(
            f"averaging must be at most the units of the smallest layer, {min(hidden)}, "
            f"got {averaging!r}"
        )
    _checks.choice("layout", layout, _coordinates.LAYOUTS)
    _checks.choice("wait_for_gradient", wait_for_gradient, [True, False])
    if averaging and layout == "leaves":
        raise ValueError(f"layout must be 'auto' or 'flat' with averaging cells, got {layout!r}")
    layout = "flat" if averaging else layout
    stored = _coordinates.state_dtype_name(state_dtype)
    spec = Spec(
        name="lstm",
        arguments={
            "hidden": list(hidden),
            "preprocess": preprocess,
            "output_scale": float(output_scale),
            "p": float(p),
            "input_scale": float(input_scale),
            "averaging": int(averaging),
            "wait_for_gradient": bool(wait_for_gradient),
            **({} if stored is None else {"state_dtype": stored}),
        },
    )
    features = _Features(preprocess, float(p), float(input_scale))
    inputs = jax.eval_shape(features, jnp.zeros(())).shape[0]
    return LearnedOptimizer(
        init=closure(lstm_init, features=inputs, hidden=hidden),
        bind=closure(
            _bind,
            hidden=hidden,
            features=features,
            output_scale=float(output_scale),
            averaging=int(averaging),
            wait_for_gradient=bool(wait_for_gradient),
            state_dtype=stored,
            fused=fused,
            layout=layout,
        ),
        spec=spec,
    )


@dataclasses.dataclass(frozen=True)
class _Features:
    """The preprocessing with its constants; equal where they are, so that programs are shared."""

    preprocess: str | Preprocess | None
    p: float
    input_scale: float

    def __call__(self, gradient: Array) -> Array:
        if callable(self.preprocess):
            return self.preprocess(gradient)
        if self.preprocess == "log_sign":
            return log_sign(gradient, p=self.p)
        if self.preprocess == "scale":
            gradient = self.input_scale * gradient
        return gradient[None]


def _bind(
    phi: Phi,
    *,
    hidden: tuple[int, ...],
    features: _Features,
    output_scale: float,
    averaging: int,
    wait_for_gradient: bool,
    state_dtype: str | None,
    fused: bool | None,
    layout: str,
) -> optax.GradientTransformation:
    kind = optax.GradientTransformation if averaging else kind_of(phi, fused, state_dtype)
    return kind(
        init=closure(
            _init,
            phi,
            hidden=hidden,
            wait_for_gradient=wait_for_gradient,
            state_dtype=state_dtype,
            layout=layout,
        ),
        update=closure(
            _update,
            phi,
            hidden=hidden,
            features=features,
            output_scale=output_scale,
            averaging=averaging,
            fused=fused,
            layout=layout,
        ),
    )


def _init(
    phi: Phi,
    params: Params,
    *,
    hidden: tuple[int, ...],
    wait_for_gradient: bool,
    state_dtype: str | None,
    layout: str,
) -> LSTMState:
    _checks.floating_leaves("params", params)
    dtype = jnp.dtype(state_dtype or _coordinates.working_dtype(phi, params))
    make = functools.partial(lstm_carry, dtype=dtype, hidden=hidden)
    layers, large = _coordinates.zeros(params, make, layout)
    seen: Any = ()
    if wait_for_gradient:
        pool, rest = _coordinates.zeros(params, functools.partial(jnp.zeros, dtype=bool), layout)
        # As with `large`, it may be that one leaf stands for all.
        seen = (pool, *rest) if isinstance(rest, tuple) else rest
    return LSTMState(layers, large, seen)


def _update(
    phi: Phi,
    updates: Params,
    state: LSTMState,
    params: Params | None = None,
    *,
    layout: str,
    sequence: bool = False,
    notes: Sequence[kernels.Notes] | None = None,
    **settings: Any,
) -> tuple[Any, ...]:
    """One update, or those of a sequence of gradients, with notes, see `SequenceTransformation`."""
    _checks.state(state, LSTMState)
    updates, _ = _checks.gradients(updates, params, real=True)
    memories = state.networks
    dtype = _coordinates.working_dtype(memories)
    phi = _coordinates.cast(phi, dtype)
    batches, unbatch = _coordinates.ways(dtype, layout, sequence=sequence)
    gradients = batches(updates)
    found = [layers[0][0].shape[1:] for layers in memories]
    _coordinates.require_fit(found, gradients, leading=int(sequence))
    # The program of `kernels` has tiles of its own, but none for a state of another precision.
    fused = settings["fused"] is not False and kernels.cpu_serves((phi, gradients, memories))
    step = closure(_steps if sequence else _step if notes is None else _noting, phi, **settings)
    step = step if sequence or settings["averaging"] or fused else tiled(step)
    found = _coordinates.each(step, memories, gradients, *([] if notes is None else [notes]))
    (layers, *large), steps, *noted = zip(*found, strict=True)
    moves, seen = list(steps), state.seen
    if seen:
        known = [_known(*pair) for pair in zip(seen, gradients, strict=True)]
        moves = [jnp.where(ever, move, 0) for ever, move in zip(known, moves, strict=True)]
        seen = tuple(ever[-1] for ever in known) if sequence else tuple(known)
    return unbatch(moves, updates), LSTMState(layers, tuple(large), seen), *map(list, noted)


def _known(seen: Bool[Array, "*coordinates"], gradient: Float[Array, "..."]) -> Array:
    """Which coordinates have had a gradient by now, or by each step of a sequence."""
    found = gradient != 0
    if found.ndim > seen.ndim:
        found = jax.lax.cummax(found.astype(jnp.uint8), axis=0) > 0
    return seen | found


def _step(
    phi: Phi,
    layers: Layers,
    gradient: Float[Array, "*coordinates"],
    *,
    hidden: tuple[int, ...],
    features: _Features,
    output_scale: float,
    averaging: int,
    fused: bool | None,
) -> tuple[Layers, Float[Array, "*coordinates"]]:
    """The network's new memory and the updates of one batch of coordinates."""
    new, output = lstm_apply(
        phi,
        _coordinates.cast(layers, gradient.dtype),
        features(gradient),
        hidden=hidden,
        averaging=averaging,
        fused=fused,
    )
    return _coordinates.cast(new, layers[0][0].dtype), output_scale * output


def _noting(
    phi: Phi,
    layers: Layers,
    gradient: Float[Array, "*coordinates"],
    notes: kernels.Notes,
    *,
    hidden: tuple[int, ...],
    features: _Features,
    output_scale: float,
    averaging: int,
    fused: bool | None,
) -> tuple[Layers, Float[Array, "*coordinates"], kernels.Notes]:
    """`_step` with notes."""
    del averaging, fused
    new, output, notes = lstm_noting(phi, layers, features(gradient), notes, hidden=hidden)
    return new, output_scale * output, notes


def _steps(
    phi: Phi,
    layers: Layers,
    gradients: Float[Array, "steps *coordinates"],
    notes: kernels.Notes | None = None,
    *,
    hidden: tuple[int, ...],
    features: _Features,
    output_scale: float,
    averaging: int,
    fused: bool | None,
) -> tuple[Layers, Float[Array, "steps *coordinates"]]:
    """The memory after many steps and the updates of each."""
    del averaging, fused
    new, outputs = lstm_sequence(phi, layers, jax.vmap(features)(gradients), notes, hidden=hidden)
    return new, output_scale * outputs
