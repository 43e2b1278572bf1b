"""Optimizers for JAX, hand-designed and learned, each an optax transformation."""
