"""The methods that torch has, against sequences that `record_torch.py` recorded."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic

RECORD = json.loads((Path(__file__).parent / "torch_sequences.json").read_text())

METHODS = {
    "gradient_descent": lambda: classic.gradient_descent(0.1),
    "gradient_descent_scheduled": lambda: classic.gradient_descent(lambda t: 0.1 / (1.0 + t)),
    "momentum": lambda: classic.momentum(0.1, decay=0.9),
    "nesterov": lambda: classic.nesterov(0.1, decay=0.9),
    "rmsprop": lambda: classic.rmsprop(0.01, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    "adam": lambda: classic.adam(0.01),
    "adam_scheduled": lambda: classic.adam(lambda t: 0.1 / (1.0 + t), b1=0.8, b2=0.99, eps=1e-3),
}


@pytest.mark.parametrize("name", RECORD["sequences"])
def test_method_matches_torch_over_fifty_steps(name, x64):
    tx = METHODS[name]()

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(RECORD["start"])
    gradients = jnp.asarray(RECORD["gradients"])
    _, params = jax.lax.scan(step, (start, tx.init(start)), gradients)
    assert params.dtype == jnp.float64 and params.shape == (50, 4)
    np.testing.assert_allclose(params, RECORD["sequences"][name], rtol=1e-12, atol=1e-13)
