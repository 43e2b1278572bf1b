"""Episodes cut into segments, one a call: what estimators by truncated backpropagation share."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._shown import one_line
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Params,
    Phi,
    Scalar,
    Task,
    as_partial,
    closure,
)
from l2ljax.meta._binding import bind
from l2ljax.meta._episodes import Episode, begin_episodes
from l2ljax.meta._horizons import Horizons

EstimatorFactory = TypeAliasType("EstimatorFactory", Callable[..., Estimator])
"""`factory(opt, task, batch=1, axis=None) -> Estimator`: an estimator before it knows what it
estimates. With `axis`, the name of an axis of devices, `batch` counts the problems of one device,
and the estimate is the mean over all of them; `meta.train(mesh=...)` makes such an estimator.

A factory may have two attributes more: `by_pairs`, another factory, whose devices each have the
whole `batch` and a part of the perturbations of φ; and `pairs`, a tuple with the number of
antithetic pairs of each estimator in it. `meta.train` takes `by_pairs` where the devices cannot
share the batch evenly, but can share the pairs. Those of `es` and `pes` have both, and so have a
`mixture` and a `weighted` sum of nothing else.
"""

MetaLoss = Callable[[Phi], tuple[Scalar, Any]]
"""`meta_loss(phi) -> (loss, rest)`."""


def make_estimator(
    factory: EstimatorFactory, opt: LearnedOptimizer, task: Any, batch: int, axis: str | None
) -> Estimator:
    """Calls a factory; one that knows nothing of axes serves where there is none.

    Raises:
        ValueError: for an axis that the factory does not take, or what is no estimator.
    """
    if axis is None:
        made = factory(opt, task, batch)
    else:
        parameters = inspect.signature(factory).parameters.values()
        if not any(p.name == "axis" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(
                f"estimator must take an argument `axis` to run on a mesh, got {factory!r}"
            )
        made = factory(opt, task, batch, axis=axis)
    if not isinstance(made, Estimator):
        _checks.refuse("what the estimator's factory returns", made, "an Estimator")
    return made


class TruncatedState(NamedTuple):
    """Where the episodes of the batch stand.

    Attributes:
        step: inner steps done in the present episodes; their horizon when they have ended. i32[].
        episode: problems, present params and loss keys, a leading axis of `batch`.
        opt_state: the bound transformation's state for the whole batch; of `imitation` a pair,
            the teacher's and the student's.
        horizon: the horizon of the present episodes, i32[]; None where there is only one.
        begun: episodes begun, i32[]; a batch of them counts as one. None without a curriculum.
        initial: the objective at θ₀, one number a problem; None where no meta-loss asks for it.
    """

    step: Int[Array, ""]
    episode: Episode
    opt_state: Any
    horizon: Int[Array, ""] | None = None
    begun: Int[Array, ""] | None = None
    initial: Float[Array, " batch"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentEstimator(Estimator):
    """An estimator that handles one segment a call; its state holds one `TruncatedState`.

    Attributes:
        horizons: of the episodes.
        truncation: inner steps of a segment.
    """

    horizons: Horizons = dataclasses.field(kw_only=True, metadata={"static": True})
    truncation: int = dataclasses.field(kw_only=True, metadata={"static": True})

    __repr__ = one_line


def segmented(
    start: Partial,
    run: Partial,
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    extra: Any,
    *,
    horizons: Horizons,
    truncation: int,
    batch: int,
    axis: str | None,
    keep_initial: bool = False,
    gradient: Partial | None = None,
) -> Estimator:
    """An estimator that handles one segment a call, with all before it constant to the gradient.

    Args:
        start: `start(tx, extra, params) -> opt_state`, for a batch of params.
        run: `run(tx, task, extra, state) -> (meta-loss, (losses, params, opt_state))`: takes the
            episodes of a `TruncatedState` `truncation` steps on; `losses` are those of `advance`,
            before the first step too.
        opt: the learned optimizer.
        task: what it is trained on.
        extra: arrays that `start` and `run` need besides.
        horizons: of the episodes.
        truncation: inner steps of a segment.
        batch: number of problems.
        axis: as in `EstimatorFactory`.
        keep_initial: whether the state keeps the objective at θ₀.
        gradient: `gradient(meta_loss, phi, key) -> ((loss, rest), grad)`, how the meta-loss is
            differentiated; default: backwards.

    Returns:
        An estimator with the `aux` that `truncated` documents.

    Raises:
        ValueError: for a batch below 1.
    """
    _checks.count("batch", batch)
    fresh = closure(
        begin_batch, start, horizons=horizons, batch=batch, axis=axis, keep_initial=keep_initial
    )
    settings = {"horizons": horizons, "axis": axis}
    gradient = as_partial(_backwards) if gradient is None else gradient
    return SegmentEstimator(
        horizons=horizons,
        truncation=truncation,
        init=closure(init_ended, fresh, opt, task, extra, horizons=horizons),
        estimate=closure(
            _estimate,
            fresh,
            run,
            gradient,
            opt,
            task,
            extra,
            truncation=truncation,
            **settings,
        ),
    )


def begin_batch(
    start: Partial,
    tx: optax.GradientTransformation,
    task: Task,
    extra: Any,
    key: Key,
    begun: Int[Array, ""] | None,
    *,
    horizons: Horizons,
    batch: int,
    axis: str | None,
    keep_initial: bool,
) -> TruncatedState:
    """The start of a batch of episodes."""
    episode = begin_episodes(task, key, batch, axis)
    return TruncatedState(
        step=jnp.zeros((), jnp.int32),
        episode=episode,
        opt_state=start(tx, extra, episode.params),
        horizon=horizons.draw(key, begun),
        begun=None if begun is None else optax.safe_increment(begun),
        initial=jax.vmap(_initial, in_axes=(None, 0))(task, episode) if keep_initial else None,
    )


def _initial(task: Task, episode: Episode) -> Scalar:
    problem, params, loss_key = episode
    return task.objective(params, problem, jax.random.fold_in(loss_key, 0))


def init_ended(
    fresh: Partial,
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    extra: Any,
    key: Key,
    phi: Phi,
    *,
    horizons: Horizons,
) -> TruncatedState:
    """A state of episodes that have ended: the key of the first `estimate` decides what is seen."""
    none = None if horizons.curriculum is None else jnp.zeros((), jnp.int32)
    state = fresh(*bind(opt, task, phi), extra, key, none)
    return state._replace(step=jnp.full((), horizons.lengths[-1], jnp.int32), begun=none)


def going_on(
    state: TruncatedState, fresh: Callable[[], TruncatedState], horizons: Horizons
) -> TruncatedState:
    """The state itself, or a fresh one where its episodes have ended."""
    return jax.lax.cond(state.step >= horizon_of(state, horizons), fresh, lambda: state)


def horizon_of(state: TruncatedState, horizons: Horizons) -> int | Int[Array, ""]:
    """The inner steps of the present episodes."""
    return horizons.lengths[-1] if state.horizon is None else state.horizon


def device_mean(axis: str | None, tree: Any) -> Any:
    """The mean of a tree over the devices of an axis.

    Args:
        axis: the name of the axis that problems, or perturbations, are split over, as
            `EstimatorFactory` gets it; None: there is one device.
        tree: arrays of this device.

    Returns:
        The same on every device.

    >>> device_mean(None, {"loss": 2.0})
    {'loss': 2.0}
    """
    if axis is None:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    # In one array of each type: on a CPU devices wait for each other twice for each array.
    for kind in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == kind]
        ends = np.cumsum([leaves[i].size for i in places])
        mean = jax.lax.pmean(jnp.concatenate([leaves[i].ravel() for i in places]), axis)
        for i, part in zip(places, jnp.split(mean, ends[:-1]), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def measurements(present: TruncatedState, losses: Float[Array, " truncation"]) -> dict[str, Array]:
    """The `aux` that `truncated` documents."""
    aux = {"losses": losses, "step": present.step}
    if present.horizon is not None:
        aux["horizon"] = present.horizon
    return aux


def _backwards(meta_loss: MetaLoss, phi: Phi, key: Key) -> tuple[tuple[Scalar, Any], Phi]:
    del key
    return jax.value_and_grad(meta_loss, has_aux=True)(phi)


def _estimate(
    fresh: Partial,
    run: Partial,
    gradient: Partial,
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    extra: Any,
    phi: Phi,
    state: TruncatedState,
    key: Key,
    *,
    horizons: Horizons,
    truncation: int,
    axis: str | None,
) -> tuple[Estimate, TruncatedState]:
    def meta_loss(phi: Phi) -> tuple[Scalar, tuple[Array, TruncatedState, Params, Any]]:
        tx, bound = bind(opt, task, phi)
        # Inside the gradient: an optimizer may learn the state that it starts from, a task θ₀.
        present = going_on(state, lambda: fresh(tx, bound, extra, key, state.begun), horizons)
        loss, (losses, params, opt_state) = run(tx, bound, extra, present)
        return loss, (losses, present, params, opt_state)

    (loss, (losses, present, params, opt_state)), grad = gradient(meta_loss, phi, key)
    loss, grad, losses = device_mean(axis, (loss, grad, losses[1:].mean(axis=1)))
    return Estimate(loss, grad, measurements(present, losses)), after(
        present, truncation, params, opt_state
    )


def after(
    present: TruncatedState, truncation: int, params: Params, opt_state: Any
) -> TruncatedState:
    """The state that a segment leaves."""
    return present._replace(
        step=present.step + truncation,
        episode=present.episode._replace(params=params),
        opt_state=opt_state,
    )
