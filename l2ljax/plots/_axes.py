"""What all figures share: colours, axes on a pale grid, and writing a picture."""

import os
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

# Okabe and Ito's palette, told apart by colour-blind readers too; black is for the reference.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999999")

_STYLES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

# Of an axis that may not reach from one of the usual labels to the next.
_CLOSE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


def look(number: int) -> dict[str, Any]:
    """The colour and style of one of many lines; the first 49 are different."""
    count = len(COLORS)
    return {
        "color": COLORS[number % count],
        "linestyle": _STYLES[(number + number // count) % count],
    }


def save(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Writes the figure of these axes to a file and closes it.

    Args:
        ax: what a function of this module returned.
        path: the file; its ending decides the format.

    Raises:
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> from l2ljax import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(plots.history({"loss": np.array([3.0, 2.0, 1.0])}), f"{folder}/history.png")
    ...     os.listdir(folder)
    ['history.png']
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150)
    plt.close(figure)


def logarithmic(ax: Axes, labels: tuple[float, ...] = (1, 2, 3, 5)) -> None:
    """Losses on a logarithmic axis with plain numbers, on a quiet grid."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 4 * low:
        labels = _CLOSE
    ax.yaxis.set_major_locator(LogLocator(subs=labels))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    quiet(ax)


def quiet(ax: Axes) -> None:
    """A pale grid and no frame."""
    ax.grid(alpha=0.25, which="both", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def losses_of(name: str, losses: np.ndarray) -> np.ndarray:
    """Losses in float64, infinite where they are not finite; raises unless there is a row a run."""
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise ValueError(
            f"results[{name!r}] must have shape (problems, steps + 1), got {losses.shape}"
        )
    return np.where(np.isfinite(losses), losses, np.inf)
