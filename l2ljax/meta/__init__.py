"""Meta-training: the inner loop, estimators of the meta-gradient, and the outer loop.

An estimator is made by a factory `(opt, task, batch=1)`. `truncated` and `imitation` are two;
`weighted` makes one of several on one task, and `mixture` one of several tasks. They nest: a
mixture of weighted sums is an estimator too. `train` says which of them helps against what.
"""

from l2ljax.meta._imitation import imitation
from l2ljax.meta._mixture import mixture
from l2ljax.meta._progress import Callback, Progress, TrainState
from l2ljax.meta._segments import EstimatorFactory, TruncatedState
from l2ljax.meta._step_weights import final_weights, polynomial_weights
from l2ljax.meta._train import TrainResult, make_step, train
from l2ljax.meta._truncated import truncated
from l2ljax.meta._unroll import unroll, unroll_batch
from l2ljax.meta._validation import final_loss, validation
from l2ljax.meta._weighted import WeightedState, weighted

__all__ = [
    "Callback",
    "EstimatorFactory",
    "Progress",
    "TrainResult",
    "TrainState",
    "TruncatedState",
    "WeightedState",
    "final_loss",
    "final_weights",
    "imitation",
    "make_step",
    "mixture",
    "polynomial_weights",
    "train",
    "truncated",
    "unroll",
    "unroll_batch",
    "validation",
    "weighted",
]
