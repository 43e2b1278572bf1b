"""Losses of the suite beside cross-entropy and squared error: one value an example."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from l2ljax import tasks


def hinge(outputs: Array, labels: Array, margin: float = 1.0) -> Array:
    r"""$\sum_{j \ne y} \max(0, m - z_y + z_j)$ (Weston and Watkins, 1999)."""
    chosen = jax.nn.one_hot(labels, outputs.shape[-1])
    score = jnp.sum(chosen * outputs, axis=-1, keepdims=True)
    return jnp.sum((1 - chosen) * jax.nn.relu(margin - score + outputs), axis=-1)


def logistic(outputs: Array, labels: Array) -> Array:
    """Binary cross-entropy of one logit, or of as many as an image has pixels, their sum."""
    values = optax.sigmoid_binary_cross_entropy(outputs, labels)
    return values.reshape(len(values), -1).sum(axis=1)


def sequence_cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over the places of a sequence, in nats a character."""
    values = tasks.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return values.reshape(labels.shape).mean(axis=1)
