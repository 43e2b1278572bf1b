"""An LSTM that steers a Gaussian process."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks, gaussian_process, networks
from l2ljax.core import ArrayLike, Key, LearnedOptimizer, Params, Phi, Scalar, Spec, closure
from l2ljax.gaussian_process import GaussianProcess, Hyperparameters
from l2ljax.learned._black_box import EVENTS, Seen, point, see, see_nothing

# Length scales to choose from, as many around the prior's median as around the last choice.
_LENGTHS = 16
_CANDIDATES = 128
_NOISE = 1e-6
# Of the bound's curvature, where its minimum is followed: in a flat place no step is that long.
_LEAST_CURVATURE = 1e-2


class SurrogateState(NamedTuple):
    """What is remembered of the values so far.

    Attributes:
        carry: the LSTM's (cell, hidden), each f[hidden].
        seen: statistics of all values.
        steps: values so far, i32[].
        points: in the unit cube, f[memory, dim].
        values: at these points, f[memory].
        lengths: the last length scales, f[dim].
    """

    carry: tuple[Float[Array, " hidden"], Float[Array, " hidden"]]
    seen: Seen
    steps: Int[Array, ""]
    points: Float[Array, "memory dim"]
    values: Float[Array, " memory"]
    lengths: Float[Array, " dim"]


def surrogate_lstm(dim: int, hidden: int = 16, memory: int = 20) -> LearnedOptimizer:
    r"""An LSTM that minimises a function on $[-1, 1]^d$ by steering a Gaussian process.

    $$((\log \kappa_t, \delta_t), h_{t+1}) = \mathrm{LSTM}(u_t, h_t), \qquad
    x_{t+1} = \arg\min_x\ \mu_t(x) - \kappa_t \sigma_t(x)$$

    with mean and standard deviation of a process that has seen the points so far (Matérn 5/2, unit
    signal on standardised values, length scales $\hat\ell_t e^{\delta_t}$ with the most probable
    $\hat\ell_t$ of 33, see `gaussian_process.fit_lengths`), and with $u_t$ the features of
    `black_box_lstm` and the part of the memory in use. The minimum is that of
    `gaussian_process.propose`; its random candidates are the same in every run. The LSTM alone is
    one program of a few multiplications a step, but does not come as near to a minimum. Before
    training κ is about one and δ zero, which is a sound search where no weights ship for so many
    variables.

    The meta-gradient is that of the minimum by the implicit function theorem,
    $-H^{-1} \partial \nabla / \partial(\kappa, \delta)$, in the free variables and with the points
    held constant: through all 20 steps it would be chaotic.

    The transformation takes no notice of gradients, but needs the value at the params, as the extra
    argument `value`: `meta.unroll`, `evaluate` and `hyper.minimize_black_box` pass it. A value that
    is not finite is never the best: to the process it is the worst finite one, to the LSTM as in
    `black_box_lstm`.

    Args:
        dim: d; params are one array f[d].
        hidden: units of the LSTM.
        memory: points that the process knows. After more values the worst is forgotten.

    Returns:
        A learned optimizer; train it by `meta.train` with `hyper.black_box`.

    Raises:
        ValueError: for a size below one, or a memory below two; from `init`, for params of another
            shape or narrower than float32; from `update`, without params.

    Reference:
        Srinivas et al. (2010), 'Gaussian process optimization in the bandit setting', for the
        bound; Chen et al. (2017), 'Learning to learn without gradient descent by gradient descent',
        for the training.

    >>> opt = surrogate_lstm(dim=2)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> x = jnp.zeros(2)
    >>> state = tx.init(x)
    >>> updates, state = jax.jit(tx.update)(x, state, x, value=jnp.sum((x - 1) ** 2))
    >>> int(state.steps), float(state.seen.best_value), updates.shape
    (1, 2.0, (2,))
    """
    _checks.count("dim", dim)
    _checks.count("hidden", hidden)
    _checks.count("memory", memory, least=2)
    sizes = {"dim": int(dim), "hidden": int(hidden)}
    arguments = {**sizes, "memory": int(memory)}
    return LearnedOptimizer(
        init=closure(_draw, **sizes),
        bind=closure(_bind, **arguments),
        spec=Spec(name="surrogate_lstm", arguments=arguments),
    )


def _draw(key: Key, *, dim: int, hidden: int) -> Phi:
    phi = networks.recurrent_init(
        key, features=2 * dim + EVENTS + 1, units=hidden, outputs=dim + 1, forget_bias=5.0
    )
    # So that κ is about one at first, and the most probable length scales are taken.
    output = {**phi["output"], "kernel": phi["output"]["kernel"] / 100}
    return {**phi, "output": output}


def _bind(phi: Phi, *, dim: int, hidden: int, memory: int) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, dim=dim, hidden=hidden, memory=memory), update=closure(_update, phi)
    )


def _init(params: Params, *, dim: int, hidden: int, memory: int) -> SurrogateState:
    seen = see_nothing(params, dim)
    dtype = seen.mean.dtype
    if jnp.finfo(dtype).bits < 32:
        raise ValueError(f"params must be float32 or wider for a Gaussian process, got {dtype}")
    return SurrogateState(
        carry=(jnp.zeros(hidden, dtype), jnp.zeros(hidden, dtype)),
        seen=seen,
        steps=jnp.zeros((), jnp.int32),
        points=jnp.zeros((memory, dim), dtype),
        values=jnp.zeros(memory, dtype),
        lengths=jnp.full(dim, math.sqrt(dim) / 2, dtype),
    )


def _update(
    phi: Phi,
    updates: Params,
    state: SurrogateState,
    params: Params | None = None,
    *,
    value: ArrayLike,
    **extra: Any,
) -> tuple[Params, SurrogateState]:
    del extra
    _checks.state(state, SurrogateState)
    _, params = _checks.gradients(updates, point(params), state.seen.best, real=True)
    seen, features = see(state.seen, params, value)
    memory = state.values.size
    used = jnp.minimum(state.steps + 1, memory).astype(features.dtype) / memory
    phi = jax.tree.map(lambda leaf: leaf.astype(features.dtype), phi)
    inputs = jnp.append(features, used)
    carry, steering = networks.recurrent_apply(phi, state.carry, inputs)

    steps = optax.safe_increment(state.steps)
    # A value that is not finite is the first to be forgotten.
    finite = jnp.where(jnp.isfinite(state.values), state.values, jnp.inf)
    worst = jnp.argmax(finite).astype(state.steps.dtype)
    place = jnp.where(state.steps < memory, state.steps, worst)
    points = state.points.at[place].set((params + 1) / 2)
    values = state.values.at[place].set(jnp.asarray(value, features.dtype))
    points, values = jax.lax.stop_gradient((points, values))
    present = jnp.arange(memory, dtype=steps.dtype) < steps

    key = jax.random.fold_in(jax.random.key(0), steps)
    lengths = gaussian_process.fit_lengths(
        points, values, _possible_lengths(state.lengths), present, noise=_NOISE
    )
    one = jnp.ones((), features.dtype)
    scales = lengths * jnp.exp(steering[1:])
    known = Hyperparameters(scales, one, _NOISE * one)
    gp = gaussian_process.condition(points, values, known, present)
    kappa = jnp.exp(steering[0])
    found = gaussian_process.propose(
        jax.lax.stop_gradient(gp),
        key,
        acquisition="lower_confidence_bound",
        kappa=jax.lax.stop_gradient(kappa),
        candidates=_CANDIDATES,
    )
    x = 2 * _minimum(found, gp, kappa) - 1
    return x - params, SurrogateState(carry, seen, steps, points, values, lengths)


def _possible_lengths(last: Float[Array, " dim"]) -> Float[Array, "n dim"]:
    """The last ones, some around them, and as many within four times the prior's median."""
    dim = last.size
    spread = jnp.asarray(2 * _spaced(_LENGTHS, dim) - 1, last.dtype) * math.log(4)
    everywhere = math.sqrt(dim) / 2 * jnp.exp(spread)
    return jnp.concatenate([last[None], everywhere, last[None] * jnp.exp(0.3 * spread)])


