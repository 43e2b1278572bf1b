"""The meta-gradient of optimizers that see values alone."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from l2ljax import _checks
from l2ljax.core import Problem, Scalar, Task, closure
from l2ljax.gaussian_process import expected_improvement
from l2ljax.hyper._ask_tell import evaluate_in_turn
from l2ljax.hyper._whole_episodes import whole_episodes
from l2ljax.meta import Episode, EstimatorFactory

# Of the diagonal: points that lie close together stay a positive definite matrix.
_NOISE = 1e-3
# Added to regrets: nearer to the minimum is not better.
_LEAST_REGRET = 1e-4


def _sum(xs: Array, ys: Array, problem: Problem) -> Scalar:
    del xs, problem
    return ys.sum()


def _observed_improvement(xs: Array, ys: Array, problem: Problem) -> Scalar:
    del xs, problem
    before = jax.lax.stop_gradient(jax.lax.cummin(ys)[:-1])
    return jnp.minimum(ys[1:] - before, 0).sum()


def _log_regret(xs: Array, ys: Array, problem: Problem) -> Scalar:
    del xs
    # Where the minimum was searched for, it may have been missed.
    regret = jnp.maximum(jax.lax.cummin(ys) - _known(problem, "minimum"), 0)
    return jnp.log(regret + _LEAST_REGRET).mean()


def _expected_improvement(xs: Array, ys: Array, problem: Problem) -> Scalar:
    points = xs / _known(problem, "length_scale")[None]
    squares = jnp.sum((points[:, None] - points[None]) ** 2, axis=-1)
    covariance = jnp.exp(-squares / 2) + _NOISE * jnp.eye(ys.size, dtype=ys.dtype)
    # One root has all posteriors: row t of it is the regression of y_t on those before it.
    root = jnp.linalg.cholesky(covariance)
    std = jnp.diagonal(root)
    surprise = jax.scipy.linalg.solve_triangular(root, ys, lower=True)
    mean = ys - std * surprise
    best = jax.lax.cummin(ys)[:-1]
    improve = jax.vmap(expected_improvement)
    return -improve(mean[1:, None], std[1:, None], best).sum()


def _known(problem: Problem, name: str) -> Array:
    if not isinstance(problem, dict) or name not in problem:
        raise ValueError(
            f"task must have problems with a {name!r} for this loss, as those of "
            f"tasks.gp_samples(minimum=True), got {jax.tree.map(jnp.shape, problem)}"
        )
    return problem[name]


LOSSES = {
    "sum": _sum,
    "observed_improvement": _observed_improvement,
    "log_regret": _log_regret,
    "expected_improvement": _expected_improvement,
}
"""Losses of the points and values of one episode."""


def black_box(horizon: int = 20, loss: str = "observed_improvement") -> EstimatorFactory:
    r"""The exact meta-gradient of an optimizer that sees values alone.

    Of an episode, in which $y_t = f(x_t)$ and $y^*_t = \min_{i \le t} y_i$ for t = 1 … T, the loss
    is

    | `loss` | |
    |---|---|
    | "sum" | $\sum_t y_t$ |
    | "observed_improvement" | $\sum_{t > 1} \min(y_t - y^*_{t-1}, 0)$, $y^*$ held constant |
    | "expected_improvement" | $-\sum_{t > 1} E[\max(y^*_{t-1} - f(x_t), 0) \mid y_1 … y_{t-1}]$ |
    | "log_regret" | $\frac1T \sum_t \log(\max(y^*_t - \min f, 0) + 10^{-4})$ |

    averaged over functions. The expectation is that of a Gaussian process with the RBF kernel and
    the length scales of the problem, so that loss takes problems of `tasks.gp_samples`; the regret
    those of `tasks.gp_samples(minimum=True)`. Improvements are largest where another, deeper valley
    is found. The logarithm counts alike what brings one function from 1 to 0.1 and another from 0.1
    to 0.01, so it also teaches to come near to a minimum.
    Gradients pass through f, in training only: the optimizer never sees one.

    Args:
        horizon: evaluations of an episode, T. The first point is that of the task's `init`.
        loss: what makes an episode a good one. Steps that found nothing better have no part in the
            observed improvement, and one in the expected one.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator`; `aux` has `losses`, the mean of $y_t$, and
        `lowest`, that of $y^*_t$, each f[T].

    Raises:
        ValueError: for a horizon below 2 or an unknown loss; from the factory, for a batch below 1;
            from `estimate`, for problems without what the loss has to know.

    Reference:
        Chen et al. (2017), 'Learning to learn without gradient descent by gradient descent'.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.black_box_lstm(dim=1, hidden=4)
    >>> task = l2l.tasks.gp_samples(dim=1)
    >>> est = black_box(horizon=5)(opt, task, batch=8)
    >>> phi = opt.init(jax.random.key(0))
    >>> estimate, _ = est.estimate(phi, est.init(jax.random.key(1), phi), jax.random.key(2))
    >>> bool(estimate.loss < 0), estimate.aux["lowest"].shape
    (True, (5,))
    """
    _checks.count("horizon", horizon, least=2)
    _checks.choice("loss", loss, LOSSES)

    return whole_episodes(closure(_measure, horizon=int(horizon), loss=loss))


def _measure(
    tx: optax.GradientTransformationExtraArgs,
    task: Task,
    episode: Episode,
    *,
    horizon: int,
    loss: str,
) -> tuple[Scalar, dict[str, Array]]:
    def value(x: Array, t: Array) -> Scalar:
        return task.loss(x, episode.problem, jax.random.fold_in(episode.loss_key, t))

    xs, ys = evaluate_in_turn(tx, value, episode.params, horizon=horizon)
    aux = {"losses": ys, "lowest": jax.lax.cummin(ys)}
    return LOSSES[loss](xs, ys, episode.problem), aux
