"""Adam's direction, orthogonalized for matrices; a learned controller decides for each tensor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from l2ljax import _checks
from l2ljax._sharding import gather, split_like
from l2ljax.core import Key, LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned import _coordinates, _tensors
from l2ljax.learned._orthogonal import is_matrix, orthogonalize
from l2ljax.networks import (
    coordinate_dense_apply,
    coordinate_dense_init,
    coordinate_mlp_apply,
    coordinate_mlp_init,
)

OUTPUTS = 6
EPS = 1e-12
"""Below it a root mean squared gradient counts as small."""

# Where φ begins: decays and mixture of a Nesterov-like Adam, a ramp over the last half of the run.
_DECAYS = (0.9, 0.98, 0.999)
_RATE = 0.02
_MIXTURE = (0.9, 0.0, 0.1)
_MATRIX = _tensors.FEATURE_NAMES.index("matrix")


class TensorwiseMemory(NamedTuple):
    """Averages of one batch of coordinates.

    Attributes:
        fast: $m$, running mean of the gradient, float[*coordinates]; float32, or float64 where
            params or φ are.
        slow: $n$, a slower one, likewise.
        square: $v$, running mean of the squared gradient, likewise.
    """

    fast: Array
    slow: Array
    square: Array


class TensorwiseState(NamedTuple):
    """Averages of each coordinate, and statistics of each tensor.

    Attributes:
        count: updates made so far, int32[].
        fast: as in `TensorwiseMemory`, one entry a coordinate of the small leaves, in their order.
        slow: likewise.
        square: likewise.
        large: the averages of each large leaf, with the axes of the leaf; see `layout`.
        tensors: statistics of each tensor.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    fast: Array
    slow: Array
    square: Array
    large: tuple[TensorwiseMemory, ...]
    tensors: _tensors.TensorStatistics


def tensorwise(
    units: int = 0, *, num_steps: int | None = None, block: int = 128, layout: str = "auto"
) -> LearnedOptimizer:
    r"""A controller decides for each tensor how far to step, and along which mixture of directions.

    $$D = \frac{a\, \hat m + b\, \hat n + c\, g}{\sqrt{\hat v} + \epsilon}, \qquad
    \theta \leftarrow \theta - r_t\, e^{z + \lambda} \big((1 - \omega) D + \omega\, O(D)\big)$$

    with a fast and a slow momentum $m$ and $n$ and the mean square $v$, each corrected for its bias
    as in Adam, and $O(D) = \sqrt{\max(n_1, n_2)}\, U V^\top$ for a matrix
    $D = U \Sigma V^\top$ of the shape $n_1 \times n_2$, as in Muon; of other tensors O(D) is D. A
    leaf of more axes than two is a matrix with the last axis as its columns.

    The controller $(\lambda, \dot z, a, b, c, \omega) = A x + \mathrm{MLP}_\phi(x)$ is a small
    network, run once for each tensor at each step. Its inputs x are the part of the run that is
    over (if `num_steps` is known), the sizes of the tensor and of its params, how large both
    momenta are beside the root mean square (signal to noise), the cosines between the gradient and
    the momenta before it, and whether gradients shrink. Its second output is summed up over the
    run, $z \leftarrow z + 0.002\, \dot z$ within ±4, so that a tensor whose steps are too short can
    be given longer and longer ones.

    With N = `num_steps` the ramp is $r_t = \min(1, (N - t) / (\rho N))$ with a learned ρ, else 1.
    After N updates the run goes on with the last rate.

    All decays are meta-parameters. A gradient that is more than five times as long as those of its
    tensor were is shortened to that. Coordinates that never had a gradient stand still. Params may
    be any tree of floating-point leaves; updates have the dtypes of the gradients.

    Args:
        units: hidden units of the controller's MLP; 0: the controller is affine.
        num_steps: N, updates of the whole run; None: unknown. `update(..., num_steps=...)`
            overrides it, also by a traced number.
        block: the most rows of a matrix that are orthogonalized together: larger ones are cut into
            even parts, so that the cost for a coordinate stays as it is.
        layout: how the averages are laid out, as in `lstm`.

    Returns:
        A learned optimizer; `bind(phi)` is a transformation with state `TensorwiseState`, 3 floats
        a coordinate and 7 a tensor. Its `update` needs params.

    Raises:
        ValueError: for a size below 1 or an unknown layout; from `update`, without params; from
            `init` and `update`, for params with leaves that are not floating-point.

    Reference:
        Wichrowska et al. (2017), 'Learned optimizers that scale and generalize', for a network of
        each tensor; Bernstein and Newhouse (2024), 'Old optimizer, new norm', and Jordan et al.
        (2024), 'Muon', for the orthogonalized direction; Baydin et al. (2018), 'Online learning
        rate adaptation with hypergradient descent', for the cosines.

    A loss a thousand times as large has the same updates:

    >>> opt = tensorwise(num_steps=100)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> gradients = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    >>> for scale in (1.0, 1000.0):
    ...     scaled = jax.tree.map(lambda g: scale * g, gradients)
    ...     updates, _ = tx.update(scaled, tx.init(params), params)
    ...     print(jnp.round(1e3 * updates["w"][1], 1))
    [-6.3 -3.3]
    [-6.3 -3.3]
    """
    _checks.count("units", units, least=0)
    if num_steps is not None:
        _checks.count("num_steps", num_steps)
    _checks.count("block", block)
    _checks.choice("layout", layout, _coordinates.LAYOUTS)
    settings = {"block": int(block), "layout": layout}
    return LearnedOptimizer(
        init=closure(_draw, units=int(units)),
        bind=closure(_bind, num_steps=num_steps, **settings),
        spec=Spec(
            name="tensorwise",
            arguments={"units": int(units), "num_steps": num_steps, "block": int(block)},
        ),
    )


