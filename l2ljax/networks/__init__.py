"""Neural networks as plain `init` and `apply` functions on dictionaries; Flax stays in this room.

Four kinds live here: the networks inside learned optimizers, defined for **one coordinate** of the
parameters that are optimized; the recurrent network of optimizers without gradients, which sees all
of them; the networks that are optimized ('optimizees'); and, as Flax modules, those of the suite of
benchmarks.
"""

from l2ljax.networks._common import ACTIVATIONS
from l2ljax.networks._convnet import convnet_apply, convnet_init
from l2ljax.networks._convolutions import convolve_patches
from l2ljax.networks._coordinate import (
    coordinate_dense_apply,
    coordinate_dense_init,
    coordinate_mlp_apply,
    coordinate_mlp_init,
    lstm_apply,
    lstm_carry,
    lstm_init,
    lstm_notes,
    lstm_noting,
    lstm_sequence,
)
from l2ljax.networks._mlp import mlp_apply, mlp_init
from l2ljax.networks._recurrent import recurrent_apply, recurrent_init
from l2ljax.networks._suite import (
    SuiteConvNet,
    SuiteMLP,
    SuiteRecurrent,
    SuiteResidual,
    SuiteTransformer,
)

__all__ = [
    "ACTIVATIONS",
    "SuiteConvNet",
    "SuiteMLP",
    "SuiteRecurrent",
    "SuiteResidual",
    "SuiteTransformer",
    "convnet_apply",
    "convnet_init",
    "convolve_patches",
    "coordinate_dense_apply",
    "coordinate_dense_init",
    "coordinate_mlp_apply",
    "coordinate_mlp_init",
    "lstm_apply",
    "lstm_carry",
    "lstm_init",
    "lstm_notes",
    "lstm_noting",
    "lstm_sequence",
    "mlp_apply",
    "mlp_init",
    "recurrent_apply",
    "recurrent_init",
]
