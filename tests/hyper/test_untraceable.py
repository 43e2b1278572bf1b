"""Search with objectives that JAX cannot trace."""

import json

import jax
import numpy as np
import pytest

from l2ljax import hyper

KEY = jax.random.key(0)
SPACE = {
    "rate": hyper.log_uniform(1e-3, 1.0),
    "count": hyper.integer(2, 5),
    "act": hyper.choice("relu", "tanh"),
}
LINE = {"x": hyper.uniform(0, 1)}
BAYESIAN = hyper.bayesian(initial=4, candidates=16)


def traceable(settings, key):
    return settings["rate"] * settings["count"] + {"relu": 0.0, "tanh": 0.5}[settings["act"]]


def untraceable(settings, key):
    """As a library of compiled code: it takes Python numbers and makes one."""
    assert [type(value) for value in settings.values()] == [float, int, str]
    return float(traceable(settings, key))


def notes(error):
    """What follows the message, without what JAX adds to every error."""
    return [note for note in getattr(error, "__notes__", []) if not note.startswith("----")]


@pytest.mark.parametrize("method", ["random", BAYESIAN], ids=["random", "bayesian"])
def test_an_objective_that_cannot_be_traced_is_evaluated_trial_by_trial(method, tmp_path):
    file = tmp_path / "search.json"
    settings = {"key": KEY, "method": method, "at_once": 4}
    traced = hyper.search(traceable, SPACE, trials=6, **settings)
    settings |= {"traceable": False, "resume": file}
    hyper.search(untraceable, SPACE, trials=4, **settings)
    found = hyper.search(untraceable, SPACE, trials=6, **settings)
    np.testing.assert_allclose(found.values, traced.values, rtol=1e-4)
    for name in SPACE:
        np.testing.assert_array_equal(found.trials[name], traced.trials[name])


def test_a_method_learns_after_every_trial_that_is_not_traced(tmp_path):
    def objective(settings, key):
        kept.append(json.loads(file.read_text())["values"])
        if len(kept) == 3:
            raise MemoryError
        return settings["x"]

    file, kept = tmp_path / "search.json", []
    settings = {"key": KEY, "trials": 4, "resume": file, "traceable": False}
    result = hyper.search(objective, LINE, catch=(MemoryError,), **settings)
    assert [len(values) for values in kept] == [0, 1, 2, 3]
    expected = np.where(np.arange(4) == 2, np.nan, result.trials["x"])
    np.testing.assert_array_equal(result.values, expected)


def test_a_model_of_scikit_learn_is_searched_and_the_error_says_how():
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs = np.arange(12.0).reshape(6, 2) % 5

    def score(settings, key):
        model = linear_model.Ridge(alpha=settings["alpha"]).fit(inputs, inputs.sum(1))
        return -model.score(inputs, inputs.sum(1))

    settings = {"key": KEY, "method": "grid", "trials": 3}
    space = {"alpha": hyper.log_uniform(0.01, 100)}
    with pytest.raises((TypeError, ValueError)) as raised:
        hyper.search(score, space, **settings)
    (note,) = notes(raised.value)
    assert "traceable=False" in note
    result = hyper.search(score, space, traceable=False, **settings)
    np.testing.assert_allclose(result.trials["alpha"], [0.01, 1, 100])
    assert np.all(np.diff(result.values) > 0)


@pytest.mark.parametrize(
    "use",
    [
        float,
        int,
        np.asarray,
        lambda x: [1, 2][x > 0],
        lambda x: x if x > 0 else -x,
        np.zeros(3).take,
    ],
    ids=["float", "int", "array", "index", "condition", "take"],
)
def test_the_error_of_an_objective_that_cannot_be_traced_names_the_argument(use):
    with pytest.raises((TypeError, IndexError)) as raised:
        hyper.search(lambda s, key: use(s["x"]), LINE, key=KEY, trials=1)
    (note,) = notes(raised.value)
    assert "hyper.search(..., traceable=False)" in note


def test_an_error_of_another_kind_has_no_such_note():
    with pytest.raises(KeyError) as raised:
        hyper.search(lambda s, key: s["z"], LINE, key=KEY, trials=1)
    assert not notes(raised.value)
