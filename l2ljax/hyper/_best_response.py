"""Metaparameters through a learned best response: a hypernetwork in place of retraining."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax._shown import one_line
from l2ljax.core import (
    Key,
    LearnedTask,
    Phi,
    Problem,
    Scalar,
    Task,
    Transformation,
    as_partial,
    as_pytree,
    closure,
)
from l2ljax.hyper._hypernetwork import Hypernetwork
from l2ljax.meta import unroll


def response_task(
    task: LearnedTask,
    network: Hypernetwork,
    sample: Callable[[Key], PyTree],
    *,
    batch: int = 1,
) -> Task:
    r"""Training a hypernetwork to answer every λ with the weights that are best for it.

    $$\min_\phi\; E_{\lambda \sim p(\lambda)}\, L_T(w_\phi(\lambda), \lambda)$$

    It is a task like others, whose params are φ, so `meta.unroll` trains it, and any optimizer.

    Args:
        task: its metaparameters are λ, its loss is $L_T$; problems must not depend on λ.
        network: $w_\phi$.
        sample: `sample(key) -> lam`, draws from p(λ).
        batch: λ's whose losses are averaged at a step; they share the minibatch.

    Returns:
        A task; its objective is its loss.

    Raises:
        ValueError: for a batch below 1.

    Reference:
        Lorraine and Duvenaud (2018), 'Stochastic hyperparameter optimization through
        hypernetworks'.

    The weight that fits best between 0 and λ is λ/2:

    >>> from l2ljax.hyper import interpolating_hypernetwork
    >>> shrunk = LearnedTask(lambda key: jnp.zeros(()), lambda lam: Task(
    ...     lambda key: (), lambda key, problem: jnp.zeros(()),
    ...     lambda w, problem, key: w**2 + (w - lam) ** 2))
    >>> network = interpolating_hypernetwork(lambda key: jnp.zeros(()), 0.0, 1.0)
    >>> response = response_task(shrunk, network, jax.random.uniform)
    >>> _, phi = unroll(optax.sgd(0.1), response, (), jax.random.key(0), horizon=300)
    >>> print(phi.round(2))
    [0.  0.5]
    """
    _checks.count("batch", batch)
    bound = (task, network, as_partial(sample))
    return Task(
        sample=closure(_response_sample, task, as_partial(sample)),
        init=closure(_response_init, network),
        loss=closure(_response_loss, *bound, batch=batch),
    )


def _response_sample(task: LearnedTask, sample: Any, key: Key) -> Problem:
    return task.bind(sample(key)).sample(key)


def _response_init(network: Hypernetwork, key: Key, problem: Problem) -> Phi:
    del problem
    return network.init(key)


def _response_loss(
    task: LearnedTask,
    network: Hypernetwork,
    sample: Any,
    phi: Phi,
    problem: Problem,
    key: Key,
    *,
    batch: int,
) -> Scalar:
    lam_key, loss_key = jax.random.split(key)

    def loss(lam_key: Key) -> Scalar:
        lam = sample(lam_key)
        return task.bind(lam).loss(network.apply(phi, lam), problem, loss_key)

    return jnp.mean(jax.vmap(loss)(jax.random.split(lam_key, batch)))


class BestResponse(NamedTuple):
    """A hypernetwork, and the metaparameters that it found.

    Attributes:
        phi: the weights of the hypernetwork.
        lam: the last λ̂, a tree.
        losses: training losses of the hypernetwork in order, one a step of φ (and, from
            `tune_global`, the one after the last).
        objectives: the objective in order, one a step of λ̂ (and, from `tune_global`, the one after
            the last).
        std: σ of the λ's around the last λ̂, a tree like it; None from `tune_global`.
    """

    phi: Phi
    lam: PyTree
    losses: Float[Array, " steps"]
    objectives: Float[Array, " tuning_steps"]
    std: PyTree | None

    def __repr__(self) -> str:
        return one_line(self)


def tune_global(
    task: LearnedTask,
    network: Hypernetwork,
    sample: Callable[[Key], PyTree],
    *,
    key: Key,
    steps: int,
    tuning_steps: int,
    batch: int = 1,
    optimizer: Transformation | None = None,
    meta_optimizer: Transformation | None = None,
    lam: PyTree | None = None,
) -> BestResponse:
    r"""Learns the best response to all λ, then descends on it.

    $$\phi^* = \arg\min_\phi E_{\lambda \sim p(\lambda)} L_T(w_\phi(\lambda), \lambda),
      \qquad \hat\lambda \leftarrow \hat\lambda
      + \text{meta-optimizer}(\nabla_{\hat\lambda} L_V(w_{\phi^*}(\hat\lambda)))$$

    For a few metaparameters, whose range the hypernetwork can learn; `tune_local` is for many. It
    runs jitted.

    Args:
        task: its metaparameters are λ, its loss is $L_T$, its objective $L_V$. One problem is
            drawn.
        network: $w_\phi$.
        sample: `sample(key) -> lam`, draws from p(λ).
        key: draws the problem, the first φ, the λ's and the minibatches.
        steps: steps of φ.
        tuning_steps: steps of λ̂.
        batch: λ's of a step of φ.
        optimizer: of φ; default `optax.adam(1e-3)`.
        meta_optimizer: of λ̂; default `optax.adam(1e-2)`.
        lam: the first λ̂; default: drawn by `task.init`.

    Returns:
        A `BestResponse`; `losses` has `steps + 1` entries and `objectives` `tuning_steps + 1`.

    Raises:
        ValueError: for no key, less than one step, or a batch below 1.

    Reference:
        Lorraine and Duvenaud (2018), algorithm 2.

    The weight that is wanted at 0.2 and comes to λ/2:

    >>> from l2ljax.hyper import mlp_hypernetwork
    >>> shrunk = LearnedTask(lambda key: jnp.zeros(()), lambda lam: Task(
    ...     lambda key: (), lambda key, problem: jnp.zeros(()),
    ...     loss=lambda w, problem, key: w**2 + (w - lam) ** 2,
    ...     objective=lambda w, problem, key: (w - 0.2) ** 2))
    >>> line = mlp_hypernetwork(lambda key: jnp.zeros(()), size=1, output_scale=1.0)
    >>> found = tune_global(shrunk, line, jax.random.normal, key=jax.random.key(0), steps=200,
    ...                     tuning_steps=200, optimizer=optax.sgd(0.1),
    ...                     meta_optimizer=optax.sgd(0.1))
    >>> print(f"{found.lam:.2f}")
    0.40
    """
    _checks.key("key", key)
    _checks.count("steps", steps)
    _checks.count("tuning_steps", tuning_steps)
    response = response_task(task, network, sample, batch=batch)
    return _tune_global(
        task,
        network,
        response,
        key,
        _pytree_or("optimizer", optimizer, 1e-3),
        _pytree_or("meta_optimizer", meta_optimizer, 1e-2),
        lam,
        steps=steps,
        tuning_steps=tuning_steps,
    )


def _pytree_or(name: str, tx: Transformation | None, rate: float) -> optax.GradientTransformation:
    return as_pytree(optax.adam(rate) if tx is None else tx, name)


@program("steps", "tuning_steps")
def _tune_global(
    task: LearnedTask,
    network: Hypernetwork,
    response: Task,
    key: Key,
    optimizer: optax.GradientTransformation,
    meta_optimizer: optax.GradientTransformation,
    lam: PyTree | None,
    *,
    steps: int,
    tuning_steps: int,
) -> BestResponse:
    lam_key, problem_key, training_key, tuning_key = jax.random.split(key, 4)
    lam = task.init(lam_key) if lam is None else lam
    problem = response.sample(problem_key)
    losses, phi = unroll(optimizer, response, problem, training_key, horizon=steps)
    descent = Task(
        sample=lambda key: problem,
        init=lambda key, problem: lam,
        loss=lambda lam, problem, key: _objective(task, network, phi, lam, problem, key),
    )
    objectives, lam = unroll(meta_optimizer, descent, problem, tuning_key, horizon=tuning_steps)
    return BestResponse(phi, lam, losses, objectives, None)


def _objective(
    task: LearnedTask, network: Hypernetwork, phi: Phi, lam: PyTree, problem: Problem, key: Key
) -> Scalar:
    return task.bind(lam).objective(network.apply(phi, lam), problem, key)


def tune_local(
    task: LearnedTask,
    network: Hypernetwork,
    *,
    key: Key,
    steps: int,
    std: float = 0.1,
    batch: int = 1,
    training_steps: int = 1,
    tuning_steps: int = 1,
    entropy: float | None = None,
    optimizer: Transformation | None = None,
    meta_optimizer: Transformation | None = None,
    lam: PyTree | None = None,
) -> BestResponse:
    r"""Learns the best response around λ̂ alone, and moves λ̂ meanwhile.

    $$\min_\phi\; E_\varepsilon\, L_T(w_\phi(\hat\lambda + \sigma\varepsilon),
      \hat\lambda + \sigma\varepsilon) \quad\text{and}\quad
      \min_{\hat\lambda}\; L_V(w_\phi(\hat\lambda)),
      \qquad \varepsilon \sim N(0, I)$$

    in turns. With `entropy` τ this is a self-tuning network, which learns σ too, one for each
    metaparameter: the second problem is

    $$\min_{\hat\lambda, \sigma}\; E_\varepsilon\,
      L_V(w_\phi(\hat\lambda + \sigma\varepsilon)) - \tau \sum_i \log \sigma_i$$

    It runs jitted.

    Args:
        task: its metaparameters are λ, its loss is $L_T$, its objective $L_V$. One problem is
            drawn.
        network: $w_\phi$; for self-tuning networks `self_tuning_hypernetwork`.
        key: draws the problem, the first φ and λ̂, the noise and the minibatches.
        steps: rounds.
        std: σ, or the first σ.
        batch: λ's that are averaged over; they share the minibatch.
        training_steps: steps of φ in a round; 2 for self-tuning networks.
        tuning_steps: steps of λ̂ in a round.
        entropy: τ; None leaves σ alone, and takes the objective at λ̂ itself.
        optimizer: of φ; default `optax.adam(1e-3)`.
        meta_optimizer: of λ̂ and log σ; default `optax.adam(1e-2)`.
        lam: the first λ̂; default: drawn by `task.init`.

    Returns:
        A `BestResponse`.

    Raises:
        ValueError: for no key, less than one step, a batch below 1, a `std` that is not positive
            or a negative `entropy`.

    Reference:
        Lorraine and Duvenaud (2018), algorithm 3; MacKay et al. (2019), 'Self-tuning networks:
        bilevel optimization of hyperparameters using structured best-response functions',
        algorithm 1.

    The weight that is wanted at 2 and comes to λ/2:

    >>> from l2ljax.hyper import mlp_hypernetwork
    >>> shrunk = LearnedTask(lambda key: jnp.zeros(()), lambda lam: Task(
    ...     lambda key: (), lambda key, problem: jnp.zeros(()),
    ...     loss=lambda w, problem, key: w**2 + (w - lam) ** 2,
    ...     objective=lambda w, problem, key: (w - 2.0) ** 2))
    >>> line = mlp_hypernetwork(lambda key: jnp.zeros(()), size=1, output_scale=1.0)
    >>> found = tune_local(shrunk, line, key=jax.random.key(0), steps=2000, std=1.0,
    ...                    optimizer=optax.sgd(0.1), meta_optimizer=optax.sgd(0.01))
    >>> print(f"{found.lam:.1f}")
    4.0
    """
    _checks.key("key", key)
    counts = {"steps": steps, "training_steps": training_steps, "tuning_steps": tuning_steps}
    for name, count in [*counts.items(), ("batch", batch)]:
        _checks.count(name, count)
    _checks.positive("std", std)
    if entropy is not None:
        _checks.non_negative("entropy", entropy)
    return _tune_local(
        task,
        network,
        key,
        jnp.asarray(std),
        None if entropy is None else jnp.asarray(entropy),
        _pytree_or("optimizer", optimizer, 1e-3),
        _pytree_or("meta_optimizer", meta_optimizer, 1e-2),
        lam,
        batch=batch,
        **counts,
    )


class _Local(NamedTuple):
    """What `tune_local` carries from round to round; `center` is (λ̂, log σ)."""

    phi: Phi
    opt_state: Any
    center: tuple[PyTree, PyTree]
    meta_state: Any


@program("steps", "training_steps", "tuning_steps", "batch")
def _tune_local(
    task: LearnedTask,
    network: Hypernetwork,
    key: Key,
    std: Scalar,
    entropy: Scalar | None,
    optimizer: optax.GradientTransformation,
    meta_optimizer: optax.GradientTransformation,
    lam: PyTree | None,
    *,
    steps: int,
    training_steps: int,
    tuning_steps: int,
    batch: int,
) -> BestResponse:
    lam_key, problem_key, init_key, loss_key = jax.random.split(key, 4)
    lam = task.init(lam_key) if lam is None else lam
    problem = task.bind(lam).sample(problem_key)
    phi = network.init(init_key)
    log_std = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.log(std)), lam)

    def tuned(center: tuple[PyTree, PyTree], phi: Phi, key: Key) -> Scalar:
        if entropy is None:
            return _objective(task, network, phi, center[0], problem, key)
        noise_key, key = jax.random.split(key)
        near = jax.vmap(lambda k: _near(*center, k))(jax.random.split(noise_key, batch))
        values = jax.vmap(lambda lam: _objective(task, network, phi, lam, problem, key))(near)
        spread = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(center[1]))
        return jnp.mean(values) - entropy * spread

    def train(at: _Local, key: Key) -> tuple[_Local, Scalar]:
        value, gradient = jax.value_and_grad(_response_loss, argnums=3)(
            task, network, lambda k: _near(*at.center, k), at.phi, problem, key, batch=batch
        )
        updates, state = optimizer.update(gradient, at.opt_state, at.phi)
        return at._replace(phi=optax.apply_updates(at.phi, updates), opt_state=state), value

    def tune(at: _Local, key: Key) -> tuple[_Local, Scalar]:
        value, gradient = jax.value_and_grad(tuned)(at.center, at.phi, key)
        updates, state = meta_optimizer.update(gradient, at.meta_state, at.center)
        return at._replace(center=optax.apply_updates(at.center, updates), meta_state=state), value

    def turn(at: _Local, i: Array) -> tuple[_Local, tuple[Array, Array]]:
        keys = jax.random.split(jax.random.fold_in(loss_key, i), training_steps + tuning_steps)
        at, losses = jax.lax.scan(train, at, keys[:training_steps])
        at, objectives = jax.lax.scan(tune, at, keys[training_steps:])
        return at, (losses, objectives)

    center = (lam, log_std)
    at = _Local(phi, optimizer.init(phi), center, meta_optimizer.init(center))
    at, (losses, objectives) = jax.lax.scan(turn, at, jnp.arange(steps))
    lam, log_std = at.center
    return BestResponse(
        at.phi, lam, losses.ravel(), objectives.ravel(), jax.tree.map(jnp.exp, log_std)
    )


def _near(lam: PyTree, log_std: PyTree, key: Key) -> PyTree:
    """λ̂ with noise of its own for each number."""
    leaves, structure = jax.tree.flatten(lam)
    noisy = [
        leaf + jnp.exp(spread) * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, spread, k in zip(
            leaves,
            jax.tree.leaves(log_std),
            jax.random.split(key, len(leaves)),
            strict=True,
        )
    ]
    return jax.tree.unflatten(structure, noisy)
