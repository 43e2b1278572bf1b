"""Functions drawn from a Gaussian process, what black-box optimizers are trained on."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Problem, Scalar, Task, closure


def gp_samples(
    dim: int = 2,
    length_scale: float | Sequence[float] | None = None,
    features: int = 256,
    minimum: bool = False,
) -> Task:
    r"""Functions on the box $[-1, 1]^d$ from a Gaussian process with mean zero and variance one.

    $$f(\theta) = \sqrt{\frac{2}{m}} \sum_{i=1}^m a_i \cos(\omega_i^\top \theta + b_i), \qquad
    a_i \sim N(0, 1), \quad b_i \sim U[0, 2\pi]$$

    by m random Fourier features: with $\omega_{ij} \sim N(0, 1/l_j^2)$ the covariance of $f(x)$
    and $f(x')$ is the RBF kernel, $\exp(-\frac12 \sum_j (x_j - x'_j)^2 / l_j^2)$. The loss is
    deterministic.

    Args:
        dim: number of variables d.
        length_scale: l, a number, or the ends of an interval from which each $l_j$ of each
            function is drawn, log-uniformly; default: from $\sqrt d/4$ to $\sqrt d$.
        features: m; of a finite number, any one function is a little less than Gaussian.
        minimum: whether a problem has its function's minimum in the box, as the lowest value that
            gradient descent reaches from the best 16 of 1,024 random points.

    Returns:
        A task; `problem` is `{"frequencies": f32[m, d], "phases": f32[m], "weights": f32[m],
        "length_scale": f32[d]}`, and with `minimum` also `"minimum": f32[]`; `params` is `f32[d]`.
        θ₀ = 0, the centre of the box.

    Raises:
        ValueError: for a size below one, length scales that are not positive, or more than two of
            them.

    Reference:
        Rahimi and Recht (2007), 'Random features for large-scale kernel machines', section 3.

    >>> task = gp_samples(dim=2)
    >>> key = jax.random.key(0)
    >>> value, slope = jax.value_and_grad(task.loss)(jnp.zeros(2), task.sample(key), key)
    >>> bool(abs(value) < 4), slope.shape
    (True, (2,))
    """
    _checks.count("dim", dim)
    _checks.count("features", features)
    if length_scale is None:
        length_scale = (math.sqrt(dim) / 4, math.sqrt(dim))
    _checks.positive("length_scale", length_scale)
    ends = (length_scale,) * 2 if isinstance(length_scale, int | float) else tuple(length_scale)
    if len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(
            f"length_scale must be a number or the two ends of an interval, got {length_scale!r}"
        )
    return Task(
        sample=closure(
            _sample,
            dim=int(dim),
            ends=(float(ends[0]), float(ends[1])),
            features=int(features),
            minimum=bool(minimum),
        ),
        init=closure(_init, dim=int(dim)),
        loss=closure(_loss),
    )


def _sample(
    key: Key, *, dim: int, ends: tuple[float, float], features: int, minimum: bool
) -> Problem:
    scales, frequencies, phases, weights = jax.random.split(key, 4)
    low, high = map(math.log, ends)
    length_scale = jnp.exp(jax.random.uniform(scales, (dim,), minval=low, maxval=high))
    problem = {
        "frequencies": jax.random.normal(frequencies, (features, dim)) / length_scale[None],
        "phases": jax.random.uniform(phases, (features,), maxval=2 * math.pi),
        "weights": jax.random.normal(weights, (features,)),
        "length_scale": length_scale,
    }
    if minimum:
        problem["minimum"] = _lowest(problem, jax.random.fold_in(key, 1))
    return problem


def _lowest(problem: Problem, key: Key) -> Scalar:
    """The lowest value that is found in the box."""

    def value(x: Array) -> Scalar:
        return _loss(x, problem, key)

    points = jax.random.uniform(key, (1024, problem["length_scale"].size), minval=-1, maxval=1)
    _, best = jax.lax.top_k(-jax.vmap(value)(points), 16)
    # In units of the length scales curvatures are a few at most, at any minimum.
    rate = 0.2 * problem["length_scale"] ** 2

    def step(points: Array, _: None) -> tuple[Array, None]:
        return jnp.clip(points - rate[None] * jax.vmap(jax.grad(value))(points), -1, 1), None

    points, _ = jax.lax.scan(step, points[best], length=100)
    return jax.vmap(value)(points).min()


def _init(key: Key, problem: Problem, *, dim: int) -> Float[Array, " dim"]:
    del key, problem
    return jnp.zeros(dim)


def _loss(params: Float[Array, " dim"], problem: Problem, key: Key) -> Scalar:
    del key
    # Accelerators round the factors of a product by default, to 8 or 11 bits.
    angles = jnp.matmul(problem["frequencies"], params, precision="highest") + problem["phases"]
    waves = jnp.cos(angles)
    return math.sqrt(2 / waves.size) * jnp.matmul(problem["weights"], waves, precision="highest")
