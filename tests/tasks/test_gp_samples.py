import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from l2ljax.tasks import gp_samples

KEY = jax.random.key(0)


def test_values_have_the_kernel_as_their_covariance():
    count = 20_000
    task = gp_samples(dim=3, length_scale=0.8, features=20)
    points = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3)), jnp.float32)

    @jax.jit
    @jax.vmap
    def values(key):
        problem = task.sample(key)
        return jax.vmap(task.loss, in_axes=(0, None, None))(points, problem, key)

    drawn = np.asarray(values(jax.random.split(KEY, count)))
    distances = np.sum((np.asarray(points)[:, None] - np.asarray(points)) ** 2, axis=-1)
    kernel = np.exp(-distances / (2 * 0.8**2))
    # Four standard errors, each at most √2 / √count but for the few features.
    assert kernel.min() < 0.5
    np.testing.assert_allclose(drawn.T @ drawn / count, kernel, atol=0.045)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.03)


def test_length_scales_are_drawn_log_uniformly_for_each_variable():
    task = gp_samples(dim=2, length_scale=(0.1, 10.0), features=1)
    scales = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 4000))["length_scale"]
    assert 0.1 <= scales.min() < 0.11 and 9 < scales.max() <= 10
    decades = np.log10(np.asarray(scales))
    np.testing.assert_allclose(decades.mean(axis=0), 0, atol=0.04)
    assert abs(np.corrcoef(decades.T)[0, 1]) < 0.07


def test_the_default_length_scales_grow_with_the_dimension():
    for dim in (1, 4):
        task = gp_samples(dim, features=1)
        scales = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 200))["length_scale"]
        assert dim**0.5 / 4 <= scales.min() and scales.max() <= dim**0.5 + 1e-6
        np.testing.assert_array_equal(task.init(KEY, task.sample(KEY)), np.zeros(dim))


def test_the_minimum_is_that_of_scipys_global_search():
    task = gp_samples(dim=2, features=16, minimum=True)
    problems = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 6))
    loss = jax.jit(task.loss)
    for i in range(6):
        problem = jax.tree.map(lambda leaf, i=i: leaf[i], problems)
        found = scipy.optimize.differential_evolution(
            lambda x, problem=problem: float(loss(jnp.float32(x), problem, KEY)),
            [(-1, 1)] * 2,
            seed=0,
        )
        np.testing.assert_allclose(problem["minimum"], found.fun, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"features": 0}, "features must be a whole number of at least 1, got 0"),
        ({"length_scale": -1.0}, "length_scale must be a positive number, got -1.0"),
        ({"length_scale": (0.0, 1.0)}, "length_scale must be a positive number"),
        ({"length_scale": (2.0, 1.0)}, r"the two ends of an interval, got \(2.0, 1.0\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gp_samples(**settings)
