"""Every exact hypergradient on one quadratic: through all of training, and at its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import hyper, learned, meta, tasks
from l2ljax.core import Task
from tests.meta.small import KEY, estimate, start

CURVATURES, TARGET = np.array([0.8, 1.0, 1.3]), np.array([1.0, -2.0, 0.5])
WANTED, PENALTY = np.array([0.7, -1.0, 0.6]), np.array([0.05, 0.1, 0.2])
# Of 120 steps is left less than 1e-12: where they lead does not depend on how.
HORIZON = 120
LAST = meta.final_weights(HORIZON) / HORIZON
MOMENTUM = learned.reversible_momentum(horizon=1, learning_rate=0.6, decay=0.5)


def plain(params, problem, key):
    return jnp.sum(CURVATURES * (params - TARGET) ** 2) / 2


def objective(params, problem, key):
    return jnp.sum((params - WANTED) ** 2) / 2


def closed_form():
    """θ* = a c / (a + 2λ), so d objective / d log λ = (θ* - w) · -2 λ a c / (a + 2λ)²."""
    whole = CURVATURES + 2 * PENALTY
    optimum = CURVATURES * TARGET / whole
    return -2 * PENALTY * (optimum - WANTED) * CURVATURES * TARGET / whole**2


def through_training(factory):
    task = tasks.learned_l2(
        Task(lambda key: (), lambda key, problem: jnp.zeros(3), plain, objective),
        per="coordinate",
    )
    phi = {"optimizer": MOMENTUM.init(KEY), "task": task.init(KEY)}
    phi["task"]["l2"] = jnp.log(jnp.asarray(PENALTY))
    estimator = factory(MOMENTUM, task, 1)
    return estimate(estimator, phi, start(estimator, phi), KEY)[0].grad


def at_the_end(solver):
    def loss(params, psi):
        return plain(params, (), KEY) + jnp.sum(jnp.exp(psi) * params**2)

    optimum = jnp.asarray(CURVATURES * TARGET / (CURVATURES + 2 * PENALTY))
    return jax.jit(
        lambda psi: hyper.implicit_gradient(
            loss, lambda params, psi: objective(params, (), KEY), optimum, psi, solver=solver
        )
    )(jnp.log(jnp.asarray(PENALTY))).grad


THROUGH = {
    "full": meta.full(horizon=HORIZON, step_weights=LAST),
    "forward": meta.forward(horizon=HORIZON, step_weights=LAST),
    "reversible": meta.reversible(horizon=HORIZON, step_weights=LAST),
    "truncated": meta.truncated(
        horizon=HORIZON, truncation=HORIZON, step_weights=LAST, second_derivatives=True
    ),
}
AT_THE_END = {
    "conjugate gradients": hyper.conjugate_gradients(10, tolerance=0.0),
    "Neumann series": hyper.neumann(200, learning_rate=0.5),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [*THROUGH, *AT_THE_END])
def test_all_agree_with_the_closed_form(name):
    if name in AT_THE_END:
        found = at_the_end(AT_THE_END[name])
    else:
        grad = through_training(THROUGH[name])
        found = grad["task"]["l2"]
        # Where training ends does not depend on its rate.
        assert np.abs(grad["optimizer"]["learning_rate"]).max() < 1e-8
    np.testing.assert_allclose(found, closed_form(), rtol=1e-8)
