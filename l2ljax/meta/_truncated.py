"""Truncated backpropagation through the inner loop."""

from collections.abc import Sequence

from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import StepWeights, estimator_of
from l2ljax.meta._segments import EstimatorFactory


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
        second_derivatives: whether ∂∇/∂φ is kept. Default off, as in the paper (section 2.1):
            a second derivative of the loss is not computed, but the meta-gradient does not see
            that a step changes the gradients after it, and may ask for steps that are too long. A
            `LearnedTask` needs it.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`. Its `aux` holds `losses`, f32[truncation]:
        the objective after each step of the segment, mean over the batch; `step`, i32[]: the inner
        step at which the segment began; and, with several horizons, `horizon`, i32[]: the present
        one.

    Raises:
        ValueError: for sizes below 1, a truncation that does not divide a horizon, a curriculum of
            one horizon, weights of another length, an array of weights for several horizons, or an
            unknown meta-loss; from the factory, for a `LearnedTask` without second derivatives.

    Reference:
        Andrychowicz et al. (2016), 'Learning to learn by gradient descent by gradient descent',
        section 2 and equation 3. Longer horizons one after the other: Chen et al. (2020), 'Training
        stronger baselines for learning to optimize'. Logarithms: Wichrowska et al. (2017), 'Learned
        optimizers that scale and generalize'.

    >>> import jax
    >>> import l2ljax as l2l
    >>> opt = l2l.learned.lstm()
    >>> est = truncated(horizon=10, truncation=5)(opt, l2l.tasks.quadratic(), batch=2)
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, state = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> estimate.aux["losses"].shape, int(state.step)
    ((5,), 5)
    """
    return estimator_of(
        horizons(horizon, truncation, curriculum),
        truncation,
        step_weights=step_weights,
        meta_loss=meta_loss,
        second_derivatives=second_derivatives,
    )
