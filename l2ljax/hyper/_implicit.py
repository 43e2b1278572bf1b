"""Hypergradients by the implicit function theorem, at weights that are nearly optimal."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._programs import compiled, program
from l2ljax._shown import one_line
from l2ljax.core import (
    Estimate,
    Key,
    LearnedTask,
    Params,
    Problem,
    Scalar,
    Transformation,
    as_partial,
    as_pytree,
    closure,
)

Solver = TypeAliasType("Solver", Callable[[Callable[[Params], Params], Params], Params])
"""`solve(matvec, vector) -> x` with matvec(x) ≈ vector; all trees like the params."""


def neumann(terms: int = 20, learning_rate: float = 0.1) -> Solver:
    r"""The inverse of a matrix by its Neumann series: a few products with the matrix.

    $$H^{-1} v \approx \alpha \sum_{j=0}^{K-1} (I - \alpha H)^j v$$

    K - 1 products. It converges for $0 < \alpha H < 2$, and gives what backpropagation through K
    steps of gradient descent at the optimum would give. One term is T1–T2:
    $H^{-1} \approx \alpha I$.

    Args:
        terms: K.
        learning_rate: α, below two over the largest eigenvalue; for T1–T2 usually 1.

    Returns:
        A solver for `implicit_gradient`.

    Raises:
        ValueError: for less than one term, or a rate that is not positive.

    Reference:
        Lorraine, Vicol and Duvenaud (2020), 'Optimizing millions of hyperparameters by implicit
        differentiation'; T1–T2: Luketina et al. (2016), 'Scalable gradient-based
        tuning of continuous regularization hyperparameters'.

    >>> for terms in (1, 10, 100):
    ...     print(f"{neumann(terms)(lambda x: 2 * x, jnp.ones(())):.3f}")
    0.100
    0.446
    0.500
    """
    _checks.count("terms", terms)
    _checks.positive("learning_rate", learning_rate)
    return closure(_solve, closure(_neumann, jnp.asarray(learning_rate), terms=terms))


def _solve(solver: Partial, matvec: Callable[[Params], Params], vector: Params) -> Params:
    return compiled(solver, as_partial(matvec), vector)


def _neumann(
    rate: Scalar, matvec: Callable[[Params], Params], vector: Params, *, terms: int
) -> Params:
    def step(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], None]:
        power, total = carry
        power = jax.tree.map(lambda p, h: p - rate.astype(p.dtype) * h, power, matvec(power))
        return (power, jax.tree.map(jnp.add, total, power)), None

    (_, total), _ = jax.lax.scan(step, (vector, vector), length=terms - 1)
    return jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, total)


def conjugate_gradients(
    iterations: int = 20, *, damping: float = 0.0, tolerance: float = 1e-5
) -> Solver:
    r"""The inverse of a matrix by conjugate gradients: $(H + \rho I)^{-1} v$.

    A product with H for each iteration; as many as there are params are enough but for rounding.

    Args:
        iterations: at most so many.
        damping: ρ. H has to be positive definite with it; far from a minimum that takes some.
        tolerance: stops where the residual is this part of v's norm.

    Returns:
        A solver for `implicit_gradient`.

    Raises:
        ValueError: for less than one iteration, or a negative damping or tolerance.

    Reference:
        Pedregosa (2016), 'Hyperparameter optimization with approximate gradient'.

    >>> scale = jnp.array([1.0, 4.0])
    >>> print(conjugate_gradients()(lambda x: scale * x, jnp.ones(2)))
    [1.   0.25]
    """
    _checks.count("iterations", iterations)
    _checks.non_negative("damping", damping)
    _checks.non_negative("tolerance", tolerance)
    solver = closure(
        _conjugate_gradients,
        jnp.asarray(damping),
        iterations=iterations,
        tolerance=float(tolerance),
    )
    return closure(_solve, solver)


def _conjugate_gradients(
    damping: Scalar,
    matvec: Callable[[Params], Params],
    vector: Params,
    *,
    iterations: int,
    tolerance: float,
) -> Params:
    def damped(x: Params) -> Params:
        return jax.tree.map(lambda h, leaf: h + damping.astype(leaf.dtype) * leaf, matvec(x), x)

    solution, _ = jax.scipy.sparse.linalg.cg(damped, vector, tol=tolerance, maxiter=iterations)
    return solution


def implicit_gradient(
    loss: Callable[[Params, PyTree], Scalar],
    objective: Callable[[Params, PyTree], Scalar],
    params: Params,
    psi: PyTree,
    *,
    solver: Solver | None = None,
) -> Estimate:
    r"""The gradient of a validation loss with respect to metaparameters of the training loss.

    $$\frac{d L_V}{d\psi} = \frac{\partial L_V}{\partial\psi}
      - \left(\frac{\partial^2 L_T}{\partial\theta\,\partial\psi}\right)^{\!\top}
        \left(\frac{\partial^2 L_T}{\partial\theta^2}\right)^{\!-1}
        \frac{\partial L_V}{\partial\theta}$$

    at $\theta = \theta^*(\psi)$, where the training loss has no slope. It knows nothing of how
    θ got there, and so takes the memory of two gradients, but has no gradient for rates, decays
    and first weights. A pure function: it jits and maps.

    Args:
        loss: $L_T(\theta, \psi)$. That of a `core.LearnedTask` is
            `lambda params, psi: task.bind(psi).loss(params, problem, key)`.
        objective: $L_V(\theta, \psi)$, likewise.
        params: θ; the nearer to θ*, the better the gradient.
        psi: ψ, any tree of floating-point arrays.
        solver: multiplies by the inverse of the Hessian: `neumann`, `conjugate_gradients` or any
            function `solve(matvec, vector) -> x`; default `conjugate_gradients()`.

    Returns:
        An `Estimate`: the objective, its gradient, a tree like ψ, and in `aux` what tells how far
        to trust it: `slope`, the norm of the training loss's gradient, and `residual`,
        $\lVert H x - v \rVert / \lVert v \rVert$ of the system that was solved.

    Reference:
        Larsen et al. (1996); Bengio (2000), 'Gradient-based optimization of hyperparameters';
        Lorraine, Vicol and Duvenaud (2020), theorem 1.

    A weight pulled to 2 by the data and to 0 by a penalty, and wanted at 1. It is best at
    2 / (1 + ψ), so the gradient is 2 (2 / (1 + ψ) - 1) · -2 / (1 + ψ)²:

    >>> loss = lambda w, psi: (w - 2) ** 2 + psi * w**2
    >>> objective = lambda w, psi: (w - 1) ** 2
    >>> psi = jnp.array(0.25)
    >>> print(f"{implicit_gradient(loss, objective, 2 / (1 + psi), psi).grad:.3f}")
    -1.536
    """
    _checks.floating_leaves("psi", psi)
    solver = conjugate_gradients() if solver is None else solver
    return compiled(_implicit_gradient, *map(as_partial, (loss, objective, solver)), params, psi)


def _implicit_gradient(
    loss: Callable[..., Scalar],
    objective: Callable[..., Scalar],
    solver: Solver,
    params: Params,
    psi: PyTree,
) -> Estimate:
    def slope(params: Params, psi: PyTree) -> Params:
        return jax.grad(lambda *args: _checks.scalar_value("loss", loss(*args)))(params, psi)

    def measured(params: Params, psi: PyTree) -> Scalar:
        return _checks.scalar_value("objective", objective(params, psi))

    def product(vector: Params) -> Params:
        return jax.jvp(lambda values: slope(values, psi), (params,), (vector,))[1]

    value, (outer, direct) = jax.value_and_grad(measured, argnums=(0, 1))(params, psi)
    solved = solver(product, outer)
    inner, pull = jax.vjp(lambda psi: slope(params, psi), psi)
    (mixed,) = pull(solved)
    size = optax.tree.norm(outer)
    missing = optax.tree.norm(jax.tree.map(jnp.subtract, product(solved), outer))
    aux = {
        "slope": optax.tree.norm(inner),
        "residual": missing / jnp.where(size > 0, size, 1),
    }
    return Estimate(value, jax.tree.map(jnp.subtract, direct, mixed), aux)


class Alternation(NamedTuple):
    """What `tune_implicit` returns.

    Attributes:
        params: the last θ.
        psi: the last ψ.
        losses: training losses before each step of θ, f[steps, inner_steps].
        objectives: the objective before each step of ψ, f[steps].
        aux: that of `implicit_gradient`, an array a step.
    """

    params: Params
    psi: PyTree
    losses: Float[Array, "steps inner_steps"]
    objectives: Float[Array, " steps"]
    aux: dict[str, Float[Array, " steps"]]

    def __repr__(self) -> str:
        return one_line(self)


def tune_implicit(
    task: LearnedTask,
    *,
    key: Key,
    steps: int,
    inner_steps: int = 10,
    optimizer: Transformation | None = None,
    meta_optimizer: Transformation | None = None,
    solver: Solver | None = None,
    params: Params | None = None,
    psi: PyTree | None = None,
) -> Alternation:
    r"""Tunes metaparameters while the network trains: steps of θ and steps of ψ in turns.

    $$\theta \leftarrow \theta + \text{optimizer}(\nabla_\theta L_T(\theta, \psi)), \quad
      \psi \leftarrow \psi + \text{meta-optimizer}(dL_V / d\psi)$$

    The second is `implicit_gradient` at the θ of the moment: start from weights that are trained,
    or take many inner steps. All runs as one jitted loop.

    Args:
        task: its loss is $L_T$, its objective $L_V$, as `tasks.learned_l2` makes it of a task with
            an objective on other data. One problem is drawn.
        key: draws the problem, the first ψ and θ, and the minibatches.
        steps: steps of ψ.
        inner_steps: steps of θ before each of them.
        optimizer: of θ; default `optax.adam(1e-3)`.
        meta_optimizer: of ψ; default `optax.adam(1e-2)`.
        solver: as in `implicit_gradient`.
        params: the first θ; default: drawn by the task.
        psi: the first ψ; default: drawn by `task.init`.

    Returns:
        An `Alternation`.

    Raises:
        ValueError: for less than one step, or no key.

    Reference:
        Lorraine, Vicol and Duvenaud (2020), algorithm 1.

    >>> import l2ljax as l2l
    >>> ridge = LearnedTask(lambda key: jnp.zeros(()), lambda psi: l2l.Task(
    ...     lambda key: (), lambda key, problem: jnp.zeros(()),
    ...     loss=lambda w, problem, key: (w - 2) ** 2 + jnp.exp(psi) * w**2,
    ...     objective=lambda w, problem, key: (w - 0.5) ** 2))
    >>> found = tune_implicit(ridge, key=jax.random.key(0), steps=100,
    ...                       optimizer=optax.sgd(0.1), meta_optimizer=optax.sgd(1.0))
    >>> print(f"{jnp.exp(found.psi):.3f} {found.params:.3f}")
    3.000 0.500
    """
    _checks.key("key", key)
    _checks.count("steps", steps)
    _checks.count("inner_steps", inner_steps)
    return _alternate(
        task,
        key,
        as_pytree(optax.adam(1e-3) if optimizer is None else optimizer, "optimizer"),
        as_pytree(optax.adam(1e-2) if meta_optimizer is None else meta_optimizer, "meta_optimizer"),
        as_partial(conjugate_gradients() if solver is None else solver),
        params,
        psi,
        steps=steps,
        inner_steps=inner_steps,
    )


@program("steps", "inner_steps")
def _alternate(
    task: LearnedTask,
    key: Key,
    optimizer: optax.GradientTransformation,
    meta_optimizer: optax.GradientTransformation,
    solver: Solver,
    params: Params | None,
    psi: PyTree | None,
    *,
    steps: int,
    inner_steps: int,
) -> Alternation:
    psi_key, problem_key, init_key, loss_key = jax.random.split(key, 4)
    psi = task.init(psi_key) if psi is None else psi
    problem: Problem = task.bind(psi).sample(problem_key)
    params = task.bind(psi).init(init_key, problem) if params is None else params

    def outer(carry: tuple, i: Array) -> tuple[tuple, tuple]:
        params, psi, state, meta_state = carry

        def inner(carry: tuple, t: Array) -> tuple[tuple, Scalar]:
            params, state = carry
            key = jax.random.fold_in(loss_key, i * (inner_steps + 1) + t)
            value, gradient = jax.value_and_grad(task.bind(psi).loss)(params, problem, key)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), losses = jax.lax.scan(inner, (params, state), jnp.arange(inner_steps))
        key = jax.random.fold_in(loss_key, i * (inner_steps + 1) + inner_steps)
        estimate = implicit_gradient(
            lambda params, psi: task.bind(psi).loss(params, problem, key),
            lambda params, psi: task.bind(psi).objective(params, problem, key),
            params,
            psi,
            solver=solver,
        )
        updates, meta_state = meta_optimizer.update(estimate.grad, meta_state, psi)
        psi = optax.apply_updates(psi, updates)
        return (params, psi, state, meta_state), (losses, estimate.loss, estimate.aux)

    carry = (params, psi, optimizer.init(params), meta_optimizer.init(psi))
    (params, psi, _, _), histories = jax.lax.scan(outer, carry, jnp.arange(steps))
    return Alternation(params, psi, *histories)
