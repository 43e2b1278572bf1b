"""Saddle-free Newton on saddles that attract Newton's method, and its two solvers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic

SOLVERS = ["exact", "lanczos"]
every_solver = pytest.mark.parametrize("solver", SOLVERS)

# name: (function, start near the saddle at 0, damping)
SURFACES = {
    # Beside x < 0, from where down is away from the saddle.
    "degenerate_cubic": (lambda w: w[0] ** 3 + w[1] ** 2, [-0.1, 0.1], 1e-3),
    "hyperbolic": (lambda w: w[0] ** 2 - w[1] ** 2, [0.1, 0.01], 0.0),
    "monkey": (lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2, [-0.1, 0.02], 1e-3),
    # A hill in the middle and a circle of minima, along which there is no curvature.
    "gutter": (lambda w: (w[0] ** 2 + w[1] ** 2 - 1) ** 2, [0.05, 0.1], 1e-3),
}


def path(tx, value_fn, w, steps):
    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(value_fn)(w), state, w, value_fn=value_fn)
        w = w + updates
        return (w, state), w

    return jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), length=steps)[1])(w)


@pytest.mark.parametrize("surface", SURFACES)
def test_newton_is_attracted_by_the_saddle(surface):
    value_fn, start, _ = SURFACES[surface]
    ws = path(classic.newton(), value_fn, jnp.array(start), steps=10)
    distance = np.linalg.norm(ws, axis=1)
    assert distance[-1] < 0.02 * np.linalg.norm(start)


@every_solver
@pytest.mark.parametrize("surface", SURFACES)
def test_saddle_free_newton_leaves_the_saddle(surface, solver):
    value_fn, start, damping = SURFACES[surface]
    tx = classic.saddle_free_newton(damping=damping, solver=solver)
    ws = np.concatenate([[start], path(tx, value_fn, jnp.array(start), steps=10)])
    values = np.array(jax.vmap(value_fn)(jnp.asarray(ws)))
    assert np.linalg.norm(ws[-1]) > 5 * np.linalg.norm(start)
    if surface == "gutter":  # the minima
        np.testing.assert_allclose(np.linalg.norm(ws[-1]), 1, rtol=1e-3)
        assert values[-1] < 1e-5
    else:  # down without end
        assert values[-1] < -0.1


def rugged(w):
    """Curvatures of both signs."""
    mixing = jnp.sin(jnp.arange(w.size)[:, None] + 2.0 * jnp.arange(w.size))
    return jnp.sum(jnp.cos(2 * w)) + 0.1 * jnp.sum((mixing @ w) ** 3)


def direction(value_fn, w, g=None, **options):
    tx = classic.scale_by_saddle_free_newton(**options)
    g = jax.grad(value_fn)(w) if g is None else g
    return jax.jit(lambda g, w: tx.update(g, tx.init(w), w, value_fn=value_fn)[0])(g, w)


@every_solver
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_direction_is_that_of_numpys_eigenvalues(solver, damping, x64):
    """Lanczos in all dimensions is exact; of any vector in the place of the gradient."""
    rng = np.random.default_rng(0)
    w, g = jnp.asarray(rng.normal(size=8)), jnp.asarray(rng.normal(size=8))
    eigenvalues, basis = np.linalg.eigh(jax.jit(jax.hessian(rugged))(w))
    assert eigenvalues[0] < -0.1 and eigenvalues[-1] > 0.1
    expected = basis @ ((basis.T @ g) / (np.abs(eigenvalues) + damping))
    d = direction(rugged, w, g, damping=damping, solver=solver, lanczos_iterations=50)
    np.testing.assert_allclose(d, expected, rtol=1e-8)
    unsigned = basis @ ((basis.T @ g) / (eigenvalues + damping))
    assert np.abs(d - unsigned).max() > 0.1


def test_lanczos_nears_the_exact_direction_as_its_space_grows(x64):
    w = jnp.asarray(np.random.default_rng(0).normal(size=30))
    exact = direction(rugged, w, damping=0.5)
    errors = [
        np.linalg.norm(
            direction(rugged, w, damping=0.5, solver="lanczos", lanczos_iterations=k) - exact
        )
        for k in (2, 10, 25)
    ]
    assert errors[0] > 2 * errors[1] > 20 * errors[2] > 0


def test_lanczos_ends_where_its_space_does():
    """The gradient is an eigenvector; and one of two, of which one has no curvature."""
    curvatures = jnp.array([2.0, -4.0, 0.0, 1.0, 3.0])

    def value_fn(w):
        return jnp.sum(curvatures * w**2) / 2

    for g in ([0.0, 1.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0]):
        g = jnp.array(g)
        d = direction(value_fn, jnp.ones(5), g, solver="lanczos", damping=0.5)
        np.testing.assert_allclose(d, g / (jnp.abs(curvatures) + 0.5), rtol=1e-5, atol=1e-6)
        # The pseudo-inverse has no step without curvature.
        d = direction(value_fn, jnp.ones(5), g, solver="lanczos", damping=0.0)
        expected = jnp.where(
            curvatures == 0, 0, g / jnp.where(curvatures == 0, 1, jnp.abs(curvatures))
        )
        np.testing.assert_allclose(d, expected, rtol=1e-5, atol=1e-5)


@every_solver
def test_a_zero_gradient_gives_no_step_and_finite_derivatives(solver):
    def step(w, damping):
        d = direction(lambda w: w[0] ** 2 - w[1] ** 2, w, damping=damping, solver=solver)
        return jnp.sum(jnp.arange(1.0, 4.0) * d)

    w = jnp.zeros(3)
    assert step(w, 0.0) == 0
    for damping in (0.0, 0.5):
        for derivative in jax.jit(jax.grad(step, argnums=(0, 1)))(w, damping):
            assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize(("solver", "iterations"), [("exact", 1), ("lanczos", 3), ("lanczos", 5)])
def test_derivatives_equal_finite_differences(solver, iterations, x64):
    """With respect to the point, the right-hand side and the damping."""

    def scalar(arguments):
        w, g, damping = arguments
        options = {"damping": damping, "solver": solver, "lanczos_iterations": iterations}
        return jnp.sum(jnp.arange(1.0, 6.0) * direction(rugged, w, g, **options))

    rng = np.random.default_rng(0)
    arguments = (jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5)), jnp.array(0.2))
    flat, unravel = jax.flatten_util.ravel_pytree(arguments)
    value = jax.jit(lambda x: scalar(unravel(x)))
    reverse = jax.jit(jax.grad(value))(flat)
    width = 1e-5
    differences = [
        (value(flat + width * e) - value(flat - width * e)) / (2 * width) for e in np.eye(flat.size)
    ]
    np.testing.assert_allclose(reverse, differences, rtol=1e-6, atol=1e-7)


def test_lanczos_needs_no_dense_hessian():
    """It would have 10^10 entries."""
    w = jnp.linspace(-1.0, 1.0, 100_000) + 0.01

    def value_fn(w):
        return jnp.sum((w**2 - 1) ** 2) / 4

    tx = classic.saddle_free_newton(solver="lanczos", lanczos_iterations=10, damping=0.1)
    ws = path(tx, value_fn, w, steps=8)
    assert value_fn(ws[-1]) < 0.1 * value_fn(w)


def test_with_a_line_search_it_descends():
    value_fn, start, _ = SURFACES["gutter"]
    tx, w = classic.saddle_free_newton(line_search="backtracking"), jnp.array(start)

    @jax.jit
    def step(w, state):
        value, grad = optax.value_and_grad_from_state(value_fn)(w, state=state)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)
        return w + updates, state, value

    state, values = tx.init(w), []
    for _ in range(8):
        w, state, value = step(w, state)
        values.append(float(value))
    assert all(b <= a for a, b in itertools.pairwise(values))
    assert values[-1] < 1e-6


def test_wrong_and_missing_arguments_are_refused_by_name():
    for bad in ({"learning_rate": -1.0}, {"damping": -1.0}, {"lanczos_iterations": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            classic.saddle_free_newton(**bad)
    w = jnp.ones(2)
    tx = classic.saddle_free_newton()
    with pytest.raises(ValueError, match="saddle_free_newton needs value_fn"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="saddle_free_newton needs params"):
        tx.update(w, tx.init(w), value_fn=jnp.sum)
