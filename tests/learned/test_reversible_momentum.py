"""The transformation of reversible momentum; the estimator that runs it backwards is in `meta`."""

import jax
import jax.numpy as jnp
import pytest

from l2ljax import learned


def test_integer_params_are_refused_by_name():
    opt = learned.reversible_momentum(horizon=3)
    tx = opt.bind(opt.init(jax.random.key(0)))
    message = r"params must have floating-point leaves, got int32 at \['steps'\]"
    with pytest.raises(ValueError, match=message):
        tx.init({"steps": jnp.arange(2), "weight": jnp.ones(2)})
