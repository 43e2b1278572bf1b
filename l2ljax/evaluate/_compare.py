"""Comparing optimizers on the same fresh problems."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from l2ljax import _checks
from l2ljax._shown import cut, html_table, one_line
from l2ljax.core import Key, Task, Transformation, require_transformation
from l2ljax.evaluate._arguments import (
    noted,
    require_factory,
    require_task,
)
from l2ljax.evaluate._curves import curves
from l2ljax.evaluate._tables import aligned, frame, plain
from l2ljax.evaluate._tune import Factory, Grid, Tuning, curves_at, require_grid, tune
from l2ljax.meta import final_loss

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000


class Tunable(NamedTuple):
    """An optimizer that `compare` tunes before it compares.

    Attributes:
        factory: see `tune`.
        grid: see `tune`.
    """

    factory: Factory
    grid: Grid

    def __repr__(self) -> str:
        return one_line(self)


class Row(NamedTuple):
    """One optimizer's line in the table.

    On a problem it diverged if a loss of the run is infinite or NaN. Such problems are counted, and
    all else is over the others: one of them does not hide what happens on the rest. An optimizer
    that diverged on more problems than another is no better for a lower loss on fewer of them.

    Attributes:
        name: its name.
        final: final loss, the mean over the problems on which it did not diverge; infinite if there
            are none.
        final_low: lower end of its interval.
        final_high: upper end of its interval.
        mean: mean loss over the run (all losses after an update), mean over the same problems.
        ratio: the reference's final loss over this one's, both over the problems on which neither
            diverged; below 1, the reference is better. Without such problems it is 0 if this one
            diverged on all of them and the reference did not, infinite if it is the other way
            round, else NaN.
        ratio_low: lower end of its interval, by resampling problems for both together.
        ratio_high: upper end of its interval.
        setting: the tuned arguments, or None for an optimizer that was given as it is.
        on_edge: whether tuning ended on the edge of its grid.
        diverged: number of problems on which it diverged.
    """

    name: str
    final: float
    final_low: float
    final_high: float
    mean: float
    ratio: float
    ratio_low: float
    ratio_high: float
    setting: dict[str, float] | None
    on_edge: bool
    diverged: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        rows: one `Row` an optimizer, in the order given.
        curves: for each optimizer the losses, f32[problems, steps + 1].
        tunings: for each tuned optimizer its `Tuning`.
        reference: the optimizer that ratios compare with.
        confidence: of the intervals.
    """

    rows: tuple[Row, ...]
    curves: dict[str, np.ndarray]
    tunings: dict[str, Tuning]
    reference: str
    confidence: float

    @property
    def best_rival(self) -> Row:
        """The tuned row with the lowest final loss; of all but the reference if none was tuned.

        One that diverged on some problems is best only if all did.

        Raises:
            ValueError: if there is nothing beside the reference.
        """
        rivals = [row for row in self.rows if row.name != self.reference]
        if not rivals:
            raise ValueError(f"optimizers must have a rival of {self.reference}, got none")
        rivals = [row for row in rivals if row.setting is not None] or rivals
        return min(rivals, key=lambda row: (row.diverged > 0, row.final))

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON values."""
        return {
            "reference": self.reference,
            "confidence": self.confidence,
            "problems": len(self.curves[self.reference]),
            "steps": self.curves[self.reference].shape[1] - 1,
            "rows": [plain(row._asdict()) for row in self.rows],
        }

    def to_frame(self) -> "pd.DataFrame":
        """The table as a DataFrame, one row an optimizer.

        Raises:
            ImportError: if pandas is not installed.
        """
        return frame(self.rows, "name")

    def __repr__(self) -> str:
        problems, steps = np.shape(self.curves[self.reference])
        shown = ", ".join(f"{row.name} {row.final:.4g}" for row in self.rows)
        return f"Comparison({cut(shown, 120)}; {problems} problems, {steps - 1} steps)"

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        return html_table(header, rows)

    def _table(self) -> list[list[str]]:
        """The cells of the table, those of the header first."""
        percent = f"{100 * self.confidence:g}%"
        header = ["", "final loss", f"{percent} interval", "mean loss", "tuned"]
        header += [f"{self.reference} / this", f"{percent} interval"]
        table = [header]
        for row in self.rows:
            tuning = self.tunings.get(row.name)
            hopeless = tuning is not None and not np.isfinite(tuning.score)
            problems = len(self.curves[row.name])
            table.append(_cells(row, self.reference, hopeless, problems))
        return table

    def __str__(self) -> str:
        """The table as text."""
        return aligned(self._table())


def compare(
    optimizers: Mapping[str, Transformation | Tunable],
    task: Task,
    *,
    key: Key,
    steps: int = 100,
    problems: int = 64,
    window: int = 10,
    reference: str | None = None,
    tuning_task: Task | None = None,
    tuning_problems: int = 16,
    tuning_at_once: int | None = None,
    tunings: Mapping[str, Tuning] | None = None,
    confidence: float = 0.95,
    progress: bool = False,
) -> Comparison:
    """Runs optimizers on the same fresh problems, after tuning those that are `Tunable`.

    Tuning sees other problems than the comparison, drawn from the same task, or from
    `tuning_task`. Intervals are percentile bootstraps over problems (10,000 resamples).

    Args:
        optimizers: transformations, or `Tunable` ones, by name.
        task: the family that problems are drawn from.
        key: draws the problems of tuning and of comparison.
        steps: inner steps T.
        problems: number of fresh problems.
        window: the final loss is the mean over the last `window` updates: 10 for minibatch tasks,
            1 for deterministic ones.
        reference: the name that ratios compare with; default: the first.
        tuning_task: where to tune; default: `task`.
        tuning_problems: problems that each setting is tuned on.
        tuning_at_once: settings that run side by side, as in `tune`; None: all.
        tunings: by name what is known of `Tunable` ones, from `tune` or an earlier comparison's
            `tunings`: they are not tuned again. Whoever gives them sees to it that the problems
            were others.
        confidence: of the intervals.
        progress: whether to show a bar over optimizers.

    Returns:
        A `Comparison`; `print` shows its table.

    Raises:
        ValueError: for no optimizers, one that is neither a transformation nor a `Tunable` with a
            factory and a grid, an unknown reference, sizes below 1, a window larger than `steps`, a
            confidence outside (0, 1), a tuning of what is not `Tunable`, or what is no task or no
            key; all before the first run. An error of a run has a note whose it is.

    >>> import l2ljax as l2l
    >>> sgd = Tunable(l2l.classic.gradient_descent, [1e-3, 1e-2, 1e-1])
    >>> result = compare({"adam": l2l.classic.adam(0.1), "sgd": sgd}, l2l.tasks.quadratic(),
    ...                  key=jax.random.key(0), steps=30, problems=8, window=1)
    >>> result.rows[1].setting, result.curves["adam"].shape
    ({'learning_rate': 0.01}, (8, 31))
    """
    require_task("task", task)
    if tuning_task is not None:
        require_task("tuning_task", tuning_task)
    _checks.key("key", key)
    for name, value in [("steps", steps), ("problems", problems), ("window", window)]:
        _checks.count(name, value)
    _checks.count("tuning_problems", tuning_problems)
    if tuning_at_once is not None:
        _checks.count("tuning_at_once", tuning_at_once)
    if window > steps:
        raise ValueError(f"window must be at most steps={steps}, got {window}")
    _require_optimizers(optimizers)
    _checks.probability("confidence", confidence)
    reference = next(iter(optimizers)) if reference is None else reference
    _checks.choice("reference", reference, optimizers)
    known = dict(tunings or {})
    for name in known:
        if not isinstance(optimizers.get(name), Tunable):
            raise ValueError(f"tunings must be those of `Tunable` optimizers, got one of {name!r}")

    # Folded with a number that no batch of problems reaches: tuning never sees what is compared.
    tuning_key = jax.random.fold_in(key, 2**32 - 1)
    runs: dict[str, np.ndarray] = {}
    bar = tqdm(optimizers.items(), desc="comparing", unit="optimizer", disable=not progress)
    for name, optimizer in bar:
        bar.set_postfix_str(name)
        with noted(f"optimizers[{name!r}]"):
            shared: dict[str, Any] = {"key": key, "steps": steps, "problems": problems}
            if isinstance(optimizer, Tunable):
                if name not in known:
                    known[name] = tune(
                        optimizer.factory,
                        tuning_task or task,
                        optimizer.grid,
                        key=tuning_key,
                        steps=steps,
                        problems=tuning_problems,
                        window=window,
                        at_once=tuning_at_once,
                    )
                run = curves_at(*optimizer, known[name].best, task, **shared)
            else:
                run = curves(optimizer, task, **shared)
            runs[name] = np.asarray(run)

    final = {
        name: np.asarray(final_loss(jnp.asarray(run), window), np.float64)
        for name, run in runs.items()
    }
    samples = np.random.default_rng(0).integers(problems, size=(RESAMPLES, problems))
    rows = tuple(
        _row(name, runs, final, reference, samples, confidence, known.get(name)) for name in runs
    )
    return Comparison(rows, runs, known, reference, confidence)


def _require_optimizers(optimizers: Mapping[str, Transformation | Tunable]) -> None:
    """Refuses a bad entry by its name, before one of the others has run."""
    if not isinstance(optimizers, Mapping):
        raise ValueError(f"optimizers must be a mapping from names, got {type(optimizers)}")
    if not optimizers:
        raise ValueError("optimizers must have at least one entry, got none")
    for name, optimizer in optimizers.items():
        label = f"optimizers[{name!r}]"
        if isinstance(optimizer, Tunable):
            with noted(label):
                require_factory("factory", optimizer.factory)
                require_grid(optimizer.grid)
        else:
            require_transformation(label, optimizer, " or a Tunable")


def _row(
    name: str,
    runs: Mapping[str, np.ndarray],
    final: Mapping[str, np.ndarray],
    reference: str,
    samples: np.ndarray,
    confidence: float,
    tuning: Tuning | None,
) -> Row:
    learns, other = (
        np.isfinite(runs[row]).all(axis=1) & np.isfinite(final[row]) for row in (name, reference)
    )
    both = learns & other
    # All problems, then resamples of them.
    drawn = (np.arange(len(learns)), samples)
    level, levels = (_mean(final[name], learns, row) for row in drawn)
    low, high = _interval(levels, confidence)
    mean = _mean(runs[name][:, 1:].astype(np.float64).mean(axis=1), learns, drawn[0])
    if not learns.any():
        level = mean = low = high = np.inf
    # Both are zero: nothing can be said, and NaN says so.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = (
            _mean(final[reference], both, row) / _mean(final[name], both, row) for row in drawn
        )
    ratio_low, ratio_high = _interval(ratios, confidence)
    if not learns.any() and other.any():
        ratio = ratio_low = ratio_high = 0.0
    if learns.any() and not other.any():
        ratio = ratio_low = ratio_high = np.inf
    return Row(
        name=name,
        final=float(level),
        final_low=float(low),
        final_high=float(high),
        mean=float(mean),
        ratio=float(ratio),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        setting=None if tuning is None else tuning.best,
        on_edge=False if tuning is None else tuning.on_edge,
        diverged=int((~learns).sum()),
    )


def _mean(values: np.ndarray, kept: np.ndarray, drawn: np.ndarray) -> Any:
    """The mean over those drawn problems that are kept, for each row of draws; NaN of none."""
    with np.errstate(invalid="ignore"):
        return np.where(kept, values, 0.0)[drawn].sum(axis=-1) / kept[drawn].sum(axis=-1)


def _interval(values: np.ndarray, confidence: float) -> np.ndarray:
    """The interval that resampled values lie in, those without a problem left aside."""
    known = values[~np.isnan(values)]
    if not known.size:
        return np.full(2, np.nan)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    # `inverted_cdf` picks a sample: interpolation between infinite ones would make NaN.
    return np.quantile(known, ends, method="inverted_cdf")


def _cells(row: Row, reference: str, hopeless: bool, problems: int) -> list[str]:
    """A line of the table; `hopeless`: no setting was better than another, since all diverged."""
    tuned = "" if row.setting is None else " ".join(f"{v:.3g}" for v in row.setting.values())
    tuned += " (edge)" if row.on_edge else ""
    cells = [
        row.name,
        f"{row.final:.4g}" + (f" ({row.diverged} of {problems} diverged)" if row.diverged else ""),
        f"[{row.final_low:.4g}, {row.final_high:.4g}]",
        f"{row.mean:.4g}",
        "all diverged" if hopeless else tuned,
    ]
    if row.name == reference:
        return [*cells, "", ""]
    return [*cells, f"{row.ratio:.3f}", f"[{row.ratio_low:.3f}, {row.ratio_high:.3f}]"]
