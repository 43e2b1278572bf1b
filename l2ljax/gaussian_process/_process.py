"""A Gaussian process over a box, with room for a fixed number of points."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from l2ljax import _checks
from l2ljax._programs import compiled
from l2ljax._shown import one_line
from l2ljax.core import Key, Scalar, closure

JITTER = 100
"""Added to the diagonal, in units of the dtype's precision and the signal: duplicates may stand."""


class Hyperparameters(NamedTuple):
    """What a Gaussian process assumes of standardised values.

    Attributes:
        lengths: how far along each axis values are alike, f[dim].
        signal: variance of the function, f[].
        noise: variance of what is added to each of its values, f[].
    """

    lengths: Float[Array, " dim"]
    signal: Float[Array, ""]
    noise: Float[Array, ""]

    def __repr__(self) -> str:
        return one_line(self)


class GaussianProcess(NamedTuple):
    """A Gaussian process that has seen points and values.

    Attributes:
        points: f[capacity, dim].
        values: as given, f[capacity]; not finite ones are the worst finite one.
        present: which of them are there, bool[capacity].
        hyperparameters: those of the standardised values.
        shift: mean of the values, f[].
        scale: their standard deviation, f[]; 1 where all are equal.
        cholesky: lower root of the points' covariance, f[capacity, capacity].
        weights: inverse covariance times standardised values, f[capacity].
    """

    points: Float[Array, "capacity dim"]
    values: Float[Array, " capacity"]
    present: Bool[Array, " capacity"]
    hyperparameters: Hyperparameters
    shift: Float[Array, ""]
    scale: Float[Array, ""]
    cholesky: Float[Array, "capacity capacity"]
    weights: Float[Array, " capacity"]

    def __repr__(self) -> str:
        return one_line(self)


def matern(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"], hyperparameters: Hyperparameters
) -> Float[Array, "n m"]:
    r"""The Matérn kernel with ν = 5/2.

    $$k(a, b) = \sigma^2 \left(1 + \sqrt5\, r + \tfrac53 r^2\right) e^{-\sqrt5\, r}, \qquad
      r^2 = \sum_i (a_i - b_i)^2 / \ell_i^2$$

    Args:
        a: points.
        b: points.
        hyperparameters: $\ell$ and $\sigma^2$.

    Returns:
        The covariance of the function at each a with that at each b.

    Reference:
        Rasmussen and Williams (2006), 'Gaussian processes for machine learning', equation 4.17.

    >>> one = Hyperparameters(jnp.ones(1), jnp.array(2.0), jnp.array(0.0))
    >>> print(matern(jnp.zeros((1, 1)), jnp.array([[0.0], [1.0]]), one).round(2))
    [[2.   1.05]]
    """
    squares = jnp.sum(((a[:, None] - b[None]) / hyperparameters.lengths[None, None]) ** 2, axis=-1)
    # The root has no derivative at zero; the kernel's there is zero.
    r = jnp.sqrt(5 * jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))
    return hyperparameters.signal * (1 + r + r**2 / 3) * jnp.exp(-r)


def condition(
    points: Float[Array, "capacity dim"],
    values: Float[Array, " capacity"],
    hyperparameters: Hyperparameters,
    present: Bool[Array, " capacity"] | None = None,
) -> GaussianProcess:
    """A Gaussian process with known hyperparameters, given values at points.

    Args:
        points: where values are known.
        values: what they are. They are standardised; one that is not finite counts as the worst
            finite one.
        hyperparameters: lengths, signal and noise.
        present: which points are there; None: all.

    Returns:
        What `posterior` and `sample` take. Without any point it is the prior.

    >>> known = Hyperparameters(jnp.ones(1), jnp.array(1.0), jnp.array(1e-4))
    >>> gp = condition(jnp.array([[0.0], [1.0]]), jnp.array([3.0, 5.0]), known)
    >>> mean, std = posterior(gp, jnp.array([[0.0], [0.5]]))
    >>> print(mean.round(2), std.round(2))
    [3. 4.] [0.01 0.31]
    """
    if present is None:
        present = jnp.ones(values.shape, bool)
    finite = present & jnp.isfinite(values)
    worst = jnp.max(values, where=finite, initial=-jnp.inf)
    values = jnp.where(finite, values, jnp.where(jnp.isfinite(worst), worst, 0))
    shift = _mean(values, present)
    scale = jnp.sqrt(_mean((values - shift) ** 2, present))
    scale = jnp.where(scale > 0, scale, 1)
    standard = jnp.where(present, (values - shift) / scale, 0)
    # What is not there has a variance of one and no covariance: it takes no part.
    covariance = jnp.where(
        present[:, None] & present[None], matern(points, points, hyperparameters), 0
    )
    jitter = JITTER * jnp.finfo(points.dtype).eps * hyperparameters.signal
    diagonal = jnp.where(present, hyperparameters.noise + jitter, 1)
    cholesky = jnp.linalg.cholesky(covariance + jnp.diag(diagonal))
    weights = jax.scipy.linalg.cho_solve((cholesky, True), standard)
    return GaussianProcess(
        points, values, present, hyperparameters, shift, scale, cholesky, weights
    )


