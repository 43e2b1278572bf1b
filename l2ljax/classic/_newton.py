"""Newton's method: the step to the stationary point of the second-order expansion."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from l2ljax import _checks
from l2ljax._programs import in_one_program
from l2ljax.classic._common import (
    Hyperparameter,
    LearningRate,
    Updates,
    require_params,
    require_scalars,
)
from l2ljax.classic._line_search import (
    LineSearch,
    descend,
    require_extra,
    widen_function,
)
from l2ljax.classic._spectral import spectral_solve
from l2ljax.classic._vectors import add_scaled, flatten, inner, norm, widen, working_dtype
from l2ljax.core import Params


def newton(
    learning_rate: LearningRate = 1.0,
    damping: Hyperparameter = 0.0,
    solver: Literal["exact", "cg"] = "exact",
    cg_iterations: int = 100,
    cg_tolerance: Hyperparameter = 1e-5,
    line_search: LineSearch = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Newton's method: the step to the stationary point of the second-order expansion.

    $$w_t = w_{t-1} - \alpha_t \eta_t d_t, \qquad (H_t + \mu I) \, d_t = g_t, \qquad
      H_t = \nabla^2 f(w_{t-1})$$

    where $f$ is `value_fn` and $\alpha_t$ is 1, or what a line search finds. Where $H_t + \mu I$ is
    not positive definite, the step may lead up: it is attracted by saddles as by minima. A line
    search then follows the gradient instead.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0. Default 1.
        damping: $\mu \ge 0$, a scalar, in units of curvature. Default 0.
        solver: `"exact"`, the default, computes the Hessian, [D, D], and its eigenvalues;
            directions without curvature, relative to the largest, get no step. `"cg"` computes
            products with the Hessian only, one an iteration of conjugate gradients. They end at
            a direction of no positive curvature, with what they have got, at first $g_t$.
        cg_iterations: the most iterations. Default 100.
        cg_tolerance: a number above 0, a scalar: the residual over $\|g_t\|$ at which they end.
            Default 1e-5.
        line_search: as in `bfgs`. Default None.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Its update needs
        params, `value_fn` and, with a line search, `value` and `grad`. It can be differentiated,
        through the Hessian too, with finite derivatives where eigenvalues repeat; with `"cg"`
        derivatives are those of the exact solution, and are solved for in the same way.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; `solver` or `line_search`
            is none of those; a leaf of the params is not real floating-point; an update lacks what
            it needs.

    Reference:
        Nocedal and Wright, *Numerical optimization*, 2006, section 3.3; `"cg"`: algorithm 7.1.

    The error is squared in every step:

    >>> def f(w):
    ...     return jnp.sum(jnp.exp(w) - w)
    >>> tx, w = newton(), jnp.array([1.0, -0.5])
    >>> state = tx.init(w)
    >>> for _ in range(4):
    ...     updates, state = tx.update(jax.grad(f)(w), state, w, value_fn=f)
    ...     w = optax.apply_updates(w, updates)
    ...     print(f"{jnp.abs(w).max():.0e}", end=" ")
    4e-01 6e-02 2e-03 2e-06
    """
    direction = scale_by_newton(damping, solver, cg_iterations, cg_tolerance)
    return descend("newton", direction, learning_rate, line_search)


def scale_by_newton(
    damping: Hyperparameter = 0.0,
    solver: Literal["exact", "cg"] = "exact",
    cg_iterations: int = 100,
    cg_tolerance: Hyperparameter = 1e-5,
) -> optax.GradientTransformationExtraArgs:
    r"""The direction $d_t$ of `newton`, to be chained with a rate or a line search.

    Args:
        damping: as in `newton`.
        solver: as in `newton`.
        cg_iterations: as in `newton`.
        cg_tolerance: as in `newton`.

    Returns:
        A transformation from gradients, or what stands for them, to directions; it does not change
        their sign. Its update needs params and `value_fn`.

    Raises:
        ValueError: as in `newton`.

    >>> def f(w):
    ...     return (w[0] ** 2 + 10 * w[1] ** 2) / 2
    >>> w = jnp.array([1.0, 1.0])
    >>> for damping in (0.0, 1.0):
    ...     tx = scale_by_newton(damping)
    ...     direction, _ = tx.update(jax.grad(f)(w), tx.init(w), w, value_fn=f)
    ...     print(f"{direction[0]:.4f} {direction[1]:.4f}")
    1.0000 1.0000
    0.5000 0.9091
    """
    require_damping(damping)
    _checks.choice("solver", solver, ("exact", "cg"))
    _checks.count("cg_iterations", cg_iterations)
    _checks.positive("cg_tolerance", cg_tolerance)
    require_scalars(cg_tolerance=cg_tolerance)

    def exact(function: Callable[[Params], Array], at: Params, g: Updates, mu: Array) -> Updates:
        return solve_densely(function, at, g, mu, absolute=False)

    def cg(function: Callable[[Params], Array], at: Params, g: Updates, mu: Array) -> Updates:
        def matvec(v: PyTree) -> PyTree:
            _, hv = jax.jvp(jax.grad(function), (at,), (v,))
            return add_scaled(hv, mu, v)

        def solve(matvec: Callable[[PyTree], PyTree], g: PyTree) -> PyTree:
            return _conjugate_gradients(matvec, g, cg_iterations, cg_tolerance)

        return jax.lax.custom_linear_solve(matvec, g, solve, symmetric=True)

    return scale_by_curvature("newton", {"exact": exact, "cg": cg}[solver], damping)


