"""Newton's method: its rate of convergence, its two solvers, and derivatives through them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.classic._spectral import spectral_solve

SOLVERS = ["exact", "cg"]
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def convex(w):
    """Not quadratic; the curvature is at least .1, and the minimum is no round number."""
    skew = jnp.sin(jnp.arange(w.size)[:, None] + 2.0 * jnp.arange(w.size))
    return jnp.sum(jnp.exp(w) - 0.3 * w) + 0.05 * jnp.sum((skew @ w) ** 2)


def direction(value_fn, w, g=None, **options):
    tx = classic.scale_by_newton(**options)
    g = jax.grad(value_fn)(w) if g is None else g
    return jax.jit(lambda g, w: tx.update(g, tx.init(w), w, value_fn=value_fn)[0])(g, w)


def iterate(tx, value_fn, w, steps):
    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(w, updates), state

    state, path = tx.init(w), [w]
    for _ in range(steps):
        w, state = step(w, state)
        path.append(w)
    return path


@every_solver
def test_convergence_is_quadratic(solver, x64):
    tx = classic.newton(solver=solver, cg_tolerance=1e-12)
    path = iterate(tx, convex, jnp.array([1.0, -1.0, 0.5]), steps=8)
    assert np.abs(jax.grad(convex)(path[-1])).max() < 1e-14
    errors = np.array([np.linalg.norm(w - path[-1]) for w in path])
    errors = errors[(errors < 0.3) & (errors > 1e-13)]
    exponents = np.diff(np.log(errors[1:])) / np.diff(np.log(errors[:-1]))
    assert len(errors) >= 4
    np.testing.assert_allclose(exponents[-1], 2, atol=0.1)


@every_solver
def test_one_step_minimizes_a_quadratic(solver, x64):
    matrix = np.array([[3.0, 1.0, 0.2], [1.0, 2.0, 0.1], [0.2, 0.1, 0.05]])
    offset = np.array([1.0, -2.0, 3.0])

    def value_fn(w):
        return w @ matrix @ w / 2 - offset @ w

    tx = classic.newton(solver=solver, cg_tolerance=1e-14)
    _, w = iterate(tx, value_fn, jnp.array([5.0, 4.0, -3.0]), steps=1)
    np.testing.assert_allclose(w, np.linalg.solve(matrix, offset), rtol=1e-9)


@every_solver
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_direction_is_what_numpy_solves_for(solver, damping, x64):
    """Of any vector that takes the place of the gradient, in a tree of three leaves."""
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(2, 2)), "b": rng.normal(), "c": np.zeros((0, 3))}
    tree = jax.tree.map(jnp.asarray, tree)
    w, unravel = jax.flatten_util.ravel_pytree(tree)
    v = jnp.asarray(rng.normal(size=5))
    d = direction(
        lambda tree: convex(jax.flatten_util.ravel_pytree(tree)[0]),
        tree,
        unravel(v),
        damping=damping,
        solver=solver,
        cg_tolerance=1e-13,
    )
    expected = np.linalg.solve(jax.jit(jax.hessian(convex))(w) + damping * np.eye(5), v)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(d)[0], expected, rtol=1e-10)


def flat_direction(w):
    return (w[0] + w[1]) ** 2 + w[2] ** 2


@every_solver
def test_a_singular_hessian_gives_a_finite_step(solver):
    w = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(direction(flat_direction, w, solver=solver), [1.5, 1.5, 3], 1e-4)
    # No curvature at all: no step from eigenvalues, and the gradient from conjugate gradients.
    slope = jnp.array([1.0, -1.0, 2.0])
    d = direction(lambda w: slope @ w, w, solver=solver)
    np.testing.assert_allclose(d, slope if solver == "cg" else 0 * slope)


@every_solver
def test_a_zero_gradient_gives_no_step_and_finite_derivatives(solver):
    def step(w, damping):
        return jnp.sum(
            jnp.arange(1.0, 4.0) * direction(flat_direction, w, damping=damping, solver=solver)
        )

    w = jnp.zeros(3)
    assert step(w, 0.0) == 0
    for damping in (0.0, 0.5):
        for derivative in jax.jit(jax.grad(step, argnums=(0, 1)))(w, damping):
            assert np.all(np.isfinite(derivative))


def test_conjugate_gradients_stop_where_the_curvature_is_negative():
    """The first direction is the gradient; a later one is not followed."""
    w = jnp.array([0.5, 1.0])
    concave = direction(lambda w: -jnp.sum(w**2), w, solver="cg")
    np.testing.assert_allclose(concave, -2 * w)
    curvatures = jnp.array([1.0, -0.1])
    g = curvatures * w
    first_step = (g @ g) / (g @ (curvatures * g)) * g
    mixed = direction(lambda w: jnp.sum(curvatures * w**2) / 2, w, solver="cg")
    np.testing.assert_allclose(mixed, first_step, rtol=1e-6)


def test_conjugate_gradients_end_after_their_iterations_and_at_their_tolerance(x64):
    w = jnp.linspace(-1.0, 2.0, 30)
    g, hessian = jax.jit(lambda w: (jax.grad(convex)(w), jax.hessian(convex)(w)))(w)

    def residual(**options):
        d = direction(convex, w, solver="cg", **options)
        return np.linalg.norm(hessian @ d - g) / np.linalg.norm(g)

    assert residual(cg_iterations=1) > residual(cg_iterations=3) > 1e-5
    for tolerance in (1e-2, 1e-6):
        assert tolerance * 1e-3 < residual(cg_tolerance=tolerance) <= tolerance * 1.01


def test_conjugate_gradients_need_no_dense_hessian():
    """It would have 10^10 entries."""
    w = jnp.linspace(0.5, 2.0, 100_000)

    def value_fn(w):
        return jnp.sum(w**4) + jnp.sum((w[1:] - w[:-1]) ** 2)

    tx = classic.newton(solver="cg", cg_iterations=20)
    path = iterate(tx, value_fn, w, steps=3)
    before, after = (jnp.linalg.norm(jax.grad(value_fn)(w)) for w in (path[0], path[-1]))
    assert after < 0.1 * before


def repeated(w, psi):
    """A Hessian with the eigenvalues ψ, ψ, 3 where the cubic terms vanish."""
    return (psi * (w[0] ** 2 + w[1] ** 2) + 3 * w[2] ** 2) / 2 + w[0] * w[1] * w[2] * psi


@every_solver
@pytest.mark.parametrize("at", [[0.0, 0.0, 0.0], [0.3, -0.2, 0.5]], ids=["repeated", "distinct"])
def test_derivatives_through_the_solution_equal_finite_differences(solver, at, x64):
    """With respect to the point, the right-hand side, the damping and the function."""

    def scalar(arguments):
        w, g, damping, psi = arguments
        d = direction(
            lambda w: repeated(w, psi), w, g, damping=damping, solver=solver, cg_tolerance=1e-14
        )
        return jnp.sum(jnp.array([1.0, -2.0, 3.0]) * d)

    arguments = (jnp.array(at), jnp.array([0.7, 0.4, -1.0]), jnp.array(0.2), jnp.array(2.0))
    reverse = jax.jit(jax.grad(scalar))(arguments)
    flat, unravel = jax.flatten_util.ravel_pytree(arguments)
    value = jax.jit(lambda x: scalar(unravel(x)))
    width = 1e-5
    differences = [
        (value(flat + width * e) - value(flat - width * e)) / (2 * width) for e in np.eye(flat.size)
    ]
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(reverse)[0], differences, rtol=1e-7, atol=1e-8
    )
    forward = jax.jit(lambda x: jax.jvp(value, (x,), (jnp.ones_like(x),))[1])(flat)
    np.testing.assert_allclose(forward, np.sum(differences), rtol=1e-7)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_spectral_derivative_equals_finite_differences(absolute, x64):
    """At repeated eigenvalues, some of them of opposite signs, and at a singular matrix."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    change = np.random.default_rng(1).normal(size=(4, 4))
    change = change + change.T
    g, width = jnp.array([1.0, -2.0, 0.5, 1.5]), 1e-5

    @jax.jit
    def solve(matrix):
        return spectral_solve(matrix, g, jnp.array(0.3), absolute)

    derivative_along = jax.jit(lambda m, change: jax.jvp(solve, (m,), (change,))[1])

    for eigenvalues in ([2, 2, -2, -2], [2.0, 1.0, -1.0, 1.0], [5.0, 3.0, 3.0, 3.0]):
        matrix = jnp.asarray(basis * np.array(eigenvalues) @ basis.T)
        derivative = derivative_along(matrix, jnp.asarray(change))
        difference = (solve(matrix + width * change) - solve(matrix - width * change)) / (2 * width)
        np.testing.assert_allclose(derivative, difference, rtol=1e-6, atol=1e-8)

    # The pseudo-inverse is differentiable along changes that keep the rank.
    @jax.jit
    def singular(t):
        rotation = jax.scipy.linalg.expm(
            t * (change @ np.diag([1, 0, 0, 0]) - np.diag([1, 0, 0, 0]) @ change)
        )
        q = basis @ rotation
        return spectral_solve(
            q * jnp.array([0.0, 1 + t, -2.0, 3.0]) @ q.T, g, jnp.array(0.0), absolute
        )

    _, derivative = jax.jvp(singular, (0.0,), (1.0,))
    np.testing.assert_allclose(
        derivative, (singular(width) - singular(-width)) / (2 * width), rtol=1e-6
    )


