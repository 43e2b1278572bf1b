"""The exact meta-gradient of whole episodes, forwards: memory that does not grow with T."""

from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.core import Key, Phi, Scalar, as_partial
from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import StepWeights, estimator_of
from l2ljax.meta._segments import EstimatorFactory, MetaLoss


def forward(
    *,
    horizon: int = 100,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
    second_derivatives: bool = True,
) -> EstimatorFactory:
    r"""Forward-mode differentiation: a tangent of the whole run for every meta-parameter.

    $$\frac{\partial\theta_{t+1}}{\partial\phi_i} = \frac{\partial\theta_t}{\partial\phi_i}
      + \frac{d u(\nabla_t, s_t; \phi)}{d\phi_i}$$

    for all i together. The gradient is that of `meta.full`. Memory does not depend on the horizon,
    but time and memory grow with the number of meta-parameters: it is for a few of them, such as
    a learning rate and two decays, over any number of steps.

    Args:
        horizon: inner steps of an episode, T.
        step_weights: w₁ … w_T, finite, or a function of T; default: ones.
        meta_loss: "mean", "log" or "log_improvement", see `meta.truncated`.
        second_derivatives: whether ∂∇/∂φ is kept; default on, exact.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`.

    Raises:
        ValueError: for a horizon below 1, weights of another length, or an unknown meta-loss.

    Reference:
        Franceschi et al. (2017), 'Forward and reverse gradient-based hyperparameter optimization',
        section 3.2.

    >>> import optax
    >>> import l2ljax as l2l
    >>> opt = l2l.LearnedOptimizer(init=lambda key: jax.numpy.float32(0.02), bind=optax.sgd)
    >>> task, phi, key = l2l.tasks.quadratic(), opt.init(None), jax.random.key(0)
    >>> for factory in (forward(horizon=10), l2l.meta.full(horizon=10)):
    ...     est = factory(opt, task)
    ...     print(f"{est.estimate(phi, est.init(key, phi), key)[0].grad:.1f}")
    -1550.5
    -1550.5
    """
    _checks.count("horizon", horizon)
    return estimator_of(
        horizons(horizon, horizon, None),
        horizon,
        step_weights=step_weights,
        meta_loss=meta_loss,
        second_derivatives=second_derivatives,
        gradient=as_partial(_forwards),
    )


def _forwards(meta_loss: MetaLoss, phi: Phi, key: Key) -> tuple[tuple[Scalar, Any], Phi]:
    del key
    flat, tree = ravel_pytree(phi)

    def of_flat(flat: Array) -> tuple[Scalar, tuple[Scalar, Any]]:
        loss, rest = meta_loss(tree(flat))
        return loss, (loss, rest)

    slopes, value = jax.jacfwd(of_flat, has_aux=True)(flat)
    return value, tree(slopes)
