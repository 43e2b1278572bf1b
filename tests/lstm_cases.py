"""Sizes of the coordinate LSTM that its programs are tested with, and arguments of such sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax.networks import lstm_apply, lstm_init

SIZES = {
    "the paper's": ((20, 20), 2, (150,)),
    "one layer": ((20,), 9, (64,)),
    "three layers of other sizes": ((3, 17, 8), 1, (70,)),
    "one coordinate": ((4, 4), 3, ()),
    "coordinates on two axes": ((5,), 2, (7, 11)),
}

PROGRAM_SIZES = SIZES | {
    "whole tiles": ((20, 20), 1, (64,)),
    "nine layers": ((2,) * 9, 1, (33,)),
    "many coordinates": ((4,), 2, (20_000,)),
}
"""Those, and others that the CPU's program must treat with care."""


def network(hidden):
    """The definition."""
    return functools.partial(lstm_apply, hidden=hidden, fused=False)


def arguments_of(hidden, features, shape, steps=(), scale=1.0):
    """Weights, carries and inputs in which no value is special."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    phi = lstm_init(jax.random.key(0), features=features, hidden=hidden)
    phi = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), phi)
    carries = tuple((normal(units, *shape), normal(units, *shape)) for units in hidden)
    return phi, carries, normal(*steps, features, *shape)


def like(tree, seed=1):
    """Random numbers in the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), tree)


def assert_close(found, expected, tolerance=3e-6):
    """Equal up to a part of the largest number of each leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1e-30))