def _mean(values: Array, present: Array) -> Array:
    return jnp.sum(jnp.where(present, values, 0)) / jnp.maximum(present.sum(), 1).astype(
        values.dtype
    )


def log_marginal_likelihood(gp: GaussianProcess) -> Scalar:
    r"""How likely the standardised values y are under the hyperparameters.

    $$\log p(y) = -\tfrac12 y^\top K^{-1} y - \tfrac12 \log |K| - \tfrac n2 \log 2\pi$$

    Args:
        gp: what `condition` or `fit` returned.

    Returns:
        A scalar; n counts the points that are there.

    Reference:
        Rasmussen and Williams (2006), equation 2.30.

    >>> one = Hyperparameters(jnp.ones(1), jnp.array(1.0), jnp.array(0.0))
    >>> gp = condition(jnp.array([[0.0]]), jnp.array([7.0]), one)
    >>> print(f"{log_marginal_likelihood(gp):.3f}")  # one value is its own mean: log N(0; 0, 1)
    -0.919
    """
    standard = jnp.where(gp.present, (gp.values - gp.shift) / gp.scale, 0)
    determinant = jnp.log(jnp.diagonal(gp.cholesky)).sum()
    constant = 0.5 * math.log(2 * math.pi) * gp.present.sum().astype(standard.dtype)
    return -0.5 * standard @ gp.weights - determinant - constant


def fit(
    points: Float[Array, "capacity dim"],
    values: Float[Array, " capacity"],
    present: Bool[Array, " capacity"] | None = None,
    *,
    steps: int = 100,
) -> GaussianProcess:
    r"""A Gaussian process whose hyperparameters are the most probable ones, given the values.

    They maximise $\log p(y \mid \ell, \sigma^2, \sigma_n^2)$ plus the logarithm of their priors: of
    few points the likelihood alone is often largest at no noise, or at lengths without bound.

    $$\log \ell_i \sim N(\log(\sqrt d / 2), 1), \qquad \log \sigma^2 \sim N(0, 1), \qquad
      \log \sigma_n^2 \sim N(\log 10^{-4}, 2^2)$$

    for points in the unit cube of dimension d and standardised values. By Adam on the logarithms,
    from the medians of the priors.

    Args:
        points: where values are known, in the unit cube.
        values: what they are, see `condition`.
        present: which points are there; None: all.
        steps: steps of Adam.

    Returns:
        What `posterior` and `sample` take. To be called under `jax.jit`.

    Raises:
        ValueError: for `steps` below 1.

    >>> x = jnp.linspace(0, 1, 8)[:, None]
    >>> gp = jax.jit(fit)(x, jnp.sin(6 * x[:, 0]))
    >>> mean, std = posterior(gp, jnp.array([[0.5]]))
    >>> print(f"{mean[0]:.2f} {jnp.sin(3.0):.2f}")
    0.14 0.14
    """
    _checks.count("steps", steps)
    return compiled(closure(_fit, steps=steps), points, values, present)


def _fit(points: Array, values: Array, present: Array | None, *, steps: int) -> GaussianProcess:
    dim, dtype = points.shape[1], points.dtype
    # One vector is faster to compile than a tree: lengths, signal, noise.
    median = jnp.log(jnp.array([dim**0.5 / 2] * dim + [1, 1e-4], dtype))
    deviation = jnp.array([1.0] * dim + [1, 2], dtype)
    tx = optax.chain(optax.zero_nans(), optax.adam(0.1))

    def process(logs: Array) -> GaussianProcess:
        lengths, signal, noise = jnp.split(jnp.exp(logs), [dim, dim + 1])
        return condition(points, values, Hyperparameters(lengths, signal[0], noise[0]), present)

    def loss(logs: Array) -> Scalar:
        prior = 0.5 * jnp.sum(((logs - median) / deviation) ** 2)
        return prior - log_marginal_likelihood(process(logs))

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[Any, None]:
        logs, state = carry
        gradient = jax.grad(loss)(logs)
        # optax's Adam raises a decay to the power of a whole number.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradient, state, logs)
        return (optax.apply_updates(logs, updates), state), None

    (logs, _), _ = jax.lax.scan(step, (median, tx.init(median)), length=steps)
    return process(logs)


