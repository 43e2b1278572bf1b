"""What a benchmark found: rows of tasks, rows over tasks, profiles and tables."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from l2ljax import _checks
from l2ljax._shown import html_table
from l2ljax.evaluate import _statistics as statistics
from l2ljax.evaluate import _tables as tables
from l2ljax.evaluate._measure import Measurement
from l2ljax.suite import SuiteTask

if TYPE_CHECKING:
    import pandas as pd

WORSE = 1.1
"""An optimizer is worse on a task from this ratio on."""


class TaskResults(NamedTuple):
    """What was measured on one task.

    Attributes:
        task: how it was run.
        measurements: of each optimizer.
        envelope: what Adam reaches at each step with its best rate, over twice the steps.
    """

    task: SuiteTask
    measurements: dict[str, Measurement]
    envelope: Float[np.ndarray, " times"]


class TaskRow(NamedTuple):
    """One optimizer on one task.

    Attributes:
        task: its name.
        optimizer: its name.
        final: final loss, the mean over problems; infinite if a run diverged.
        final_low: lower end of its interval, by resampling problems.
        final_high: upper end of its interval.
        median: median final loss over problems.
        ratio: this final loss over the reference's; below 1, this optimizer is better.
        ratio_low: lower end of its interval, by resampling problems for both together.
        ratio_high: upper end of its interval.
        speedup: steps until Adam with the best of its rates at each step is as low, over the steps
            that were run; 2 is the largest that is counted.
        diverged: number of problems with a loss that is not finite.
        setting: the tuned arguments, or None.
        on_edge: whether tuning ended on the edge of its grid.
        seconds: of one step of one problem, or None.
        state_bytes: size of the optimizer's state per parameter.
    """

    task: str
    optimizer: str
    final: float
    final_low: float
    final_high: float
    median: float
    ratio: float
    ratio_low: float
    ratio_high: float
    speedup: float
    diverged: int
    setting: dict[str, float] | None
    on_edge: bool
    seconds: float | None
    state_bytes: float


class SummaryRow(NamedTuple):
    """One optimizer over all tasks.

    Attributes:
        optimizer: its name.
        median_ratio: median over tasks of its final loss over the reference's.
        iqm: interquartile mean over tasks of the reference's final loss over this one's; above 1,
            this optimizer is better.
        iqm_low: lower end of its interval, by resampling problems and tasks.
        iqm_high: upper end of its interval.
        speedup: interquartile mean over tasks of the speedup.
        speedup_low: lower end of its interval.
        speedup_high: upper end of its interval.
        better: number of tasks on which its final loss is lower than the reference's.
        worse: number of tasks with a ratio of more than 1.1.
        worst: the largest ratio.
        worst_task: where it is.
        diverged: number of tasks on which a run diverged.
        time: median over tasks of the seconds per step over the reference's, or None.
        speedup_by_time: interquartile mean over tasks of the speedup over that, or None.
        state_bytes: median over tasks of the state's bytes per parameter.
    """

    optimizer: str
    median_ratio: float
    iqm: float
    iqm_low: float
    iqm_high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    better: int
    worse: int
    worst: float
    worst_task: str
    diverged: int
    time: float | None
    speedup_by_time: float | None
    state_bytes: float


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `benchmark` returns.

    Attributes:
        results: of each task.
        reference: the optimizer that ratios compare with: Adam with a tuned constant rate, until
            `against` says otherwise.
        confidence: of intervals.
    """

    results: dict[str, TaskResults]
    reference: str
    confidence: float

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.results)

    @property
    def optimizers(self) -> list[str]:
        """Names of the optimizers; Adam with a tuned constant rate is the last."""
        return list(next(iter(self.results.values())).measurements)

    def against(self, reference: str) -> "Benchmark":
        """The same results with ratios to another optimizer; the speedup stays one over Adam.

        Raises:
            ValueError: for an unknown name.
        """
        _checks.choice("reference", reference, self.optimizers)
        return dataclasses.replace(self, reference=reference)

    @functools.cached_property
    def final(self) -> Float[np.ndarray, "optimizers tasks"]:
        """Mean final losses over problems."""
        return np.array(
            [[found.final.mean() for found in self._of(name)] for name in self.optimizers]
        )

    @functools.cached_property
    def _resamples(self) -> statistics.Resamples:
        return statistics.resample(
            [
                np.stack([found.final for found in result.measurements.values()])
                for result in self.results.values()
            ]
        )

    def _of(self, optimizer: str) -> list[Measurement]:
        return [result.measurements[optimizer] for result in self.results.values()]

    def _speedups(self, final: Float[np.ndarray, "*rows tasks"]) -> np.ndarray:
        columns = [
            statistics.speedup(final[..., i], result.envelope, result.task.steps)
            for i, result in enumerate(self.results.values())
        ]
        return np.stack(columns, axis=-1)

    @functools.cached_property
    def rows(self) -> tuple[TaskRow, ...]:
        """One `TaskRow` for each task and optimizer."""
        reference = self.optimizers.index(self.reference)
        means, final = self._resamples.means, self.final
        speedups = self._speedups(final)
        ratios = statistics.quotient(final, final[reference])
        final_ends = statistics.interval(means, self.confidence)
        ratio_ends = statistics.interval(
            statistics.quotient(means, means[:, reference : reference + 1]), self.confidence
        )
        return tuple(
            TaskRow(
                task=task,
                optimizer=name,
                final=float(final[i, j]),
                final_low=float(final_ends[0][i, j]),
                final_high=float(final_ends[1][i, j]),
                median=float(np.median(found.final)),
                ratio=float(ratios[i, j]),
                ratio_low=float(ratio_ends[0][i, j]),
                ratio_high=float(ratio_ends[1][i, j]),
                speedup=float(speedups[i, j]),
                diverged=int((~np.isfinite(found.final)).sum()),
                setting=found.setting,
                on_edge=found.on_edge,
                seconds=found.seconds,
                state_bytes=found.state_bytes / max(1, found.params),
            )
            for j, (task, result) in enumerate(self.results.items())
            for i, (name, found) in enumerate(result.measurements.items())
        )

    @functools.cached_property
    def summary(self) -> tuple[SummaryRow, ...]:
        """One `SummaryRow` for each optimizer."""
        reference, drawn = self.optimizers.index(self.reference), self._resamples
        final, mean = self.final, statistics.interquartile_mean
        ratios = statistics.quotient(final, final[reference])
        gains = statistics.quotient(final[reference], final)
        drawn_gains = statistics.quotient(drawn.means[:, reference : reference + 1], drawn.means)
        gain_ends = statistics.interval(mean(drawn.over_tasks(drawn_gains)), self.confidence)
        speedups = self._speedups(final)
        drawn_speedups = drawn.over_tasks(self._speedups(drawn.means))
        speedup_ends = statistics.interval(mean(drawn_speedups), self.confidence)
        rows = []
        for i, name in enumerate(self.optimizers):
            times = self._times(name)
            worst = int(np.argmax(ratios[i]))
            found = self._of(name)
            rows.append(
                SummaryRow(
                    optimizer=name,
                    median_ratio=float(np.median(ratios[i])),
                    iqm=float(mean(gains[i])),
                    iqm_low=float(gain_ends[0][i]),
                    iqm_high=float(gain_ends[1][i]),
                    speedup=float(mean(speedups[i])),
                    speedup_low=float(speedup_ends[0][i]),
                    speedup_high=float(speedup_ends[1][i]),
                    better=int((ratios[i] < 1).sum()),
                    worse=int((ratios[i] > WORSE).sum()),
                    worst=float(ratios[i, worst]),
                    worst_task=self.tasks[worst],
                    diverged=sum(not np.isfinite(one.final).all() for one in found),
                    time=None if times is None else float(np.median(times)),
                    speedup_by_time=None if times is None else float(mean(speedups[i] / times)),
                    state_bytes=float(
                        np.median([one.state_bytes / max(1, one.params) for one in found])
                    ),
                )
            )
        return tuple(rows)

    def _times(self, optimizer: str) -> np.ndarray | None:
        """Seconds per step over the reference's, on each task."""
        pairs = zip(self._of(optimizer), self._of(self.reference), strict=True)
        times = [
            None if mine.seconds is None or other.seconds is None else mine.seconds / other.seconds
            for mine, other in pairs
        ]
        known = [time for time in times if time is not None]
        return np.array(known) if len(known) == len(times) else None

    def profile(
        self, factors: Float[np.ndarray, " factors"]
    ) -> dict[str, Float[np.ndarray, " factors"]]:
        """The performance profile: shares of tasks within each factor of the best final loss."""
        shares = statistics.performance_profile(self.final, np.asarray(factors))
        return dict(zip(self.optimizers, shares, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All rows as plain JSON values; what is infinite is None."""
        return {
            "reference": self.reference,
            "confidence": self.confidence,
            "summary": [tables.plain(row._asdict()) for row in self.summary],
            "rows": [tables.plain(row._asdict()) for row in self.rows],
        }

    def to_frame(self) -> "pd.DataFrame":
        """The rows of all tasks as a DataFrame, indexed by task and optimizer.

        Raises:
            ImportError: if pandas is not installed.
        """
        return tables.frame(self.rows, "task", "optimizer")

    def table(self) -> list[list[str]]:
        """The summary as text: a header, and a line for each optimizer, the best first."""
        percent = f"{100 * self.confidence:g}%"
        header = [
            "",
            f"median of this / {self.reference}",
            f"IQM of {self.reference} / this",
            percent,
            "IQM speedup",
            percent,
            "better",
            f"> {WORSE}",
            "worst",
            "diverged",
            "bytes/param",
        ]
        timed = any(row.time is not None for row in self.summary)
        header += ["time", "speedup by time"] if timed else []
        lines = [header]
        for row in sorted(self.summary, key=lambda row: row.median_ratio):
            line = [
                row.optimizer,
                f"{row.median_ratio:.3f}",
                f"{row.iqm:.3f}",
                f"[{row.iqm_low:.2f}, {row.iqm_high:.2f}]",
                f"{row.speedup:.2f}",
                f"[{row.speedup_low:.2f}, {row.speedup_high:.2f}]",
                f"{row.better}/{len(self.tasks)}",
                str(row.worse),
                f"{row.worst:.3g} ({row.worst_task})",
                str(row.diverged),
                f"{row.state_bytes:.3g}",
            ]
            if timed:
                numbers = [row.time, row.speedup_by_time]
                line += ["" if number is None else f"{number:.2f}" for number in numbers]
            lines.append(line)
        return lines

    def task_table(self) -> list[list[str]]:
        """Ratios as text: a header, and a line for each task."""
        ratios = {(row.task, row.optimizer): row for row in self.rows}
        lines = [["", f"{self.reference}: loss", *self.optimizers]]
        for task in self.tasks:
            loss = ratios[task, self.reference].final
            cells = [f"{ratios[task, name].ratio:.3g}" for name in self.optimizers]
            lines.append([task, f"{loss:.4g}", *cells])
        return lines

    def __str__(self) -> str:
        """The tables over tasks and of tasks."""
        parts = [tables.aligned(self.table())]
        parts += [f"final losses over {self.reference}'s", tables.aligned(self.task_table())]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [self.table(), self.task_table()]
        return "".join(html_table(lines[0], lines[1:]) for lines in parts)