def require_damping(damping: Hyperparameter) -> None:
    """Refuses a damping that is negative, not finite or not a scalar."""
    _checks.non_negative("damping", damping)
    require_scalars(damping=damping)


def scale_by_curvature(
    method: str,
    solve: Callable[[Callable[[Params], Array], Params, Updates, Array], Updates],
    damping: Hyperparameter,
) -> optax.GradientTransformationExtraArgs:
    r"""The direction of a method that sees the Hessian of `value_fn`.

    Args:
        method: its name, for errors.
        solve: `solve(function, params, gradient, damping) -> direction`, all in the working dtype.
        damping: $\mu$.
    """

    def init(params: Params) -> optax.EmptyState:
        _checks.floating_leaves("params", params)
        return optax.EmptyState()

    def update(
        updates: Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Updates, optax.EmptyState]:
        _checks.state(state, optax.EmptyState)
        params = require_params(method, params)
        updates, params = _checks.gradients(updates, params, real=True)
        (value_fn,) = require_extra(method, extra, "value_fn")
        if optax.tree.size(params) == 0:
            return updates, state
        dtype = working_dtype(params)
        function = widen_function(value_fn, params, dtype, extra)
        at, g = widen((params, updates), dtype)
        try:
            d = solve(function, at, g, jnp.asarray(damping, dtype))
        except Exception as error:
            if not _masked(params):
                raise
            raise ValueError(
                "value_fn must be a function of the params that the update gets, got "
                f"{jax.tree.structure(params)}, of which it says: {error}; {method} cannot see a "
                "part of the params only, as optax.masked and optax.partition show it"
            ) from error
        return optax.tree.cast_like(d, updates), state

    return optax.GradientTransformationExtraArgs(init, in_one_program(update))


def _masked(params: Params) -> bool:
    """Whether optax has left out some of the params."""

    def left_out(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return any(map(left_out, jax.tree.leaves(params, is_leaf=left_out)))


def solve_densely(
    function: Callable[[Params], Array], at: Params, g: Updates, damping: Array, absolute: bool
) -> Updates:
    """Solves with the whole Hessian, or its absolute value, through its eigenvalues."""
    dtype = working_dtype(at)
    (w, unflatten), (b, back) = flatten(at, dtype), flatten(g, dtype)
    hessian = jax.hessian(lambda w: function(unflatten(w)))(w)
    return back(spectral_solve((hessian + hessian.T) / 2, b, damping, absolute))


def _conjugate_gradients(
    matvec: Callable[[PyTree], PyTree], b: PyTree, iterations: int, tolerance: Hyperparameter
) -> PyTree:
    """Conjugate gradients from 0 to the tolerance, or to a direction of no positive curvature.

    In the latter case the iterate so far is the result, and in the first iteration `b` itself
    (Nocedal and Wright, 2006, algorithm 7.1).
    """
    enough = jnp.asarray(tolerance, working_dtype(b)) * norm(b)
    eps = jnp.finfo(working_dtype(b)).eps

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, residual, _, k, bent = carry
        return (k < iterations) & (norm(residual) > enough) & ~bent

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        x, residual, p, k, _ = carry
        hp = matvec(p)
        curvature, square = inner(p, hp), inner(residual, residual)
        # Below rounding, a curvature is none.
        bent = curvature <= eps * norm(p) * norm(hp)
        alpha = square / jnp.where(bent, 1, curvature)
        new_residual = add_scaled(residual, -alpha, hp)
        beta = inner(new_residual, new_residual) / square
        x = jax.tree.map(lambda x, p: jnp.where(bent, jnp.where(k == 0, p, x), x + alpha * p), x, p)
        return x, new_residual, add_scaled(new_residual, beta, p), k + 1, bent

    start = (jax.tree.map(jnp.zeros_like, b), b, b, jnp.zeros((), jnp.int32), jnp.asarray(False))
    return jax.lax.while_loop(unfinished, iterate, start)[0]
