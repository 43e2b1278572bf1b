"""Metaparameters: search, implicit hypergradients, hypernetworks."""

from l2ljax.hyper import gaussian_process
from l2ljax.hyper._acquisitions import (
    expected_improvement,
    lower_confidence_bound,
    probability_of_improvement,
)
from l2ljax.hyper._propose import propose

__all__ = [
    "expected_improvement",
    "gaussian_process",
    "lower_confidence_bound",
    "probability_of_improvement",
    "propose",
]
