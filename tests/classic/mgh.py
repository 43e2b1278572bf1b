"""Problems of Moré, Garbow and Hillstrom, *Testing unconstrained optimization software*, 1981.

Each is a sum of squares with its standard start and the minimum that the paper gives; where the
paper gives several, any of them counts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """A function of a vector.

    Attributes:
        name: as in the paper.
        residuals: the f_i(x), whose squares are summed.
        start: x_0.
        minima: known local minima of the sum.
    """

    name: str
    residuals: Callable[[jax.Array], jax.Array]
    start: tuple[float, ...]
    minima: tuple[float, ...] = (0.0,)

    def value(self, x):
        return jnp.sum(self.residuals(x) ** 2)

    def __str__(self):
        return self.name


def _rosenbrock(x):
    return jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def _freudenstein_roth(x):
    a, b = x
    return jnp.array([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def _powell_badly_scaled(x):
    return jnp.array([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def _brown_badly_scaled(x):
    return jnp.array([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def _beale(x):
    return jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** jnp.arange(1, 4))


def _jennrich_sampson(x):
    i = jnp.arange(1, 11)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def _helical_valley(x):
    angle = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    return jnp.array([10 * (x[2] - 10 * angle), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


_BARD = np.array(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
)


def _bard(x):
    u = jnp.arange(1, 16)
    v = 16 - u
    return _BARD - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


_GAUSSIAN = np.array([9, 44, 175, 540, 1295, 2420, 3521, 3989])
_GAUSSIAN = np.concatenate([_GAUSSIAN, _GAUSSIAN[-2::-1]]) / 1e4


def _gaussian(x):
    t = (8 - jnp.arange(1, 16)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - _GAUSSIAN


def _gulf(x):
    t = jnp.arange(1, 100) / 100
    y = 25 + (-50 * jnp.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def _box(x):
    t = jnp.arange(1, 11) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def _powell_singular(x):
    a, b, c, d = x
    return jnp.array([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def _wood(x):
    a, b, c, d = x
    return jnp.array(
        [
            10 * (b - a**2),
            1 - a,
            90**0.5 * (d - c**2),
            1 - c,
            10**0.5 * (b + d - 2),
            10**-0.5 * (b - d),
        ]
    )


_KOWALIK = np.array(
    [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
)
_KOWALIK_U = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])


def _kowalik_osborne(x):
    u = _KOWALIK_U
    return _KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def _brown_dennis(x):
    t = jnp.arange(1, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def _biggs_exp6(x):
    t = jnp.arange(1, 14) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def _watson(x):
    t = jnp.arange(1, 30)[:, None] / 29
    j = jnp.arange(1, x.size + 1)
    slope = jnp.sum((j - 1) * x * t ** jnp.maximum(j - 2, 0), axis=1)
    sum_of_powers = jnp.sum(x * t ** (j - 1), axis=1)
    return jnp.append(slope - sum_of_powers**2 - 1, jnp.array([x[0], x[1] - x[0] ** 2 - 1]))


def _extended_rosenbrock(x):
    return jnp.append(10 * (x[1::2] - x[::2] ** 2), 1 - x[::2])


def _penalty_i(x):
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


def _variably_dimensioned(x):
    total = jnp.sum(jnp.arange(1, x.size + 1) * (x - 1))
    return jnp.concatenate([x - 1, jnp.array([total, total**2])])


def _trigonometric(x):
    n = x.size
    i = jnp.arange(1, n + 1)
    return n - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def _discrete_boundary_value(x):
    n = x.size
    h = 1 / (n + 1)
    t = jnp.arange(1, n + 1) * h
    wide = jnp.pad(x, 1)
    return 2 * x - wide[:-2] - wide[2:] + h**2 * (x + t + 1) ** 3 / 2


def _broyden_tridiagonal(x):
    wide = jnp.pad(x, 1)
    return (3 - 2 * x) * x - wide[:-2] - 2 * wide[2:] + 1


_BOUNDARY = np.arange(1, 11) / 11

PROBLEMS = [
    Problem("rosenbrock", _rosenbrock, (-1.2, 1.0)),
    Problem("freudenstein_roth", _freudenstein_roth, (0.5, -2.0), (0.0, 48.98425367924)),
    Problem("powell_badly_scaled", _powell_badly_scaled, (0.0, 1.0)),
    Problem("brown_badly_scaled", _brown_badly_scaled, (1.0, 1.0)),
    Problem("beale", _beale, (1.0, 1.0)),
    Problem("jennrich_sampson", _jennrich_sampson, (0.3, 0.4), (124.3621823556,)),
    Problem("helical_valley", _helical_valley, (-1.0, 0.0, 0.0)),
    Problem("bard", _bard, (1.0, 1.0, 1.0), (8.214877306579e-3, 17.42869333333)),
    Problem("gaussian", _gaussian, (0.4, 1.0, 0.0), (1.127932769619e-8,)),
    Problem("gulf", _gulf, (5.0, 2.5, 0.15)),
    Problem("box", _box, (0.0, 10.0, 20.0)),
    Problem("powell_singular", _powell_singular, (3.0, -1.0, 0.0, 1.0)),
    Problem("wood", _wood, (-3.0, -1.0, -3.0, -1.0)),
    Problem(
        "kowalik_osborne",
        _kowalik_osborne,
        (0.25, 0.39, 0.415, 0.39),
        (3.075056038492e-4, 1.02734e-3),
    ),
    Problem("brown_dennis", _brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.20162636,)),
    Problem("biggs_exp6", _biggs_exp6, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (0.0, 5.655649925e-3)),
    Problem("watson", _watson, (0.0,) * 6, (2.287670053552e-3,)),
    Problem("extended_rosenbrock", _extended_rosenbrock, (-1.2, 1.0) * 5),
    Problem("penalty_i", _penalty_i, (1.0, 2.0, 3.0, 4.0), (2.249977500e-5,)),
    Problem("variably_dimensioned", _variably_dimensioned, tuple(1 - np.arange(1, 11) / 10)),
    Problem("trigonometric", _trigonometric, (0.1,) * 10, (0.0, 2.795061656e-5)),
    Problem(
        "discrete_boundary_value",
        _discrete_boundary_value,
        tuple(_BOUNDARY * (_BOUNDARY - 1)),
    ),
    Problem("broyden_tridiagonal", _broyden_tridiagonal, (-1.0,) * 10),
]
