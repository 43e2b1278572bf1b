"""Implicit hypergradients against closed forms and against retraining."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from l2ljax import hyper
from l2ljax.core import LearnedTask, Task

RANDOM = np.random.default_rng(0)
ROOT = RANDOM.normal(size=(5, 5))
HESSIAN = ROOT @ ROOT.T / 5 + np.eye(5)
TARGET, WANTED = RANDOM.normal(size=(2, 5))
PSI = RANDOM.normal(size=5)


def vector(params):
    return jnp.concatenate([params["a"], params["b"].ravel()])


def tree(values):
    return {"a": values[:2], "b": values[2:].reshape(3, 1)}


def loss(params, psi):
    """A quadratic with a penalty for each coordinate."""
    w = vector(params)
    return 0.5 * w @ HESSIAN @ w - TARGET @ w + 0.5 * jnp.sum(jnp.exp(psi["log"]) * w**2)


def objective(params, psi):
    return 0.5 * jnp.sum((vector(params) - WANTED) ** 2) + jnp.sum(jnp.sin(psi["log"]))


@jax.jit
def implicit(solver, psi):
    params = tree(jnp.linalg.solve(HESSIAN + jnp.diag(jnp.exp(psi)), jnp.asarray(TARGET)))
    return hyper.implicit_gradient(loss, objective, params, {"log": psi}, solver=solver)


def closed_form(psi, inverse=None):
    whole = HESSIAN + np.diag(np.exp(psi))
    optimum = np.linalg.solve(whole, TARGET)
    inverse = np.linalg.inv(whole) if inverse is None else inverse
    return np.cos(psi) - np.exp(psi) * optimum * (inverse @ (optimum - WANTED))


@pytest.mark.usefixtures("x64")
def test_solvers_give_the_closed_form_of_a_quadratic():
    exact = closed_form(PSI)
    for solver in (
        hyper.conjugate_gradients(50, tolerance=0.0),
        hyper.neumann(2000, learning_rate=0.1),
    ):
        estimate = implicit(solver, jnp.asarray(PSI))
        np.testing.assert_allclose(estimate.grad["log"], exact, rtol=1e-8)
        assert estimate.aux["residual"] < 1e-8
        assert estimate.aux["slope"] < 1e-12


@pytest.mark.usefixtures("x64")
def test_approximate_inverses_are_what_they_say():
    psi, whole = jnp.asarray(PSI), HESSIAN + np.diag(np.exp(PSI))
    for solver, inverse in [
        (hyper.neumann(1, learning_rate=1.0), np.eye(5)),
        (
            hyper.neumann(3, learning_rate=0.1),
            0.1 * sum(np.linalg.matrix_power(np.eye(5) - 0.1 * whole, j) for j in range(3)),
        ),
        (hyper.conjugate_gradients(50, damping=0.5), np.linalg.inv(whole + 0.5 * np.eye(5))),
    ]:
        estimate = implicit(solver, psi)
        np.testing.assert_allclose(estimate.grad["log"], closed_form(PSI, inverse), rtol=1e-4)
        outer = np.linalg.solve(whole, TARGET) - WANTED
        missing = np.linalg.norm(whole @ inverse @ outer - outer) / np.linalg.norm(outer)
        np.testing.assert_allclose(estimate.aux["residual"], missing, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_it_maps_over_metaparameters():
    solver = hyper.conjugate_gradients(50, tolerance=0.0)
    rows = jnp.stack([PSI, PSI + 0.1])
    found = jax.vmap(implicit, in_axes=(None, 0))(solver, rows).grad["log"]
    np.testing.assert_allclose(found, [closed_form(PSI), closed_form(PSI + 0.1)], rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_logistic_regression_retrained_by_scipy_has_this_gradient():
    inputs, labels = RANDOM.normal(size=(40, 3)), np.sign(RANDOM.normal(size=40))

    def cross_entropy(xp, w, part):
        return xp.mean(xp.logaddexp(0.0, -labels[part] * (inputs[part] @ w)))

    training, held_out = slice(0, 20), slice(20, 40)

    def train(xp, w, psi):
        return cross_entropy(xp, w, training) + xp.sum(xp.exp(psi) * w**2)

    def retrained(psi):
        start = np.zeros(3)
        found = scipy.optimize.minimize(
            functools.partial(train, np, psi=psi), start, method="BFGS", options={"gtol": 1e-9}
        )
        return found.x

    psi = np.array([-3.0, -2.0, -1.0])
    steps = 1e-3 * np.eye(3)
    slopes = [
        cross_entropy(np, retrained(psi + h), held_out)
        - cross_entropy(np, retrained(psi - h), held_out)
        for h in steps
    ]
    estimate = hyper.implicit_gradient(
        functools.partial(train, jnp),
        lambda w, psi: cross_entropy(jnp, w, held_out),
        jnp.asarray(retrained(psi)),
        jnp.asarray(psi),
    )
    np.testing.assert_allclose(estimate.grad, np.array(slopes) / 2e-3, rtol=2e-3)


def ridge(psi):
    def penalised(w, problem, key):
        noise = 0.01 * jax.random.normal(key, (5,))
        return 0.5 * w @ (HESSIAN @ w) - (TARGET + noise) @ w + 0.5 * jnp.exp(psi) * w @ w

    return Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.zeros(5),
        loss=penalised,
        objective=lambda w, problem, key: 0.5 * jnp.sum((w - 0.5 * OPTIMUM) ** 2),
    )


OPTIMUM = np.linalg.solve(HESSIAN, TARGET)


@pytest.mark.usefixtures("x64")
def test_steps_in_turns_find_the_best_penalty():
    def held_out(psi):
        w = np.linalg.solve(HESSIAN + np.exp(psi) * np.eye(5), TARGET)
        return 0.5 * np.sum((w - 0.5 * OPTIMUM) ** 2)

    best = scipy.optimize.minimize_scalar(held_out, bounds=(-5, 5), method="bounded").x
    found = hyper.tune_implicit(
        LearnedTask(lambda key: jnp.zeros(()), ridge),
        key=jax.random.key(0),
        steps=150,
        inner_steps=20,
        optimizer=optax.sgd(0.1),
        meta_optimizer=optax.adam(0.05),
    )
    assert abs(found.psi - best) < 0.05
    assert found.losses.shape == (150, 20)
    assert found.objectives.shape == found.aux["slope"].shape == (150,)
    assert found.objectives[-1] < found.objectives[0]


def test_bad_input_is_refused_by_name():
    for make, name in [
        (lambda: hyper.neumann(0), "terms"),
        (lambda: hyper.neumann(3, learning_rate=0.0), "learning_rate"),
        (lambda: hyper.conjugate_gradients(0), "iterations"),
        (lambda: hyper.conjugate_gradients(damping=-1.0), "damping"),
        (lambda: hyper.conjugate_gradients(tolerance=-1.0), "tolerance"),
        (lambda: hyper.implicit_gradient(loss, objective, tree(TARGET), 3), "psi"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            make()
    task, key = LearnedTask(lambda key: jnp.zeros(()), ridge), jax.random.key(0)
    with pytest.raises(ValueError, match="^steps must"):
        hyper.tune_implicit(task, key=key, steps=0)
    with pytest.raises(ValueError, match="^inner_steps must"):
        hyper.tune_implicit(task, key=key, steps=1, inner_steps=0)
