"""Search for settings: methods, one driver for all of them, and what can be said of its result."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from l2ljax import classic, evaluate, hyper
from l2ljax.core import Task
from l2ljax.hyper import SearchResult

KEY = jax.random.key(0)
SPACE = {
    "rate": hyper.log_uniform(1e-3, 1.0),
    "shift": hyper.uniform(-1, 3),
    "count": hyper.integer(2, 5),
    "width": hyper.integer(1, 2, static=True),
    "act": hyper.choice("relu", "tanh"),
}
PLANE = {"x": hyper.uniform(-5, 10), "y": hyper.uniform(0, 15)}


def loss(settings, key):
    """Where the static settings are Python values, and the others arrays."""
    assert isinstance(settings["width"], int)
    bonus = {"relu": 0.0, "tanh": 0.5}[settings["act"]]
    rows = jnp.ones(settings["width"]) * jnp.log10(settings["rate"])
    shift = settings["shift"] - jnp.asarray(settings["count"], settings["shift"].dtype)
    return jnp.sum(rows**2) + shift**2 + bonus


def branin(settings, key):
    x, y = settings["x"], settings["y"]
    valley = (y - 5.1 / (4 * jnp.pi**2) * x**2 + 5 / jnp.pi * x - 6) ** 2
    return valley + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(x) + 10


def only(name, axis=None, **settings):
    space = {"x": axis or hyper.uniform(0, 1)}
    return hyper.search(lambda s, key: s["x"], space, key=KEY, method=name, **settings)


BAYESIAN = hyper.bayesian(initial=4, candidates=64)
METHODS = {
    "grid": "grid",
    "random": "random",
    "quasi_random": "quasi_random",
    "probability": hyper.bayesian("probability_of_improvement", initial=4, candidates=32),
    "thompson": hyper.bayesian("thompson", initial=4, candidates=32),
    "optuna": "optuna",
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_stays_in_bounds_and_records_the_objective(method):
    # A grid of 40 trials at most has two values of each setting.
    trials, count = (40, 32) if method == "grid" else (12, 12)
    result = hyper.search(loss, SPACE, key=KEY, method=method, trials=trials, at_once=4)
    columns = result.trials
    assert len(result.values) == count
    assert ((columns["rate"] >= 1e-3) & (columns["rate"] <= 1)).all()
    assert ((columns["shift"] >= -1) & (columns["shift"] <= 3)).all()
    assert set(columns["count"]) <= {2, 3, 4, 5} and columns["count"].dtype == np.int64
    assert set(columns["width"]) == {1, 2} and set(columns["act"]) == {"relu", "tanh"}
    bonus = np.where(columns["act"] == "tanh", 0.5, 0.0)
    expected = columns["width"] * np.log10(columns["rate"]) ** 2 + bonus
    expected += (columns["shift"] - columns["count"]) ** 2
    np.testing.assert_allclose(result.values, expected, rtol=1e-4)
    i = np.argmin(result.values)
    assert result.value == result.values[i]
    assert result.best == {name: column[i] for name, column in columns.items()}
    assert type(result.best["rate"]) is float and type(result.best["count"]) is int


@pytest.mark.slow
def test_a_bayesian_search_beats_a_random_one():
    def regret(method, seed):
        settings = {"key": jax.random.key(seed), "trials": 24, "at_once": 4}
        return hyper.search(branin, PLANE, method=method, **settings).value - 0.397887

    bayesian, random = ([regret(m, seed) for seed in range(3)] for m in (BAYESIAN, "random"))
    assert np.median(bayesian) < 0.1 < np.median(random)


def test_a_grid_has_every_combination_with_both_ends():
    result = hyper.search(loss, SPACE, key=KEY, method=hyper.grid({"rate": 4, "shift": 1}))
    np.testing.assert_allclose(np.unique(result.trials["rate"]), [1e-3, 1e-2, 1e-1, 1], rtol=1e-9)
    assert set(result.trials["shift"]) == {1.0}
    assert len(result.values) == 4 * 1 * 3 * 2 * 2
    rows = list(zip(*(column.tolist() for column in result.trials.values()), strict=True))
    sizes = [len(np.unique(column.astype(str))) for column in result.trials.values()]
    assert len(set(rows)) == len(rows) == np.prod(sizes)
    nine = hyper.search(branin, PLANE, key=KEY, method="grid", trials=15)
    assert len(nine.values) == 9
    np.testing.assert_allclose(np.unique(nine.trials["x"]), [-5, 2.5, 10])
    whole = only(hyper.grid(9), hyper.integer(1, 4))
    assert whole.trials["x"].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="trials must be at least the 9 points of the grid, got 5"):
        only(hyper.grid(9), trials=5)


def test_random_draws_are_uniform_and_logarithms_of_rates_too():
    propose = hyper.random().start(SPACE, KEY, 2000)
    units = propose(np.zeros((0, 5)), np.zeros(0), 2000)
    for column in units.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 0.01
    rates = SPACE["rate"].at(units[:, 0])
    assert scipy.stats.kstest(np.log(rates), "uniform", (np.log(1e-3), np.log(1e3))).pvalue > 0.01
    counts = np.bincount(SPACE["count"].at(units[:, 2]))[2:]
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    np.testing.assert_array_equal(propose(units[:96], np.zeros(96), 8), units[96:104])


def test_quasi_random_points_fill_the_cube_more_evenly():
    def discrepancy(method, seed):
        propose = method.start(cube, jax.random.key(seed), 64)
        return scipy.stats.qmc.discrepancy(propose(np.zeros((0, 4)), np.zeros(0), 64))

    cube = dict.fromkeys("abcd", hyper.uniform(0, 1))
    quasi = [discrepancy(hyper.quasi_random(), seed) for seed in range(8)]
    independent = [discrepancy(hyper.random(), seed) for seed in range(8)]
    assert max(quasi) < min(independent)
    assert len(set(quasi)) == 8


def test_scrambled_points_are_uniform_each():
    def first(seed):
        propose = hyper.quasi_random().start(PLANE, jax.random.key(seed), 9)
        return propose(np.zeros((5, 2)), np.zeros(5), 1)[0]

    points = np.array([first(seed) for seed in range(100)])
    for column in points.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "method", ["random", BAYESIAN, "optuna"], ids=["random", "bayesian", "optuna"]
)
def test_a_search_goes_on_as_if_it_had_not_been_interrupted(tmp_path, method):
    def run(trials, file=None):
        return hyper.search(
            branin, PLANE, key=KEY, method=method, trials=trials, at_once=4, resume=file
        )

    file = tmp_path / "runs" / "search.json"
    whole = run(14)
    for trials in (6, 8, 14):
        found = run(trials, file)
        assert len(found.values) == trials
    np.testing.assert_array_equal(found.values, whole.values)
    np.testing.assert_array_equal(found.trials["x"], whole.trials["x"])
    written = file.read_text()
    np.testing.assert_array_equal(run(6, file).values, whole.values[:6])
    assert file.read_text() == written


def test_a_file_of_another_search_is_refused_by_what_differs(tmp_path):
    file = tmp_path / "search.json"
    settings = {"key": KEY, "trials": 2, "at_once": 2, "resume": file}
    hyper.search(loss, SPACE, **settings)
    for change, part in [
        ({"key": jax.random.key(1)}, "key"),
        ({"method": "quasi_random"}, "method"),
        ({"at_once": 1}, "at_once"),
    ]:
        with pytest.raises(ValueError, match=f"the {part} of .*search.json is"):
            hyper.search(loss, SPACE, **settings | change)
    with pytest.raises(ValueError, match="the space of"):
        hyper.search(loss, SPACE | {"act": hyper.choice("relu", "elu")}, **settings)
    file.write_text(json.dumps({"trials": {}}))
    with pytest.raises(ValueError, match="resume must be a file that a search left"):
        hyper.search(loss, SPACE, **settings)


def _damaged(content, damage):
    trials, values = content["trials"], content["values"]
    match damage:
        case "a value less":
            del values[1]
        case "a setting less":
            del trials["shift"]
        case "a setting more":
            trials["other"] = trials["shift"]
        case "one of a column less":
            del trials["shift"][0]
        case "no columns":
            content["trials"] = []
        case "no option":
            trials["act"][0] = 2
        case "half an option":
            trials["act"][0] = 0.5
        case "out of range":
            trials["rate"][0] = 2.0
        case "no number":
            trials["rate"][0] = "0.1"
        case "a truth":
            trials["count"] = [True] * len(values)
        case "a text as a value":
            values[0] = "0.5"
        case "nothing as a value":
            values[0] = None
        case "no list":
            return [content]
    return content


@pytest.mark.parametrize(
    "damage",
    [
        *("a value less", "a setting less", "a setting more", "one of a column less"),
        *("no columns", "no option", "half an option", "out of range", "no number", "a truth"),
        *("a text as a value", "nothing as a value", "no list"),
    ],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, damage):
    file = tmp_path / "search.json"
    settings = {"key": KEY, "trials": 2, "at_once": 2, "resume": file}
    hyper.search(loss, SPACE, **settings)
    text = json.dumps(_damaged(json.loads(file.read_text()), damage))
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^resume must be a file that a search left, got .*json"):
        hyper.search(loss, SPACE, **settings | {"trials": 4})
    assert file.read_text() == text


def test_a_file_that_cannot_be_written_is_refused_before_the_first_trial(tmp_path):
    def objective(settings, key):
        raise AssertionError("a trial was evaluated")

    (tmp_path / "file").touch()
    # Its folder would be a file.
    for file in (tmp_path, tmp_path / "file" / "search.json"):
        with pytest.raises(ValueError, match=r"^resume must be a file that .*, got "):
            hyper.search(objective, PLANE, key=KEY, resume=file)


def test_what_is_not_finite_is_kept_and_never_best(tmp_path):
    odd = np.array([np.nan, -np.inf, np.inf, 2.0])

    def objective(settings, key):
        return jnp.asarray(odd)[(settings["x"] > -3) * 2 + (settings["y"] > 4)]

    file = tmp_path / "search.json"
    for method in ("grid", BAYESIAN, "optuna"):
        settings = {"key": KEY, "method": method, "trials": 9, "at_once": 4}
        result = hyper.search(objective, PLANE, **settings, resume=file)
        x, y = result.trials.values()
        np.testing.assert_array_equal(result.values, odd[(x > -3) * 2 + (y > 4)])
        assert not np.isfinite(result.values).all() and result.value == 2
        assert result.best["x"] > -3 and result.best["y"] > 4
        again = hyper.search(objective, PLANE, **settings, resume=file)
        np.testing.assert_array_equal(again.values, result.values)
        file.unlink()
    nothing = hyper.search(lambda settings, key: jnp.nan, PLANE, key=KEY, trials=3)
    assert nothing.best is None and nothing.value == np.inf
    assert str(nothing) == "no finite value in 3 trials, 3 of them not finite"
    with pytest.raises(ValueError, match="values must hold a finite one"):
        nothing.expected_best()


def test_an_exception_ends_a_search_unless_it_is_caught():
    def objective(settings, key):
        if settings["size"] == 3:
            raise MemoryError("too wide")
        return jnp.float32(settings["size"])

    arguments = (objective, {"size": hyper.integer(2, 4, static=True)})
    settings = {"key": KEY, "method": "grid", "trials": 3}
    with pytest.raises(MemoryError, match="too wide"):
        hyper.search(*arguments, **settings)
    result = hyper.search(*arguments, **settings, catch=(MemoryError,))
    np.testing.assert_array_equal(result.values, [2, np.nan, 4])
    assert result.best == {"size": 2}


def test_trials_share_programs_and_the_key():
    traced = []

    def objective(settings, key):
        traced.append(settings["mode"])
        return settings["x"] + jax.random.uniform(key) + {"a": 0.0, "b": 10.0}[settings["mode"]]

    space = {"x": hyper.uniform(0, 1), "mode": hyper.choice("a", "b")}
    result = hyper.search(objective, space, key=KEY, trials=20, at_once=4)
    # For each mode at most programs of 1, 2 and 4 trials.
    assert len(traced) <= 6
    noise = result.values - result.trials["x"] - np.where(result.trials["mode"] == "b", 10, 0)
    np.testing.assert_allclose(noise, noise[0], atol=1e-5)
    other = hyper.search(objective, space, key=jax.random.key(1), trials=4, at_once=4)
    assert not np.isin(other.trials["x"], result.trials["x"]).any()


VALUES = np.array([3.0, 1.0, 7.0, 2.0, 2.5])


@pytest.mark.parametrize("replacement", [True, False])
def test_the_expected_best_is_that_of_every_draw_there_is(replacement):
    result = SearchResult({}, VALUES, {}, 1.0)
    found = result.expected_best(confidence=0.8, replacement=replacement)
    for n in range(1, 6):
        draws = (
            itertools.product(VALUES, repeat=n)
            if replacement
            else itertools.combinations(VALUES, n)
        )
        bests = np.sort([min(draw) for draw in draws])
        np.testing.assert_allclose(found.mean[n - 1], bests.mean(), rtol=1e-12)
        ends = np.quantile(bests, [0.1, 0.9], method="inverted_cdf")
        np.testing.assert_array_equal([found.low[n - 1], found.high[n - 1]], ends)


def test_trials_that_are_not_finite_count_as_the_worst_of_an_expected_best():
    broken = SearchResult({}, np.array([3.0, np.nan, 1.0, np.inf]), {}, 1.0)
    repaired = SearchResult({}, np.array([3.0, 3.0, 1.0, 3.0]), {}, 1.0)
    np.testing.assert_array_equal(broken.expected_best().mean, repaired.expected_best().mean)
    np.testing.assert_array_equal(broken.best_so_far, [3, 3, 1, 1])
    with pytest.raises(ValueError, match="confidence must be a number between 0 and 1, got 1"):
        broken.expected_best(confidence=1)


def test_a_result_is_a_table():
    result = hyper.search(loss, SPACE, key=KEY, trials=4, at_once=4)
    frame = result.to_frame()
    assert list(frame.columns) == [*SPACE, "value"] and len(frame) == 4
    assert frame["value"].min() == result.value
    assert frame.loc[frame["value"].idxmin(), "act"] == result.best["act"]
    assert str(result).startswith(f"{result.value:.4g} at rate=")


def untraced(objective):
    return hyper.search(objective, PLANE, key=KEY, trials=1, traceable=False)


def bowl(width, target=0.0):
    return Task(
        sample=lambda key: (),
        init=lambda key, problem: 1 + jax.random.uniform(key, (width,)),
        loss=lambda params, problem, key: 0.5 * jnp.sum((params - target) ** 2),
    )


BOWL = bowl(2)


def test_the_objective_of_a_task_is_the_score_of_tuning():
    objective = hyper.objective(classic.gradient_descent, BOWL, steps=3, problems=2, window=1)
    settings = {"learning_rate": jnp.array([0.25, 0.5, 4.0])}
    found = jax.jit(jax.vmap(objective, in_axes=(0, None)))(settings, KEY)
    expected = evaluate.tune(
        classic.gradient_descent,
        BOWL,
        settings["learning_rate"],
        key=KEY,
        steps=3,
        problems=2,
        window=1,
        widen=0,
    )
    np.testing.assert_allclose(found, expected.scores, rtol=1e-5)


def test_the_objective_of_a_validation_task_is_its_loss_of_the_last_params():
    objective = hyper.objective(
        classic.gradient_descent,
        bowl,
        steps=2,
        problems=2,
        window=1,
        validation=lambda width: bowl(width, 1.0),
        task_settings=["width"],
    )
    found = jax.jit(lambda rate: objective({"learning_rate": rate, "width": 3}, KEY))(0.5)
    starts = [
        np.asarray(1 + jax.random.uniform(jax.random.split(jax.random.fold_in(KEY, i), 3)[1], (3,)))
        for i in range(2)
    ]
    # Two steps of gradient descent halve the params twice.
    expected = np.mean([0.5 * np.sum((start / 4 - 1) ** 2) for start in starts])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hyper.uniform(1, 1), "high must be above low=1, got 1"),
        (lambda: hyper.uniform(2, 1), "high must be above low=2, got 1"),
        (lambda: hyper.uniform(0, np.inf), "high must be a finite number, got inf"),
        (lambda: hyper.log_uniform(0, 1), "low must be a positive number, got 0"),
        (lambda: hyper.log_uniform(-1, 1), "low must be a positive number, got -1"),
        (lambda: hyper.integer(3, 1), "high must be above low=3, got 1"),
        (
            lambda: hyper.integer(16, 100, step=16),
            "high must be whole steps of 16 above low=16, got 100; the last such number is 96",
        ),
        (lambda: hyper.integer(1, 5, step=0), "step must be a whole number of at least 1, got 0"),
        (lambda: hyper.integer(1, 5, step=2, log=True), "step must be 1 on a logarithmic .* got 2"),
        (lambda: hyper.integer(0, 5, log=True), "low must be at least 1 on a logarithmic .*got 0"),
        (lambda: hyper.choice(), "options must have at least one entry, got none"),
        (lambda: hyper.choice("a", "a"), "options must differ"),
        (lambda: hyper.grid(0), "points must be a whole number of at least 1, got 0"),
        (lambda: only(hyper.grid({"y": 2})), "points must be one of .*'x'.*, got 'y'"),
        (lambda: hyper.bayesian("ei"), "acquisition must be one of .* got 'ei'"),
        (lambda: hyper.bayesian(initial=0), "initial must be a whole number"),
        (lambda: hyper.optuna("TPE"), "sampler must be the name of a class in optuna.samplers"),
        (lambda: hyper.optuna(seed=1), "seed must not be given: the key is, got seed=1"),
        (lambda: only("ramdom"), "method must be one of .*; did you mean 'random'"),
        (lambda: only("random", trials=0), "trials must be a whole number of at least 1, got 0"),
        (lambda: only("random", at_once=0), "at_once must be a whole number of at least 1, got 0"),
        (lambda: hyper.search(loss, {}, key=KEY), "space must be a mapping with at least one"),
        (
            lambda: hyper.search(lambda s, key: jnp.ones(2), PLANE, key=KEY, trials=1),
            r"objective must return a scalar, got shape \(2,\)",
        ),
        (lambda: untraced(lambda s, key: np.ones(2)), r"must return a scalar, got shape \(2,\)"),
        (lambda: untraced(lambda s, key: None), "objective must return a scalar, got None"),
        (lambda: untraced(lambda s, key: "0.5x"), "objective must return a number, got '0.5x'"),
        (lambda: hyper.objective(classic.adam, BOWL, steps=5), "window must be at most steps=5"),
        (lambda: hyper.objective(classic.adam, BOWL, problems=0), "problems must be a whole"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_key_and_no_number_is_refused_by_name(unchecked):
    for key in (0, None):
        with pytest.raises(ValueError, match=f"^key must be a PRNG key such as .*, got {key}"):
            hyper.search(loss, SPACE, key=key)
    for axis in (hyper.uniform, hyper.log_uniform):
        with pytest.raises(ValueError, match=r"^low must be one finite number, got \[1, 2\]"):
            axis([1, 2], 3)
        with pytest.raises(ValueError, match="^high must be a"):
            axis(1, "2")
    with pytest.raises(ValueError, match="^confidence must be a number between 0 and 1, got 'x'"):
        SearchResult({}, np.ones(3), {}, 1.0).expected_best(confidence="x")
