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


def decaying(rate):
    return lambda t: rate / (1.0 + t)


METHODS = {
    "gradient_descent": lambda: classic.gradient_descent(0.1),
    "gradient_descent_scheduled": lambda: classic.gradient_descent(decaying(0.1)),
    "momentum": lambda: classic.momentum(0.1),
    "momentum_scheduled": lambda: classic.momentum(decaying(0.1), rate_inside=False),
    "nesterov": lambda: classic.nesterov(0.1),
    "nesterov_scheduled": lambda: optax.chain(
        classic.scale_by_nesterov(), optax.scale_by_learning_rate(decaying(0.1))
    ),
    "adagrad": lambda: classic.adagrad(0.1, eps=1e-10, eps_in_sqrt=False),
    "adagrad_from_a_tenth": lambda: classic.adagrad(
        decaying(0.1), eps=1e-3, eps_in_sqrt=False, initial_accumulator_value=0.1
    ),
    "rmsprop": lambda: classic.rmsprop(0.01, decay=0.99, eps_in_sqrt=False),
    "rmsprop_momentum": lambda: classic.rmsprop(
        decaying(0.01), decay=0.99, eps_in_sqrt=False, momentum=0.8, rate_inside=False
    ),
    "rmsprop_centered": lambda: classic.rmsprop(
        0.01, decay=0.99, eps=1e-4, eps_in_sqrt=False, centered=True
    ),
    "rmsprop_centered_momentum": lambda: classic.rmsprop(
        decaying(0.01),
        decay=0.99,
        eps=1e-4,
        eps_in_sqrt=False,
        centered=True,
        momentum=0.8,
        rate_inside=False,
    ),
    "adadelta": lambda: classic.adadelta(1.0, decay=0.9, rho=0.9),
    "adadelta_scheduled": lambda: classic.adadelta(decaying(0.5), eps=1e-4),
    "adam": lambda: classic.adam(0.01),
    "adam_scheduled": lambda: classic.adam(decaying(0.1), b1=0.8, b2=0.99, eps=1e-3),
    "adam_l2": lambda: classic.adam_l2(0.01, penalty=0.03),
    "adamw": lambda: classic.adamw(0.01, weight_decay=0.03),
    "adamw_scheduled": lambda: classic.adamw(decaying(0.1), weight_decay=0.03),
    "amsgrad": lambda: classic.amsgrad(0.01, b2=0.9, bias_correction="after_max"),
    "amsgrad_scheduled": lambda: classic.amsgrad(
        decaying(0.1), eps=1e-3, bias_correction="after_max"
    ),
}


@pytest.mark.parametrize("name", RECORD["sequences"])
def test_method_matches_torch_over_many_steps(name, x64):
    tx = METHODS[name]()

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(RECORD["start"])
    gradients = jnp.asarray(RECORD["gradients"])
    _, params = jax.lax.scan(step, (start, tx.init(start)), gradients)
    assert params.dtype == jnp.float64 and params.shape == (120, 4)
    np.testing.assert_allclose(params, RECORD["sequences"][name], rtol=1e-12, atol=1e-13)
