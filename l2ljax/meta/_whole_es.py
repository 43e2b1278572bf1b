"""Evolution strategies over whole episodes of any length, in one compiled loop."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Task,
    closure,
)
from l2ljax.meta import _perturbations
from l2ljax.meta._binding import bind
from l2ljax.meta._episodes import begin_episodes
from l2ljax.meta._horizons import Horizons
from l2ljax.meta._meta_loss import META_LOSSES
from l2ljax.meta._segments import device_mean
from l2ljax.meta._unroll import init_batch, inner_step, update_rule


def whole_es(
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    batch: int = 1,
    axis: str | None = None,
    *,
    lengths: Horizons,
    weights: Float[Array, "... horizon"],
    meta_loss: str,
    std: float,
    pairs: int,
    shaping: str | None,
    by_pairs: bool,
) -> Estimator:
    """An estimator whose every call runs whole episodes; arguments as in `es`.

    Its loop ends with the horizon that was drawn, since nothing is differentiated: one program
    serves episodes of all lengths.
    """
    _checks.count("batch", batch)
    return Estimator(
        init=closure(_nothing),
        estimate=closure(
            _estimate,
            opt,
            task,
            weights,
            lengths=lengths,
            batch=batch,
            axis=axis,
            axis_of_pairs=axis if by_pairs else None,
            meta_loss=meta_loss,
            std=std,
            pairs=pairs,
            shaping=shaping,
        ),
    )


def _nothing(key: Key, phi: Phi) -> tuple[()]:
    del key, phi
    return ()


def _estimate(
    opt: LearnedOptimizer,
    task: Task | LearnedTask,
    weights: Float[Array, "... horizon"],
    phi: Phi,
    state: tuple[()],
    key: Key,
    *,
    lengths: Horizons,
    batch: int,
    axis: str | None,
    axis_of_pairs: str | None,
    meta_loss: str,
    std: float,
    pairs: int,
    shaping: str | None,
) -> tuple[Estimate, tuple[()]]:
    drawn = lengths.draw(key, None)
    horizon = jnp.asarray(lengths.lengths[-1] if drawn is None else drawn, jnp.int32)
    table = weights.reshape(len(lengths.lengths), -1)
    row = table[jnp.searchsorted(jnp.asarray(lengths.lengths), horizon)]
    problems_axis = None if axis_of_pairs is not None else axis

    def run(phi: Phi) -> tuple[Array, Array]:
        tx, bound = bind(opt, task, phi)
        problem, params, loss_key = begin_episodes(bound, key, batch, problems_axis)
        step, measure = inner_step(
            update_rule(tx, bound, batched=True, num_steps=horizon),
            bound,
            problem,
            loss_key,
            second_derivatives=False,
            batched=True,
        )
        initial = measure(params, jnp.zeros((), jnp.int32))

        def weighted(t: Array, losses: Float[Array, " batch"]) -> tuple[Array, Array]:
            """What the losses after update t add to the meta-loss, and to the mean loss."""
            weight = jnp.where(t > 0, row[jnp.maximum(t - 1, 0)], 0)
            # Losses without weight may be anything, also what has no logarithm.
            measured = META_LOSSES[meta_loss](jnp.where(weight == 0, 1, losses), initial)
            return weight * measured.mean(), jnp.where(weight == 0, 0, weight * losses.mean())

        def body(t: Array, carry: tuple) -> tuple:
            moved, total, mean = carry
            moved, losses = step(moved, t)
            added, plain = weighted(t, losses)
            return moved, total + added, mean + plain

        zero = jnp.zeros((), initial.dtype)
        start = ((params, init_batch(tx, params)), zero, zero)
        (params, _), total, mean = jax.lax.fori_loop(0, horizon, body, start)
        added, plain = weighted(horizon, measure(params, horizon))
        return total + added, (mean + plain) / row.sum()

    noise = _perturbations.draw(key, phi, pairs, axis_of_pairs)
    found, means = jax.vmap(run)(_perturbations.both_ways(phi, noise, std))
    shaped = found if shaping is None else centered_ranks(device_mean(problems_axis, found))
    loss, mean = found.mean(), means.mean()
    loss, mean, grad = device_mean(axis, (loss, mean, _perturbations.slope(shaped, noise, std)))
    return Estimate(loss, grad, {"final": mean, "horizon": horizon}), state


def centered_ranks(losses: Float[Array, " runs"]) -> Float[Array, " runs"]:
    """Ranks of losses from -1/2 for the lowest to 1/2; what is not finite shares the highest."""
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    below = jnp.sum(losses[None] < losses[:, None], axis=1)
    equal = jnp.sum(losses[None] == losses[:, None], axis=1)
    ranks = below + (equal - 1) / 2
    return (ranks / max(1, losses.size - 1) - 0.5).astype(losses.dtype)
