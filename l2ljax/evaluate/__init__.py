"""Benchmarks of optimizers: curves, tuning and comparisons, as arrays and tables."""

from l2ljax.evaluate._baselines import baselines
from l2ljax.evaluate._compare import Comparison, Row, Tunable, compare
from l2ljax.evaluate._curves import curves
from l2ljax.evaluate._range_test import RangeTest, range_test
from l2ljax.evaluate._tune import Tuning, tune

__all__ = [
    "Comparison",
    "RangeTest",
    "Row",
    "Tunable",
    "Tuning",
    "baselines",
    "compare",
    "curves",
    "range_test",
    "tune",
]
