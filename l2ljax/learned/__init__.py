"""Optimizers with meta-parameters φ; each becomes an optax transformation by `bind(phi)`."""

from l2ljax.learned._lstm import LSTMState, lstm

__all__ = ["LSTMState", "lstm"]
