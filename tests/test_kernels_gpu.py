"""The fused LSTM against the network that defines it, without a GPU: in interpret mode.

Interpret mode runs the programs as JAX does; that they are programs for a GPU too is shown by
lowering them for one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import learned
from l2ljax.kernels import gpu
from l2ljax.networks import lstm_apply
from tests.lstm_cases import SIZES, arguments_of, assert_close, like


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] * (n != "the paper's")) for n in SIZES]
)
def test_values_and_gradients_are_those_of_the_network(case, monkeypatch):
    # Three tiles for two programs: one has two of them, and the last tile is not full.
    monkeypatch.setattr(gpu, "PROGRAMS", 2)
    hidden, features, shape = SIZES[case]
    arguments = arguments_of(hidden, features, shape)
    expected, pull = jax.vjp(lambda *a: lstm_apply(*a, hidden=hidden), *arguments)
    found, pull_fused = jax.vjp(lambda *a: gpu.lstm(*a, True), *arguments)
    assert_close(found, expected)
    gradients = like(expected)
    assert_close(pull_fused(gradients), pull(gradients))


def test_both_programs_are_lowered_for_cuda():
    def loss(arguments):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gpu.lstm(*arguments)))

    traced = jax.jit(jax.value_and_grad(loss)).trace(arguments_of((20, 20), 2, (1000,)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") >= 2


def test_an_optimizer_that_asks_for_it_runs_it_on_cuda_only():
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    for make in (learned.lstm, learned.adaptive_lstm):
        plain, fused = make((4,)), make((4,), fused=True)
        assert fused.spec == plain.spec
        phi = plain.init(jax.random.key(0))
        state = plain.bind(phi).init(params)
        update = jax.jit(fused.bind(phi).update)
        lowered = {
            platform: update.trace(params, state).lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", "cuda")
        }
        assert ["triton" in text for text in lowered.values()] == [False, True]
        here, expected = update(params, state), plain.bind(phi).update(params, state)
        for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_it_does_not_average():
    with pytest.raises(ValueError, match="fused must be off with averaging cells"):
        learned.lstm(averaging=2, fused=True)
