"""Metaparameters: search, implicit hypergradients, hypernetworks."""

from l2ljax.hyper._ask_tell import AskTell, AskTellState, ask_tell, minimize_black_box
from l2ljax.hyper._bayesian import bayesian
from l2ljax.hyper._best_response import BestResponse, response_task, tune_global, tune_local
from l2ljax.hyper._black_box import black_box
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
from l2ljax.hyper._methods import Method, grid, quasi_random, random
from l2ljax.hyper._objective import objective
from l2ljax.hyper._optuna import optuna
from l2ljax.hyper._search import search
from l2ljax.hyper._search_result import ExpectedBest, SearchResult
from l2ljax.hyper._self_referential import (
    SelfReferentialState,
    run_stream,
    self_referential,
    stream,
)
from l2ljax.hyper._space import Axis, choice, integer, log_uniform, uniform

__all__ = [
    "Alternation",
    "AskTell",
    "AskTellState",
    "Axis",
    "BestResponse",
    "ExpectedBest",
    "Hypernetwork",
    "Method",
    "SearchResult",
    "SelfReferentialState",
    "WeightPosterior",
    "ask_tell",
    "bayesian",
    "black_box",
    "choice",
    "complexity_control",
    "conjugate_gradients",
    "generated",
    "grid",
    "implicit_gradient",
    "integer",
    "interpolating_hypernetwork",
    "log_uniform",
    "minimize_black_box",
    "mlp_hypernetwork",
    "neumann",
    "objective",
    "optuna",
    "prune",
    "quasi_random",
    "random",
    "response_task",
    "run_stream",
    "search",
    "self_referential",
    "self_tuning_hypernetwork",
    "static_hypernetwork",
    "stream",
    "tune_global",
    "tune_implicit",
    "tune_local",
    "uniform",
]
