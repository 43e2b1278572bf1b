"""Matrices with equal singular values: the direction that steepest descent takes in their norm."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Of the odd polynomials that map singular values towards one, one after the other."""


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a leaf has at least two axes, and two rows and two columns."""
    return len(shape) > 1 and min(math.prod(shape[:-1]), shape[-1]) > 1


def orthogonalize(leaves: Sequence[Array], *, block: int) -> list[Array]:
    r"""The nearest matrix of equal singular values, for each leaf: $U V^\top$ of $U \Sigma V^\top$.

    Of a leaf with more axes than two the last is the columns and the others are the rows. The
    factor $\sqrt n$ for a long side n makes the root mean square of a matrix of full rank one.

    Newton and Schulz's iteration does it with products of matrices alone,

    $$X \leftarrow a X + (b X X^\top + c (X X^\top)^2) X,$$

    whose coefficients change from step to step. A short side of more than `block` is cut into even
    parts, and each is a matrix of its own: then the cost for a coordinate does not grow.

    Args:
        leaves: arrays for which `is_matrix` holds, of one floating-point dtype.
        block: the most rows of a part.

    Returns:
        Arrays of the same shapes. A row or a column of zeros stays zero, and so does a whole leaf.

    Reference:
        Bernstein and Newhouse (2024), 'Old optimizer, new norm'; Jordan et al. (2024), 'Muon';
        Amsel et al. (2025), 'The Polar Express', for the coefficients.

    >>> found, = orthogonalize([jnp.array([[3.0, 1.0], [1.0, 2.0]])], block=128)
    >>> print(jnp.round(found, 1) + 0.0)
    [[1.4 0. ]
     [0.  1.4]]
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    flat = []
    for place, leaf in enumerate(leaves):
        matrix = leaf.reshape(-1, leaf.shape[-1])
        matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        alike.setdefault(matrix.shape, []).append(place)
        flat.append(matrix)
    found = list(flat)
    # Matrices of one shape share the iteration.
    for places in alike.values():
        for place, matrix in zip(
            places, _iterated(jnp.stack([flat[i] for i in places]), block), strict=True
        ):
            leaf = leaves[place]
            turned = math.prod(leaf.shape[:-1]) > leaf.shape[-1]
            found[place] = (matrix.T if turned else matrix).reshape(leaf.shape)
    return found


def _iterated(
    x: Float[Array, "matrices short long"], block: int
) -> Float[Array, "matrices short long"]:
    count, short, long = x.shape
    parts = -(-short // block)
    rows = -(-short // parts)
    # Rows of zeros stay zero and change nothing.
    x = jnp.pad(x, ((0, 0), (0, parts * rows - short), (0, 0))).reshape(count * parts, rows, long)
    x = x * jax.lax.rsqrt(jnp.sum(x**2, axis=(1, 2), keepdims=True) + 1e-20)
    for a, b, c in COEFFICIENTS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return math.sqrt(long) * x.reshape(count, parts * rows, long)[:, :short]
