"""Gaussian processes over a box: what is believed of a function, and where to look next.

Points that are not there yet are masked, so one compiled program serves a search from its first
trial to its last, and `jax.vmap` runs many searches at a time.
"""

from l2ljax.gaussian_process._acquisitions import (
    ACQUISITIONS,
    expected_improvement,
    lower_confidence_bound,
    probability_of_improvement,
)
from l2ljax.gaussian_process._process import (
    GaussianProcess,
    Hyperparameters,
    condition,
    fit,
    fit_lengths,
    log_marginal_likelihood,
    matern,
    posterior,
    sample,
)
from l2ljax.gaussian_process._propose import propose

__all__ = [
    "ACQUISITIONS",
    "GaussianProcess",
    "Hyperparameters",
    "condition",
    "expected_improvement",
    "fit",
    "fit_lengths",
    "log_marginal_likelihood",
    "lower_confidence_bound",
    "matern",
    "posterior",
    "probability_of_improvement",
    "propose",
    "sample",
]
