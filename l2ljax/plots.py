"""Figures of what `l2ljax.evaluate` and `l2ljax.meta` return; needs the extra `plots`."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from l2ljax import _checks
from l2ljax.evaluate import Comparison, RangeTest
from l2ljax.meta import TrainResult

# Okabe and Ito's palette, told apart by colour-blind readers too; black is for the reference.
_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999999")
_STYLES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_LONG_LEGEND = 6
"""More curves leave no room for their names."""


def curves(
    results: Comparison | Mapping[str, np.ndarray],
    *,
    statistic: str = "mean",
    band: str | None = "interval",
    log_steps: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws loss against step for each optimizer, on a logarithmic scale of losses.

    Args:
        results: a `Comparison`, whose reference is drawn in black and whose tuned settings stand in
            the legend; or arrays of losses, f32[problems, steps + 1], by name.
        statistic: "mean" or "median" over problems; a diverged run counts as infinite, and what is
            infinite is not drawn.
        band: "interval", a 95 % interval of the statistic over problems (bootstrap); "quartiles",
            from the first to the third quartile of problems; or None.
        log_steps: whether the axis of steps is logarithmic too; step 0 then has no place on it.
        ax: where to draw; default: a new figure, with the legend beside the axes if it is long.

    Returns:
        The axes; `save(ax, path)` writes the picture.

    Raises:
        ValueError: for an unknown statistic or band, no curves, or arrays of another shape.

    >>> ax = curves({"a": np.array([[4.0, 2.0, 1.0], [5.0, 3.0, 1.0]])}, band="quartiles")
    >>> print(ax.lines[0].get_ydata())
    [4.5 2.5 1. ]
    """
    _checks.choice("statistic", statistic, _STATISTICS)
    _checks.choice("band", band, ["interval", "quartiles", None])
    given = results.curves if isinstance(results, Comparison) else results
    if not given:
        raise ValueError("results must have at least one curve, got none")
    runs = {name: _losses(name, losses) for name, losses in given.items()}
    place: dict[str, Any] = {}
    if ax is None:
        beside = len(runs) > _LONG_LEGEND
        _, ax = plt.subplots(figsize=(9.5 if beside else 7, 4.2), layout="constrained")
        if beside:
            place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    rivals = 0
    for name, losses in runs.items():
        if isinstance(results, Comparison) and name == results.reference:
            look: dict[str, Any] = {"color": "black", "linewidth": 2.2, "zorder": 3}
        else:
            look = {
                "color": _COLORS[rivals % len(_COLORS)],
                "linestyle": _STYLES[(rivals + rivals // 7) % 7],
            }
            rivals += 1
        steps = np.arange(losses.shape[1])
        centre = _STATISTICS[statistic](losses, axis=0)
        ax.plot(steps, centre, label=_label(name, results), **look)
        if band is not None:
            low, high = _band(losses, statistic, band)
            ax.fill_between(steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
    _logarithmic(ax)
    if log_steps:
        ax.set_xscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel(f"loss, {statistic} over {len(losses)} problems")
    ax.legend(frameon=False, **place)
    return ax


def history(result: TrainResult | Mapping[str, np.ndarray], *, ax: Axes | None = None) -> Axes:
    """Draws the course of meta-training.

    Above stand the meta-loss, raw and as a running mean, and the validation where there is one;
    below the norm of the meta-gradient. Skipped meta-steps are marked in both panels. Losses and
    scores that are not all positive, such as logarithms, are drawn on a linear axis.

    Args:
        result: what `meta.train` returned, or its `history`.
        ax: where to draw the upper panel, alone; default: a new figure, with the lower panel if
            there are norms.

    Returns:
        The axes of the upper panel.

    >>> ax = history({"loss": np.array([3.0, 2.0, 1.0])})
    >>> len(ax.lines)
    2
    """
    rows = result.history if isinstance(result, TrainResult) else result
    below = None
    if ax is None:
        heights = [3.2, 1.6] if "grad_norm" in rows else [3.2]
        _, axes = plt.subplots(
            len(heights),
            sharex=True,
            squeeze=False,
            figsize=(7, sum(heights)),
            height_ratios=heights,
            layout="constrained",
        )
        ax, below = axes[0, 0], axes[1, 0] if len(heights) > 1 else None
    loss = np.asarray(rows["loss"], np.float64)
    _running(ax, loss, "meta-loss")
    drawn = loss
    if "validation" in rows:
        steps, scores = rows["validation_step"], np.asarray(rows["validation"], np.float64)
        ax.plot(steps, scores, color=_COLORS[5], marker="o", label="validation")
        drawn = np.concatenate([loss, scores])
    _scale(ax, drawn)
    _mark(ax, rows)
    ax.legend(frameon=False)
    if below is not None:
        norm = np.asarray(rows["grad_norm"], np.float64)
        _running(below, norm, "norm of the meta-gradient")
        _scale(below, norm[norm > 0], labels=(1, 3))
        _mark(below, rows)
        below.set_ylabel("gradient norm")
    (ax if below is None else below).set_xlabel("meta-step")
    return ax


def range_test(result: RangeTest, *, ax: Axes | None = None) -> Axes:
    """Draws loss against learning rate, with the bounds that were found.

    Args:
        result: what `evaluate.range_test` returned. The axis of rates is logarithmic if its spacing
            is; what lies far above the losses up to the maximum is cut off.
        ax: where to draw; default: a new figure.

    Returns:
        The axes.

    >>> rates, level = np.geomspace(1e-3, 1, 4), np.array([4.0, 3.0, 1.0, 2.0])
    >>> found = RangeTest(rates, level[None], level, 1e-3, 0.1, True, "log")
    >>> ax = range_test(found)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['mean over 1 problem', 'smoothed', 'base 0.001', 'maximum 0.1']
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    losses = _losses("losses", result.losses)
    level, count = losses.mean(axis=0), f"{len(losses)} problem{'s' if len(losses) > 1 else ''}"
    ax.plot(result.rates, level, color=_COLORS[1], linewidth=0.7, label=f"mean over {count}")
    ax.plot(result.rates, result.smoothed, color="black", linewidth=1.8, label="smoothed")
    visible = level[(level > 0) & np.isfinite(level)]
    if visible.size:
        _logarithmic(ax)
    if result.base is not None and result.maximum is not None:
        end = "" if result.reached else " (end of the sweep)"
        bounds = {
            f"base {result.base:.2g}": (result.base, _COLORS[2], "--"),
            f"maximum {result.maximum:.2g}{end}": (result.maximum, _COLORS[5], "-."),
        }
        for label, (rate, color, style) in bounds.items():
            ax.axvline(rate, color=color, linestyle=style, label=label)
        seen = result.smoothed[result.rates <= result.maximum]
        if seen.min() > 0:
            ax.set_ylim(0.8 * visible.min(), 3 * seen.max())
    ax.set_xscale("log" if result.spacing == "log" else "linear")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss")
    ax.legend(edgecolor="none")
    return ax


def ratios(
    names: Sequence[str],
    ratios: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draws the ratio of two final losses on each of several tasks, with a line at one.

    Args:
        names: of the tasks, from top to bottom.
        ratios: one a task; zero and infinity, which a logarithmic axis has no place for, are
            arrows at its edges.
        intervals: lower and upper end of each one's interval, cut off at the edges too.
        ax: where to draw; default: a new figure.

    Returns:
        The axes: ratios below one are drawn in blue, the others in red.

    Raises:
        ValueError: for no tasks, other numbers of ratios or intervals than of names, or values that
            are negative or NaN.

    >>> ax = ratios(["iris", "wine"], [0.5, 2.0], [(0.4, 0.7), (1.5, 3.0)])
    >>> [label.get_text() for label in ax.get_yticklabels()], ax.get_xscale()
    (['iris', 'wine'], 'log')
    """
    values, bounds = np.asarray(ratios, np.float64), np.asarray(intervals, np.float64)
    if not len(names):
        raise ValueError("names must have at least one task, got none")
    for name, array, shape in [
        ("ratios", values, (len(names),)),
        ("intervals", bounds, (len(names), 2)),
    ]:
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if not np.all(array >= 0):
            raise ValueError(f"{name} must be numbers of zero or more, got {array.min()}")
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1.2 + 0.28 * len(names)), layout="constrained")
    drawn = np.concatenate([values, bounds.ravel(), [1.0]])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    left, right = drawn.min() / 1.15, drawn.max() * 1.15
    ax.axvline(1.0, color="black", linewidth=1)
    for place, (ratio, (low, high)) in enumerate(zip(values, bounds, strict=True)):
        color = _COLORS[4] if ratio < 1 else _COLORS[5]
        ax.plot(np.clip([low, high], left, right), [place, place], color=color, linewidth=1.5)
        marker = "<" if ratio == 0 else ">" if ratio == np.inf else "o"
        ax.plot(np.clip(ratio, left, right), place, marker, color=color, clip_on=False)
    ax.set(xscale="log", xlim=(left, right), xlabel="ratio of final losses")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.grid(alpha=0.25, axis="x", which="both", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def images(pictures: Mapping[str, np.ndarray], *, columns: int = 4, ax: Axes | None = None) -> Axes:
    """Draws pictures side by side with their names: a content, a style, what optimizers painted.

    Args:
        pictures: f32[height, width, 3] of red, green and blue in [0, 1] by name, what is outside
            is clipped; or f32[height, width] of greys.
        columns: pictures of a row.
        ax: where to draw, all of them within it; default: a new figure.

    Returns:
        The axes; `ax.child_axes` are those of the pictures.

    Raises:
        ValueError: for no pictures, one of another shape, or `columns` below one.

    >>> ax = images({"grey": np.full((2, 2, 3), 0.5), "white": np.ones((4, 4, 3))})
    >>> [panel.get_title() for panel in ax.child_axes]
    ['grey', 'white']
    """
    _checks.count("columns", columns)
    if not pictures:
        raise ValueError("pictures must have at least one picture, got none")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    for name, picture in pictures.items():
        if np.ndim(picture) != 2 and (np.ndim(picture) != 3 or np.shape(picture)[-1] != 3):
            raise ValueError(
                f"pictures[{name!r}] must have shape (height, width, 3) or (height, width), "
                f"got {np.shape(picture)}"
            )
    if ax is None:
        _, ax = plt.subplots(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    ax.set_axis_off()
    for i, (name, picture) in enumerate(pictures.items()):
        row, column = divmod(i, columns)
        # The rest of a cell is for the title and a gap.
        corner = (column / columns, 1 - (row + 1) / rows)
        panel = ax.inset_axes((*corner, 0.96 / columns, 0.88 / rows))
        panel.imshow(np.clip(np.asarray(picture, np.float64), 0, 1), cmap="gray", vmin=0, vmax=1)
        panel.set_title(name, fontsize="medium")
        panel.set_axis_off()
    return ax


def save(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Writes the figure of these axes to a file and closes it.

    Args:
        ax: what a function of this module returned.
        path: the file; its ending decides the format.

    Raises:
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(history({"loss": np.array([3.0, 2.0, 1.0])}), f"{folder}/history.png")
    ...     os.listdir(folder)
    ['history.png']
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150)
    plt.close(figure)


_STATISTICS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}


def _losses(name: str, losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise ValueError(
            f"results[{name!r}] must have shape (problems, steps + 1), got {losses.shape}"
        )
    return np.where(np.isfinite(losses), losses, np.inf)


def _running(ax: Axes, values: np.ndarray, label: str) -> None:
    """Values of meta-steps in a pale colour, and the mean of the finite ones among the last few."""
    finite = np.isfinite(values)
    window = np.ones(max(1, len(values) // 50))
    total = np.convolve(np.where(finite, values, 0.0), window, mode="valid")
    count = np.convolve(finite, window, mode="valid")
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    ax.plot(values, color=_COLORS[1], linewidth=0.5, alpha=0.5)
    ax.plot(np.arange(len(mean)) + len(window) - 1, mean, color="black", label=label)


def _scale(ax: Axes, values: np.ndarray, labels: tuple[float, ...] = (1, 2, 3, 5)) -> None:
    """A logarithmic axis where all values are positive, else a linear one."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0:
        _logarithmic(ax, labels)
    else:
        _quiet(ax)


def _mark(ax: Axes, rows: Mapping[str, np.ndarray]) -> None:
    """Marks skipped meta-steps at the lower edge."""
    steps = np.flatnonzero(rows.get("skipped", ()))
    if steps.size:
        ax.plot(
            steps,
            np.full(steps.size, 0.03),
            color=_COLORS[3],
            linestyle="none",
            marker="|",
            transform=ax.get_xaxis_transform(),
            label=f"skipped ({steps.size})",
        )


# Of an axis that may not reach from one of the usual labels to the next.
_CLOSE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


def _logarithmic(ax: Axes, labels: tuple[float, ...] = (1, 2, 3, 5)) -> None:
    """Losses on a logarithmic axis with plain numbers, on a quiet grid."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 4 * low:
        labels = _CLOSE
    ax.yaxis.set_major_locator(LogLocator(subs=labels))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    _quiet(ax)


def _quiet(ax: Axes) -> None:
    """A pale grid and no frame."""
    ax.grid(alpha=0.25, which="both", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _label(name: str, results: Comparison | Mapping[str, np.ndarray]) -> str:
    if not isinstance(results, Comparison) or name not in results.tunings:
        return name
    values = [_short(value) for value in results.tunings[name].best.values()]
    return f"{name} ({', '.join(values)})"


def _short(value: float) -> str:
    """Three digits, and zeros instead of an exponent."""
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def _band(losses: np.ndarray, statistic: str, band: str) -> tuple[np.ndarray, np.ndarray]:
    ends, rows = [0.25, 0.75], losses
    if band == "interval":
        ends = [0.025, 0.975]
        samples = np.random.default_rng(0).integers(len(losses), size=(1000, len(losses)))
        rows = np.stack([_STATISTICS[statistic](losses[sample], axis=0) for sample in samples])
    with np.errstate(invalid="ignore"):  # between two infinite rows
        low, high = np.quantile(rows, ends, axis=0)
    return low, high
