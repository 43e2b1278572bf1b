"""Metaparameters: search, implicit hypergradients, hypernetworks."""

from l2ljax.hyper import gaussian_process
from l2ljax.hyper._acquisitions import (
    expected_improvement,
    lower_confidence_bound,
    probability_of_improvement,
)
from l2ljax.hyper._best_response import BestResponse, response_task, tune_global, tune_local
from l2ljax.hyper._complexity import WeightPosterior, complexity_control, prune
from l2ljax.hyper._hypernetwork import (
    Hypernetwork,
    generated,
    interpolating_hypernetwork,
    mlp_hypernetwork,
    self_tuning_hypernetwork,
    static_hypernetwork,
)
from l2ljax.hyper._implicit import (
    Alternation,
    conjugate_gradients,
    implicit_gradient,
    neumann,
    tune_implicit,
)
from l2ljax.hyper._propose import propose

__all__ = [
    "Alternation",
    "BestResponse",
    "Hypernetwork",
    "WeightPosterior",
    "complexity_control",
    "conjugate_gradients",
    "expected_improvement",
    "gaussian_process",
    "generated",
    "implicit_gradient",
    "interpolating_hypernetwork",
    "lower_confidence_bound",
    "mlp_hypernetwork",
    "neumann",
    "probability_of_improvement",
    "propose",
    "prune",
    "response_task",
    "self_tuning_hypernetwork",
    "static_hypernetwork",
    "tune_global",
    "tune_implicit",
    "tune_local",
]
