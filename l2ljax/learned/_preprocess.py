"""What a coordinate-wise network sees of a gradient.

A preprocessing is a function of gradients of any shape that returns features on a new leading
axis; called with a scalar it gives the features of one coordinate.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def identity(gradient: Float[Array, "*coordinates"]) -> Float[Array, "1 *coordinates"]:
    """The gradient itself, as one feature."""
    return gradient[None]


def scale(
    gradient: Float[Array, "*coordinates"], *, input_scale: float
) -> Float[Array, "1 *coordinates"]:
    """The gradient times a constant, as one feature."""
    return input_scale * gradient[None]


def log_sign(gradient: Float[Array, "*coordinates"], *, p: float) -> Float[Array, "2 *coordinates"]:
    r"""The logarithm of the gradient's size and its sign, as two features.

    $$\nabla \mapsto \begin{cases} (\log|\nabla| / p, \operatorname{sgn} \nabla)
    & |\nabla| \ge e^{-p} \\ (-1, e^p \nabla) & \text{otherwise} \end{cases}$$

    Reference:
        Andrychowicz et al. (2016), appendix A.

    >>> print(log_sign(jnp.array([1.0, -jnp.exp(-5.0), 0.0]), p=10.0))
    [[ 0.  -0.5 -1. ]
     [ 1.  -1.   0. ]]
    """
    size = jnp.abs(gradient)
    threshold = jnp.exp(jnp.asarray(-p, gradient.dtype))
    # The clamp keeps the logarithm's own branch finite, so that its derivative is too.
    log = jnp.log(jnp.maximum(size, threshold)) / p
    direction = jnp.clip(gradient / threshold, -1, 1)
    return jnp.stack([log, direction])
