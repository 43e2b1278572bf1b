"""Truncated backpropagation through the inner loop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Estimator, LearnedOptimizer, Params, Phi, Scalar, Task, as_partial, closure
from l2ljax.meta._horizons import Horizons, horizons
from l2ljax.meta._segments import EstimatorFactory, TruncatedState, segmented
from l2ljax.meta._unroll import advance, init_batch, update_rule

StepWeights = ArrayLike | Sequence[float] | Callable[[int], ArrayLike]
"""w₁ … w_T, or a function of the horizon T that returns them."""

_META_LOSSES: dict[str, Callable[..., Array]] = {
    "mean": lambda losses, initial: losses,
    "log": lambda losses, initial: jnp.log(losses),
    "log_improvement": lambda losses, initial: jnp.log(losses) - jnp.log(initial),
}


def truncated(
    *,
    horizon: int | Sequence[int] = 100,
    truncation: int = 20,
    curriculum: int | None = None,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
    second_derivatives: bool = False,
) -> EstimatorFactory:
    r"""Backpropagation through time, `truncation` inner steps a meta-update.

    $$L(\phi) = \frac1B \sum_{b=1}^B \sum_{t=s+1}^{s+K} w_t\, \ell(f_b(\theta_t))$$

    for the segment from step s, with θ_s and the optimizer's state constants to the gradient, and
    $\ell(f) = f$ unless `meta_loss` says otherwise. Episodes of `horizon` steps are cut into
    `horizon / truncation` segments; each call of `estimate` handles one, for a batch of problems in
    step with each other.

    An optimizer that was trained on one horizon often fails beyond it. With several, every batch of
    episodes draws one, uniformly, from `fold_in(key, 2**31)` with the key that begins it: the
    problems are those of a single horizon. With a curriculum the shortest alone is there at first,
    and every `curriculum` batches of episodes the next longer one joins.

    Args:
        horizon: inner steps of an episode, T; or several numbers of them, of which one listed twice
            is drawn twice as often.
        truncation: inner steps of a segment, K; it must divide every horizon. `truncation=horizon`
            is the whole episode.
        curriculum: batches of episodes after which the next longer horizon becomes available; None:
            all of them are from the beginning.
        step_weights: w₁ … w_T, finite; default: ones. With several horizons a function of T, which
            is called here, once for each: `meta.polynomial_weights`, or
            `lambda horizon: meta.final_weights(horizon, window=5)`.
        meta_loss: $\ell$: "mean", f itself; "log", log f, which counts the problems of a batch and
            the steps of an episode alike whatever their scale; "log_improvement",
            log f(θ_t) - log f(θ₀), whose gradient is that of "log" and whose value is comparable
            between problems. Logarithms need positive losses: a loss of zero or less makes the
            meta-loss infinite or NaN, and `meta.train` skips the step and marks it.
        second_derivatives: whether ∂∇/∂φ is kept. Default off, as in the paper (section 2.1).

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`. Its `aux` holds `losses`, f32[truncation]:
        the objective after each step of the segment, mean over the batch; `step`, i32[]: the inner
        step at which the segment began; and, with several horizons, `horizon`, i32[]: the present
        one.

    Raises:
        ValueError: for sizes below 1, a truncation that does not divide a horizon, a curriculum of
            one horizon, weights of another length, an array of weights for several horizons, or an
            unknown meta-loss.

    Reference:
        Andrychowicz et al. (2016), 'Learning to learn by gradient descent by gradient descent',
        section 2 and equation 3. Longer horizons one after the other: Chen et al. (2020), 'Training
        stronger baselines for learning to optimize'. Logarithms: Wichrowska et al. (2017), 'Learned
        optimizers that scale and generalize'.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.lstm()
    >>> est = truncated(horizon=10, truncation=5)(opt, l2l.tasks.quadratic(), batch=2)
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, state = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> estimate.aux["losses"].shape, int(state.step)
    ((5,), 5)
    """
    lengths = horizons(horizon, truncation, curriculum)
    weights = _weights(step_weights, lengths)
    _checks.choice("meta_loss", meta_loss, _META_LOSSES)
    run = closure(
        _run,
        horizons=lengths,
        truncation=truncation,
        meta_loss=meta_loss,
        second_derivatives=second_derivatives,
    )

    def factory(opt: LearnedOptimizer, task: Task, batch: int = 1) -> Estimator:
        return segmented(
            as_partial(_start),
            run,
            opt,
            task,
            weights,
            horizons=lengths,
            truncation=truncation,
            batch=batch,
            keep_initial=meta_loss == "log_improvement",
        )

    return factory


def _weights(step_weights: StepWeights | None, lengths: Horizons) -> Float[Array, "... horizon"]:
    """The weights of the only horizon, or a row for each, filled up with zeros."""
    if step_weights is None:
        step_weights = jnp.ones
    if lengths.vary and not callable(step_weights):
        raise ValueError(
            "step_weights must be a function of the horizon where there are several, such as "
            f"meta.polynomial_weights, got shape {jnp.asarray(step_weights).shape}"
        )
    rows = []
    for length in lengths.lengths:
        row = jnp.asarray(step_weights(length) if callable(step_weights) else step_weights)
        if row.shape != (length,):
            raise ValueError(
                f"step_weights must have shape ({length},), one weight for each step of the "
                f"horizon, got shape {row.shape}"
            )
        _checks.finite("step_weights", row)
        rows.append(row)
    if not lengths.vary:
        return rows[0]
    return jnp.stack([jnp.pad(row, (0, lengths.lengths[-1] - row.size)) for row in rows])


def _start(opt: LearnedOptimizer, extra: Array, phi: Phi, params: Params) -> Any:
    del extra
    return init_batch(opt.bind(phi), params)


def _run(
    opt: LearnedOptimizer,
    task: Task,
    weights: Float[Array, "... horizon"],
    phi: Phi,
    state: TruncatedState,
    *,
    horizons: Horizons,
    truncation: int,
    meta_loss: str,
    second_derivatives: bool,
) -> tuple[Scalar, tuple[Array, Params, Any]]:
    losses, params, opt_state = advance(
        update_rule(opt.bind(phi), task, batched=True),
        task,
        state.episode,
        state.opt_state,
        state.step,
        steps=truncation,
        second_derivatives=second_derivatives,
        batched=True,
    )
    if state.horizon is not None:
        weights = weights[jnp.searchsorted(jnp.asarray(horizons.lengths), state.horizon)]
    weights = jax.lax.dynamic_slice_in_dim(weights, state.step, truncation)
    measured = _META_LOSSES[meta_loss](losses[1:], state.initial).mean(axis=1)
    return weights.astype(measured.dtype) @ measured, (losses, params, opt_state)
