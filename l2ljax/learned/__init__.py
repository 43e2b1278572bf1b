"""Optimizers with meta-parameters φ; each becomes an optax transformation by `bind(phi)`."""

from l2ljax.learned._adaptive import AdaptiveState
from l2ljax.learned._adaptive_lstm import adaptive_lstm
from l2ljax.learned._black_box_lstm import BlackBoxState, black_box_lstm
from l2ljax.learned._card import Card, Cards
from l2ljax.learned._celo import CeloMemory, CeloState, celo
from l2ljax.learned._celo_adam import CeloAdamState, celo_adam
from l2ljax.learned._celo_schedule import CeloScheduleState
from l2ljax.learned._fixed import fixed
from l2ljax.learned._guarded import GuardedState, guarded
from l2ljax.learned._hyperparameters import (
    HyperparametersState,
    hyperparameter_values,
    hyperparameters,
)
from l2ljax.learned._lstm import LSTMState, lstm
from l2ljax.learned._mlp import MLPState, mlp
from l2ljax.learned._partition import PartitionState, partition
from l2ljax.learned._published import published
from l2ljax.learned._reversible_momentum import ReversibleMomentumState, reversible_momentum
from l2ljax.learned._rnnprop import rnnprop
from l2ljax.learned._scaled import ScaledState, scaled
from l2ljax.learned._surrogate_lstm import SurrogateState, surrogate_lstm
from l2ljax.learned._tensorwise import TensorwiseState, tensorwise
from l2ljax.learned._weights import load, read_card, restore, save, shipped

__all__ = [
    "AdaptiveState",
    "BlackBoxState",
    "Card",
    "Cards",
    "CeloAdamState",
    "CeloMemory",
    "CeloScheduleState",
    "CeloState",
    "GuardedState",
    "HyperparametersState",
    "LSTMState",
    "MLPState",
    "PartitionState",
    "ReversibleMomentumState",
    "ScaledState",
    "SurrogateState",
    "TensorwiseState",
    "adaptive_lstm",
    "black_box_lstm",
    "celo",
    "celo_adam",
    "fixed",
    "guarded",
    "hyperparameter_values",
    "hyperparameters",
    "load",
    "lstm",
    "mlp",
    "partition",
    "published",
    "read_card",
    "restore",
    "reversible_momentum",
    "rnnprop",
    "save",
    "scaled",
    "shipped",
    "surrogate_lstm",
    "tensorwise",
]
