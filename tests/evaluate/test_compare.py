"""Comparisons: their numbers, intervals and tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from l2ljax import classic
from l2ljax.core import Task
from l2ljax.evaluate import Tunable, compare, curves, tune
from l2ljax.learned import lstm
from l2ljax.tasks import Family

KEY = jax.random.key(0)

# f(θ) = h |θ|²/2, a curvature h a problem.
BOWLS = Task(
    sample=lambda key: jax.random.uniform(key, minval=0.5, maxval=1.5),
    init=lambda key, problem: jnp.ones(2),
    loss=lambda params, problem, key: 0.5 * problem * jnp.sum(params**2),
)
SETTINGS = {"key": KEY, "steps": 4, "problems": 16, "window": 2}


@pytest.fixture(scope="module")
def result():
    optimizers = {
        "slow": optax.sgd(0.1),
        "tuned": Tunable(classic.gradient_descent, [0.01, 0.1]),
        "decayed": Tunable(classic.momentum, {"learning_rate": [0.2, 0.5, 2.0], "decay": [0.1]}),
    }
    return compare(optimizers, BOWLS, tuning_problems=4, **SETTINGS)


def recorded(losses, steps=1, **settings):
    """A comparison whose final losses are given numbers: one row an optimizer."""
    losses = {name: jnp.asarray(row, jnp.float32) for name, row in losses.items()}
    size = len(next(iter(losses.values())))
    # Each problem draws an index; the first update looks up the loss that stands there.
    task = Task(
        sample=lambda key: jax.random.randint(key, (), 0, size),
        init=lambda key, problem: jnp.float32(problem),
        loss=lambda params, problem, key: params,
    )

    def look_up(row):
        return optax.GradientTransformation(
            lambda params: params,
            lambda g, index, params: (row[index.astype(int)] - params, index),
        )

    optimizers = {name: look_up(row) for name, row in losses.items()}
    return compare(optimizers, task, key=KEY, steps=steps, window=1, **settings)


def test_numbers_of_the_table_are_those_of_the_curves(result):
    for row in result.rows:
        run = np.asarray(result.curves[row.name], np.float64)
        assert run.shape == (16, 5)
        np.testing.assert_allclose(row.final, run[:, -2:].mean(), rtol=1e-6)
        np.testing.assert_allclose(row.mean, run[:, 1:].mean(), rtol=1e-6)
        reference = np.asarray(result.curves["slow"], np.float64)[:, -2:].mean()
        np.testing.assert_allclose(row.ratio, reference / run[:, -2:].mean(), rtol=1e-6)
        assert row.final_low < row.final < row.final_high
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.diverged == 0


def test_optimizers_meet_the_same_problems(result):
    first = [run[:, 0] for run in result.curves.values()]
    np.testing.assert_array_equal(first[1], first[0])
    np.testing.assert_array_equal(first[2], first[0])
    alone = curves(optax.sgd(0.1), BOWLS, key=KEY, steps=4, problems=16)
    np.testing.assert_array_equal(result.curves["slow"], alone)


def test_known_tunings_are_not_done_again(result):
    optimizers = {
        "slow": optax.sgd(0.1),
        # Tuned again, this grid would have another best rate.
        "tuned": Tunable(classic.gradient_descent, [0.3, 1.0]),
    }
    tunings = {"tuned": result.tunings["tuned"]}
    again = compare(optimizers, BOWLS, tunings=tunings, **SETTINGS)
    assert again.tunings == tunings
    assert again.rows == result.rows[:2]
    with pytest.raises(ValueError, match="tunings must be those of .* got one of 'slow'"):
        compare(optimizers, BOWLS, tunings={"slow": tunings["tuned"]}, **SETTINGS)


def test_tuned_optimizers_run_with_their_best_setting(result):
    rows = {row.name: row for row in result.rows}
    assert rows["slow"].setting is None
    assert rows["decayed"].setting == {"learning_rate": 0.5, "decay": 0.1}
    assert rows["tuned"].setting == result.tunings["tuned"].best
    np.testing.assert_allclose(rows["tuned"].setting["learning_rate"], 1.0)
    tx = classic.gradient_descent(1.0)
    expected = curves(tx, BOWLS, key=KEY, steps=4, problems=16)
    np.testing.assert_allclose(result.curves["tuned"], expected, rtol=1e-5, atol=1e-9)


def test_the_reference_is_the_first_or_the_one_named(result):
    assert result.reference == "slow"
    assert result.rows[0].ratio == result.rows[0].ratio_low == result.rows[0].ratio_high == 1
    named = recorded({"a": [1.0, 2.0], "b": [2.0, 4.0]}, problems=8, reference="b")
    assert named.reference == "b"
    assert [row.ratio for row in named.rows] == [2, 1]
    assert named.best_rival.name == "a"


def test_tuning_never_sees_the_problems_that_are_compared():
    seen = []

    def loss(params, problem, key):
        jax.debug.callback(lambda h: seen.append(float(h)), problem)
        return 0.5 * problem * jnp.sum(params**2)

    task = Task(BOWLS.sample, BOWLS.init, loss)
    compare({"a": Tunable(optax.sgd, [0.5])}, task, tuning_problems=8, **SETTINGS)
    jax.effects_barrier()
    tuned_and_compared = set(seen)
    seen.clear()
    curves(optax.sgd(0.5), task, key=KEY, steps=4, problems=16)
    jax.effects_barrier()
    assert len(set(seen)) == 16
    assert len(tuned_and_compared) == 16 + 8


def test_tuning_may_have_a_task_of_its_own():
    steep = Task(lambda key: jnp.float32(4.0), BOWLS.init, BOWLS.loss)
    tunable = Tunable(classic.gradient_descent, [0.125, 0.25, 0.5, 1.0])
    found = compare({"a": tunable}, BOWLS, tuning_task=steep, **SETTINGS)
    assert found.rows[0].setting == {"learning_rate": 0.25}
    expected = tune(tunable.factory, steep, tunable.grid, key=KEY, steps=4, window=2)
    assert found.tunings["a"].best == expected.best


def test_intervals_are_those_of_normal_theory_where_problems_are_many():
    values = np.random.default_rng(0).gamma(4.0, size=300)
    found = recorded({"a": values}, problems=300)
    row, run = found.rows[0], found.curves["a"][:, -1]
    half = 1.96 * run.std(ddof=1) / np.sqrt(300)
    expected = [run.mean() - half, run.mean() + half]
    np.testing.assert_allclose([row.final_low, row.final_high], expected, atol=0.1 * half)


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(1)
    base = rng.gamma(2.0, size=40)
    found = recorded({"a": base, "b": 2 * base + 0.1 * rng.random(40)}, problems=20, confidence=0.9)
    a, b = (np.asarray(found.curves[name][:, -1], np.float64) for name in "ab")

    def interval(samples, statistic):
        result = scipy.stats.bootstrap(
            samples, statistic, paired=True, n_resamples=10_000, confidence_level=0.9,
            method="percentile", rng=np.random.default_rng(2),
        )  # fmt: skip
        return list(result.confidence_interval)

    row = found.rows[1]
    expected = interval((b,), lambda b, axis: b.mean(axis=axis))
    width = expected[1] - expected[0]
    np.testing.assert_allclose([row.final_low, row.final_high], expected, atol=0.05 * width)
    # Problems are resampled for both together: their difficulty cancels in the ratio.
    expected = interval((a, b), lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis))
    width = expected[1] - expected[0]
    np.testing.assert_allclose([row.ratio_low, row.ratio_high], expected, atol=0.05 * width)
    assert width < 0.1 * row.ratio < row.final_high - row.final_low


@pytest.fixture(scope="module")
def with_divergence():
    optimizers = {
        "good": optax.sgd(0.1),
        "bad": optax.sgd(1e25),
        "sometimes": optax.GradientTransformation(
            lambda params: (),
            lambda g, s, p=None: (jnp.where(g > 1.2, jnp.inf, -0.1 * g), s),
        ),
        "exact": optax.GradientTransformation(
            lambda params: (), lambda g, s, params=None: (-params, s)
        ),
    }
    return compare(optimizers, BOWLS, **SETTINGS)


def test_diverged_runs_are_counted_and_never_best(with_divergence):
    rows = {row.name: row for row in with_divergence.rows}
    assert rows["good"].diverged == rows["exact"].diverged == 0
    assert rows["bad"].diverged == 16
    assert 0 < rows["sometimes"].diverged < 16
    assert rows["bad"].final == rows["bad"].final_high == rows["bad"].mean == np.inf
    assert rows["bad"].ratio == rows["bad"].ratio_high == 0
    # Solved exactly: infinitely better, and no warning about it.
    assert rows["exact"].final == 0 and rows["exact"].ratio == np.inf
    assert with_divergence.best_rival.name == "exact"


def test_a_row_is_of_the_problems_on_which_it_did_not_diverge(with_divergence):
    row = next(row for row in with_divergence.rows if row.name == "sometimes")
    run, good = (np.asarray(with_divergence.curves[name]) for name in ("sometimes", "good"))
    learns = np.isfinite(run[:, -1])
    assert row.diverged == (~learns).sum()
    final = run[learns, -2:].mean(axis=1)
    np.testing.assert_allclose(row.final, final.mean(), rtol=1e-6)
    np.testing.assert_allclose(row.mean, run[learns, 1:].mean(), rtol=1e-6)
    assert final.min() < row.final_low < row.final < row.final_high < final.max()
    # The reference is as good on the same problems, which are easier than the others.
    np.testing.assert_allclose([row.ratio, row.ratio_low, row.ratio_high], 1, rtol=1e-6)
    assert good[learns, -1].mean() < good[:, -1].mean()


def test_one_that_diverged_is_no_best_rival_though_it_is_lower_on_the_rest():
    losses = {"ours": [1.0, 1.0], "often": [0.1, np.inf], "never": [2.0, 2.0]}
    found = recorded(losses, problems=16)
    assert found.rows[1].final < found.rows[2].final < np.inf
    assert found.best_rival.name == "never"


def test_two_that_diverged_on_different_problems_have_no_ratio():
    found = recorded({"a": [np.inf, 1.0], "b": [1.0, np.nan]}, problems=8)
    assert np.isnan([found.rows[1].ratio, found.rows[1].ratio_low]).all()
    assert found.rows[0].final == found.rows[1].final == 1


def test_a_table_with_divergence_prints_and_is_valid_json(with_divergence):
    assert "inf (16 of 16 diverged)" in str(with_divergence)
    table = with_divergence.to_dict()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    bad = table["rows"][1]
    assert bad["final"] is None and bad["diverged"] == 16


def test_a_reference_that_diverges_is_no_error():
    both = recorded({"a": [np.inf, 1.0], "b": [np.nan, 2.0]}, problems=8)
    assert both.rows[1].ratio == both.rows[1].ratio_high == 0.5
    assert 0 < both.rows[0].diverged == both.rows[1].diverged < 8
    both = recorded({"a": [np.inf, np.inf], "b": [np.nan, np.nan], "c": [1.0, 1.0]}, problems=8)
    assert np.isnan(both.rows[1].ratio) and both.rows[2].ratio == np.inf
    json.dumps(both.to_dict(), allow_nan=False)


def test_losses_near_the_largest_number_have_a_mean():
    found = recorded({"a": [3e38, 3e38]}, problems=8)
    np.testing.assert_allclose([found.rows[0].mean, found.rows[0].final], 3e38, rtol=1e-6)


def test_the_table_has_a_line_for_each_optimizer_in_their_order(result):
    lines = str(result).splitlines()
    assert lines[0].split("  ")[-1].strip() == "95% interval"
    for title in ("final loss", "mean loss", "tuned", "slow / this"):
        assert title in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["slow", "tuned", "decayed"]
    assert lines[3].split()[5:7] == ["0.5", "0.1"]
    assert "edge" not in str(result)
    # The reference has no ratio; the others' numbers end in one column.
    assert len(lines[1]) < len(lines[2]) == len(lines[3]) == len(lines[0])
    assert f"{result.rows[2].ratio:.3f}" in lines[3]


def test_a_rate_on_the_edge_is_said_in_the_table():
    tunable = Tunable(classic.gradient_descent, [1e-5, 2e-5])
    found = compare({"a": tunable}, BOWLS, **SETTINGS)
    assert found.rows[0].on_edge
    assert "(edge)" in str(found)


def test_settings_that_all_diverged_are_no_result():
    tunable = Tunable(classic.gradient_descent, [1e37, 1e38])
    found = compare({"good": optax.sgd(0.1), "a": tunable}, BOWLS, **SETTINGS)
    assert found.rows[1].diverged == 16 and found.rows[1].mean == np.inf
    assert "all diverged" in str(found).splitlines()[2]
    assert "edge" not in str(found)


def test_the_table_becomes_a_frame(result):
    pytest.importorskip("pandas")
    frame = result.to_frame()
    assert list(frame.index) == ["slow", "tuned", "decayed"]
    assert frame.loc["tuned", "final"] == result.rows[1].final
    assert frame.loc["decayed", "setting"] == {"learning_rate": 0.5, "decay": 0.1}


def test_the_table_as_json_has_what_it_was_made_with(result):
    table = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert {name: table[name] for name in ("reference", "confidence", "problems", "steps")} == {
        "reference": "slow",
        "confidence": 0.95,
        "problems": 16,
        "steps": 4,
    }
    assert table["rows"][2]["setting"] == {"learning_rate": 0.5, "decay": 0.1}
    assert table["rows"][1]["final"] == result.rows[1].final


def test_a_bar_counts_optimizers(capsys):
    compare({"a": optax.sgd(0.1)}, BOWLS, progress=True, **SETTINGS)
    assert "comparing: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizers": {}}, "optimizers must have at least one entry, got none"),
        ({"reference": "adm"}, r"reference must be one of \['adam'\], got 'adm'; did you mean"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"problems": 0}, "problems must be a whole number"),
        ({"window": 5}, "window must be at most steps=4, got 5"),
        ({"confidence": 1.0}, "confidence must be a number between 0 and 1, got 1.0"),
        ({"confidence": float("nan")}, "confidence must be a number between 0 and 1, got nan"),
        ({"confidence": "x"}, "confidence must be a number between 0 and 1, got 'x'"),
        ({"key": 0}, "key must be a PRNG key such as .*, got 0"),
        ({"task": "quadratic"}, r"task must be a core.Task, got 'quadratic'; `tasks.load\(name\)`"),
        ({"tuning_task": Family(BOWLS, BOWLS)}, r"tuning_task must .*; its `.evaluation` is one"),
        ({"optimizers": [optax.sgd(0.1)]}, "optimizers must be a mapping from names, got .*list"),
        ({"tuning_at_once": 0}, "tuning_at_once must be a whole number of at least 1, got 0"),
        ({"tuning_problems": 0}, "tuning_problems must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(settings, message, unchecked):
    optimizers = {"adam": Tunable(optax.adam, [0.1])}
    with pytest.raises(ValueError, match=message):
        compare(**{"optimizers": optimizers, "task": BOWLS} | SETTINGS | settings)


def never_run(params, problem, key):
    raise AssertionError("an optimizer ran")


@pytest.mark.parametrize(
    ("bad", "message", "note"),
    [
        (3, r"^optimizers\['b'\] must be an optax transformation or a Tunable, got 3$", None),
        (optax.adam, r"or a Tunable, got <function adam.*; call it with a learning rate", None),
        (lstm(), r"got a LearnedOptimizer; its `bind\(phi\)` is a transformation", None),
        (Tunable(optax.sgd, ["a"]), r"grid must be a sequence of numbers, got \['a'\]", True),
        (Tunable(optax.sgd, [0.1, -1]), "grid must be a positive number", True),
        (Tunable(optax.sgd(0.1), [0.1]), "^factory must be a function that makes an", True),
    ],
    ids=["number", "factory", "learned", "text", "negative", "made"],
)
def test_a_bad_entry_is_named_before_others_run(bad, message, note, unchecked):
    task = Task(BOWLS.sample, BOWLS.init, never_run)
    with pytest.raises(ValueError, match=message) as caught:
        compare({"a": optax.sgd(0.1), "b": bad}, task, **SETTINGS)
    assert getattr(caught.value, "__notes__", None) == (["in optimizers['b']"] if note else None)


def test_an_error_of_a_run_says_of_which_optimizer():
    def make(rate):
        raise KeyError("broken")

    for bad in (Tunable(make, [0.1]), optax.GradientTransformation(make, make)):
        with pytest.raises(KeyError, match="broken") as caught:
            compare({"a": optax.sgd(0.1), "b": bad}, BOWLS, **SETTINGS)
        assert "in optimizers['b']" in caught.value.__notes__
