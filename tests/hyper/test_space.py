"""Whole numbers with steps, and on a logarithmic scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import hyper

KEY = jax.random.key(0)
BAYESIAN = hyper.bayesian(initial=4, candidates=16)


def test_whole_numbers_with_steps_are_equally_probable():
    axis = hyper.integer(16, 96, step=16)
    found = axis.at((np.arange(600) + 0.5) / 600)
    numbers, counts = np.unique(found, return_counts=True)
    assert numbers.tolist() == [16, 32, 48, 64, 80, 96] and set(counts) == {100}
    np.testing.assert_array_equal(axis.at(axis.unit(numbers)), numbers)


def test_whole_numbers_on_a_logarithmic_scale_are_as_probable_as_their_logarithms_are_apart():
    axis = hyper.integer(2, 2000, log=True)
    found = axis.at((np.arange(100_000) + 0.5) / 100_000)
    numbers = np.arange(2, 2001)
    expected = np.diff(np.log(np.arange(1.5, 2001)))
    counts = np.bincount(found)[2:] / 100_000
    np.testing.assert_allclose(counts, expected / expected.sum(), atol=2e-5)
    np.testing.assert_array_equal(axis.at(axis.unit(numbers)), numbers)
    assert axis.at(np.array([0.0, 1.0])).tolist() == [2, 2000]


NUMBERS = {"units": hyper.integer(1, 1000, log=True), "batch": hyper.integer(32, 128, step=32)}


@pytest.mark.parametrize(
    "method", ["grid", "random", BAYESIAN, "optuna"], ids=["grid", "random", "bayesian", "optuna"]
)
def test_every_method_takes_such_numbers(method, tmp_path):
    def objective(settings, key):
        return jnp.log10(settings["units"]) + settings["batch"] / 32

    file = tmp_path / "search.json"
    settings = {"key": KEY, "method": method, "at_once": 4, "resume": file}
    hyper.search(objective, NUMBERS, trials=16, **settings)
    result = hyper.search(objective, NUMBERS, trials=16, **settings)
    units, batch = result.trials["units"], result.trials["batch"]
    assert units.dtype == batch.dtype == np.int64
    assert units.min() >= 1 and units.max() <= 1000
    assert set(batch) == {32, 64, 96, 128}
    assert np.sum(units <= 32) >= 4  # of the logarithm's half, not 3 % of the numbers
    np.testing.assert_allclose(result.values, np.log10(units) + batch / 32, rtol=1e-5)
    for other in (hyper.integer(1, 1000), hyper.integer(1, 1000, step=3)):
        with pytest.raises(ValueError, match="the space of .*search.json is"):
            hyper.search(objective, NUMBERS | {"units": other}, trials=16, **settings)


def grid_of(points, axis):
    settings = {"key": KEY, "method": hyper.grid(points)}
    return hyper.search(lambda s, key: s["x"], {"x": axis}, **settings).trials["x"]


def test_a_grid_of_logarithms_has_each_number_once():
    found = grid_of(7, hyper.integer(1, 1000, log=True))
    assert found.tolist() == [1, 3, 10, 32, 100, 316, 1000]
    few = grid_of(5, hyper.integer(1, 5, log=True))
    assert few.tolist() == np.unique(few).tolist() and few[0] == 1 and few[-1] == 5
