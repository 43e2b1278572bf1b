import subprocess
import sys

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib import colors
from matplotlib import pyplot as plt
from small_benchmark import result_of

from l2ljax import plots
from l2ljax.evaluate import (
    Comparison,
    RangeTest,
    Row,
    Tuning,
)
from l2ljax.meta import TrainResult, TrainState

LOSSES = np.random.default_rng(0).gamma(2.0, size=(9, 6))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def test_plots_is_an_attribute_of_the_package_that_costs_nothing_before_its_use():
    program = """
import sys, l2ljax
assert "plots" in dir(l2ljax) and "matplotlib" not in sys.modules
assert not hasattr(l2ljax, "plot")
print(*dir(l2ljax.plots))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == plots.__all__


def comparison(**curves):
    """A comparison of which "tuned" was tuned and "ours" is the reference."""
    curves = {"tuned": LOSSES, "ours": 0.5 * LOSSES, "other": 2 * LOSSES} | curves
    row = Row("", *7 * (1.0,), setting=None, on_edge=False, diverged=0)
    tuning = Tuning({"learning_rate": 0.0316, "decay": 0.9}, 1.0, {}, np.ones(1), False)
    rows = tuple(row._replace(name=name) for name in curves)
    return Comparison(rows, curves, {"tuned": tuning}, "ours", 0.95)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_arrays_are_drawn_as_means_on_a_logarithmic_axis():
    ax = plots.curves({"a": LOSSES, "b": 2 * LOSSES})
    assert legend(ax) == ["a", "b"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(6))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), LOSSES.mean(axis=0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2 * LOSSES.mean(axis=0))
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel() == "loss, mean over 9 problems"


def test_the_median_is_drawn_on_request():
    ax = plots.curves({"a": LOSSES}, statistic="median", log_steps=True)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(LOSSES, axis=0))
    assert ax.get_ylabel() == "loss, median over 9 problems"
    assert ax.get_xscale() == "log"


def edges(ax):
    """Lower and upper edge of the first band at each step."""
    vertices = ax.collections[0].get_paths()[0].vertices
    steps = range(LOSSES.shape[1])
    return np.array([np.ptp([*vertices[vertices[:, 0] == t, 1]]) for t in steps])


def test_bands_are_quartiles_an_interval_or_nothing():
    quartiles = edges(plots.curves({"a": LOSSES}, band="quartiles"))
    low, high = np.quantile(LOSSES, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(quartiles, high - low)
    interval = edges(plots.curves({"a": LOSSES}, band="interval"))
    normal = 2 * 1.96 * LOSSES.std(axis=0) / np.sqrt(len(LOSSES))
    np.testing.assert_allclose(interval, normal, rtol=0.15)
    assert not plots.curves({"a": LOSSES}, band=None).collections


def test_the_reference_is_black_and_the_others_are_not():
    ax = plots.curves(comparison())
    found = {line.get_label().split()[0]: line for line in ax.lines}
    assert colors.to_hex(found["ours"].get_color()) == "#000000"
    others = [colors.to_hex(found[name].get_color()) for name in ("tuned", "other")]
    assert len({*others, "#000000"}) == 3
    assert found["ours"].get_linewidth() > found["other"].get_linewidth()


def test_tuned_settings_stand_in_the_legend():
    assert legend(plots.curves(comparison())) == ["tuned (0.0316, 0.9)", "ours", "other"]


def test_many_curves_differ_in_colour_or_style():
    ax = plots.curves({str(i): LOSSES for i in range(7)}, band=None)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in ax.lines}
    assert len(looks) == 7


@pytest.mark.parametrize("band", ["interval", "quartiles"])
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_diverged_runs_are_drawn_without_a_warning(band, statistic, tmp_path):
    some, all_of_them = LOSSES.copy(), LOSSES.copy()
    some[:3, 3:] = np.inf
    some[0, 4:] = np.nan
    all_of_them[:, 2:] = np.nan
    diverged = comparison(some=some, all=all_of_them)
    plots.save(plots.curves(diverged, band=band, statistic=statistic), tmp_path / "curves.png")


def test_one_diverged_problem_is_left_out_of_a_mean_and_counted_in_the_legend():
    some = LOSSES.copy()
    some[2, 3], some[2, 4:] = 1e30, np.nan
    ax = plots.curves({"some": some, "all": np.full((9, 6), np.inf), "none": LOSSES})
    assert legend(ax) == ["some, 1 of 9 diverged", "all, 9 of 9 diverged", "none"]
    rest = np.delete(LOSSES, 2, axis=0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), rest.mean(axis=0))
    ax = plots.curves({"some": some}, statistic="median", band="quartiles")
    counted = np.where(np.isfinite(some), some, np.inf)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(counted, axis=0))


def test_curves_are_averaged_over_steps_on_request():
    ax = plots.curves({"a": LOSSES}, smooth=3)
    mean = LOSSES.mean(axis=0)
    expected = [mean[0], mean[:2].mean(), *(mean[t - 2 : t + 1].mean() for t in range(2, 6))]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert ax.get_ylabel() == "loss, mean over 9 problems, each over 3 steps"
    # Run by run: the median of averages, and the band about it.
    ax = plots.curves({"a": LOSSES}, smooth=6, statistic="median")
    np.testing.assert_allclose(ax.lines[0].get_ydata()[-1], np.median(LOSSES.mean(axis=1)))


def test_curves_may_be_drawn_into_given_axes():
    _, ax = plt.subplots()
    assert plots.curves({"a": LOSSES}, ax=ax) is ax
    assert plots.history({"loss": np.ones(3)}, ax=ax) is ax
    assert plots.range_test(sweep(), ax=ax) is ax
    assert plots.images({"a": np.ones((2, 2, 3))}, ax=ax) is ax


@pytest.mark.parametrize(("curves", "beside"), [(3, False), (9, True)])
def test_a_long_legend_stands_beside_the_curves(curves, beside):
    ax = plots.curves({str(i): LOSSES for i in range(curves)})
    ax.figure.draw_without_rendering()
    inside = ax.get_window_extent().overlaps(ax.get_legend().get_window_extent())
    assert inside != beside


def test_history_shows_the_meta_loss_its_running_mean_and_the_validation():
    loss = np.linspace(3, 1, 200)
    ax = plots.history(
        {"loss": loss, "validation_step": np.array([100, 200]), "validation": np.array([2.0, 1.0])}
    )
    raw, smooth, validation = ax.lines
    np.testing.assert_array_equal(raw.get_ydata(), loss)
    np.testing.assert_allclose(smooth.get_ydata()[0], loss[:4].mean())
    np.testing.assert_allclose(smooth.get_xdata()[[0, -1]], [3, 199])
    np.testing.assert_array_equal(validation.get_xydata(), [[100, 2], [200, 1]])
    assert legend(ax) == ["meta-loss", "validation"]
    assert len(ax.figure.axes) == 1
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "meta-step")


def segments(episodes, length, steps=20):
    """The history of episodes of `length` segments; the loss halves from one to the next."""
    step = np.tile(np.arange(length) * steps, episodes)
    losses = np.repeat(2.0 ** -np.tile(np.arange(length), episodes)[:, None], steps, axis=1)
    return {"loss": losses.sum(axis=1), "losses": losses, "step": step}


def test_history_draws_the_loss_per_step_and_not_the_sum_over_a_segment():
    rows = segments(episodes=20, length=5)
    ax = plots.history(rows)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), rows["loss"] / 20)
    assert legend(ax) == ["loss per step"]
    assert ax.get_ylabel() == "loss per step"
    ax = plots.history(rows, meta_loss=True)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), rows["loss"])
    assert legend(ax) == ["meta-loss"] and ax.get_ylabel() == "meta-loss"


@pytest.mark.parametrize("length", [3, 5, 7, 50])
def test_the_running_mean_has_no_rhythm_of_the_episodes(length):
    rows = segments(episodes=1000 // length, length=length)
    mean = plots.history(rows).lines[1].get_ydata()
    np.testing.assert_allclose(mean, np.mean(2.0 ** -np.arange(length)), rtol=1e-6)
    assert len(mean) > len(rows["loss"]) / 2


def test_the_running_mean_of_episodes_of_several_lengths_is_over_ten_of_them():
    lengths = np.random.default_rng(0).choice([2, 5, 10], size=120)
    step = np.concatenate([np.arange(length) for length in lengths])
    loss = 2.0**-step
    mean = plots.history({"loss": loss, "step": step}).lines[1].get_ydata()
    assert len(loss) - len(mean) + 1 == round(10 * lengths[:-1].mean())
    assert np.std(mean) < 0.2 * np.std(loss)


def test_a_run_that_went_on_is_drawn_from_where_it_began():
    rows = {"loss": np.ones(50), "grad_norm": np.ones(50), "skipped": np.arange(50) == 9}
    rows |= {"validation_step": np.array([200]), "validation": np.ones(1)}
    ax = plots.history(TrainResult(None, None, rows, result().state))
    for panel in ax.figure.axes:
        np.testing.assert_array_equal(panel.lines[0].get_xdata(), np.arange(150, 200))
        assert panel.lines[1].get_xdata()[-1] == 199
        np.testing.assert_array_equal(panel.lines[-1].get_xdata(), [159])


def test_history_with_skipped_steps_is_drawn_without_a_warning(tmp_path):
    loss = np.linspace(3, 1, 200)
    loss[[3, 50]] = np.nan, np.inf
    plots.save(plots.history({"loss": loss}), tmp_path / "history.png")


def result(**rows):
    """A run of 200 meta-steps, of which two were skipped."""
    loss, norm = np.linspace(3, 1, 200), np.linspace(0.5, 0.1, 200)
    loss[50], norm[[50, 120]] = np.nan, np.inf
    skipped = ~np.isfinite(norm)
    history = {"loss": loss, "grad_norm": norm, "skipped": skipped} | rows
    return TrainResult(None, None, history, TrainState(np.int32(200), *6 * (None,)))


def test_history_of_a_result_has_a_panel_of_norms_and_marks_skipped_steps(tmp_path):
    ax = plots.history(result())
    above, below = ax.figure.axes
    assert above is ax
    for panel, name in ((above, "loss"), (below, "grad_norm")):
        raw, smooth, skipped = panel.lines
        np.testing.assert_array_equal(raw.get_ydata(), result().history[name])
        # The running mean goes over what is missing.
        assert np.all(np.isfinite(smooth.get_ydata()))
        np.testing.assert_array_equal(skipped.get_xdata(), [50, 120])
    means = below.lines[1].get_xydata()
    at = means[:, 0] == 51
    np.testing.assert_allclose(means[at, 1], result().history["grad_norm"][[48, 49, 51]].mean())
    assert legend(above) == ["meta-loss", "skipped (2)"]
    assert (below.get_xlabel(), below.get_ylabel()) == ("meta-step", "gradient norm")
    plots.save(ax, tmp_path / "history.png")


def test_history_in_given_axes_is_the_upper_panel_alone():
    _, ax = plt.subplots()
    assert plots.history(result(), ax=ax) is ax
    assert ax.figure.axes == [ax]
    assert len(ax.lines) == 3


def test_history_of_logarithms_is_drawn_on_a_linear_axis():
    assert plots.history(result(loss=np.linspace(1, -2, 200))).get_yscale() == "linear"
    scores = {"validation": np.array([-0.5]), "validation_step": np.array([200])}
    assert plots.history(result(**scores)).get_yscale() == "linear"


def test_history_of_zero_norms_is_drawn_without_a_warning(tmp_path):
    plots.save(plots.history(result(grad_norm=np.zeros(200))), tmp_path / "history.png")


def sweep(**changes):
    """A loss that falls and rises again over five rates; the last run of the two diverges."""
    losses = np.array([[4.0, 3.0, 1.0, 2.0, 9.0], [6.0, 5.0, 1.0, 2.0, np.nan]])
    smoothed = np.array([4.5, 3.3, 2.2, 2.5, np.inf])
    fields = {
        "rates": np.geomspace(1e-4, 1, 5),
        "losses": losses,
        "smoothed": smoothed,
        "base": 1e-4,
        "maximum": 1e-2,
        "reached": True,
        "spacing": "log",
    }
    return RangeTest(**fields | changes)


def test_a_range_test_is_drawn_against_its_rates_with_its_bounds(tmp_path):
    ax = plots.range_test(sweep())
    raw, smooth, base, maximum = ax.lines
    np.testing.assert_allclose(raw.get_xydata()[:4, 1], [5, 4, 1, 2])
    np.testing.assert_array_equal(smooth.get_xdata(), sweep().rates)
    np.testing.assert_array_equal(smooth.get_ydata(), sweep().smoothed)
    assert (base.get_xdata()[0], maximum.get_xdata()[0]) == (1e-4, 1e-2)
    assert legend(ax) == ["mean over 2 problems", "smoothed", "base 0.0001", "maximum 0.01"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss")
    # What is far above the losses before the maximum is cut off, and nothing below.
    np.testing.assert_allclose(ax.get_ylim(), [0.8, 13.5])
    plots.save(ax, tmp_path / "range.png")


def test_a_range_test_without_bounds_is_drawn_without_marks(tmp_path):
    ax = plots.range_test(sweep(base=None, maximum=None, reached=False, spacing="linear"))
    assert len(ax.lines) == 2
    assert ax.get_xscale() == "linear"
    plots.save(ax, tmp_path / "range.png")


def test_a_range_test_of_negative_losses_raises_no_error():
    below = sweep(losses=sweep().losses - 20, smoothed=sweep().smoothed - 20)
    assert len(plots.range_test(below).lines) == 4


def test_a_maximum_at_the_end_of_the_sweep_is_called_so():
    assert legend(plots.range_test(sweep(reached=False)))[-1] == "maximum 0.01 (end of the sweep)"


def test_ratios_are_drawn_from_top_to_bottom_with_their_intervals_and_a_line_at_one(tmp_path):
    ax = plots.ratios(["a", "b", "c"], [0.5, 2.0, 1.1], [(0.4, 0.6), (1.5, 2.5), (0.9, 1.3)])
    one, *rest = ax.lines
    np.testing.assert_array_equal(one.get_xdata(), [1, 1])
    intervals, dots = rest[::2], rest[1::2]
    np.testing.assert_array_equal([line.get_xdata()[0] for line in dots], [0.5, 2.0, 1.1])
    np.testing.assert_array_equal(intervals[1].get_xydata(), [[1.5, 1], [2.5, 1]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    height = [ax.transData.transform(line.get_xydata()[0])[1] for line in dots]
    assert height == sorted(height, reverse=True)
    color = [colors.to_hex(line.get_color()) for line in dots]
    assert color[1] == color[2] != color[0]
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(ax.get_xlim(), [0.4 / 1.15, 2.5 * 1.15])
    plots.save(ax, tmp_path / "ratios.png")


def test_ratios_of_zero_and_infinity_are_arrows_at_the_edges(tmp_path):
    ratios, intervals = [0.0, np.inf, 2.0], [(0.0, 0.5), (3.0, np.inf), (1.0, np.inf)]
    _, ax = plt.subplots()
    assert plots.ratios(["zero", "infinite", "finite"], ratios, intervals, ax=ax) is ax
    left, right = ax.get_xlim()
    np.testing.assert_allclose([left, right], [0.5 / 1.15, 3 * 1.15])
    (zero, infinite, finite), marks = ax.lines[1::2], ax.lines[2::2]
    np.testing.assert_allclose(zero.get_xdata(), [left, 0.5])
    np.testing.assert_allclose(infinite.get_xdata(), [3, right])
    np.testing.assert_allclose(finite.get_xdata(), [1, right])
    assert [mark.get_marker() for mark in marks] == ["<", ">", "o"]
    np.testing.assert_allclose([mark.get_xdata()[0] for mark in marks], [left, right, 2])
    plots.save(ax, tmp_path / "ratios.png")


@pytest.mark.parametrize(
    ("names", "values", "intervals", "message"),
    [
        ([], [], [], "names must have at least one task, got none"),
        (["a"], [1, 2], [(1, 1)], r"ratios must have shape \(1,\), got \(2,\)"),
        (["a"], [1], 2 * [(1, 1)], r"intervals must have shape \(1, 2\), got \(2, 2\)"),
        (["a"], [-1], [(1, 1)], "ratios must be numbers of zero or more, got -1"),
        (["a"], [1], [(1, np.nan)], "intervals must be numbers of zero or more, got nan"),
    ],
)
def test_ratios_name_a_bad_argument(names, values, intervals, message):
    with pytest.raises(ValueError, match=message):
        plots.ratios(names, values, intervals)
    assert not plt.get_fignums()


def test_images_are_drawn_in_a_grid_with_their_names_and_clipped(tmp_path):
    random = np.random.default_rng(0)
    pictures = {name: random.normal(0.5, 1.0, size=(4, 6, 3)) for name in "abc"}
    pictures["grey"] = np.full((5, 5), 0.5)
    ax = plots.images(pictures, columns=3)
    panels = ax.child_axes
    assert [panel.get_title() for panel in panels] == ["a", "b", "c", "grey"]
    for panel, picture in zip(panels, pictures.values(), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), np.clip(picture, 0, 1))
    assert panels[3].images[0].get_clim() == (0, 1)
    ax.figure.canvas.draw()
    corners = np.array([panel.get_position().p0 for panel in panels])
    assert np.all(np.diff(corners[:3, 0]) > 0) and np.ptp(corners[:3, 1]) == 0
    assert corners[3, 1] < corners[0, 1]
    boxes = [panel.get_tightbbox() for panel in panels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    plots.save(ax, tmp_path / "images.png")


@pytest.mark.parametrize(
    ("pictures", "columns", "message"),
    [
        ({}, 4, "pictures must have at least one picture, got none"),
        ({"a": np.ones((2, 2, 4))}, 4, r"pictures\['a'\] must have shape .* got \(2, 2, 4\)"),
        ({"a": np.ones((2, 2))}, 0, "columns must be a whole number of at least 1, got 0"),
    ],
)
def test_images_name_a_bad_argument(pictures, columns, message):
    with pytest.raises(ValueError, match=message):
        plots.images(pictures, columns=columns)
    assert not plt.get_fignums()


def test_save_writes_a_picture_and_closes_the_figure(tmp_path):
    ax = plots.curves({"a": LOSSES})
    number = ax.figure.number
    plots.save(ax, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not plt.fignum_exists(number)


def test_a_folder_that_is_missing_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        plots.save(plots.curves({"a": LOSSES}), tmp_path / "missing" / "curves.png")


@pytest.mark.parametrize(
    ("results", "settings", "message"),
    [
        ({}, {}, "results must have at least one curve, got none"),
        ({"a": LOSSES}, {"statistic": "meen"}, "statistic must be one of .* did you mean 'mean'"),
        ({"a": LOSSES}, {"band": "std"}, "band must be one of .* got 'std'"),
        ({"a": LOSSES}, {"smooth": 0}, "smooth must be a whole number of at least 1, got 0"),
        ({"a": LOSSES[0]}, {}, r"results\['a'\] must have shape \(problems, steps \+ 1\)"),
    ],
)
def test_bad_arguments_are_named(results, settings, message):
    with pytest.raises(ValueError, match=message):
        plots.curves(results, **settings)
    assert not plt.get_fignums()


@pytest.mark.parametrize(("low", "high"), [(0.78, 1.9), (1.3, 2.5), (0.2, 0.4), (0.1, 9)])
def test_an_axis_of_losses_has_several_numbers(low, high):
    ax = plots.curves({"a": np.linspace(high, low, 6)[None]})
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    ticks = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    shown = [label.get_text() for tick, label in ticks if bottom <= tick <= top]
    assert all(shown)
    assert 3 <= len(shown) <= 16


def test_a_benchmark_is_drawn_as_its_profile_beside_interquartile_means():
    result = result_of(
        {
            "first": {"mine": [1.0, 1.0], "lost": [np.inf, 1.0], "Adam": [2.0, 2.0]},
            "second": {"mine": [3.0, 3.0], "lost": [9.0, 9.0], "Adam": [2.0, 2.0]},
        }
    )
    ax = plots.benchmark(result)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert lines["mine"][0] == lines["Adam"][0] == 0.5 and lines["lost"][0] == 0
    assert lines["mine"][-1] == lines["Adam"][-1] == 1 and lines["lost"][-1] == 0.5
    left = ax.get_figure().axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["mine", "Adam", "lost"]
    middles = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert middles == pytest.approx([(2 + 2 / 3) / 2, 1, (0 + 2 / 9) / 2])
    _, alone = plt.subplots()
    assert plots.benchmark(result, ax=alone) is alone and len(alone.get_figure().axes) == 1


def test_a_page_needs_no_other_file_and_closes_its_figure():
    result = result_of({"a<b": {"mine": [1.0], "Adam": [2.0]}})
    text = plots.page(result, "title", "l2ljax bench")
    assert text.startswith("<!DOCTYPE html>") and "a&lt;b" in text and "a<b" not in text
    assert "http" not in text and text.count("<img") == 1 and "data:image/png;base64," in text
    assert not plt.get_fignums()