def _draw(key: Key, *, units: int) -> Phi:
    linear = coordinate_dense_init(key, features=_tensors.FEATURES, units=OUTPUTS)
    # It begins as a method with fixed settings; an orthogonal matrix is longer than Adam's
    # direction, whose root mean square is about 0.3.
    kernel = jnp.zeros_like(linear["kernel"]).at[_MATRIX, 0].set(jnp.log(0.3))
    bias = jnp.asarray([jnp.log(_RATE), 0.0, *_MIXTURE, 1.0], jnp.float32)
    phi = {
        "decays": jnp.log1p(-jnp.asarray(_DECAYS, jnp.float32)),
        "ramp": jnp.zeros((), jnp.float32),
        "linear": {"kernel": kernel, "bias": bias},
    }
    if units:
        network = coordinate_mlp_init(
            key, features=_tensors.FEATURES, hidden=(units,), outputs=OUTPUTS
        )
        phi["network"] = {**network, "dense_1": jax.tree.map(jnp.zeros_like, network["dense_1"])}
    return phi


def _bind(
    phi: Phi, *, num_steps: int | None, block: int, layout: str
) -> optax.GradientTransformationExtraArgs:
    total = None if num_steps is None else jnp.asarray(num_steps, jnp.int32)
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, phi, layout=layout),
        update=closure(_update, phi, total, block=block, layout=layout),
    )


def _init(phi: Phi, params: Params, *, layout: str) -> TensorwiseState:
    _checks.floating_leaves("params", params)
    dtype = _coordinates.working_dtype(phi, params)

    def make(shape: tuple[int, ...]) -> TensorwiseMemory:
        return TensorwiseMemory(*(jnp.zeros(shape, dtype) for _ in range(3)))

    pool, large = _coordinates.zeros(params, make, layout)
    statistics = _tensors.first_statistics(
        _coordinates.batches(params, dtype, layout), _tensors.tensors(params, layout)
    )
    zero = jnp.zeros((), jnp.int32)
    return TensorwiseState(zero, pool.fast, pool.slow, pool.square, large, statistics)