def _spaced(n: int, dim: int) -> Float[Array, "n dim"]:
    """Evenly spread points of the unit cube, by Roberts' generalised golden ratio."""
    ratio = 2.0
    for _ in range(50):
        ratio = (1 + ratio) ** (1 / (dim + 1))
    steps = jnp.array([ratio ** -(j + 1) for j in range(dim)])
    return (0.5 + jnp.arange(1, n + 1, dtype=steps.dtype)[:, None] * steps[None]) % 1


def _bound(unit: Array, gp: GaussianProcess, kappa: Array) -> Scalar:
    """μ - κσ at one point, in standard deviations of the values."""
    mean, std = gaussian_process.posterior(gp, unit[None])
    return (gaussian_process.lower_confidence_bound(mean, std, kappa) / gp.scale)[0]


@jax.custom_jvp
def _minimum(unit: Array, gp: GaussianProcess, kappa: Array) -> Array:
    """The minimum of the bound, known to be at `unit`."""
    del gp, kappa
    return unit


@_minimum.defjvp
def _minimum_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    unit, gp, kappa = primals
    _, *directions = tangents
    slope = jax.grad(_bound)
    _, change = jax.jvp(lambda *known: slope(unit, *known), (gp, kappa), tuple(directions))
    curvature, axes = jnp.linalg.eigh(jax.hessian(_bound)(unit, gp, kappa))
    step = -(axes / jnp.maximum(curvature, _LEAST_CURVATURE)[None]) @ (axes.T @ change)
    # At a wall the minimum stays there.
    return unit, jnp.where((unit > 0) & (unit < 1), step, 0)
