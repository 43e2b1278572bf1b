r"""Solving with a symmetric matrix through its eigenvalues: safe where it is singular."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax.classic._vectors import product, safe_divide


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def spectral_solve(
    matrix: Float[Array, "D D"], g: Float[Array, " D"], damping: Float[Array, ""], absolute: bool
) -> Float[Array, " D"]:
    r"""$f(H)\,g$ with $f(\lambda) = 1 / (\lambda + \mu)$, or $1 / (|\lambda| + \mu)$.

    $f = 0$ where the denominator is zero relative to the largest one: the pseudo-inverse.

    The derivative is that of Daleckii and Krein. With $H = Q \Lambda Q^\top$,

    $$d f(H) = Q \, (L \circ Q^\top dH \, Q) \, Q^\top, \qquad
      L_{ij} = \frac{f(\lambda_i) - f(\lambda_j)}{\lambda_i - \lambda_j}, \quad
      L_{ii} = f'(\lambda_i)$$

    The derivatives of the eigenvectors themselves are infinite where eigenvalues repeat.

    Args:
        matrix: $H$, symmetric.
        g: the right-hand side.
        damping: $\mu$.
        absolute: whether $|\lambda|$ takes the place of $\lambda$.

    Returns:
        The solution.

    Reference:
        Higham, *Functions of matrices*, 2008, theorem 3.11.
    """
    _, basis, _, f = _inverse(matrix, damping, absolute)
    return product(basis, f * product(basis.T, g))


@spectral_solve.defjvp
def _spectral_solve_jvp(
    absolute: bool, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    matrix, g, damping = primals
    d_matrix, d_g, d_damping = tangents
    eigenvalues, basis, sign, f = _inverse(matrix, damping, absolute)
    coordinates = product(basis.T, g)
    solution = product(basis, f * coordinates)

    # Divided differences without a difference that cancels: f_i - f_j is written out. Those of
    # |λ| are signs, or of eigenvalues with different signs a quotient without cancellation.
    size = jnp.abs(eigenvalues)
    same = sign[:, None] == sign
    slope = sign[:, None] * jnp.where(
        same, 1, safe_divide(size[:, None] - size, size[:, None] + size, ~same)
    )
    # With a direction that gets no step, where f = 0 and λ + μ = 0.
    edge = (sign * f**2)[:, None] * (f == 0)
    differences = edge + edge.T - slope * f[:, None] * f
    d_spectrum = product(product(basis.T, d_matrix), basis)
    d_coordinates = (
        f * product(basis.T, d_g)
        - d_damping * f**2 * coordinates
        + product(differences * d_spectrum, coordinates)
    )
    return solution, product(basis, d_coordinates)


def _inverse(matrix: Array, damping: Array, absolute: bool) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues, eigenvectors, the signs that make them |λ|, and f of them."""
    eigenvalues, basis = jnp.linalg.eigh(matrix)
    sign = jnp.where(absolute & (eigenvalues < 0), -1, 1).astype(matrix.dtype)
    curvature = sign * eigenvalues + damping
    size = jnp.abs(curvature)
    least = matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(size, initial=0)
    return eigenvalues, basis, sign, safe_divide(jnp.ones_like(size), curvature, size > least)
