"""The exact meta-gradient of momentum, by running it backwards: no state of a step is kept."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from l2ljax import _checks
from l2ljax.core import (
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Problem,
    ReversibleOptimizer,
    Scalar,
    Task,
    closure,
)
from l2ljax.meta import _fixed_point as fixed
from l2ljax.meta._binding import join, require_second_derivatives, split, task_at
from l2ljax.meta._episodes import Episode, begin_episode, episode_keys
from l2ljax.meta._horizons import horizons
from l2ljax.meta._meta_loss import META_LOSSES, StepWeights, step_weight_table
from l2ljax.meta._segments import EstimatorFactory, device_mean

_FAULTS = {
    "irreversible": "the run backwards did not end at the params that it began with: the gradients "
    "of the task's loss are not reproducible (the same params, problem and key must give the same "
    "bits)",
    "exhausted": "decays were learned that lose more bits than meta.reversible(min_decay=...) "
    "makes room for; give it a smaller one",
}
"""Flags in `aux` that end a training, and what they mean."""


def reversible(
    *,
    horizon: int = 100,
    min_decay: float = 0.5,
    step_weights: StepWeights | None = None,
    meta_loss: str = "mean",
    second_derivatives: bool = True,
) -> EstimatorFactory:
    r"""Reverse-mode differentiation of momentum along a trajectory that is run backwards.

    From the last $\theta$ and $v$, each step is undone, bit for bit, and its adjoints follow:

    $$\begin{aligned}
    d\alpha_t &= d\theta^\top v_{t+1}, & dv &\mathrel{+}= \alpha_t\, d\theta, \\
    \theta_t &= \theta_{t+1} - \alpha_t v_{t+1}, &
    v_t &= (v_{t+1} + (1 - \gamma_t) \nabla_t) / \gamma_t, \\
    d\gamma_t &= dv^\top (v_t + \nabla_t), &
    d\theta &\mathrel{-}= (1 - \gamma_t) \nabla^2 f_t(\theta_t)\, dv, \\
    d\psi &\mathrel{-}= (1 - \gamma_t)\, \partial_\psi (\nabla_t^\top dv), &
    dv &\leftarrow \gamma_t\, dv .
    \end{aligned}$$

    The last $d\theta$ goes through the task's `init`: the ψ of a `LearnedTask` may be in θ₀, in the
    loss (penalties, training data) and in the objective.

    The gradient is that of `meta.full`. Params and velocity are integers of 64 bits in units of
    2⁻⁴⁸. What a product by γ loses, $\log_2(1/\gamma)$ bits a param and step, is kept in a buffer
    and a stack; beyond it memory does not grow with the horizon. A step costs two gradients and a
    product with the Hessian.

    Args:
        horizon: inner steps of an episode, T.
        min_decay: the smallest γ that the stack has room for, in (0, 1]: T log₂(1/γ) bits a param.
        step_weights: w₁ … w_T, finite, or a function of T; default: ones.
        meta_loss: "mean", "log" or "log_improvement", see `meta.truncated`.
        second_derivatives: whether the Hessian's product is there; default on, exact. Off, the
            gradient is that of `meta.full(second_derivatives=False)`.

    Returns:
        A factory `(opt, task, batch=1) -> Estimator` for a `core.ReversibleOptimizer`, such as
        `learned.reversible_momentum` makes. Its `aux` has `losses` and `step` as in
        `meta.truncated`, and three flags, bool[]: `overflow`, a gradient, param or velocity of
        2¹⁴ and more, or none at all; `irreversible`, θ₀ was not recovered; `exhausted`, a stack
        was too small. With any of them loss and gradient are NaN; `meta.train` skips a meta-step
        with the first as it does where runs diverge, and raises for the other two.

    Raises:
        ValueError: for a horizon below 1, a `min_decay` outside (0, 1], weights of another length,
            or an unknown meta-loss.
        TypeError: from the factory, for an optimizer that is not reversible.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), 'Gradient-based hyperparameter optimization through
        reversible learning', algorithms 2 and 3, as in the authors' code. A stack for the buffer
        instead of integers of any length is ours.

    >>> import l2ljax as l2l
    >>> opt = l2l.learned.reversible_momentum(horizon=20, learning_rate=0.01)
    >>> task, phi, key = l2l.tasks.quadratic(), opt.init(jax.random.key(0)), jax.random.key(1)
    >>> for factory in (reversible(horizon=20), l2l.meta.full(horizon=20)):
    ...     est = factory(opt, task)
    ...     estimate, _ = est.estimate(phi, est.init(key, phi), key)
    ...     print(f"{estimate.grad['learning_rate'][0]:.2f}")
    -42.27
    -42.27
    """
    _checks.count("horizon", horizon)
    _checks.positive("min_decay", min_decay)
    if not min_decay <= 1:
        raise ValueError(f"min_decay must lie in (0, 1], got {min_decay!r}")
    weights = step_weight_table(step_weights, horizons(horizon, horizon, None))
    _checks.choice("meta_loss", meta_loss, META_LOSSES)
    settings = {
        "capacity": fixed.capacity(horizon, fixed.quantised(min_decay)),
        "meta_loss": meta_loss,
        "second_derivatives": second_derivatives,
    }

    def factory(
        opt: LearnedOptimizer,
        task: Task | LearnedTask,
        batch: int = 1,
        axis: str | None = None,
    ) -> Estimator:
        if not isinstance(opt, ReversibleOptimizer):
            raise TypeError(
                "meta.reversible needs an optimizer that can be run backwards, such as "
                f"learned.reversible_momentum(...), got {opt!r}"
            )
        _checks.count("batch", batch)
        require_second_derivatives(task, second_derivatives)
        return Estimator(
            init=closure(_init),
            estimate=closure(_estimate, opt, task, weights, batch=batch, axis=axis, **settings),
        )

    return factory


class _Point(NamedTuple):
    """What a step sees at its params: the loss's gradient, the objective and its gradient."""

    t: Int[Array, ""]
    gradient: list[Array]
    objective: Scalar
    slopes: list[Array]


