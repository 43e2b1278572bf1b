"""Snapshot ensembles: the params at each cycle's end vote together (Huang et al., 2017)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from l2ljax import _checks
from l2ljax.classic._common import Updates, require_params
from l2ljax.classic._schedules import cycle_length
from l2ljax.core import Params, Transformation, as_pytree


class SnapshotState(NamedTuple):
    """The state of `with_snapshots`.

    Attributes:
        count: updates made so far, int32[].
        snapshots: the params at the end of each cycle, a tree like the params, each leaf
            `[cycles, ...]` in the dtype of its param; zeros for a cycle that has not ended.
        inner: the state of the optimizer.
    """

    count: Int[Array, ""]  # type: ignore[assignment]
    snapshots: PyTree
    inner: Any


def with_snapshots(
    tx: Transformation, steps: int, cycles: int
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the params at the end of each of M cycles, after updates number

    $$\min(j \lceil T/M \rceil, T), \qquad j = 1 \dots M,$$

    which are the cycles of `snapshot_cosine`. It has to see the update that is applied, so it
    wraps the whole optimizer: `with_snapshots(optax.chain(...), ...)`, nothing after it.

    Args:
        tx: the whole optimizer, any optax transformation; extra arguments are passed on to it.
        steps: T, the number of updates in all. Updates beyond it are made and not kept.
        cycles: M, the number of cycles.

    Returns:
        A transformation that makes the updates of `tx`, needs params, and whose state is a
        `SnapshotState`; `optax.tree.get(state, "snapshots")` finds them inside other states.

    Raises:
        ValueError: `steps` or `cycles` are not whole numbers of at least 1; cycles rounded up to
            whole updates leave none for the last one; update is called without params.

    Reference:
        Huang et al., *Snapshot ensembles: train 1, get M for free*, 2017, section 3.

    Two cycles of two updates, each update a step of one:

    >>> tx, w = with_snapshots(optax.sgd(1.0), steps=4, cycles=2), jnp.array(10.0)
    >>> state = tx.init(w)
    >>> for _ in range(4):
    ...     updates, state = tx.update(jnp.ones(()), state, w)
    ...     w = optax.apply_updates(w, updates)
    ...     print(state.snapshots)
    [0. 0.]
    [8. 0.]
    [8. 0.]
    [8. 6.]
    """
    length = cycle_length(steps, cycles)
    if (cycles - 1) * length >= steps:
        raise ValueError(
            f"cycles must leave an update for the last one, got {cycles}: steps={steps} are over "
            f"after {-(-steps // length)} cycles of {length} updates"
        )
    inner = optax.with_extra_args_support(as_pytree(tx))

    def init(params: Params) -> SnapshotState:
        empty = jax.tree.map(lambda w: jnp.stack([jnp.zeros_like(w)] * cycles), params)
        return SnapshotState(jnp.zeros((), jnp.int32), empty, inner.init(params))

    def update(
        updates: Updates, state: SnapshotState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, SnapshotState]:
        _checks.state(state, SnapshotState)
        params = require_params("with_snapshots", params)
        kept = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), state.snapshots)
        updates, params = _checks.gradients(updates, params, kept)
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        count = optax.safe_increment(state.count)
        ends = ((count % length == 0) & (count < steps)) | (count == steps)
        # A row that does not exist is not written.
        row = jnp.where(ends, (count - 1) // length, cycles)
        snapshots = jax.tree.map(
            lambda kept, w: kept.at[row].set(w, mode="drop"),
            state.snapshots,
            optax.apply_updates(params, updates),
        )
        return updates, SnapshotState(count, snapshots, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def average_predictions(
    predict: Callable[[Params, Any], PyTree],
    snapshots: Params,
    inputs: Any,
    last: int | None = None,
) -> PyTree:
    r"""The mean prediction of the last m snapshots.

    $$\bar p(x) = \frac{1}{m} \sum_{j=M-m+1}^{M} p(x; w_j)$$

    Args:
        predict: `predict(params, inputs)`, an array or a tree of arrays. Probabilities, and not
            logits, are what the paper averages.
        snapshots: params with a leading axis of M snapshots, from a `SnapshotState` whose cycles
            have all ended.
        inputs: what `predict` takes; all snapshots see the same.
        last: m, from 1 to M. Default: all M.

    Returns:
        What `predict` returns, averaged over snapshots.

    Raises:
        ValueError: `snapshots` has no leaves or leaves that differ in their numbers of snapshots;
            `last` is not a whole number from 1 to M.

    Reference:
        Huang et al., *Snapshot ensembles: train 1, get M for free*, 2017, section 3.

    >>> scales = jnp.array([1.0, 3.0, 5.0])
    >>> print(average_predictions(lambda w, x: w * x, scales, 10.0))
    30.0
    >>> print(average_predictions(lambda w, x: w * x, scales, 10.0, last=2))
    40.0
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(snapshots)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"snapshots must have leaves with one leading axis of snapshots, got {sorted(sizes)}"
        )
    ((total,),) = sizes
    last = total if last is None else last
    _checks.count("last", last)
    if last > total:
        raise ValueError(f"last must be at most the number of snapshots, {total}, got {last}")
    members = jax.tree.map(lambda leaf: leaf[total - last :], snapshots)
    predictions = jax.vmap(predict, in_axes=(0, None))(members, inputs)
    return jax.tree.map(lambda prediction: jnp.mean(prediction, axis=0), predictions)
