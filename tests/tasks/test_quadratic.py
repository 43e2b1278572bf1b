import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.tasks import quadratic

KEY = jax.random.key(0)


def test_quadratic_gradient_is_the_closed_form_and_finite_differences_in_float64():
    with jax.enable_x64(True):
        task = quadratic(dim=7)
        problem = task.sample(jax.random.key(1))
        theta = task.init(jax.random.key(2), problem)
        loss, gradient = jax.jit(jax.value_and_grad(task.loss))(theta, problem, KEY)
        w, y, theta = (np.asarray(a) for a in (problem["W"], problem["y"], theta))
    assert w.dtype == theta.dtype == gradient.dtype == np.float64
    residual = w @ theta - y
    np.testing.assert_allclose(loss, residual @ residual, rtol=1e-14)
    np.testing.assert_allclose(gradient, 2 * w.T @ residual, rtol=1e-12)

    def f(theta):
        return np.sum((w @ theta - y) ** 2)

    steps = 1e-5 * np.eye(7)
    differences = [(f(theta + step) - f(theta - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, differences, rtol=1e-7)


def _moments(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std()


@pytest.mark.parametrize(
    ("settings", "mean", "std", "init_std"),
    [
        ({}, 0.0, 1.0, 1.0),
        ({"distribution": "uniform", "init_std": 0.01}, 0.5, 12**-0.5, 0.01),
    ],
)
def test_quadratic_distributions_have_the_documented_moments(settings, mean, std, init_std):
    task = quadratic(**settings)
    keys = jax.random.split(KEY, 2000)
    problems = jax.jit(jax.vmap(task.sample))(keys)
    theta = jax.jit(jax.vmap(task.init))(keys, problems)
    assert problems["W"].shape == (2000, 10, 10) and problems["y"].shape == theta.shape
    # Four standard errors of a mean and of a standard deviation of 20,000 numbers.
    np.testing.assert_allclose(_moments(problems["W"]), (mean, std), atol=0.03 * std)
    np.testing.assert_allclose(_moments(problems["y"]), (mean, std), atol=0.03 * std)
    np.testing.assert_allclose(_moments(theta), (0, init_std), atol=0.03 * init_std)
    if mean:
        assert np.min(problems["W"]) >= 0 and np.max(problems["W"]) < 1
    # W, y and θ₀ are drawn apart even where one key draws them all.
    assert np.abs(np.corrcoef(np.ravel(problems["y"]), np.ravel(theta))[0, 1]) < 0.03


def test_quadratic_draws_the_same_from_raw_and_typed_keys():
    task = quadratic()
    raw, typed = jax.random.PRNGKey(3), jax.random.key(3)
    np.testing.assert_array_equal(task.sample(raw)["W"], task.sample(typed)["W"])
    np.testing.assert_array_equal(task.init(raw, ()), task.init(typed, ()))
    problem, theta = task.sample(raw), task.init(raw, ())
    assert task.loss(theta, problem, raw) == task.loss(theta, problem, jax.random.key(4))


def test_quadratics_of_equal_settings_share_one_compiled_program():
    traces = []

    @jax.jit
    def run(task, key):
        traces.append(task)
        problem = task.sample(key)
        return task.loss(task.init(key, problem), problem, key)

    with jax.numpy_dtype_promotion("strict"):
        assert run(quadratic(dim=3), KEY) == run(quadratic(dim=3), KEY)
    assert len(traces) == 1
    run(quadratic(dim=4), KEY)
    assert len(traces) == 2


def test_quadratic_batch_gradient_is_each_problems_gradient():
    task = quadratic(dim=3)
    problems = jax.vmap(task.sample)(jax.random.split(KEY, 4))
    theta = jnp.arange(12.0).reshape(4, 3)
    grad = jax.jit(jax.grad(task.loss))
    together = jax.vmap(grad, (0, 0, None))(theta, problems, KEY)
    for i in range(4):
        alone = grad(theta[i], jax.tree.map(lambda leaf, i=i: leaf[i], problems), KEY)
        np.testing.assert_allclose(together[i], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"distribution": "normall"}, "did you mean 'normal'"),
        ({"init_std": -1.0}, "init_std must be a non-negative number, got -1.0"),
    ],
)
def test_quadratic_names_a_bad_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        quadratic(**settings)
