"""What a coordinate-wise network sees of a gradient: features on a new leading axis."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks


def require_p(p: float) -> None:
    """Refuses a p that `log_sign` does not take."""
    _checks.positive("p", p)
    if p >= 87:
        raise ValueError(f"p must be below 87, where e^-p leaves single precision, got {p!r}")


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