class _Adjoints(NamedTuple):
    """Derivatives of the meta-loss with respect to the present params and velocity, and to ψ."""

    params: list[Array]
    velocity: list[Array]
    psi: Any


_Moved = tuple[list[fixed.Exact], _Adjoints, list[Array], list[Array]]
"""What a step leaves: the run, its adjoints, and dα and dγ of the step."""


def _init(key: Key, phi: Phi) -> Int[Array, ""]:
    # Every call is a whole episode: there is nothing to keep but a place for it.
    del key, phi
    return jnp.zeros((), jnp.int32)


def _estimate(
    opt: ReversibleOptimizer,
    task: Task | LearnedTask,
    weights: Float[Array, " horizon"],
    phi: Phi,
    state: Int[Array, ""],
    key: Key,
    *,
    batch: int,
    axis: str | None,
    capacity: int,
    meta_loss: str,
    second_derivatives: bool,
) -> tuple[Estimate, Int[Array, ""]]:
    own, psi = split(task, phi)
    _checks.floating_leaves("psi", psi)
    keys = episode_keys(key, batch, axis)
    one = jax.eval_shape(begin_episode, task_at(task, psi), keys[0]).params
    _checks.floating_leaves("params", one)
    times = jnp.arange(weights.size, dtype=jnp.int32)
    (rates, decays), pull = jax.vjp(lambda own: opt.coefficients(own, one, times), own)
    numerators = [
        jnp.round(decay * fixed.DENOMINATOR).astype(jnp.int32) for decay in jax.tree.leaves(decays)
    ]
    coefficients = [
        fixed.Coefficients(rate, decay, n, *fixed.spills(n))
        for rate, decay, n in zip(
            jax.tree.leaves(rates), jax.tree.leaves(decays), numerators, strict=True
        )
    ]
    exhausted = jnp.any(jnp.array([leaf.spill.sum() > capacity for leaf in coefficients]))

    def run(key: Key) -> tuple[Array, list[Array], list[Array], Any, Array, Array]:
        def start(psi: Any) -> _Start:
            bound = task_at(task, psi)
            return _Start(bound, begin_episode(bound, key))

        return _there_and_back(
            coefficients,
            start,
            psi,
            weights,
            capacity=capacity,
            meta_loss=meta_loss,
            second_derivatives=second_derivatives,
        )

    losses, d_rates, d_decays, d_psi, overflow, recovered = jax.vmap(run)(keys)
    measured = META_LOSSES[meta_loss](losses[:, 1:], losses[:, :1]).mean(axis=0)
    loss = weights.astype(measured.dtype) @ measured
    cotangents = (
        jax.tree.unflatten(jax.tree.structure(one), [d.mean(axis=0) for d in columns])
        for columns in (d_rates, d_decays)
    )
    (d_own,) = pull(
        jax.tree.map(lambda d, like: d.astype(like.dtype), tuple(cotangents), (rates, decays))
    )
    grad = join(task, d_own, jax.tree.map(lambda d: d.mean(axis=0), d_psi))
    loss, grad, losses = device_mean(axis, (loss, grad, losses[:, 1:].mean(axis=0)))
    overflow = overflow.any()
    flags = {
        "overflow": overflow,
        "irreversible": ~recovered.all() & ~overflow & ~exhausted,
        "exhausted": exhausted,
    }
    if axis is not None:
        flags = jax.tree.map(lambda flag: jax.lax.pmax(flag.astype(jnp.int32), axis) > 0, flags)
    invalid = flags["overflow"] | flags["irreversible"] | flags["exhausted"]
    loss, grad = jax.tree.map(lambda x: jnp.where(invalid, jnp.nan, x), (loss, grad))
    aux = {"losses": losses, "step": jnp.zeros((), jnp.int32), **flags}
    return Estimate(loss, grad, aux), state


