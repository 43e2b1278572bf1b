"""Replaying a sequence of gradients against one update after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import learned
from l2ljax.core import ReplayableTransformation
from l2ljax.learned import _coordinates
from l2ljax.learned._sequences import SequenceTransformation

OPTIMIZERS = {
    "lstm": learned.lstm((3, 2)),
    "scaled": learned.lstm((2,), preprocess="scale", input_scale=2.0, output_scale=0.5),
    "adaptive_lstm": learned.adaptive_lstm((3,)),
    "rnnprop": learned.rnnprop((3,)),
    "lstm that waits": learned.lstm((3, 2), wait_for_gradient=True),
    "adaptive_lstm that waits": learned.adaptive_lstm((3,), wait_for_gradient=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replay_is_one_update_after_another(name, x64, monkeypatch):
    monkeypatch.setitem(_coordinates.LAYOUTS, "auto", 20)
    opt = OPTIMIZERS[name]
    wide = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float64))
    rng = np.random.default_rng(0)
    gradients = {
        "bias": rng.normal(size=(5, 3)),
        "empty": np.zeros((5, 0)),
        "large": rng.normal(size=(5, 6, 4)),
    }
    gradients["large"][:, 0] = gradients["large"][:3, 1] = 0
    gradients = jax.tree.map(jnp.asarray, gradients)
    tx = opt.bind(wide(opt.init(jax.random.key(0))))
    state = tx.init(jax.tree.map(lambda leaf: leaf[0], gradients))
    # Also from a state that is not the first.
    _, state = tx.update(jax.tree.map(lambda leaf: leaf[0] ** 2, gradients), state)

    def both(kind):
        def replay(tx, state):
            return kind(*tx).replay(gradients, state)

        values, pull = jax.vjp(replay, tx, state)
        rng = np.random.default_rng(1)
        ones = jax.tree.map(
            lambda leaf: (
                rng.normal(size=leaf.shape)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else np.zeros(leaf.shape, jax.dtypes.float0)
            ),
            values,
        )
        return values, [
            leaf for leaf in jax.tree.leaves(pull(ones)) if leaf.dtype != jax.dtypes.float0
        ]

    found, expected = both(SequenceTransformation), both(ReplayableTransformation)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected
    )


def test_a_sequence_for_another_state_is_refused():
    opt = OPTIMIZERS["lstm"]
    tx = SequenceTransformation(*opt.bind(opt.init(jax.random.key(0))))
    state = tx.init({"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="state must be what `init` made"):
        tx.replay({"w": jnp.zeros((2, 4))}, state)
