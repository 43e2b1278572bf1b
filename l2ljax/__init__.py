"""Optimizers for JAX, hand-designed and learned, each an optax transformation."""

__version__ = "0.1.0"
