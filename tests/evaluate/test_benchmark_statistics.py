"""Statistics of a benchmark: against scipy, closed forms and a simulation."""

import numpy as np
import pytest
import scipy.stats

from l2ljax.evaluate import _statistics as statistics


@pytest.mark.parametrize("count", [1, 3, 4, 9, 17])
def test_the_interquartile_mean_is_that_of_scipy(count):
    values = np.random.default_rng(count).normal(size=(5, count))
    expected = scipy.stats.trim_mean(values, 0.25, axis=1)
    np.testing.assert_allclose(statistics.interquartile_mean(values), expected)


def test_the_envelope_of_known_curves_is_in_closed_form():
    times, factors = np.arange(61), np.array([0.9, 0.99])
    curves = factors[:, None] ** times
    # The second one is lower at the end only.
    curves[0] = 0.5 + 0.5 * curves[0]

    def smoothed(factor):
        """The mean of the losses factor^k up to t with the weights 0.95^(t - k)."""
        total = (factor ** (times + 1) - 0.95 ** (times + 1)) / (factor - 0.95)
        return 0.05 * total / (1 - 0.95 ** (times + 1))

    expected = np.minimum(0.5 + 0.5 * smoothed(0.9), smoothed(0.99))
    found = statistics.envelope(curves)
    np.testing.assert_allclose(found, expected)
    # Where a loss that the envelope has is reached, and one between two of them.
    between = (found[7] + found[8]) / 2
    finals = np.array([found[0] + 1, found[7], between, 0.0, np.nan])
    np.testing.assert_allclose(
        statistics.speedup(finals, found, steps=30), [0, 7 / 30, 8 / 30, 2, 0]
    )


def test_the_envelope_never_rises_and_knows_a_rate_until_it_diverges():
    curves = np.array([[4.0, 1.0, np.nan, np.nan], [4.0, 3.9, 8.0, 3.8]])
    found = statistics.envelope(curves)
    assert found[1] == pytest.approx((0.95 * 4 + 1) / 1.95)
    np.testing.assert_array_equal(found[1:], found[1])


def test_a_ratio_of_two_losses_that_are_zero_or_infinite_is_one():
    upper, lower = np.array([0.0, np.inf, 1.0, np.inf, 0.0]), np.array([0.0, np.inf, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(statistics.quotient(upper, lower), [1, 1, np.inf, np.inf, 0])


def test_a_profile_counts_the_tasks_within_a_factor_of_the_best():
    losses = np.array([[1.0, 6.0, 0.0], [3.0, 2.0, np.inf], [2.0, 2.2, 0.0]])
    found = statistics.performance_profile(losses, np.array([1.0, 1.5, 3.0, 1e9]))
    np.testing.assert_allclose(found * 3, [[2, 2, 3, 3], [1, 1, 2, 2], [1, 2, 3, 3]])


def test_intervals_over_tasks_and_problems_cover():
    rng = np.random.default_rng(0)
    tasks, problems, runs = 16, 12, 150
    # The interquartile mean of infinitely many tasks, each with infinitely many problems.
    log_gains = rng.normal(0.1, 0.3, size=2_000_001)
    truth = statistics.interquartile_mean(np.exp(log_gains))
    covered = 0
    for _ in range(runs):
        gains = np.exp(rng.normal(0.1, 0.3, size=tasks))
        finals = [
            np.stack(
                [
                    1 / gain * rng.lognormal(-0.02, 0.2, problems),
                    rng.lognormal(-0.02, 0.2, problems),
                ]
            )
            for gain in gains
        ]
        drawn = statistics.resample(finals, count=400)
        ratios = drawn.over_tasks(drawn.means[:, 1:] / drawn.means)
        low, high = statistics.interval(statistics.interquartile_mean(ratios), 0.9)
        assert low[1] == high[1] == 1
        covered += low[0] <= truth <= high[0]
    # Of 150 intervals of 90 %, 135 are expected; a bootstrap of few tasks is somewhat short.
    assert 0.83 <= covered / runs <= 0.97


def test_intervals_of_a_task_are_of_its_problems_alone():
    finals = [np.array([[1.0, 3.0]]), np.array([[5.0, 5.0]])]
    drawn = statistics.resample(finals, count=4000)
    assert set(np.unique(drawn.means[:, 0, 0])) == {1.0, 2.0, 3.0}
    assert np.mean(drawn.means[:, 0, 0] == 2) == pytest.approx(0.5, abs=0.05)
    assert set(np.unique(drawn.means[:, 0, 1])) == {5.0}
    assert set(np.unique(drawn.tasks)) == {0, 1}
