"""A small network for each coordinate, fed with what hand-designed optimizers accumulate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax.core import LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned import _coordinates
from l2ljax.networks import coordinate_mlp_apply, coordinate_mlp_init

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Steps after which each of the features of time changes its sign."""

# Of the papers' code. Below their roots a leaf's feature, or a coordinate's gradient, counts as
# small, and derivatives stay finite at zero.
FEATURE_EPS, SQUARE_EPS = 1e-5, 1e-6


class MLPMemory(NamedTuple):
    """Averages of one batch of coordinates.

    Attributes:
        momenta: $m$, one row a decay, float[decays, *coordinates]; float32, or float64 where params
            or φ are.
        mean_square: $v$, float[*coordinates]; None without it.
    """

    momenta: Array
    mean_square: Array | None


class MLPState(NamedTuple):
    """Averages of each coordinate.

    Attributes:
        count: updates made so far, int32[].
        momenta: as in `MLPMemory`, one column a coordinate of the small leaves, in their order.
        mean_square: likewise.
        large: the averages of each large leaf, with the axes of the leaf; see `layout`.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    momenta: Array
    mean_square: Array | None
    large: tuple[MLPMemory, ...] = ()


def mlp(
    hidden: Sequence[int] = (4,),
    decays: Sequence[float] = (0.9, 0.99, 0.999),
    second_moment_decay: float | None = 0.999,
    *,
    output_scale: float = 1e-3,
    exp_scale: float = 1e-3,
    wait_for_gradient: bool = False,
    layout: str = "auto",
) -> LearnedOptimizer:
    r"""A multilayer perceptron proposes each coordinate's direction and its logarithmic size.

    $$\theta_{t+1} = \theta_t - \alpha d\, e^{\lambda s}, \qquad
    (d, s) = \mathrm{MLP}_\phi(\bar x_1, \dots, \bar x_n, \tau_1, \dots, \tau_{11})$$

    with ReLU between its layers. Its inputs are, in this order:

    - the gradient $g$ and the parameter $\theta$;
    - for each decay $m_\beta \leftarrow \beta m_\beta + (1-\beta) g$;
    - unless `second_moment_decay` is None, $v \leftarrow \beta v + (1-\beta) g^2$, then
      $m_\beta / \sqrt{v + 10^{-6}}$ for each decay, and $1 / \sqrt{v + 10^{-6}}$;
    - the number t of updates made before as $\tau = \tanh(t / T - 1)$ for T = 1, 3, 10, 30, ...,
      100,000.

    All but the last are divided by their root mean square over the leaf,
    $\bar x = x / \sqrt{10^{-5} + \operatorname{mean} x^2}$, so the optimizer hardly knows the scale
    of a loss. For that it is not coordinate-wise, but the same network, run once for all
    coordinates of all leaves.

    By default this is the paper's 'small_fc_lopt' without Adafactor's features, with one hidden
    layer instead of two of 4, and with decays that are settings instead of meta-parameters.
    `mlp((32, 32), (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999), None)` is the network of its ancestor,
    Metz et al. (2019), as the authors' later code has it.

    Params may be any tree of floating-point leaves (scalars, empty leaves and mixed dtypes too);
    updates have the dtypes of the gradients. Finite gradients are cut at 2⁶³, about 9e18, in single
    precision, so that their squares are finite; a feature whose squares overflow in their sum over
    a leaf is zero there.

    Args:
        hidden: units of each hidden layer; `()` makes (d, s) an affine function of the inputs.
        decays: of the momenta, each in [0, 1); without correction of their bias.
        second_moment_decay: β of v, in [0, 1); None leaves v and what is made of it out.
        output_scale: α, the size of a step where d is one.
        exp_scale: λ.
        wait_for_gradient: as in `lstm`, without a state of its own: a coordinate stands still while
            its averages are exactly zero.
        layout: how the averages are laid out, as in `lstm`.

    Returns:
        A learned optimizer; `init(key)` draws φ (98 weights by default), `bind(phi)` is an ordinary
        transformation with state `MLPState`, 4 floats a coordinate by default. Its `update` needs
        params.

    Raises:
        ValueError: for a size below 1, a decay outside [0, 1), an `output_scale` that is not
            positive, a negative `exp_scale`, `wait_for_gradient` without averages, an unknown
            layout; from `update`, without params; from `init` and `update`, for params with leaves
            that are not floating-point.

    Reference:
        Metz et al. (2022), 'Practical tradeoffs between memory, compute, and performance in learned
        optimizers'; Metz et al. (2019), 'Understanding and correcting pathologies in the training
        of learned optimizers'.

    A loss a thousand times as large has nearly the same updates:

    >>> opt = mlp()
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> gradients = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    >>> for scale in (1.0, 1000.0):
    ...     scaled = jax.tree.map(lambda g: scale * g, gradients)
    ...     updates, _ = tx.update(scaled, tx.init(params), params)
    ...     print(jnp.round(1e4 * updates["w"][1], 1))
    [4.4 4.3]
    [4.6 4.6]
    """
    hidden = _checks.counts("hidden", hidden)
    decays = _checks.sequence("decays", decays, "numbers in [0, 1)")
    for decay in decays:
        _checks.fraction("decays", decay)
    if second_moment_decay is not None:
        _checks.fraction("second_moment_decay", second_moment_decay)
        second_moment_decay = float(second_moment_decay)
    _checks.positive("output_scale", output_scale)
    _checks.non_negative("exp_scale", exp_scale)
    _checks.choice("wait_for_gradient", wait_for_gradient, [True, False])
    if wait_for_gradient and not decays and second_moment_decay is None:
        raise ValueError("wait_for_gradient must be off without averages, which would show it")
    _checks.choice("layout", layout, _coordinates.LAYOUTS)
    decays = tuple(map(float, decays))
    features = 2 + len(decays) + (0 if second_moment_decay is None else 2 + len(decays))
    return LearnedOptimizer(
        init=closure(
            coordinate_mlp_init, features=features + len(TIME_SCALES), hidden=hidden, outputs=2
        ),
        bind=closure(
            _bind,
            decays=decays,
            second_moment_decay=second_moment_decay,
            output_scale=float(output_scale),
            exp_scale=float(exp_scale),
            wait_for_gradient=bool(wait_for_gradient),
            layout=layout,
        ),
        spec=Spec(
            name="mlp",
            arguments={
                "hidden": list(hidden),
                "decays": list(decays),
                "second_moment_decay": second_moment_decay,
                "output_scale": float(output_scale),
                "exp_scale": float(exp_scale),
                "wait_for_gradient": bool(wait_for_gradient),
            },
        ),
    )


def _bind(
    phi: Phi,
    *,
    decays: tuple[float, ...],
    second_moment_decay: float | None,
    output_scale: float,
    exp_scale: float,
    wait_for_gradient: bool,
    layout: str,
) -> optax.GradientTransformation:
    averages = {"decays": decays, "second_moment_decay": second_moment_decay, "layout": layout}
    return optax.GradientTransformation(
        init=closure(_init, phi, **averages),
        update=closure(
            _update,
            phi,
            **averages,
            output_scale=output_scale,
            exp_scale=exp_scale,
            wait_for_gradient=wait_for_gradient,
        ),
    )


def _init(
    phi: Phi,
    params: Params,
    *,
    decays: tuple[float, ...],
    second_moment_decay: float | None,
    layout: str,
) -> MLPState:
    _checks.floating_leaves("params", params)
    dtype = _coordinates.working_dtype(phi, params)

    def make(shape: tuple[int, ...]) -> MLPMemory:
        return MLPMemory(
            jnp.zeros((len(decays), *shape), dtype),
            None if second_moment_decay is None else jnp.zeros(shape, dtype),
        )

    pool, large = _coordinates.zeros(params, make, layout)
    zero = jnp.zeros((), jnp.int32)
    return MLPState(zero, pool.momenta, pool.mean_square, large)


def _update(
    phi: Phi,
    updates: Params,
    state: MLPState,
    params: Params | None = None,
    *,
    layout: str,
    **settings: Any,
) -> tuple[Params, MLPState]:
    _checks.state(state, MLPState)
    if params is None:
        raise ValueError("mlp needs params: call tx.update(gradients, state, params)")
    updates, params = _checks.gradients(updates, params, real=True)
    dtype = state.momenta.dtype
    time = jnp.tanh(state.count.astype(dtype) / jnp.asarray(TIME_SCALES, dtype) - 1)
    step = closure(_step, _with_shared(_coordinates.cast(phi, dtype), time), **settings)
    memories = [MLPMemory(state.momenta, state.mean_square), *state.large]
    gradients, positions = (_coordinates.batches(tree, dtype, layout) for tree in (updates, params))
    _coordinates.require_fit([memory.momenta.shape[1:] for memory in memories], gradients)
    # The flat batch has several leaves, each other one is a leaf.
    leaves = [_coordinates.pooled(updates, layout), *(None for _ in state.large)]
    found = _coordinates.each(step, memories, gradients, positions, leaves)
    (pool, *large), steps = zip(*found, strict=True)
    count = optax.safe_increment(state.count)
    new = MLPState(count, pool.momenta, pool.mean_square, tuple(large))
    return _coordinates.unbatch(steps, updates, layout), new


def _step(
    phi: Phi,
    memory: MLPMemory,
    gradient: Float[Array, "*coordinates"],
    position: Float[Array, "*coordinates"],
    leaves: list[Array] | None,
    *,
    decays: tuple[float, ...],
    second_moment_decay: float | None,
    output_scale: float,
    exp_scale: float,
    wait_for_gradient: bool,
) -> tuple[MLPMemory, Float[Array, "*coordinates"]]:
    """The new averages and the updates of one batch of coordinates.

    The bias of the first layer holds what time adds; `leaves` are those of a flat batch.
    """
    dtype = gradient.dtype
    # What is infinite stays so, and shows.
    limit = 2.0 ** (jnp.finfo(dtype).maxexp // 2 - 1)
    gradient = jnp.where(jnp.isinf(gradient), gradient, jnp.clip(gradient, -limit, limit))
    beta = jnp.asarray(decays, dtype).reshape(-1, *[1] * gradient.ndim)
    momenta = beta * memory.momenta + (1 - beta) * gradient[None]
    features = [gradient[None], position[None], momenta]
    mean_square = memory.mean_square
    if mean_square is not None:
        beta = jnp.asarray(second_moment_decay, dtype)
        mean_square = beta * mean_square + (1 - beta) * gradient**2
        inverse_root = jax.lax.rsqrt(mean_square + SQUARE_EPS)
        features += [mean_square[None], momenta * inverse_root[None], inverse_root[None]]
    inputs = _unit_mean_square(jnp.concatenate(features), leaves)
    direction, size = coordinate_mlp_apply(phi, inputs)
    step = output_scale * direction * jnp.exp(exp_scale * size)
    if wait_for_gradient:
        averages = [momenta] if mean_square is None else [momenta, mean_square]
        step = jnp.where(_coordinates.idle(gradient, averages), 0, step)
    return MLPMemory(momenta, mean_square), -step


def _unit_mean_square(
    features: Float[Array, "features *coordinates"], leaves: list[Array] | None
) -> Float[Array, "features *coordinates"]:
    """Each feature over its root mean square on the leaf."""
    if leaves is None:
        axes = tuple(range(1, features.ndim))
        mean_square = jnp.mean(features**2, axes, keepdims=True)
        return features * jax.lax.rsqrt(mean_square + FEATURE_EPS)
    mean_square = _coordinates.leaf_means(features**2, leaves)
    return features * _coordinates.at_coordinates(jax.lax.rsqrt(mean_square + FEATURE_EPS), leaves)


def _with_shared(phi: Phi, shared: Float[Array, " shared"]) -> Phi:
    """The network of the other features, given the last ones, which all coordinates share.

    They are a part of the first layer's bias: half of its inputs need no product a coordinate.
    """
    kernel, bias = phi["dense_0"]["kernel"], phi["dense_0"]["bias"]
    own = kernel.shape[0] - shared.size
    return {**phi, "dense_0": {"kernel": kernel[:own], "bias": bias + shared @ kernel[own:]}}
