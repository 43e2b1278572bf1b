"""Random quadratic functions, the first experiment of Andrychowicz et al. (2016)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Problem, Scalar, Task, closure

_DISTRIBUTIONS = {"normal": jax.random.normal, "uniform": jax.random.uniform}


def quadratic(dim: int = 10, distribution: str = "normal", init_std: float = 1.0) -> Task:
    r"""Sums of squares of random linear functions.

    $$f(\theta) = \lVert W \theta - y \rVert^2$$

    The loss is deterministic: its key is unused.

    Args:
        dim: number of coordinates of θ.
        distribution: of the entries of W and y: "normal" is N(0, 1), "uniform" is U[0, 1).
        init_std: standard deviation of θ₀ ~ N(0, init_std² I).

    Returns:
        A task; `problem` is `{"W": f32[dim, dim], "y": f32[dim]}`, `params` is `f32[dim]`.

    Raises:
        ValueError: for a `dim` below one, an unknown distribution or a negative `init_std`.

    Reference:
        Andrychowicz et al., 'Learning to learn by gradient descent by gradient descent', 2016,
        section 3.1. The authors' code draws otherwise:
        `quadratic(distribution="uniform", init_std=0.01)`.

    >>> task = quadratic(dim=2)
    >>> problem = {"W": jnp.eye(2), "y": jnp.array([3.0, 4.0])}
    >>> loss, gradient = jax.value_and_grad(task.loss)(jnp.zeros(2), problem, jax.random.key(0))
    >>> print(loss, gradient)
    25.0 [-6. -8.]
    """
    _checks.count("dim", dim)
    _checks.choice("distribution", distribution, _DISTRIBUTIONS)
    _checks.non_negative("init_std", init_std)
    return Task(
        sample=closure(_sample, dim=dim, distribution=distribution),
        init=closure(_init, dim=dim, init_std=float(init_std)),
        loss=closure(_loss),
    )


def _sample(key: Key, *, dim: int, distribution: str) -> Problem:
    draw = _DISTRIBUTIONS[distribution]
    key_w, key_y = jax.random.split(key)
    return {"W": draw(key_w, (dim, dim)), "y": draw(key_y, (dim,))}


def _init(key: Key, problem: Problem, *, dim: int, init_std: float) -> Float[Array, " dim"]:
    del problem
    return init_std * jax.random.normal(key, (dim,))


def _loss(params: Float[Array, " dim"], problem: Problem, key: Key) -> Scalar:
    del key
    # Accelerators round the factors of a product by default, to 8 or 11 bits: a loss near zero
    # would be noise.
    outputs = jnp.matmul(problem["W"], params, precision="highest")
    return jnp.sum((outputs - problem["y"]) ** 2)
