"""Hand-designed methods, each written from its formula and each an optax transformation.

A learning rate is a number, a scalar array or an optax schedule, whose count starts at 0. Every
hyperparameter may be a traced value: methods run under `jax.vmap` over rates, in
`optax.inject_hyperparams`, and are differentiable with respect to all of them, also where the
gradient is zero. Accumulators are float32 for narrower params, since an average with a decay near
one stands still in bfloat16; `accumulator_dtype` overrides that. Updates keep the dtypes of the
gradients. For the same reason `optax.inject_hyperparams` wants `hyperparam_dtype=jnp.float32` where
the params are bfloat16: it rounds a decay of 0.999 to 1 otherwise.

Each method `m` has a part `scale_by_m`: the direction without rate and sign, to be chained with
`optax.scale_by_learning_rate` or anything else. States are named tuples; `optax.tree.get` finds
their fields in a chain. Second-order methods and line searches take `value`, `grad` and `value_fn`
as extra arguments of `update`, like those of optax.
"""

from l2ljax.classic._adadelta import AdadeltaState, adadelta, scale_by_adadelta
from l2ljax.classic._adagrad import AdagradState, adagrad, scale_by_adagrad
from l2ljax.classic._adam import AdamState, adam, scale_by_adam
from l2ljax.classic._amsgrad import AmsgradState, amsgrad, scale_by_amsgrad
from l2ljax.classic._bfgs import BFGSState, bfgs, scale_by_bfgs
from l2ljax.classic._gradient_descent import GradientDescentState, gradient_descent
from l2ljax.classic._lbfgs import LBFGSState, lbfgs, scale_by_lbfgs
from l2ljax.classic._line_search import DescentState
from l2ljax.classic._minimize import Minimum, StopReason, minimize
from l2ljax.classic._momentum import (
    MomentumState,
    NesterovState,
    momentum,
    nesterov,
    nesterov_iterate,
    scale_by_momentum,
    scale_by_nesterov,
)
from l2ljax.classic._newton import newton, scale_by_newton
from l2ljax.classic._rmsprop import RMSPropState, rmsprop, scale_by_rmsprop
from l2ljax.classic._saddle_free_newton import saddle_free_newton, scale_by_saddle_free_newton
from l2ljax.classic._schedules import exp_range, snapshot_cosine, triangular, triangular2
from l2ljax.classic._snapshots import SnapshotState, average_predictions, with_snapshots
from l2ljax.classic._weight_decay import adam_l2, adamw

__all__ = [
    "AdadeltaState",
    "AdagradState",
    "AdamState",
    "AmsgradState",
    "BFGSState",
    "DescentState",
    "GradientDescentState",
    "LBFGSState",
    "Minimum",
    "MomentumState",
    "NesterovState",
    "RMSPropState",
    "SnapshotState",
    "StopReason",
    "adadelta",
    "adagrad",
    "adam",
    "adam_l2",
    "adamw",
    "amsgrad",
    "average_predictions",
    "bfgs",
    "exp_range",
    "gradient_descent",
    "lbfgs",
    "minimize",
    "momentum",
    "nesterov",
    "nesterov_iterate",
    "newton",
    "rmsprop",
    "saddle_free_newton",
    "scale_by_adadelta",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_bfgs",
    "scale_by_lbfgs",
    "scale_by_momentum",
    "scale_by_nesterov",
    "scale_by_newton",
    "scale_by_rmsprop",
    "scale_by_saddle_free_newton",
    "snapshot_cosine",
    "triangular",
    "triangular2",
    "with_snapshots",
]
