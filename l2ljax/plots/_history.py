"""The course of meta-training."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from l2ljax.meta import TrainResult
from l2ljax.plots._axes import COLORS, logarithmic, quiet


def history(
    result: TrainResult | Mapping[str, np.ndarray],
    *,
    meta_loss: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws the course of meta-training.

    Above stand the loss, raw and as a running mean, and the validation where there is one; below
    the norm of the meta-gradient. Skipped meta-steps are marked in both panels. Losses and scores
    that are not all positive, such as logarithms, are drawn on a linear axis.

    The meta-loss of a segment is a sum over its steps, which grows with their number. So the loss
    per step is drawn, the mean over the segment and its problems, where the history has `losses`.

    The loss falls within each episode. The running mean is over a fiftieth of all meta-steps,
    rounded up to whole episodes, or to ten of them where their lengths differ.

    Args:
        result: what `meta.train` returned, or its `history`. A result of a run that went on from a
            state begins at that state's meta-step.
        meta_loss: whether to draw the meta-loss itself.
        ax: where to draw the upper panel, alone; default: a new figure, with the lower panel if
            there are norms.

    Returns:
        The axes of the upper panel.

    Raises:
        ValueError: for a history without a meta-step.

    >>> ax = history({"loss": np.array([3.0, 2.0, 1.0])})
    >>> len(ax.lines)
    2
    """
    rows = result.history if isinstance(result, TrainResult) else result
    if "loss" not in rows:
        raise ValueError("result must have a history of at least one meta-step, got none")
    begin = int(result.state.step) - len(rows["loss"]) if isinstance(result, TrainResult) else 0
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
    if meta_loss or "losses" not in rows:
        name, loss = "meta-loss", np.asarray(rows["loss"], np.float64)
    else:
        name, loss = "loss per step", np.asarray(rows["losses"], np.float64).mean(axis=1)
    window = _window(rows, len(loss))
    _running(ax, begin, loss, window, name)
    drawn = loss
    if "validation" in rows:
        steps, scores = rows["validation_step"], np.asarray(rows["validation"], np.float64)
        ax.plot(steps, scores, color=COLORS[5], marker="o", label="validation")
        drawn = np.concatenate([loss, scores])
    _scale(ax, drawn)
    _mark(ax, begin, rows)
    ax.set_ylabel(name)
    ax.legend(frameon=False)
    if below is not None:
        norm = np.asarray(rows["grad_norm"], np.float64)
        _running(below, begin, norm, window, "norm of the meta-gradient")
        _scale(below, norm[norm > 0], labels=(1, 3))
        _mark(below, begin, rows)
        below.set_ylabel("gradient norm")
    (ax if below is None else below).set_xlabel("meta-step")
    return ax


def _window(rows: Mapping[str, np.ndarray], count: int) -> int:
    """Meta-steps of the running mean: whole episodes, so that it has no rhythm of its own."""
    begins = np.flatnonzero(np.asarray(rows.get("step", ())) == 0)
    lengths = np.diff(begins)
    window = max(1, count // 50)
    if lengths.size and np.ptp(lengths) == 0:
        episode = int(lengths[0])
        window = -(-window // episode) * episode
    elif lengths.size:
        window = max(window, round(10 * lengths.mean()))
    return min(window, max(1, count))


def _running(ax: Axes, begin: int, values: np.ndarray, window: int, label: str) -> None:
    """Values of meta-steps in a pale colour, and the mean of the finite ones among the last few."""
    finite = np.isfinite(values)
    ones = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="valid")
    count = np.convolve(finite, ones, mode="valid")
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    steps = begin + np.arange(len(values))
    ax.plot(steps, values, color=COLORS[1], linewidth=0.5, alpha=0.5)
    ax.plot(steps[window - 1 :], mean, color="black", label=label)


def _scale(ax: Axes, values: np.ndarray, labels: tuple[float, ...] = (1, 2, 3, 5)) -> None:
    """A logarithmic axis where all values are positive, else a linear one."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0:
        logarithmic(ax, labels)
    else:
        quiet(ax)


def _mark(ax: Axes, begin: int, rows: Mapping[str, np.ndarray]) -> None:
    """Marks skipped meta-steps at the lower edge."""
    steps = begin + np.flatnonzero(rows.get("skipped", ()))
    if steps.size:
        ax.plot(
            steps,
            np.full(steps.size, 0.03),
            color=COLORS[3],
            linestyle="none",
            marker="|",
            transform=ax.get_xaxis_transform(),
            label=f"skipped ({steps.size})",
        )
