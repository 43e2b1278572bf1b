"""Loss against step."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from l2ljax import _checks
from l2ljax.evaluate import Comparison
from l2ljax.plots._axes import logarithmic, look, losses_of

_STATISTICS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}
_LONG_LEGEND = 6
"""More curves leave no room for their names."""


def curves(
    results: Comparison | Mapping[str, np.ndarray],
    *,
    statistic: str = "mean",
    band: str | None = "interval",
    smooth: int = 1,
    log_steps: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws loss against step for each optimizer, on a logarithmic scale of losses.

    Args:
        results: a `Comparison`, whose reference is drawn in black and whose tuned settings stand in
            the legend; or arrays of losses, f32[problems, steps + 1], by name.
        statistic: "mean" over the problems on which no loss of the run was infinite or NaN; or
            "median" over all of them, the others counted as infinite. The legend says on how many
            an optimizer diverged, and what is infinite is not drawn.
        band: "interval", a 95 % interval of the statistic over problems (bootstrap); "quartiles",
            from the first to the third quartile of problems; or None.
        smooth: each loss is averaged with those of the `smooth - 1` steps before it, run by run.
            Minibatch losses are easier to compare with 10 or more. Default 1: as they are.
        log_steps: whether the axis of steps is logarithmic too; step 0 then has no place on it.
        ax: where to draw; default: a new figure, with the legend beside the axes if it is long.

    Returns:
        The axes; `save(ax, path)` writes the picture.

    Raises:
        ValueError: for an unknown statistic or band, no curves, arrays of another shape, or
            `smooth` below 1.

    >>> ax = curves({"a": np.array([[4.0, 2.0, 1.0], [5.0, 3.0, 1.0]])}, band="quartiles")
    >>> print(ax.lines[0].get_ydata())
    [4.5 2.5 1. ]
    """
    _checks.choice("statistic", statistic, _STATISTICS)
    _checks.choice("band", band, ["interval", "quartiles", None])
    _checks.count("smooth", smooth)
    given = results.curves if isinstance(results, Comparison) else results
    if not given:
        raise ValueError("results must have at least one curve, got none")
    runs = {name: losses_of(name, losses) for name, losses in given.items()}
    place: dict[str, Any] = {}
    if ax is None:
        beside = len(runs) > _LONG_LEGEND
        _, ax = plt.subplots(figsize=(9.5 if beside else 7, 4.2), layout="constrained")
        if beside:
            place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    rivals = 0
    for name, run in runs.items():
        if isinstance(results, Comparison) and name == results.reference:
            style: dict[str, Any] = {"color": "black", "linewidth": 2.2, "zorder": 3}
        else:
            style = look(rivals)
            rivals += 1
        diverged = int((~np.isfinite(run).all(axis=1)).sum())
        losses = _smoothed(_counted(run, statistic), smooth)
        steps = np.arange(losses.shape[1])
        centre = _STATISTICS[statistic](losses, axis=0)
        label = _label(name, results)
        label += f", {diverged} of {len(run)} diverged" if diverged else ""
        ax.plot(steps, centre, label=label, **style)
        if band is not None:
            low, high = _band(losses, statistic, band)
            ax.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
    logarithmic(ax)
    if log_steps:
        ax.set_xscale("log")
    ax.set_xlabel("step")
    averaged = f", each over {smooth} steps" if smooth > 1 else ""
    ax.set_ylabel(f"loss, {statistic} over {len(run)} problems{averaged}")
    ax.legend(frameon=False, **place)
    return ax


def _counted(losses: np.ndarray, statistic: str) -> np.ndarray:
    """The runs that a statistic is of: of a mean those that never diverged, if there are any."""
    finite = np.isfinite(losses).all(axis=1)
    return losses[finite] if statistic == "mean" and finite.any() else losses


def _smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """Each loss averaged with those before it, `window` of them if there are as many."""
    if window == 1:
        return losses
    ends = range(1, losses.shape[1] + 1)
    return np.stack([losses[:, max(0, t - window) : t].mean(axis=1) for t in ends], axis=1)


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
