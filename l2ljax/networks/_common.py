"""What the networks share: activations by name, and the draw of kernels."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
}
"""Between the layers of networks that are optimized, by name."""

# In float32 also where float64 is the default: saved weights fit everywhere.
scaled_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal", dtype=jnp.float32)
