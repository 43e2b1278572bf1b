"""Ratios of final losses on several tasks."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from l2ljax.plots._axes import COLORS


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
        color = COLORS[4] if ratio < 1 else COLORS[5]
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
