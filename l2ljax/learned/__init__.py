"""Optimizers with meta-parameters φ; each becomes an optax transformation by `bind(phi)`."""

from l2ljax.learned._lstm import LSTMState, lstm
from l2ljax.learned._weights import load, restore, save

__all__ = ["LSTMState", "load", "lstm", "restore", "save"]
