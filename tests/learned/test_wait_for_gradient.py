"""A coordinate stands still until its first gradient; all others move as without the option."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import core, kernels, learned
from l2ljax.learned import _coordinates
from l2ljax.learned._weights import SHIPPED

NAMES = [name for name in learned.shipped() if not name.startswith(("black-box", "surrogate"))]
STEPS = 6
# A partition of weights that ship looks for these.
SHAPES = {"Conv_0": {"kernel": (3, 2)}, "Dense_0": {"bias": (4,), "kernel": (4, 3)}}


def gradients_of(seed, *leading):
    """Of five steps; columns 0 never have one, columns 1 from step 3 on, columns 2 at step 1."""

    def leaf(shape):
        rng = np.random.default_rng([seed, len(shape)])
        leaf = rng.normal(size=(*leading, STEPS, *shape)).astype(np.float32)
        steps = np.arange(STEPS).reshape(STEPS, *[1] * (len(shape) - 1))
        leaf[..., 0] = 0
        leaf[..., 1] *= steps >= 3
        if shape[-1] > 2:
            leaf[..., 2] *= steps == 1
        return jnp.asarray(leaf)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def without(name, folder):
    """Weights that ship with the card that they had before there was the option."""

    def strip(value):
        if not isinstance(value, dict):
            return value
        return {key: strip(item) for key, item in value.items() if key != "wait_for_gradient"}

    shutil.copytree(SHIPPED / name, folder / name)
    card = json.loads((folder / name / "card.json").read_text())
    (folder / name / "card.json").write_text(json.dumps(strip(card)))
    return learned.load(folder / name)


@jax.jit
def scanned(tx, gradients):
    def step(state, gradient):
        updates, state = tx.update(gradient, state, gradient)
        return state, updates

    first = jax.tree.map(lambda g: g[0], gradients)
    return jax.lax.scan(step, tx.init(first), gradients)[1]


mapped = jax.jit(jax.vmap(scanned, in_axes=(None, 0)))


@jax.jit
def batched(tx, gradients):
    """A batch of problems as one bigger problem."""
    moved = scanned(tx, jax.tree.map(lambda g: jnp.moveaxis(g, 1, 0), gradients))
    return jax.tree.map(lambda u: jnp.moveaxis(u, 0, 1), moved)


@jax.jit
def replayed(tx, gradients):
    return tx.replay(gradients, tx.init(jax.tree.map(lambda g: g[0], gradients)))[0]


def expected_of(updates, gradients, axis):
    """The updates, zero before the first gradient."""

    def leaf(update, gradient):
        return np.where(np.logical_or.accumulate(np.asarray(gradient) != 0, axis), update, 0)

    return jax.tree.map(leaf, updates, gradients)


def require_waiting(run, waiting, plain, gradients, axis=0):
    waiting, plain = map(core.as_pytree, (waiting, plain))
    before = run(plain, gradients)
    assert all(np.any(leaf[..., 0] != 0) for leaf in jax.tree.leaves(before))
    expected = expected_of(before, gradients, axis)
    jax.tree.map(np.testing.assert_array_equal, run(waiting, gradients), expected)


@pytest.mark.parametrize("name", NAMES)
def test_of_all_that_ships_exactly_the_others_move_as_before(name, tmp_path, program):
    waiting, plain = learned.load(name), without(name, tmp_path)
    require_waiting(scanned, waiting, plain, gradients_of(0))
    require_waiting(mapped, waiting, plain, gradients_of(1, 2), axis=1)
    require_waiting(batched, waiting, plain, gradients_of(1, 2), axis=1)
    if isinstance(waiting, core.ReplayableTransformation) and kernels.load():
        require_waiting(replayed, waiting, plain, gradients_of(0))


def test_an_unused_row_of_an_embedding_keeps_its_value():
    tx = learned.load("general")
    rows = jnp.ones((3, 4))

    @jax.jit
    def run(tx, rows):
        def step(carry, _):
            rows, state = carry
            gradient = jax.grad(lambda rows: jnp.sum((rows[:2] - 0.5) ** 2))(rows)
            updates, state = tx.update(gradient, state)
            return (rows + updates, state), None

        return jax.lax.scan(step, (rows, tx.init(rows)), length=50)[0][0]

    rows = run(tx, rows)
    np.testing.assert_array_equal(rows[2], 1)
    assert abs(rows[:2] - 0.5).max() < 0.1


MAKE = {
    "lstm": functools.partial(learned.lstm, (3, 2)),
    "lstm, bfloat16": functools.partial(learned.lstm, (3,), state_dtype="bfloat16"),
    "lstm, averaging": functools.partial(learned.lstm, (3,), averaging=2),
    "adaptive_lstm": functools.partial(learned.adaptive_lstm, (3,), b1=(0.0, 0.9)),
    "adaptive_lstm, by XLA": functools.partial(learned.adaptive_lstm, (3,), fused=False),
    "rnnprop": functools.partial(learned.rnnprop, (3,), encoder=2),
    "mlp": learned.mlp,
    "mlp, momenta": functools.partial(learned.mlp, second_moment_decay=None),
    "mlp, squares": functools.partial(learned.mlp, decays=()),
}


@pytest.mark.parametrize("large", [False, True], ids=["small leaves", "large leaves"])
@pytest.mark.parametrize("name", MAKE)
def test_every_optimizer_has_the_option(name, large, monkeypatch):
    monkeypatch.setitem(_coordinates.LAYOUTS, "auto", 6 if large else 2**18)
    waiting, plain = MAKE[name](wait_for_gradient=True), MAKE[name]()
    assert waiting.spec["arguments"] == {**plain.spec["arguments"], "wait_for_gradient": True}
    assert plain.spec["arguments"]["wait_for_gradient"] is False
    phi = waiting.init(jax.random.key(0))
    # Biases that the network does not begin with.
    phi = jax.tree.map(lambda leaf: leaf + 0.1, phi)
    require_waiting(scanned, waiting.bind(phi), plain.bind(phi), gradients_of(0))


def test_a_gradient_whose_square_underflows_is_one():
    tx = learned.load("general")
    gradients = jnp.array([0.0, 1e-30])
    updates, _ = tx.update(gradients, tx.init(gradients))
    assert updates[0] == 0 and updates[1] != 0


def test_a_gradient_that_is_not_a_number_shows():
    for name in ("general", "lstm-mnist"):
        tx = learned.load(name)
        gradients = jnp.array([0.0, jnp.nan])
        updates, _ = tx.update(gradients, tx.init(gradients))
        assert updates[0] == 0 and jnp.isnan(updates[1])


def test_weights_of_ones_own_wait_when_they_are_loaded_so(tmp_path):
    opt = learned.lstm((2,))
    learned.save(tmp_path / "mine", opt, opt.init(jax.random.key(0)), {})
    assert learned.restore(tmp_path / "mine")[0].spec == opt.spec
    tx = learned.load(tmp_path / "mine", wait_for_gradient=True)
    updates, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(state.seen[0], False)


@pytest.mark.parametrize("factory", [learned.lstm, learned.adaptive_lstm, learned.mlp])
def test_other_values_are_refused(factory, unchecked):
    with pytest.raises(ValueError, match=r"^wait_for_gradient must be one of \[True, False\], got"):
        factory(wait_for_gradient="yes")


def test_what_keeps_nothing_of_gradients_cannot_wait():
    with pytest.raises(ValueError, match="^wait_for_gradient must be off without averages"):
        learned.mlp(decays=(), second_moment_decay=None, wait_for_gradient=True)
