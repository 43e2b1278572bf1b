"""Imitation: a learned optimizer follows a teacher through the teacher's own episodes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from l2ljax.core import (
    Estimator,
    LearnedOptimizer,
    LearnedTask,
    Params,
    Scalar,
    Task,
    Transformation,
    as_partial,
    as_pytree,
    closure,
)
from l2ljax.meta._horizons import horizons
from l2ljax.meta._segments import EstimatorFactory, TruncatedState, segmented
from l2ljax.meta._unroll import advance, init_batch, update_rule


class _Carry(NamedTuple):
    """The states of both, and the distance between their updates so far, one sum a problem."""

    teacher: Any
    student: Any
    distance: Float[Array, " batch"]


def imitation(
    teacher: Transformation,
    *,
    horizon: int | Sequence[int] = 100,
    truncation: int = 20,
    curriculum: int | None = None,
) -> EstimatorFactory:
    r"""The distance of a student's updates to those of a teacher, which drives the episode.

    $$L(\phi) = \frac1{BK} \sum_{b=1}^B \sum_{t=s}^{s+K-1}
      \frac{\lVert u_{bt}(\phi) - v_{bt} \rVert^2}{\lVert v_{bt} \rVert^2}$$

    where v is the teacher's update of all params of problem b at step t, and u is what the student,
    the learned optimizer, proposes for the same gradient at the same params. Only v is applied.
    The student keeps its own state, and the meta-gradient is backpropagation through it within the
    segment of K steps. There is no derivative through the params, which do not depend on φ.

    Dividing by ‖v‖² at each step and problem makes L a squared relative error: the zero update has
    L = 1 whatever the rate and the task, and the end of a run, where updates are small, counts as
    its beginning does. A step at which the teacher does not move (v = 0, or so small that its
    square is) counts as zero. Where a teacher converges, the relative error of an untrained student
    may be very large: clip the meta-gradient, or end the episode earlier.

    Alone, imitation is no better than the teacher; `meta.weighted` adds it to another meta-loss,
    with a weight that may fade.

    Args:
        teacher: any optax transformation, its rate tuned before, such as `classic.adam(0.03)`; also
            a bound learned one.
        horizon: inner steps of an episode; or several numbers of them, see `meta.truncated`.
        truncation: inner steps of a segment, K; it must divide every horizon.
        curriculum: as in `meta.truncated`.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`; `losses`
        are those along the teacher's run.

    Raises:
        ValueError: for sizes below 1, a truncation that does not divide a horizon, or a curriculum
            of one horizon.
        TypeError: from the factory, for a `LearnedTask`, whose metaparameters it says nothing of.

    Reference:
        Chen et al. (2020), 'Training stronger baselines for learning to optimize' (off-policy
        imitation of analytical optimizers); the relative distance is this library's.

    A student of the same kind, with another rate:

    >>> import l2ljax as l2l
    >>> opt = l2l.LearnedOptimizer(init=lambda key: jnp.float32(0.2), bind=optax.sgd)
    >>> factory = imitation(optax.sgd(0.1), horizon=10, truncation=5)
    >>> est = factory(opt, l2l.tasks.quadratic(), batch=2)
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, _ = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> print(f"{estimate.loss:.4f} {estimate.grad:.3f}")  # (0.2 - 0.1)² / 0.1², and its slope
    1.0000 20.000
    """
    lengths = horizons(horizon, truncation, curriculum)
    teacher = as_pytree(teacher, "teacher")

    def factory(
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        if isinstance(task, LearnedTask):
            raise TypeError(
                "meta.imitation needs a Task, got a LearnedTask: the distance to a teacher says "
                "nothing of a task's metaparameters"
            )
        return segmented(
            as_partial(_start),
            closure(_run, truncation=truncation),
            opt,
            task,
            teacher,
            horizons=lengths,
            truncation=truncation,
            batch=batch,
            axis=axis,
        )

    return factory


def _start(
    tx: optax.GradientTransformation, teacher: Transformation, params: Params
) -> tuple[Any, Any]:
    return init_batch(teacher, params), init_batch(tx, params)


def _run(
    tx: optax.GradientTransformation,
    task: Task,
    teacher: Transformation,
    state: TruncatedState,
    *,
    truncation: int,
) -> tuple[Scalar, tuple[Array, Params, Any]]:
    lead = update_rule(teacher, task, batched=True)
    follow = update_rule(tx, task, batched=True)

    def update(
        gradient: Params, carry: _Carry, params: Params, *rest: Any
    ) -> tuple[Params, _Carry]:
        applied, teacher_state = lead(gradient, carry.teacher, params, *rest)
        proposed, student_state = follow(gradient, carry.student, params, *rest)
        distance = jax.vmap(_relative_distance)(proposed, applied).astype(carry.distance.dtype)
        return applied, _Carry(teacher_state, student_state, carry.distance + distance)

    teacher_state, student_state = state.opt_state
    batch = state.episode.loss_key.shape[0]
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(state.episode.params))
    losses, params, carry = advance(
        update,
        task,
        state.episode,
        _Carry(teacher_state, student_state, jnp.zeros(batch, dtype)),
        state.step,
        steps=truncation,
        second_derivatives=False,
        batched=True,
    )
    loss = carry.distance.mean() / truncation
    return loss, (losses, params, (carry.teacher, carry.student))


def _relative_distance(student: Params, teacher: Params) -> Scalar:
    """‖student - teacher‖² / ‖teacher‖² of all leaves; zero where the teacher's square is."""
    scale = _square(teacher)
    moved = scale > 0
    distance = _square(jax.tree.map(jnp.subtract, student, teacher))
    return jnp.where(moved, distance / jnp.where(moved, scale, 1), 0)


def _square(tree: Params) -> Scalar:
    """The squared norm, summed in float32 at least."""
    leaves = jax.tree.leaves(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    return sum((jnp.sum(leaf.astype(dtype) ** 2) for leaf in leaves), jnp.zeros((), dtype))
