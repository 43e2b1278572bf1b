"""Parametric complexity control: regularizers with a weight λ, and pruning by what they leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._shown import one_line
from l2ljax.core import Key, LearnedTask, Params, Problem, Scalar, Task, closure

_KINDS = ("base", "var", "rep")


class WeightPosterior(NamedTuple):
    r"""A normal distribution of weights, $q = N(\mu, \sigma^2)$ for each alone.

    Attributes:
        mean: μ, a tree.
        log_std: log σ, a tree like it.
    """

    mean: Params
    log_std: Params

    def __repr__(self) -> str:
        return one_line(self)


def complexity_control(
    task: Task,
    examples: int,
    kind: str = "var",
    *,
    prior_std: float = 1.0,
    log_std: float = -3.0,
) -> LearnedTask:
    r"""A task whose loss weighs the complexity of the network by λ.

    | kind | params | loss |
    |---|---|---|
    | "base" | w | $f(w) + \frac\lambda N \lVert w \rVert^2$ |
    | "var" | μ, log σ | $f(w) + \frac\lambda N \mathrm{KL}(q \,\Vert\, N(0, \sigma_p^2))$ |
    | "rep" | μ, log σ | $f(w) + \frac1N \mathrm{KL}(q \,\Vert\, N(0, \sigma_p^2 / \lambda))$ |

    with $w \sim q = N(\mu, \sigma^2)$ drawn anew at every step, as $\mu + \sigma\varepsilon$. At
    λ = 1 the last two are one, the evidence lower bound divided by -N.

    Args:
        task: any task, its loss the mean of negative log-likelihoods.
        examples: N, the size of the training set.
        kind: "base", "var" or "rep".
        prior_std: $\sigma_p$.
        log_std: log σ at the beginning; μ begins as the task's params do.

    Returns:
        A learned task; ψ is ln λ, a scalar that begins at 0. The params are a `WeightPosterior` or,
        for "base", those of `task`. The objective is that of `task` at w or μ, without a penalty.

    Raises:
        ValueError: for an unknown kind, no examples, or a standard deviation that is not positive.

    Reference:
        Grebenkova, Bakhteev and Strijov (2021), 'Variational deep learning model optimization with
        complexity control'; "var" at λ = 1: Graves (2011), 'Practical variational inference for
        neural networks'.

    >>> import l2ljax as l2l
    >>> task = l2l.Task(lambda key: (), lambda key, problem: jnp.ones(3),
    ...                 lambda params, problem, key: jnp.zeros(()))
    >>> base = complexity_control(task, examples=10, kind="base")
    >>> print(base.bind(jnp.log(5.0)).loss(jnp.ones(3), (), jax.random.key(0)))
    1.5
    """
    _checks.choice("kind", kind, _KINDS)
    _checks.count("examples", examples)
    _checks.positive("prior_std", prior_std)
    _checks.finite("log_std", log_std)
    settings = {"kind": kind, "examples": examples, "prior_std": float(prior_std)}
    return LearnedTask(
        init=closure(_psi), bind=closure(_bind, task, log_std=float(log_std), **settings)
    )


def _psi(key: Key) -> Scalar:
    del key
    return jnp.zeros(())


def _bind(
    task: Task, log_lam: Scalar, *, log_std: float, kind: str, examples: int, prior_std: float
) -> Task:
    lam = jnp.exp(log_lam)
    if kind == "base":
        return Task(
            sample=task.sample,
            init=task.init,
            loss=closure(_base_loss, task.loss, lam / examples),
            objective=task.objective,
        )
    # Both kinds weigh a KL divergence; which of weight and prior has λ is all they differ in.
    if kind == "var":
        weight, scale = lam / examples, jnp.asarray(prior_std)
    else:
        weight, scale = jnp.asarray(1 / examples), prior_std / jnp.sqrt(lam)
    return Task(
        sample=task.sample,
        init=closure(_posterior_init, task.init, log_std=log_std),
        loss=closure(_posterior_loss, task.loss, weight, scale),
        objective=closure(_posterior_objective, task.objective),
    )


def _base_loss(loss: Partial, weight: Scalar, params: Params, problem: Problem, key: Key) -> Scalar:
    squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
    return loss(params, problem, key) + weight * squares


def _posterior_init(
    init: Partial, key: Key, problem: Problem, *, log_std: float
) -> WeightPosterior:
    mean = init(key, problem)
    return WeightPosterior(mean, jax.tree.map(lambda leaf: jnp.full_like(leaf, log_std), mean))


def _posterior_loss(
    loss: Partial,
    weight: Scalar,
    scale: Scalar,
    params: WeightPosterior,
    problem: Problem,
    key: Key,
) -> Scalar:
    loss_key, noise_key = jax.random.split(key)
    means, structure = jax.tree.flatten(params.mean)
    log_stds = jax.tree.leaves(params.log_std)
    divergence, drawn = jnp.zeros(()), []
    for i, (mean, log_std) in enumerate(zip(means, log_stds, strict=True)):
        noise = jax.random.normal(jax.random.fold_in(noise_key, i), mean.shape, mean.dtype)
        drawn.append(mean + jnp.exp(log_std) * noise)
        divergence += _divergence(mean, log_std, scale.astype(mean.dtype))
    return loss(jax.tree.unflatten(structure, drawn), problem, loss_key) + weight * divergence


def _divergence(mean: Array, log_std: Array, scale: Scalar) -> Scalar:
    r"""$\mathrm{KL}(N(\mu, \sigma^2) \Vert N(0, s^2)) = \sum \frac{\mu^2 + \sigma^2}{2 s^2}
    - \log \frac\sigma s - \frac12$.
    """
    moments = (mean**2 + jnp.exp(2 * log_std)) / (2 * scale**2)
    return jnp.sum(moments - log_std + jnp.log(scale) - 0.5)


def _posterior_objective(
    objective: Partial, params: WeightPosterior, problem: Problem, key: Key
) -> Scalar:
    return objective(params.mean, problem, key)


def prune(params: Params | WeightPosterior, fraction: float | Float[Array, ""]) -> Params:
    r"""Sets the weights that matter least in each layer to zero.

    A weight matters by $\mu^2 / \sigma^2$, its density at zero; where there is no σ, by $w^2$.

    Args:
        params: weights, or their `WeightPosterior`.
        fraction: what part of each leaf of two axes or more is set to zero, in [0, 1], rounded
            down to whole weights; others (biases) stay.

    Returns:
        The weights, or means, that are left: a tree like them.

    Raises:
        ValueError: for a fraction outside [0, 1].

    Reference:
        Graves (2011), 'Practical variational inference for neural networks'; Grebenkova et al.
        (2021).

    >>> posterior = WeightPosterior(jnp.array([[1.0, 2.0]]), jnp.log(jnp.array([[0.1, 1.0]])))
    >>> print(prune(posterior, 0.5), prune(posterior.mean, 0.5))
    [[1. 0.]] [[0. 2.]]
    """
    if not isinstance(fraction, jax.core.Tracer) and not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be a number in [0, 1], got {fraction!r}")

    def keep(mean: Array, importance: Array) -> Array:
        if mean.ndim < 2:
            return mean
        order = jnp.argsort(importance.ravel())
        # Ten per cent of ten is one weight, though 0.1 is not quite a tenth.
        least = jnp.floor(fraction * mean.size + 1e-4)
        kept = jnp.zeros(mean.size, bool).at[order].set(jnp.arange(mean.size) >= least)
        return jnp.where(kept.reshape(mean.shape), mean, 0)

    if isinstance(params, WeightPosterior):
        return jax.tree.map(
            lambda mean, log_std: keep(mean, 2 * (jnp.log(jnp.abs(mean)) - log_std)),
            params.mean,
            params.log_std,
        )
    return jax.tree.map(lambda leaf: keep(leaf, jnp.abs(leaf)), params)
