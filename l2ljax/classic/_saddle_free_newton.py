"""Saddle-free Newton: Newton's step with curvatures that count by their size (Dauphin, 2014)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.classic._common import Hyperparameter, LearningRate, Updates
from l2ljax.classic._line_search import LineSearch, descend
from l2ljax.classic._newton import require_damping, scale_by_curvature, solve_densely
from l2ljax.classic._spectral import spectral_solve
from l2ljax.classic._vectors import flatten, inner, norm, product, safe_divide, working_dtype
from l2ljax.core import Params


def saddle_free_newton(
    learning_rate: LearningRate = 1.0,
    damping: Hyperparameter = 1e-3,
    solver: Literal["exact", "lanczos"] = "exact",
    lanczos_iterations: int = 20,
    line_search: LineSearch = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Saddle-free Newton: Newton's step with curvatures that count by their size.

    $$w_t = w_{t-1} - \alpha_t \eta_t d_t, \qquad (|H_t| + \mu I) \, d_t = g_t, \qquad
      |H| = Q |\Lambda| Q^\top$$

    where $H_t = Q \Lambda Q^\top$ is the Hessian of `value_fn` at $w_{t-1}$, and $\alpha_t$ is 1,
    or what a line search finds. Along negative curvature Newton's step leads up to the saddle, this
    one down and away from it.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0. Default 1.
        damping: $\mu \ge 0$, a scalar, in units of curvature. Default 1e-3.
        solver: `"exact"`, the default, computes the Hessian, [D, D], and its eigenvalues;
            where $|\lambda| + \mu$ is zero relative to the largest, there is no step. `"lanczos"`
            restricts the Hessian to the Krylov space of $g_t$, by products with it only.
        lanczos_iterations: the dimension of that space, one product each; memory is that many
            gradients. Default 20.
        line_search: as in `bfgs`. Default None.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Its update needs
        params, `value_fn` and, with a line search, `value` and `grad`. It can be differentiated,
        through the Hessian too, with finite derivatives where eigenvalues repeat.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; `solver` or `line_search`
            is none of those; a leaf of the params is not real floating-point; an update lacks what
            it needs.

    Reference:
        Dauphin et al., *Identifying and attacking the saddle point problem in high-dimensional
        non-convex optimization*, 2014, algorithm 1.

    It leaves the saddle of x² − y², which Newton's method would step upon:

    >>> def saddle(w):
    ...     return w[0] ** 2 - w[1] ** 2
    >>> tx, w = saddle_free_newton(damping=0.0), jnp.array([1.0, 0.1])
    >>> state = tx.init(w)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jax.grad(saddle)(w), state, w, value_fn=saddle)
    ...     w = optax.apply_updates(w, updates)
    ...     print(f"{jnp.abs(w[0]):.1f} {w[1]:.1f}")
    0.0 0.2
    0.0 0.4
    0.0 0.8
    """
    direction = scale_by_saddle_free_newton(damping, solver, lanczos_iterations)
    return descend("saddle_free_newton", direction, learning_rate, line_search)


def scale_by_saddle_free_newton(
    damping: Hyperparameter = 1e-3,
    solver: Literal["exact", "lanczos"] = "exact",
    lanczos_iterations: int = 20,
) -> optax.GradientTransformationExtraArgs:
    r"""The direction $d_t$ of `saddle_free_newton`, to be chained with a rate or a line search.

    Args:
        damping: as in `saddle_free_newton`.
        solver: as in `saddle_free_newton`.
        lanczos_iterations: as in `saddle_free_newton`.

    Returns:
        A transformation from gradients, or what stands for them, to directions; it does not change
        their sign. Its update needs params and `value_fn`.

    Raises:
        ValueError: as in `saddle_free_newton`.

    >>> def saddle(w):
    ...     return w[0] ** 2 - w[1] ** 2
    >>> w = jnp.array([1.0, 0.1])
    >>> for damping in (0.0, 2.0):
    ...     tx = scale_by_saddle_free_newton(damping)
    ...     direction, _ = tx.update(jax.grad(saddle)(w), tx.init(w), w, value_fn=saddle)
    ...     print(f"{direction[0]:.2f} {direction[1]:.2f}")
    1.00 -0.10
    0.50 -0.05
    """
    require_damping(damping)
    _checks.choice("solver", solver, ("exact", "lanczos"))
    _checks.count("lanczos_iterations", lanczos_iterations)

    def exact(function: Callable[[Params], Array], at: Params, g: Updates, mu: Array) -> Updates:
        return solve_densely(function, at, g, mu, absolute=True)

    def lanczos(function: Callable[[Params], Array], at: Params, g: Updates, mu: Array) -> Updates:
        dtype = working_dtype(at)
        (w, unflatten), (b, back) = flatten(at, dtype), flatten(g, dtype)
        gradient = jax.grad(lambda w: function(unflatten(w)))
        basis, tridiagonal = _lanczos(
            lambda v: jax.jvp(gradient, (w,), (v,))[1], b, min(lanczos_iterations, b.size)
        )
        first = jnp.zeros(basis.shape[0], dtype).at[0].set(norm(b))
        return back(product(basis.T, spectral_solve(tridiagonal, first, mu, True)))

    solve = {"exact": exact, "lanczos": lanczos}[solver]
    return scale_by_curvature("saddle_free_newton", solve, damping)


def _lanczos(
    matvec: Callable[[Array], Array], g: Float[Array, " D"], iterations: int
) -> tuple[Float[Array, "k D"], Float[Array, "k k"]]:
    """An orthonormal basis of the Krylov space of `g`, and the operator in that basis, tridiagonal.

    Where the space has fewer dimensions than asked for, the rest of the basis is zero.
    """
    eps = jnp.finfo(g.dtype).eps

    def normalize(v: Array, least: Array) -> tuple[Array, Array]:
        length = norm(v)
        kept = length > least
        return safe_divide(v, length, kept), jnp.where(kept, length, 0)

    def iterate(
        carry: tuple[Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, v, largest = carry
        basis = basis.at[i].set(v)
        hv = matvec(v)
        alpha = inner(v, hv)
        # Against all earlier vectors, and twice: rounding undoes the orthogonality otherwise.
        for _ in range(2):
            hv = hv - product(basis.T, product(basis, hv))
        largest = jnp.maximum(largest, jnp.abs(alpha) + norm(hv))
        v, beta = normalize(hv, g.size * eps * jax.lax.stop_gradient(largest))
        return (basis, v, largest), (alpha, beta)

    first, _ = normalize(g, jnp.zeros((), g.dtype))
    start = (jnp.zeros((iterations, g.size), g.dtype), first, jnp.zeros((), g.dtype))
    (basis, _, _), (alpha, beta) = jax.lax.scan(iterate, start, jnp.arange(iterations))
    off = jnp.diag(beta[:-1], 1)
    return basis, jnp.diag(alpha) + off + off.T
