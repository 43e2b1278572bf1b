import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from l2ljax.tasks import DIXON_SZEGO, dixon_szego

KEY = jax.random.key(0)


def uniform(bounds, count):
    low, high = np.array(bounds).T
    return np.random.default_rng(0).uniform(low, high, (count, len(low)))


@pytest.mark.parametrize(
    ("name", "point", "value"),
    [
        ("branin", (0, 0), 55.602113),
        ("goldstein-price", (0, 0), 600),
        ("goldstein-price", (1, 1), 1876),
        ("hartmann3", (0.5, 0.5, 0.5), -0.628022),
        ("hartmann6", (0.5,) * 6, -0.505315),
    ],
)
def test_values_are_the_published_ones(name, point, value, x64):
    found = DIXON_SZEGO[name].function(jnp.array(point, float))
    np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize("name", DIXON_SZEGO)
def test_minima_are_the_published_ones_and_no_point_is_lower(name, x64):
    known = DIXON_SZEGO[name]
    value_and_grad = jax.jit(jax.value_and_grad(known.function))
    for point in known.minimizers:
        assert all(low <= x <= high for x, (low, high) in zip(point, known.bounds, strict=True))
        found = optimize.minimize(
            value_and_grad, np.array(point), jac=True, bounds=known.bounds, method="L-BFGS-B"
        )
        np.testing.assert_allclose(found.fun, known.minimum, atol=1e-5)
        np.testing.assert_allclose(found.x, point, atol=1e-3)
    points = uniform(known.bounds, 5_000)
    values = jax.jit(jax.vmap(known.function))(points)
    assert values.min() > known.minimum
    # From the best of them, downhill.
    start = points[np.argsort(values)[:5]]
    lowest = min(
        optimize.minimize(value_and_grad, x, jac=True, bounds=known.bounds).fun for x in start
    )
    np.testing.assert_allclose(lowest, known.minimum, atol=1e-5)


def test_the_task_is_the_function_on_the_box(x64):
    known, task = DIXON_SZEGO["branin"], dixon_szego("branin")
    low, high = np.array(known.bounds).T
    problem = task.sample(KEY)
    np.testing.assert_array_equal(task.init(KEY, problem), 0)
    for params in ([-1.0, -1.0], [1.0, -1.0], [0.2, 0.7]):
        x = low + (np.array(params) + 1) / 2 * (high - low)
        value = task.loss(jnp.array(params), problem, KEY)
        np.testing.assert_allclose(value, known.function(jnp.asarray(x)), rtol=1e-12)


@pytest.mark.parametrize("name", ["branin", "hartmann6"])
def test_a_varied_function_keeps_a_minimizer_in_the_box(name, x64):
    known, task = DIXON_SZEGO[name], dixon_szego(name, vary=True)
    low, high = np.array(known.bounds).T
    problems = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 200))
    scale, sign, shift, order = (
        np.asarray(problems[part])[:, None] for part in ("scale", "sign", "shift", "order")
    )
    places = 2 * (np.array(known.minimizers) - low) / (high - low) - 1
    moved = (places - shift) / (sign * scale[..., None])
    params = np.empty_like(moved)
    np.put_along_axis(params, np.broadcast_to(order, moved.shape), moved, axis=-1)
    assert (np.abs(params).max(axis=2) <= 1).any(axis=1).all()
    loss = jax.vmap(jax.vmap(task.loss, in_axes=(0, None, None)), in_axes=(0, 0, None))
    np.testing.assert_allclose(jax.jit(loss)(params, problems, KEY), known.minimum, atol=1e-5)
    assert np.ptp(scale) > 0.15 and 0.09 < np.abs(shift).max() <= 0.1
    assert 0.4 < (sign == 1).mean() < 0.6 and len(np.unique(order[:, 0], axis=0)) > 1


def test_an_unknown_function_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*'branin'.*did you mean 'branin'"):
        dixon_szego("branim")
