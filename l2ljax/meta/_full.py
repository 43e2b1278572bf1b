"""The exact meta-gradient of whole episodes, backwards, in memory that grows with √T."""

from l2ljax import _checks
from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import StepWeights, estimator_of
from l2ljax.meta._segments import EstimatorFactory


def full(
    *,
    horizon: int = 100,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
    second_derivatives: bool = True,
) -> EstimatorFactory:
    r"""Backpropagation through whole episodes.

    $$L(\phi) = \frac1B \sum_{b=1}^B \sum_{t=1}^T w_t\, \ell(f_b(\theta_t))$$

    with nothing held constant. It keeps the params and the optimizer's state at every
    $\lceil\sqrt T\rceil$-th step, and computes those between them again when the backward pass gets
    there: the state is held about $2\sqrt T$ times instead of T times, for one more forward pass.

    Args:
        horizon: inner steps of an episode, T.
        step_weights: w₁ … w_T, finite, or a function of T; default: ones.
        meta_loss: $\ell$: "mean", "log" or "log_improvement", see `meta.truncated`.
        second_derivatives: whether ∂∇/∂φ is kept. Default on: the gradient is exact. Off, it is
            that of `meta.truncated(horizon=T, truncation=T)`, in less memory.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`.

    Raises:
        ValueError: for a horizon below 1, weights of another length, or an unknown meta-loss.

    Reference:
        Griewank (1992), 'Achieving logarithmic growth of temporal and spatial complexity in reverse
        automatic differentiation'; √T: Chen et al. (2016), 'Training deep nets with sublinear
        memory cost', section 4.

    >>> import jax, optax
    >>> import l2ljax as l2l
    >>> opt = l2l.LearnedOptimizer(init=lambda key: jax.numpy.float32(0.02), bind=optax.sgd)
    >>> est = full(horizon=10)(opt, l2l.tasks.quadratic(), batch=8)
    >>> phi, key = opt.init(None), jax.random.key(0)
    >>> estimate, _ = est.estimate(phi, est.init(key, phi), key)
    >>> bool(estimate.grad < 0)  # a larger rate would do better
    True
    """
    _checks.count("horizon", horizon)
    return estimator_of(
        horizons(horizon, horizon, None),
        horizon,
        step_weights=step_weights,
        meta_loss=meta_loss,
        second_derivatives=second_derivatives,
        nested=True,
    )
