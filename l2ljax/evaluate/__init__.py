"""Benchmarks of optimizers: curves, tuning, comparisons on a task and over a suite, as tables."""

from l2ljax.evaluate._baselines import baselines
from l2ljax.evaluate._benchmark import benchmark
from l2ljax.evaluate._benchmark_result import Benchmark, SummaryRow, TaskResults, TaskRow
from l2ljax.evaluate._compare import Comparison, Row, Tunable, compare
from l2ljax.evaluate._curves import curves
from l2ljax.evaluate._measure import Measurement
from l2ljax.evaluate._range_test import RangeTest, range_test
from l2ljax.evaluate._rivals import Entrant, cosine, rivals
from l2ljax.evaluate._tune import Tuning, tune

__all__ = [
    "Benchmark",
    "Comparison",
    "Entrant",
    "Measurement",
    "RangeTest",
    "Row",
    "SummaryRow",
    "TaskResults",
    "TaskRow",
    "Tunable",
    "Tuning",
    "baselines",
    "benchmark",
    "compare",
    "cosine",
    "curves",
    "range_test",
    "rivals",
    "tune",
]