def fit_lengths(
    points: Float[Array, "capacity dim"],
    values: Float[Array, " capacity"],
    lengths: Float[Array, "n dim"],
    present: Bool[Array, " capacity"] | None = None,
    *,
    noise: float = 1e-6,
) -> Float[Array, " dim"]:
    r"""The most probable of several length scales.

    The maximum of $\log p(y \mid \ell) + \log p(\ell)$ with the prior of `fit`, unit signal and
    little noise, over the rows of `lengths`. Each costs one Cholesky factor and none an iteration
    of an optimizer: for a process that is fitted again after each of few values.

    Args:
        points: where values are known, in the unit cube.
        values: what they are, see `condition`.
        lengths: the scales to choose from, positive.
        present: which points are there; None: all.
        noise: variance of what is added to each standardised value.

    Returns:
        One row of `lengths`; the first one where none is possible.

    >>> x = jnp.linspace(0, 1, 8)[:, None]
    >>> print(fit_lengths(x, jnp.sin(6 * x[:, 0]), jnp.array([[0.01], [0.4], [10.0]])))
    [0.4]
    """
    median = math.log(points.shape[1] ** 0.5 / 2)

    def log_probability(lengths: Array) -> Scalar:
        known = Hyperparameters(lengths, jnp.ones_like(noisy), noisy)
        likelihood = log_marginal_likelihood(condition(points, values, known, present))
        return likelihood - 0.5 * jnp.sum((jnp.log(lengths) - median) ** 2)

    noisy = jnp.asarray(noise, points.dtype)
    found = jax.vmap(log_probability)(lengths)
    return lengths[jnp.argmax(jnp.where(jnp.isnan(found), -jnp.inf, found))]


def posterior(
    gp: GaussianProcess, at: Float[Array, "n dim"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    r"""What is believed of the function, without noise, at other points.

    $$\mu = k^\top K^{-1} y, \qquad \sigma^2 = k(x, x) - k^\top K^{-1} k$$

    Args:
        gp: what `condition` or `fit` returned.
        at: the points.

    Returns:
        Mean and standard deviation at each of them, in units of the values.

    Reference:
        Rasmussen and Williams (2006), equations 2.25 and 2.26. `condition` has an example.
    """
    mean, root = _project(gp, at)
    variance = gp.hyperparameters.signal - jnp.sum(root**2, axis=0)
    # Rounding may take it below zero, and a root has no derivative there.
    tiny = jnp.finfo(variance.dtype).tiny
    return mean, gp.scale * jnp.sqrt(jnp.maximum(variance, tiny))


def sample(gp: GaussianProcess, at: Float[Array, "n dim"], key: Key) -> Float[Array, " n"]:
    """Draws one function from the posterior, at some points jointly.

    Args:
        gp: what `condition` or `fit` returned.
        at: the points.
        key: draws the function.

    Returns:
        Its values, in units of the values that `gp` was given.

    Raises:
        ValueError: if `key` is no PRNG key.

    >>> known = Hyperparameters(jnp.ones(1), jnp.array(1.0), jnp.array(1e-6))
    >>> gp = condition(jnp.array([[0.0], [1.0]]), jnp.array([3.0, 5.0]), known)
    >>> print(sample(gp, jnp.array([[0.0], [1.0]]), jax.random.key(0)).round(1))
    [3. 5.]
    """
    _checks.key("key", key)
    mean, root = _project(gp, at)
    covariance = matern(at, at, gp.hyperparameters) - root.T @ root
    jitter = JITTER * jnp.finfo(mean.dtype).eps * gp.hyperparameters.signal
    # The difference of two matrices is less exact than either: its eigenvalues may lie below zero
    # by more than the jitter, where a Cholesky factor does not exist.
    values, vectors = jnp.linalg.eigh(covariance)
    spread = vectors * jnp.sqrt(jnp.maximum(values, jitter))[None]
    return mean + gp.scale * (spread @ jax.random.normal(key, mean.shape, mean.dtype))


def _project(
    gp: GaussianProcess, at: Float[Array, "n dim"]
) -> tuple[Float[Array, " n"], Float[Array, "capacity n"]]:
    """Posterior means, and R with RᵀR the variance that the points take away."""
    known = matern(gp.points, at, gp.hyperparameters)
    known = jnp.where(gp.present[:, None], known, 0)
    root = jax.scipy.linalg.solve_triangular(gp.cholesky, known, lower=True)
    return gp.shift + gp.scale * (gp.weights @ known), root
