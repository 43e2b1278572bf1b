"""Grid search of hand-designed optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.core import LearnedTask, Task
from l2ljax.evaluate import baselines, curves, tune
from l2ljax.meta import final_loss

KEY = jax.random.key(0)

# |θ|²/2 by gradient descent: θ_T = (1 - η)^T θ₀, solved at once by η = 1, diverging beyond 2.
BOWL = Task(
    sample=lambda key: (),
    init=lambda key, problem: 1 + jax.random.uniform(key, (2,)),
    loss=lambda params, problem, key: 0.5 * jnp.sum(params**2),
)
SETTINGS = {"key": KEY, "steps": 3, "problems": 2, "window": 1}


def descend(rate):
    return classic.gradient_descent(rate)


def search(grid, factory=descend, task=BOWL, **settings):
    return tune(factory, task, grid, **SETTINGS | settings)


def test_the_best_rate_is_the_one_of_the_closed_form():
    rates = [0.25, 0.5, 1.0, 2.0, 4.0]
    tuning = search(rates)
    assert tuning.best == {"learning_rate": 1.0}
    assert not tuning.on_edge
    start = curves(descend(0.1), BOWL, **{n: SETTINGS[n] for n in ("key", "steps", "problems")})
    expected = [float(start[:, 0].mean()) * (1 - rate) ** 6 for rate in rates]
    np.testing.assert_allclose(tuning.scores, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(tuning.points["learning_rate"], rates)
    assert tuning.score == tuning.scores.min()


def test_scores_of_the_grid_are_those_of_single_runs():
    rates = [0.1, 0.4, 1.6]
    tuning = search(rates, classic.adam, window=2, widen=0)
    for rate, score in zip(rates, tuning.scores, strict=True):
        run = curves(classic.adam(rate), BOWL, key=KEY, steps=3, problems=2)
        np.testing.assert_allclose(score, final_loss(run, 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2])
def test_scores_do_not_depend_on_how_many_run_at_once(at_once):
    rates = [0.1, 0.4, 1.6]
    expected = search(rates, widen=0).scores
    np.testing.assert_allclose(search(rates, widen=0, at_once=at_once).scores, expected, rtol=1e-6)


@pytest.mark.parametrize("rates", [[0.01, 0.1], [10.0, 100.0]], ids=["upwards", "downwards"])
def test_a_best_rate_on_an_edge_widens_the_grid(rates):
    tuning = search(rates)
    np.testing.assert_allclose(tuning.best["learning_rate"], 1.0, rtol=1e-12)
    assert not tuning.on_edge
    assert tuning.best["learning_rate"] in tuning.points["learning_rate"]
    assert len(tuning.scores) == 4


def test_a_grid_that_may_not_be_widened_says_that_it_ended_on_its_edge():
    tuning = search([0.01, 0.1], widen=0)
    assert tuning.best == {"learning_rate": 0.1}
    assert tuning.on_edge
    assert len(tuning.scores) == 2


def test_diverged_settings_are_never_best():
    # A rate of 1e30 overflows to infinity, and then to NaN.
    tuning = search([0.5, 1.0, 1e30], steps=5)
    assert tuning.best == {"learning_rate": 1.0}
    assert tuning.scores[-1] == np.inf
    assert not np.isnan(tuning.scores).any()


def test_a_grid_that_diverges_everywhere_is_widened_downwards_as_often_as_allowed():
    tuning = search([1e29, 1e30], steps=5, widen=2)
    assert tuning.score == np.inf
    assert tuning.on_edge
    np.testing.assert_allclose(np.sort(tuning.points["learning_rate"])[0], 1e25, rtol=1e-9)
    found = search([1e3, 1e20], steps=5, widen=1)
    assert np.isfinite(found.score)


def test_every_combination_of_a_mapping_is_tried():
    grid = {"decay": [0.0, 0.5], "learning_rate": [0.5, 1.0, 2.0]}
    tuning = search(grid, classic.momentum)
    assert tuning.best == {"decay": 0.0, "learning_rate": 1.0}
    pairs = set(zip(*(tuning.points[name].tolist() for name in grid), strict=True))
    assert pairs == {(d, r) for d in grid["decay"] for r in grid["learning_rate"]}
    run = curves(classic.momentum(2.0, 0.5), BOWL, key=KEY, steps=3, problems=2)
    at = (tuning.points["decay"] == 0.5) & (tuning.points["learning_rate"] == 2.0)
    np.testing.assert_allclose(tuning.scores[at], run[:, -1].mean(), rtol=1e-5)


def test_widening_a_mapping_keeps_the_other_arguments():
    tuning = search({"decay": [0.0, 0.5], "learning_rate": [0.01, 0.1]}, classic.momentum)
    assert tuning.best["decay"] == 0.0
    np.testing.assert_allclose(tuning.best["learning_rate"], 1.0, rtol=1e-12)
    assert len(tuning.scores) == 8


def test_arguments_without_a_rate_are_searched_too():
    tuning = search({"decay": [0.5, 0.0]}, lambda decay: classic.momentum(1.0, decay))
    assert tuning.best == {"decay": 0.0}
    assert not tuning.on_edge


def test_a_factory_may_call_its_rate_anything():
    assert search([0.5, 1.0, 2.0], lambda eta: optax.sgd(eta)).best == {"learning_rate": 1.0}


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        ([0.1, 0.0], {}, r"grid must be a positive number, got \[0.1, 0.0\]"),
        ([0.1, -1.0], {}, "grid must be a positive number"),
        ([0.1, np.nan], {}, "grid must be a positive number"),
        ([0.1, np.inf], {}, "grid must be a positive number"),
        ([], {}, r"grid must be a sequence of numbers, got \[\]"),
        (np.array([[0.1]]), {}, "grid must be a sequence of numbers"),
        ({}, {}, "grid must have at least one argument, got none"),
        ({"learning_rate": []}, {}, r"grid\['learning_rate'\] must be a sequence of numbers"),
        ({"learning_rate": [-0.1]}, {}, r"grid\['learning_rate'\] must be a positive number"),
        ({"learning_rate": [0.1], "decay": [np.nan]}, {}, r"grid\['decay'\] must be a finite"),
        (["a"], {}, r"grid must be a sequence of numbers, got \['a'\]"),
        ({"learning_rate": [[0.1], 1]}, {}, r"grid\['learning_rate'\] must be a sequence of"),
        ([0.1], {"key": None}, "key must be a PRNG key such as .*, got None"),
        ([0.1], {"task": "quadratic"}, "task must be a core.Task, got 'quadratic'"),
        ([0.1], {"factory": optax.sgd(0.1)}, "factory must be a function that makes an optax tr"),
        ([0.1], {"factory": lambda rate: rate}, "what factory makes must be an optax transform"),
        ([0.1], {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ([0.1], {"problems": 0}, "problems must be a whole number"),
        ([0.1], {"window": 0}, "window must be a whole number"),
        ([0.1], {"window": 4}, "window must be at most steps=3, got 4"),
        ([0.1], {"at_once": 0}, "at_once must be a whole number of at least 1, got 0"),
        ([0.1], {"widen": -1}, "widen must be a whole number of at least 0, got -1"),
    ],
)
def test_a_bad_grid_or_size_is_named(grid, settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        search(grid, **settings)


def test_baselines_have_four_decades_of_rates_each():
    grids = {name: tunable.grid for name, tunable in baselines().items()}
    assert list(grids) == ["SGD", "momentum", "Nesterov", "RMSprop", "Adam"]
    for grid in grids.values():
        assert len(grid) >= 11
        np.testing.assert_allclose(grid[-1] / grid[0], 1e4)
        np.testing.assert_allclose(np.diff(np.log10(grid)), 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "Adam"}, r"names must be a sequence of names, got 'Adam'; try \['Adam'\]"),
        ({"names": ["Adm"]}, "names must be one of .* got 'Adm'; did you mean 'Adam'"),
        ({"decades": 0}, "decades must be a whole number"),
        ({"per_decade": 0}, "per_decade must be a whole number"),
    ],
)
def test_bad_arguments_of_baselines_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        baselines(**arguments)


@pytest.mark.parametrize("name", ["steps", "problems"])
def test_curves_of_no_size_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        curves(optax.sgd(0.1), BOWL, key=KEY, **{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": LearnedTask(lambda key: 0, lambda psi: BOWL)}, r"; its `bind\(psi\)` is one"),
        ({"tx": optax.adam}, "tx must be an optax transformation, got <function adam"),
        ({"key": 0}, "key must be a PRNG key"),
    ],
)
def test_curves_of_what_cannot_run_are_refused(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        curves(**{"tx": optax.sgd(0.1), "task": BOWL, "key": KEY} | change)
