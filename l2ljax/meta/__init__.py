"""Meta-training: the inner loop, estimators of the meta-gradient, and the outer loop."""

from l2ljax.meta._progress import Callback, Progress, TrainState
from l2ljax.meta._step_weights import final_weights, polynomial_weights
from l2ljax.meta._train import TrainResult, make_step, train
from l2ljax.meta._truncated import EstimatorFactory, TruncatedState, truncated
from l2ljax.meta._unroll import unroll, unroll_batch
from l2ljax.meta._validation import final_loss, validation

__all__ = [
    "Callback",
    "EstimatorFactory",
    "Progress",
    "TrainResult",
    "TrainState",
    "TruncatedState",
    "final_loss",
    "final_weights",
    "make_step",
    "polynomial_weights",
    "train",
    "truncated",
    "unroll",
    "unroll_batch",
    "validation",
]