def test_several_updates_can_be_differentiated_by_rate_and_damping(x64):
    def last(hyperparameters):
        tx, w = classic.newton(*hyperparameters), jnp.array([1.0, -1.0, 0.5])
        state = tx.init(w)
        for _ in range(3):
            updates, state = tx.update(jax.grad(convex)(w), state, w, value_fn=convex)
            w = w + updates
        return convex(w)

    at = (jnp.array(0.5), jnp.array(0.1))
    derivative = jax.jit(jax.grad(last))(at)
    value, width = jax.jit(last), 1e-6
    for i, name in enumerate(derivative):
        above, below = (
            value(tuple(h + s * width * (i == j) for j, h in enumerate(at))) for s in (1, -1)
        )
        np.testing.assert_allclose(name, (above - below) / (2 * width), rtol=1e-6)


def test_bfloat16_params_are_solved_for_in_float32():
    w = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}

    def value_fn(tree):
        return jnp.sum(tree["a"] ** 2).astype(jnp.float32) * 1.5 + tree["b"] ** 2

    d = direction(value_fn, w)
    assert jax.tree.map(lambda x: x.dtype, d) == jax.tree.map(lambda x: x.dtype, w)
    assert all(np.allclose(x, 1) for x in jax.tree.leaves(d))


def test_wrong_and_missing_arguments_are_refused_by_name():
    for bad in (
        {"learning_rate": -1.0},
        {"damping": -1.0},
        {"damping": jnp.ones(2)},
        {"cg_iterations": 0},
        {"cg_tolerance": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            classic.newton(**bad)
    w = jnp.ones(2)
    tx = classic.newton()
    with pytest.raises(ValueError, match="newton needs value_fn: call tx.update"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="newton needs params"):
        tx.update(w, tx.init(w), value_fn=jnp.sum)
    with pytest.raises(ValueError, match="complex64"):
        tx.init(jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize("method", [classic.newton, classic.saddle_free_newton])
def test_a_function_of_all_params_cannot_be_seen_through_a_mask(method):
    def function(params):
        return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 4)

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = optax.masked(method(), {"a": True, "b": False})
    message = f"^value_fn must be .*{method.__name__} cannot see a part of the params only, as opt"
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, value_fn=function)
    # One that takes any tree is one of the part alone.
    updates, _ = tx.update(params, tx.init(params), params, value_fn=optax.tree.norm)
    assert np.isfinite(updates["a"]).all()
    with pytest.raises(ZeroDivisionError):
        method().update(
            params, method().init(params), params, value_fn=lambda params: params["a"][0] / (1 // 0)
        )
