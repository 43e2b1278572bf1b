"""Loss against learning rate."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from l2ljax.evaluate import RangeTest
from l2ljax.plots._axes import COLORS, logarithmic, losses_of


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
    losses = losses_of("losses", result.losses)
    level, count = losses.mean(axis=0), f"{len(losses)} problem{'s' if len(losses) > 1 else ''}"
    ax.plot(result.rates, level, color=COLORS[1], linewidth=0.7, label=f"mean over {count}")
    ax.plot(result.rates, result.smoothed, color="black", linewidth=1.8, label="smoothed")
    visible = level[(level > 0) & np.isfinite(level)]
    if visible.size:
        logarithmic(ax)
    if result.base is not None and result.maximum is not None:
        end = "" if result.reached else " (end of the sweep)"
        bounds = {
            f"base {result.base:.2g}": (result.base, COLORS[2], "--"),
            f"maximum {result.maximum:.2g}{end}": (result.maximum, COLORS[5], "-."),
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