class _Start(NamedTuple):
    """What ψ decides: the task, and the problem and θ₀ drawn from it."""

    task: Task
    episode: Episode


def _there_and_back(
    coefficients: list[fixed.Coefficients],
    start: Callable[[Any], _Start],
    psi: Any,
    weights: Float[Array, " horizon"],
    *,
    capacity: int,
    meta_loss: str,
    second_derivatives: bool,
) -> tuple[Array, list[Array], list[Array], Any, Bool[Array, ""], Bool[Array, ""]]:
    """One episode: 2 T + 1 steps of one loop, T ahead, one to turn, T back.

    Both ways are one loop because both must have the same gradients, to the bit: here they come
    from the same instructions, and no compiler can order the sums of one way differently.

    Args:
        coefficients: of each leaf, at all steps.
        start: `start(psi)`, the task, its problem and θ₀.
        psi: the metaparameters of the task, `()` where there are none.
        weights: w₁ … w_T.
        capacity: places of the stack.
        meta_loss: as in `reversible`.
        second_derivatives: as in `reversible`.

    Returns:
        The objective at θ₀ … θ_T; dα and dγ, lists over leaves of `[T]`; dψ; whether a number was
        too large; and whether θ₀ was recovered.
    """
    horizon = weights.size
    task, (problem, first_params, loss_key) = start(psi)
    leaves, structure = jax.tree.flatten(first_params)
    dtypes = [leaf.dtype for leaf in leaves]
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    of_losses = jax.grad(META_LOSSES[meta_loss], argnums=(0, 1))

    def floats(values: Iterable[fixed.Fixed]) -> list[Array]:
        return [fixed.to_float(x, dtype) for x, dtype in zip(values, dtypes, strict=True)]

    def params_of(exact: list[fixed.Exact]) -> list[Array]:
        return floats(leaf.params for leaf in exact)

    def velocity_of(exact: list[fixed.Exact]) -> list[Array]:
        return floats(leaf.velocity for leaf in exact)

    def measure(function: Any, problem: Problem, values: list[Array], t: Array) -> Scalar:
        """The task's loss or objective at a step."""
        params = jax.tree.unflatten(structure, values)
        return function(params, problem, jax.random.fold_in(loss_key, t))

    def slopes(function: Any, values: list[Array], t: Array) -> tuple[Scalar, list[Array]]:
        """The loss or objective, and its gradient."""
        return jax.value_and_grad(lambda values: measure(function, problem, values, t))(values)

    def factor(at: _Point) -> Scalar:
        """The derivative of the meta-loss with respect to the objective of this step."""
        later, initial = of_losses(at.objective, at.objective)
        weight = weights[at.t - 1].astype(later.dtype)
        return jnp.where(at.t > 0, weight * later, weights.sum().astype(later.dtype) * initial)

    def direct(at: _Point) -> list[Array]:
        """The gradient of the meta-loss's term of this step."""
        by_objective = factor(at)
        return [by_objective.astype(g.dtype) * g for g in at.slopes]

    def direct_psi(at: _Point, values: list[Array], direction: list[Array]) -> Any:
        """The derivative of that term with respect to ψ, and of the loss's slope along a line."""

        def terms(psi: Any) -> Scalar:
            task, (problem, _, _) = start(psi)
            value, slope = jax.jvp(
                lambda values: measure(task.loss, problem, values, at.t), (values,), (direction,)
            )
            if task.objective is not task.loss:
                value = measure(task.objective, problem, values, at.t)
            return factor(at).astype(value.dtype) * value + slope

        # Where there is no ψ, nothing of this is traced.
        return jax.grad(terms)(psi) if jax.tree.leaves(psi) else psi

    def ahead(
        at: _Point, now: list[fixed.Coefficients], exact: list[fixed.Exact], adjoints: _Adjoints
    ) -> _Moved:
        exact = [fixed.ahead(*leaf) for leaf in zip(exact, now, at.gradient, strict=True)]
        return exact, adjoints, nothing, nothing

    def turn(
        at: _Point, now: list[fixed.Coefficients], exact: list[fixed.Exact], adjoints: _Adjoints
    ) -> _Moved:
        d_psi = direct_psi(at, params_of(exact), zeros)
        return exact, adjoints._replace(params=direct(at), psi=d_psi), nothing, nothing

    def back(
        at: _Point, now: list[fixed.Coefficients], exact: list[fixed.Exact], adjoints: _Adjoints
    ) -> _Moved:
        d_params, d_velocity, d_psi = adjoints
        d_rates = [_dot(d, v) for d, v in zip(d_params, velocity_of(exact), strict=True)]
        d_velocity = [
            dv + leaf.rate.astype(dv.dtype) * dw
            for dv, leaf, dw in zip(d_velocity, now, d_params, strict=True)
        ]
        exact = [fixed.back(*leaf) for leaf in zip(exact, now, at.gradient, strict=True)]
        d_decays = [
            _dot(dv, v + g)
            for dv, v, g in zip(d_velocity, velocity_of(exact), at.gradient, strict=True)
        ]
        direction = [
            -(1 - leaf.decay).astype(dv.dtype) * dv
            for leaf, dv in zip(now, d_velocity, strict=True)
        ]
        more = direct_psi(at, params_of(exact), direction)
        d_psi = jax.tree.map(jnp.add, d_psi, more)
        if second_derivatives:
            _, bent = jax.jvp(
                lambda values: slopes(task.loss, values, at.t)[1], (params_of(exact),), (direction,)
            )
            d_params = [dw + h for dw, h in zip(d_params, bent, strict=True)]
        d_velocity = [
            leaf.decay.astype(dv.dtype) * dv for leaf, dv in zip(now, d_velocity, strict=True)
        ]
        d_params = [dw + d for dw, d in zip(d_params, direct(at), strict=True)]
        return exact, _Adjoints(d_params, d_velocity, d_psi), d_rates, d_decays

    def step(carry: tuple[list[fixed.Exact], Any, _Adjoints, Array], k: Array) -> tuple[Any, Any]:
        exact, first, adjoints, overflow = carry
        # Taken where it is in memory: computed again, θ₀ might be rounded otherwise.
        first = jax.lax.cond(k == 0, lambda: [leaf.params for leaf in exact], lambda: first)
        t = jnp.where(k <= horizon, k, 2 * horizon - k)
        now = jax.tree.map(lambda column: column[jnp.minimum(t, horizon - 1)], coefficients)
        # On the way back, too, the gradient is taken at the params before the step.
        exact = jax.lax.cond(
            k > horizon,
            lambda: [fixed.params_before(*leaf) for leaf in zip(exact, now, strict=True)],
            lambda: exact,
        )
        values = params_of(exact)
        value, gradient = slopes(task.loss, values, t)
        at = _Point(t, gradient, value, gradient)
        if task.objective is not task.loss:
            needed = jnp.where((k >= horizon) & counts[t], 2, (k <= horizon).astype(jnp.int32))
            at = _Point(
                t, gradient, *jax.lax.switch(needed, [neither, value_alone, both], values, t)
            )
        overflow |= _too_large([*gradient, *values, *velocity_of(exact)])
        way = (k >= horizon).astype(jnp.int32) + (k > horizon)
        exact, adjoints, d_rates, d_decays = jax.lax.switch(
            way, [ahead, turn, back], at, now, exact, adjoints
        )
        return (exact, first, adjoints, overflow), (at.objective, d_rates, d_decays)

    # An objective on much data costs more than the step: it is computed where it counts.
    counts = jnp.concatenate([jnp.array([meta_loss == "log_improvement"]), weights != 0])

    def both(values: list[Array], t: Array) -> tuple[Scalar, list[Array]]:
        return slopes(task.objective, values, t)

    def value_alone(values: list[Array], t: Array) -> tuple[Scalar, list[Array]]:
        return measure(task.objective, problem, values, t), zeros

    def neither(values: list[Array], t: Array) -> tuple[Scalar, list[Array]]:
        # One and not zero, whose logarithm has no derivative.
        return jnp.ones_like(value_alone(values, t)[0]), zeros

    exact = [fixed.start(leaf, capacity) for leaf in leaves]
    adjoints = _Adjoints(zeros, zeros, jax.tree.map(jnp.zeros_like, psi))
    nothing = [jnp.zeros((), _wide(dtype)) for dtype in dtypes]
    first = [leaf.velocity for leaf in exact]
    (exact, first, adjoints, overflow), (losses, d_rates, d_decays) = jax.lax.scan(
        step,
        (exact, first, adjoints, jnp.zeros((), bool)),
        jnp.arange(2 * horizon + 1, dtype=jnp.int32),
    )
    recovered = [fixed.is_at_rest(*leaf) for leaf in zip(exact, first, strict=True)]
    _, pull = jax.vjp(lambda psi: jax.tree.leaves(start(psi).episode.params), psi)
    d_psi = jax.tree.map(jnp.add, adjoints.psi, *pull(adjoints.params))

    def in_order(rows: list[Array]) -> list[Array]:
        return [row[:horizon:-1] for row in rows]

    return (
        losses[: horizon + 1],
        in_order(d_rates),
        in_order(d_decays),
        d_psi,
        overflow,
        jnp.all(jnp.array(recovered)),
    )


def _too_large(values: list[Array]) -> Bool[Array, ""]:
    """Whether any is of `LARGEST` and more, or NaN."""
    fits = [jnp.all(jnp.abs(x) < fixed.LARGEST) for x in values]
    return ~jnp.all(jnp.array(fits))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _dot(a: Array, b: Array) -> Scalar:
    dtype = _wide(a.dtype)
    return jnp.vdot(a.astype(dtype), b.astype(dtype))


def raise_faults(metrics: Mapping[str, np.ndarray]) -> None:
    """Raises if a flag of `reversible` that more training would not lower stands in these rows.

    Raises:
        RuntimeError: with what the flag means.
    """
    for flag, meaning in _FAULTS.items():
        if np.any(metrics.get(flag, False)):
            raise RuntimeError(f"meta.reversible has no gradient: {meaning}")