def _update(
    phi: Phi,
    total: Int[Array, ""] | None,
    updates: Params,
    state: TensorwiseState,
    params: Params | None = None,
    *,
    block: int,
    layout: str,
    num_steps: Any = None,
    **others: Any,
) -> tuple[Params, TensorwiseState]:
    del others
    _checks.state(state, TensorwiseState)
    if params is None:
        raise ValueError("tensorwise needs params: call tx.update(gradients, state, params)")
    updates, params = _checks.gradients(updates, params, real=True)
    dtype = state.fast.dtype
    phi = _coordinates.cast(phi, dtype)
    leaves = _tensors.tensors(updates, layout)
    progress = _progress(state.count, total if num_steps is None else num_steps, dtype)
    gradients, positions = (_coordinates.batches(tree, dtype, layout) for tree in (updates, params))
    memories = [TensorwiseMemory(state.fast, state.slow, state.square), *state.large]
    _coordinates.require_fit([memory.fast.shape for memory in memories], gradients)

    gradients, statistics = _tensors.limited(gradients, state.tensors, leaves, progress)
    share = jnp.clip(jnp.exp(phi["decays"]), 1e-6, 1)
    # Adam's correction of the bias of averages that began at zero.
    corrections = 1 / -jnp.expm1((progress.count + 1) * jnp.log1p(-0.999999 * share))
    average = closure(_average, share, corrections)
    moved, directions, rows = zip(
        *_coordinates.each(average, memories, gradients, positions), strict=True
    )
    seen, statistics = _tensors.features(leaves.means(rows), statistics, leaves, progress)
    found = coordinate_dense_apply(phi["linear"], seen)
    if "network" in phi:
        found += coordinate_mlp_apply(phi["network"], seen)
    limit = _tensors.DRIFT_LIMIT
    drift = jnp.clip(statistics.drift + _tensors.DRIFT_GAIN * found[1], -limit, limit)
    ramp = jnp.minimum(1, progress.left / jax.nn.sigmoid(phi["ramp"]))
    length = jnp.exp(jnp.minimum(found[0] + drift, 2)) * jnp.where(progress.known > 0, ramp, 1)

    mixed = [
        jnp.sum(d * w, axis=0) for d, w in zip(directions, leaves.spread(found[2:5]), strict=True)
    ]
    steps = _stepped(mixed, updates, leaves.spread(jnp.stack([length, found[5]])), block, layout)
    steps = [
        jnp.where(_coordinates.idle(g, memory), 0, -step)
        for step, g, memory in zip(steps, gradients, moved, strict=True)
    ]
    (pool, *large) = moved
    count = optax.safe_increment(state.count)
    statistics = statistics._replace(drift=drift)
    new = TensorwiseState(count, pool.fast, pool.slow, pool.square, tuple(large), statistics)
    return _coordinates.unbatch(steps, updates, layout), new


def _progress(count: Array, total: Any, dtype: jnp.dtype) -> _tensors.Progress:
    time = count.astype(dtype)
    if total is None:
        return _tensors.Progress(time, jnp.ones((), dtype), jnp.zeros((), dtype))
    total = jnp.maximum(jnp.asarray(total).astype(dtype), 1)
    return _tensors.Progress(time, total, jnp.ones((), dtype))


def _average(
    share: Float[Array, "3"],
    corrections: Float[Array, "3"],
    memory: TensorwiseMemory,
    gradient: Float[Array, "*coordinates"],
    position: Float[Array, "*coordinates"],
) -> tuple[TensorwiseMemory, Float[Array, "3 *coordinates"], Float[Array, "rows *coordinates"]]:
    """New averages, the directions, and what `_tensors.features` takes the means of."""
    fast, slow = (
        (1 - s) * mean + s * gradient for mean, s in zip(memory[:2], share[:2], strict=True)
    )
    square = (1 - share[2]) * memory.square + share[2] * gradient**2
    scale = jax.lax.rsqrt(corrections[2] * square + EPS**2)
    directions = jnp.stack(
        [corrections[0] * fast * scale, corrections[1] * slow * scale, gradient * scale]
    )
    before = jnp.stack([memory.fast * scale, memory.slow * scale])
    rows = jnp.concatenate([position[None] ** 2, directions**2, before**2, before * directions[2:]])
    return TensorwiseMemory(fast, slow, square), directions, rows


def _stepped(
    mixed: list[Array], like: Params, wanted: list[Array], block: int, layout: str
) -> list[Array]:
    """Steps of every batch: of matrices along the mixture and the orthogonalized one.

    Args:
        mixed: D of each batch.
        like: gradients.
        wanted: step lengths and ω at each coordinate, [2, *coordinates] for each batch.
        block: as in `tensorwise`.
        layout: likewise.
    """
    dtype = mixed[0].dtype
    tree = _coordinates.unbatch(mixed, _coordinates.cast(like, dtype), layout)
    leaves, structure = jax.tree.flatten(tree)
    matrices = [i for i, leaf in enumerate(leaves) if is_matrix(leaf.shape)]
    turned = orthogonalize([gather(leaves[i]) for i in matrices], block=block)
    for i, matrix in zip(matrices, turned, strict=True):
        leaves[i] = split_like(matrix, leaves[i])
    orthogonal = _coordinates.batches(jax.tree.unflatten(structure, leaves), dtype, layout)
    return [w[0] * (d + w[1] * (o - d)) for w, d, o in zip(wanted, mixed, orthogonal, strict=True)]
