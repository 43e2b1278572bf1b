"""Hypergradient descent: metaparameters learned online, from one step to the next."""

from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import estimator_of
from l2ljax.meta._segments import EstimatorFactory


def hypergradient_descent(*, horizon: int = 100) -> EstimatorFactory:
    r"""The gradient of the next loss with respect to what the last update was made with.

    $$\hat g_t = \frac{\partial f_{t+1}(\theta_t + u(\nabla_t, s_t; \phi))}{\partial\phi}
      = \nabla f_{t+1}(\theta_{t+1}) \cdot \frac{\partial u}{\partial\phi}$$

    with θ_t and the state s_t constants. For gradient descent and its rate α this is
    $-\nabla f_{t+1} \cdot \nabla f_t$, two gradients that are there anyway. Each call of `estimate`
    is one inner step, so a meta-step of `meta.train` costs as much as a step of training: the run
    that is tuned and the run that tunes are one. It is short-sighted, as every truncation is: it is
    `meta.truncated(horizon=horizon, truncation=1)`.

    Args:
        horizon: inner steps after which the next problem begins.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` with the `aux` of `meta.truncated`.

    Raises:
        ValueError: for a horizon below 1.

    Reference:
        Baydin et al. (2018), 'Online learning rate adaptation with hypergradient descent',
        section 3 (algorithms 4 to 6); first in Almeida et al. (1998).

    >>> import jax, optax
    >>> import l2ljax as l2l
    >>> opt = l2l.LearnedOptimizer(init=lambda key: jax.numpy.float32(0.001), bind=optax.sgd)
    >>> result = l2l.meta.train(opt, l2l.tasks.quadratic(), key=jax.random.key(0), steps=100,
    ...                         meta_optimizer=optax.sgd(1e-6), estimator=hypergradient_descent())
    >>> bool(result.last_phi > 0.001)
    True
    """
    return estimator_of(
        horizons(horizon, 1, None),
        1,
        step_weights=None,
        meta_loss="mean",
        # Of one step there are none; of a `LearnedTask`, whose gradient this is too, there are.
        second_derivatives=True,
    )
