"""Four classic test functions of global optimization, with their known minima."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._shown import one_line
from l2ljax.core import Key, Problem, Scalar, Task, closure


def branin(x: Float[Array, "2"]) -> Scalar:
    r"""Branin's function of two variables, with three minima of equal height.

    $$f(x) = \Big(x_2 - \frac{5.1}{4\pi^2} x_1^2 + \frac5\pi x_1 - 6\Big)^2
    + 10 \Big(1 - \frac{1}{8\pi}\Big) \cos x_1 + 10$$

    >>> print(f"{branin(jnp.array([math.pi, 2.275])):.4f}")
    0.3979
    """
    parabola = x[1] - 5.1 / (4 * math.pi**2) * x[0] ** 2 + 5 / math.pi * x[0] - 6
    return parabola**2 + 10 * (1 - 1 / (8 * math.pi)) * jnp.cos(x[0]) + 10


def goldstein_price(x: Float[Array, "2"]) -> Scalar:
    r"""Goldstein and Price's function of two variables, from 3 to a million.

    $$f(x) = [1 + (a + b + 1)^2 (19 - 14a + 3a^2 - 14b + 6ab + 3b^2)]
    [30 + (2a - 3b)^2 (18 - 32a + 12a^2 + 48b - 36ab + 27b^2)]$$

    >>> print(goldstein_price(jnp.array([0.0, -1.0])))
    3.0
    """
    a, b = x
    first = 19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2
    second = 18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2
    return (1 + (a + b + 1) ** 2 * first) * (30 + (2 * a - 3 * b) ** 2 * second)


_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_HARTMANN_3 = (
    ((3, 10, 30), (0.1, 10, 35), (3, 10, 30), (0.1, 10, 35)),
    ((3689, 1170, 2673), (4699, 4387, 7470), (1091, 8732, 5547), (381, 5743, 8828)),
)
_HARTMANN_6 = (
    (
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    ),
    (
        (1312, 1696, 5569, 124, 8283, 5886),
        (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650),
        (4047, 8828, 8732, 5743, 1091, 381),
    ),
)


def hartmann3(x: Float[Array, "3"]) -> Scalar:
    r"""Hartmann's function of three variables, with four minima.

    $$f(x) = -\sum_{i=1}^4 c_i \exp\Big(-\sum_j A_{ij} (x_j - P_{ij})^2\Big)$$

    >>> print(f"{hartmann3(jnp.array([0.1146, 0.5556, 0.8525])):.4f}")
    -3.8628
    """
    return _hartmann(x, *_HARTMANN_3)


def hartmann6(x: Float[Array, "6"]) -> Scalar:
    """Hartmann's function of six variables, with six minima; the formula of `hartmann3`.

    >>> print(f"{hartmann6(jnp.array([0.2017, 0.15, 0.4769, 0.2753, 0.3117, 0.6573])):.4f}")
    -3.3224
    """
    return _hartmann(x, *_HARTMANN_6)


def _hartmann(x: Array, narrowness: tuple, places: tuple) -> Scalar:
    a, p = jnp.asarray(narrowness, x.dtype), jnp.asarray(places, x.dtype) / 10_000
    return -jnp.asarray(_HEIGHTS, x.dtype) @ jnp.exp(-jnp.sum(a * (x[None] - p) ** 2, axis=1))


@dataclasses.dataclass(frozen=True)
class BoxFunction:
    """A function on a box, with its known minimum.

    Attributes:
        function: from f[dim] to a scalar; defined outside of the box too.
        bounds: the lower and the upper bound of each variable.
        minimum: the lowest value in the box.
        minimizers: the points that have it.
    """

    function: Callable[[Array], Scalar]
    bounds: tuple[tuple[float, float], ...]
    minimum: float
    minimizers: tuple[tuple[float, ...], ...]

    __repr__ = one_line


DIXON_SZEGO: dict[str, BoxFunction] = {
    "branin": BoxFunction(
        branin,
        ((-5.0, 10.0), (0.0, 15.0)),
        5 / (4 * math.pi),
        ((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)),
    ),
    "goldstein-price": BoxFunction(goldstein_price, ((-2.0, 2.0),) * 2, 3.0, ((0.0, -1.0),)),
    "hartmann3": BoxFunction(
        hartmann3, ((0.0, 1.0),) * 3, -3.86278, ((0.114614, 0.555649, 0.852547),)
    ),
    "hartmann6": BoxFunction(
        hartmann6,
        ((0.0, 1.0),) * 6,
        -3.32237,
        ((0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),),
    ),
}
"""Test functions of Dixon and Szegő's collection, by name."""


def dixon_szego(name: str, vary: bool = False) -> Task:
    r"""A test function of global optimization on the box $[-1, 1]^d$.

    $$f(\theta) = g\Big(l + \frac{u - l}{2} (x + 1)\Big), \qquad
    x_j = c\, s_j\, \theta_{\pi(j)} + t_j$$

    with g on its own box $[l, u]$. A problem is a place where g lies: by default always the same,
    $x = \theta$. With `vary`, c is drawn from U[0.9, 1.1], s from ±1, t from U[-0.1, 0.1] and π
    from all orders; a minimizer of g stays inside. The loss is deterministic.

    Args:
        name: "branin", "goldstein-price", "hartmann3" or "hartmann6"; `DIXON_SZEGO` has their
            minima.
        vary: whether problems differ.

    Returns:
        A task; `problem` is `{"scale": f32[], "sign": f32[d], "shift": f32[d], "order": i32[d]}`,
        `params` is `f32[d]`. θ₀ = 0, the centre of the box.

    Raises:
        ValueError: for an unknown name.

    Reference:
        Dixon and Szegő (1978), 'The global optimization problem: an introduction'; `vary`: Chen et
        al. (2017), 'Learning to learn without gradient descent by gradient descent'.

    >>> task = dixon_szego("goldstein-price")
    >>> key = jax.random.key(0)
    >>> print(task.loss(jnp.array([0.0, -0.5]), task.sample(key), key))
    3.0
    """
    _checks.choice("name", name, DIXON_SZEGO)
    dim = len(DIXON_SZEGO[name].bounds)
    return Task(
        sample=closure(_sample, dim=dim, vary=bool(vary)),
        init=closure(_init, dim=dim),
        loss=closure(_loss, name=name),
    )


def _sample(key: Key, *, dim: int, vary: bool) -> Problem:
    if not vary:
        return {
            "scale": jnp.ones(()),
            "sign": jnp.ones(dim),
            "shift": jnp.zeros(dim),
            "order": jnp.arange(dim),
        }
    scale, sign, shift, order = jax.random.split(key, 4)
    return {
        "scale": jax.random.uniform(scale, (), minval=0.9, maxval=1.1),
        "sign": jax.random.rademacher(sign, (dim,), jnp.zeros(()).dtype),
        "shift": jax.random.uniform(shift, (dim,), minval=-0.1, maxval=0.1),
        "order": jax.random.permutation(order, dim),
    }


def _init(key: Key, problem: Problem, *, dim: int) -> Float[Array, " dim"]:
    del key, problem
    return jnp.zeros(dim)


def _loss(params: Float[Array, " dim"], problem: Problem, key: Key, *, name: str) -> Scalar:
    del key
    place = problem["scale"] * problem["sign"] * params[problem["order"]] + problem["shift"]
    low, high = np.array(DIXON_SZEGO[name].bounds).T
    width = jnp.asarray((high - low) / 2, params.dtype)
    return DIXON_SZEGO[name].function(jnp.asarray(low, params.dtype) + width * (place + 1))
