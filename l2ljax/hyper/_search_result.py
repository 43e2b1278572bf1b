"""What a search found, and what it can be expected to find."""

import dataclasses
import html
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from l2ljax import _checks
from l2ljax._shown import brief, html_table, one_line
from l2ljax.hyper._space import Space

if TYPE_CHECKING:
    import pandas as pd


class ExpectedBest(NamedTuple):
    """The best value of n trials, for n = 1, 2, ….

    Attributes:
        mean: its expectation, f64[trials].
        low: lower end of its interval, f64[trials].
        high: upper end, f64[trials].
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What `search` returns.

    Attributes:
        trials: for each setting its value in every trial, a column of numbers or options.
        values: the objective of every trial, f64[trials], as it was.
        best: the settings of the lowest finite value, by name; None if there is none.
        value: that value; infinite if there is none.
    """

    trials: dict[str, np.ndarray]
    values: Float[np.ndarray, " trials"]
    best: dict[str, Any] | None
    value: float

    def __repr__(self) -> str:
        return f"SearchResult({self})"

    def _repr_html_(self) -> str:
        """The ten best trials, below what `print` says."""
        order = np.argsort(np.where(np.isfinite(self.values), self.values, np.inf), kind="stable")
        rows = [
            [str(trial), *(brief(column[trial]) for column in self.trials.values()),
             brief(self.values[trial])]
            for trial in order[:10]
        ]  # fmt: skip
        table = html_table(["trial", *self.trials, "value"], rows)
        return f"<p>{html.escape(str(self))}</p>{table}"

    @classmethod
    def of(
        cls, space: Space, numbers: dict[str, np.ndarray], values: Float[np.ndarray, " trials"]
    ) -> "SearchResult":
        """The result of trials whose settings are given as numbers.

        Args:
            space: the axes by name.
            numbers: for each the numbers of all trials, f64[trials], or i64[trials] of whole
                numbers and of options by their place.
            values: the objective of every trial, f64[trials].

        Returns:
            A result whose columns hold settings as a user sees them.
        """
        trials = {name: axis.values(numbers[name]) for name, axis in space.items()}
        scores = np.where(np.isfinite(values), values, np.inf)
        if not np.isfinite(scores).any():
            return cls(trials, values, None, np.inf)
        i = int(np.argmin(scores))
        best = {name: column[i : i + 1].tolist()[0] for name, column in trials.items()}
        return cls(trials, values, best, float(values[i]))

    @property
    def best_so_far(self) -> Float[np.ndarray, " trials"]:
        """The lowest finite value of each trial and those before it; infinite before any."""
        return np.minimum.accumulate(np.where(np.isfinite(self.values), self.values, np.inf))

    def expected_best(self, *, confidence: float = 0.95, replacement: bool = True) -> ExpectedBest:
        r"""What a search of n such trials finds, on average and mostly, for n up to all N of them.

        With the values in order, $v_{(1)} \le \dots \le v_{(N)}$, the best of n that are drawn from
        them is above the i-th with the probability

        $$P(\min > v_{(i)}) = \left(\frac{N - i}{N}\right)^n \quad\text{or}\quad
          \binom{N - i}{n} \Big/ \binom Nn$$

        with and without replacement: no draw decides, and no simulation is needed. It holds for
        trials that are independent, as of `random`; `best_so_far` of several searches says it of
        other methods. Trials that are not finite count as the worst finite one.

        Args:
            confidence: of the interval, in which the best of n trials lies.
            replacement: whether a value may be drawn twice. With it the mean is that of the
                empirical distribution, too high by little where n is not small against N; without
                it has no bias, but an interval that shrinks to a point at N.

        Returns:
            Mean and interval for n = 1, …, N.

        Raises:
            ValueError: for a confidence outside (0, 1), or without a finite value.

        Reference:
            Bergstra and Bengio (2012), 'Random search for hyper-parameter optimization', section
            2.2; Dodge et al. (2019), 'Show your work', section 3; without replacement: Tang et al.
            (2020), 'Showing your work doesn't always work'.

        >>> result = SearchResult({}, np.array([3.0, 1.0, 2.0]), {}, 1.0)
        >>> result.expected_best().mean[:2]  # of nine pairs five have a 1, three more a 2
        array([2.        , 1.55555556])
        """
        _checks.probability("confidence", confidence)
        finite = np.isfinite(self.values)
        if not finite.any():
            raise ValueError("values must hold a finite one, got none")
        ordered = np.sort(np.where(finite, self.values, self.values[finite].max()))
        count = len(ordered)
        drawn = np.arange(count)[:, None]
        above = count - np.arange(count + 1)
        if replacement:
            # n factors of the i-th survivor, a row for each n.
            factors = np.broadcast_to(above / count, (count, count + 1))
        else:
            factors = np.maximum(above - drawn, 0) / (count - drawn)
        survival = np.cumprod(factors, axis=0)
        mean = -np.diff(survival, axis=1) @ ordered
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        # Rounding must not move an end to the next value.
        low, high = (ordered[np.argmax(1 - survival[:, 1:] >= end - 1e-12, axis=1)] for end in ends)
        return ExpectedBest(mean, low, high)

    def to_frame(self) -> "pd.DataFrame":
        """The trials as a DataFrame, one row each, with their `value`.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'l2ljax[pandas]'") from error
        frame = pd.DataFrame({**self.trials, "value": self.values})
        return frame.rename_axis("trial")

    def __str__(self) -> str:
        """The best trial, as text."""
        failed = int((~np.isfinite(self.values)).sum())
        among = f"{len(self.values)} trials" + (f", {failed} of them not finite" if failed else "")
        if self.best is None:
            return f"no finite value in {among}"
        shown = (
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.best.items()
        )
        return f"{self.value:.4g} at {', '.join(shown)}, the best of {among}"
