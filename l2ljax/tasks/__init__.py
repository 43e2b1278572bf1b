"""Families of functions to optimize, and the data sets behind them."""

from l2ljax.tasks.catalogue import CATALOGUE, Entry, Family, load
from l2ljax.tasks.dataset import Dataset, Split
from l2ljax.tasks.digits import digits
from l2ljax.tasks.mnist import mnist
from l2ljax.tasks.quadratic import quadratic
from l2ljax.tasks.supervised import cross_entropy, mlp_classifier, squared_error, supervised

__all__ = [
    "CATALOGUE",
    "Dataset",
    "Entry",
    "Family",
    "Split",
    "cross_entropy",
    "digits",
    "load",
    "mlp_classifier",
    "mnist",
    "quadratic",
    "squared_error",
    "supervised",
]
