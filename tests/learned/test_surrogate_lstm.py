"""An LSTM that steers a Gaussian process: against scikit-learn's process and scipy's minimiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from l2ljax import hyper, learned, tasks

DIM, HIDDEN, MEMORY = 2, 3, 7
VALUES = [3.0, 1.0, 1.5, -2.0, -1.9]
# log κ, and logarithms of what the length scales are multiplied by.
STEERING = np.array([-1.0, 0.2, -0.1])
OPT = learned.surrogate_lstm(DIM, HIDDEN, MEMORY)


@functools.cache
def constant():
    """Weights with which the LSTM always steers alike."""
    phi = jax.tree.map(jnp.zeros_like, OPT.init(jax.random.key(0)))
    return {**phi, "output": {**phi["output"], "bias": jnp.asarray(STEERING, jnp.float32)}}


@jax.jit
def step(phi, x, state, value):
    tx = OPT.bind(phi)
    updates, state = tx.update(jnp.full_like(x, jnp.nan), state, x, value=value)
    return optax.apply_updates(x, updates), state


def run(values, dtype=np.float64, phi=None):
    """The points that follow from values, whatever the points are."""
    phi = constant() if phi is None else phi
    x = jnp.asarray([0.3, -0.2], dtype)
    state, points = OPT.bind(phi).init(x), [x]
    for value in values:
        x, state = step(phi, x, state, jnp.asarray(value, dtype))
        points.append(x)
    return np.array(points), state


def bound(points, values, state, steering):
    """μ - κσ of scikit-learn's process, over the unit cube."""
    lengths = np.asarray(state.lengths) * np.exp(steering[1:])
    kernel = Matern(lengths, nu=2.5)
    model = GaussianProcessRegressor(kernel, alpha=1e-6, optimizer=None, normalize_y=True)
    model.fit((points + 1) / 2, values)

    def at(units):
        mean, std = model.predict(np.atleast_2d(units), return_std=True)
        return mean - np.exp(steering[0]) * std

    return at


def test_the_next_point_has_the_least_bound(x64):
    points, state = run(VALUES)
    low = bound(points[:-1], VALUES, state, STEERING)
    lattice = np.stack(np.meshgrid(*[np.linspace(0, 1, 60)] * 2), axis=-1).reshape(-1, 2)
    everywhere = low(lattice)
    assert low((points[-1] + 1) / 2)[0] < everywhere.min() + 1e-3 * np.ptp(everywhere)


def test_the_derivative_is_that_of_a_minimum(x64):
    x = jnp.asarray([0.3, -0.2], np.float64)
    state, points, values = OPT.bind(constant()).init(x), [np.asarray(x)], []
    for _ in range(5):
        values.append(float((x[0] - 0.2) ** 2 + 2 * (x[1] + 0.3) ** 2))
        before = x, state
        x, state = step(constant(), x, state, values[-1])
        points.append(np.asarray(x))

    def place(steering):
        output = {**constant()["output"], "bias": steering}
        return step({**constant(), "output": output}, *before, values[-1])[0]

    found = np.asarray(jax.jit(jax.jacobian(place))(jnp.asarray(STEERING)))

    def minimum(steering):
        at = bound(np.array(points[:-1]), values, state, steering)
        near = scipy.optimize.minimize(at, (points[-1] + 1) / 2, method="Nelder-Mead", tol=1e-11)
        return 2 * near.x - 1

    h = 1e-3
    for j, unit in enumerate(np.eye(3)):
        difference = (minimum(STEERING + h * unit) - minimum(STEERING - h * unit)) / (2 * h)
        # The point is where candidates end: a hundredth or so from the minimum.
        np.testing.assert_allclose(found[:, j], difference, rtol=0.1, atol=2e-3)
    assert np.abs(found).max() > 0.01


def test_scale_and_offset_of_the_values_do_not_matter(x64):
    points, _ = run(VALUES)
    np.testing.assert_allclose(run(1e6 * np.array(VALUES) - 40)[0], points, atol=1e-6)


def test_after_more_values_than_it_remembers_the_worst_is_forgotten():
    values = [3.0, np.nan, 1.5, 9.0, -1.9, -1.8, -1.7, 0.5, 0.4, -3.0]
    points, state = run(values, np.float32)
    assert np.isfinite(points).all() and np.abs(points).max() <= 1
    assert int(state.steps) == 10
    np.testing.assert_array_equal(
        np.sort(state.values), np.float32([-3, -1.9, -1.8, -1.7, 0.4, 0.5, 1.5])
    )


def test_values_that_are_not_finite_are_never_the_best():
    points, state = run([np.nan, np.inf, 5.0, np.nan, -np.inf], np.float32)
    assert np.isfinite(points).all()
    assert (int(state.seen.count), float(state.seen.best_value)) == (1, 5.0)
    np.testing.assert_array_equal(state.seen.best, points[2])


def test_its_meta_gradient_is_finite_and_runs_are_repeated():
    task = tasks.gp_samples(DIM, features=16)
    estimator = hyper.black_box(horizon=5)(OPT, task, 2)
    phi = OPT.init(jax.random.key(0))
    estimate = jax.jit(lambda key: estimator.estimate(phi, (), key)[0])
    first, second = (estimate(jax.random.key(1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert 0 < float(optax.tree.norm(first.grad)) < np.inf


def test_it_is_saved_and_restored(tmp_path):
    learned.save(tmp_path, OPT, constant(), {})
    again, phi, _ = learned.restore(tmp_path)
    assert again.spec == OPT.spec
    jax.tree.map(np.testing.assert_array_equal, phi, constant())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="dim must be a whole number of at least 1, got 0"):
        learned.surrogate_lstm(0)
    with pytest.raises(ValueError, match="memory must be a whole number of at least 2, got 1"):
        learned.surrogate_lstm(1, 3, 1)
    tx = OPT.bind(constant())
    with pytest.raises(ValueError, match=r"params must be one array of shape \(2,\).*\(3,\)"):
        tx.init(jnp.zeros(3))
    with pytest.raises(ValueError, match="params must be float32 or wider .* got bfloat16"):
        tx.init(jnp.zeros(2, jnp.bfloat16))
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)), value=jnp.zeros(()))
