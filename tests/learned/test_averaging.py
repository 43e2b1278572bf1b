"""Global averaging cells of the LSTM."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned
from l2ljax.core import CoordinatewiseTransformation

HIDDEN = (3, 2)
SIZE = 6
lstm = functools.partial(learned.lstm, hidden=HIDDEN, preprocess=None)


@functools.cache
def weights(dtype="float32"):
    """Meta-parameters in which none is zero."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lstm().init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=leaf.shape), dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@jax.jit
def two_steps(tx, first, second):
    """The second updates: those that memory has a part in."""
    _, state = tx.update(first, tx.init(first))
    return tx.update(second, state)


def test_outputs_of_the_first_units_are_averaged_by_hand(x64):
    phi, gradients = weights("float64"), normal(1, 2, SIZE, dtype=np.float64)
    updates, state = two_steps(lstm(averaging=2).bind(phi), *gradients)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    cells = [np.zeros((units, SIZE)) for units in HIDDEN]
    hiddens = [np.zeros((units, SIZE)) for units in HIDDEN]
    for gradient in np.asarray(gradients):
        x = gradient[None]
        for layer in range(len(HIDDEN)):
            w = phi[f"lstm_{layer}"]
            gates = w["kernel"].T @ np.concatenate([x, hiddens[layer]])
            i, f, g, o = np.split(gates + np.asarray(w["bias"])[:, None], 4)
            cells[layer] = sigmoid(f) * cells[layer] + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(cells[layer])
            x[:2] = x[:2].mean(axis=1, keepdims=True)
            hiddens[layer] = x
    expected = np.asarray(phi["output_kernel"])[:, 0] @ x + phi["output_bias"]
    np.testing.assert_allclose(updates, 0.1 * expected, rtol=1e-10)
    for layer, (cell, hidden) in enumerate(state.layers):
        np.testing.assert_allclose(cell, cells[layer], rtol=1e-10)
        np.testing.assert_allclose(hidden, hiddens[layer], rtol=1e-10)


def test_coordinates_influence_each_other_through_averaged_units_only():
    first, second = normal(1, 2, SIZE)

    def influence(averaging, phi):
        """What another gradient of the first coordinate changes for the others."""
        tx = lstm(averaging=averaging).bind(phi)
        before, _ = two_steps(tx, first, second)
        others = [
            two_steps(tx, *gradients)[0]
            for gradients in ((first.at[0].set(5.0), second), (first, second.at[0].set(5.0)))
        ]
        assert all(after[0] != before[0] for after in others)
        return np.stack([after[1:] - before[1:] for after in others])

    np.testing.assert_array_equal(influence(0, weights()), 0)
    assert np.all(influence(1, weights()) != 0)

    # A network that does not listen to its averaged unit.
    deaf = dict(weights())
    for layer, inputs in (("lstm_0", 1), ("lstm_1", HIDDEN[0])):
        kernel = deaf[layer]["kernel"].at[inputs].set(0)
        kernel = kernel if layer == "lstm_0" else kernel.at[0].set(0)
        deaf[layer] = {**deaf[layer], "kernel": kernel}
    deaf["output_kernel"] = deaf["output_kernel"].at[0].set(0)
    np.testing.assert_array_equal(influence(1, deaf), 0)


def test_coordinates_that_are_all_alike_are_as_without_averaging():
    gradients = jnp.full((2, SIZE), 0.7)
    expected, _ = two_steps(lstm().bind(weights()), *gradients)
    updates, _ = two_steps(lstm(averaging=1).bind(weights()), *gradients)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_neither_order_nor_grouping_into_leaves_matters():
    flat, order = normal(1, 2, SIZE), np.array([3, 0, 5, 1, 4, 2])
    tx = lstm(averaging=1).bind(weights())
    expected, _ = two_steps(tx, *flat)
    permuted, _ = two_steps(tx, *flat[:, order])
    np.testing.assert_allclose(permuted, expected[order], rtol=1e-5, atol=1e-7)
    nested = [{"a": [g[0], g[1:1]], "b": g[1:5].reshape(2, 2), "c": g[5:]} for g in flat]
    updates, _ = two_steps(tx, *nested)
    parts = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-7)


def test_only_without_averaging_is_it_coordinate_wise():
    assert isinstance(lstm().bind(weights()), CoordinatewiseTransformation)
    tx = lstm(averaging=1).bind(weights())
    assert isinstance(tx, optax.GradientTransformation)
    assert not isinstance(tx, CoordinatewiseTransformation)


def test_without_averaging_nothing_is_added_to_the_program():
    gradient = jnp.ones(3)

    def operations(averaging):
        tx = lstm(averaging=averaging).bind(weights())
        jaxpr = jax.make_jaxpr(tx.update)(gradient, tx.init(gradient))
        return [equation.primitive.name for equation in jaxpr.eqns]

    assert "reduce_sum" in operations(1)
    assert "reduce_sum" not in operations(0)


def test_a_card_of_an_earlier_version_has_no_averaging(tmp_path):
    learned.save(tmp_path, lstm(), weights(), {})
    path = tmp_path / "card.json"
    card = json.loads(path.read_text())
    assert card["optimizer"]["arguments"].pop("averaging") == 0
    path.write_text(json.dumps(card))
    opt, _, _ = learned.restore(tmp_path)
    assert opt.spec == lstm().spec
    assert isinstance(learned.load(tmp_path), CoordinatewiseTransformation)


def test_what_was_saved_with_averaging_is_restored_with_it(tmp_path):
    learned.save(tmp_path, lstm(averaging=2), weights(), {})
    opt, _, _ = learned.restore(tmp_path)
    assert opt.spec["arguments"]["averaging"] == 2
    assert not isinstance(learned.load(tmp_path), CoordinatewiseTransformation)


@pytest.mark.parametrize(
    ("averaging", "message"),
    [
        (-1, "averaging.*at least 0, got -1"),
        (True, "averaging.*whole number.*got True"),
        (3, "averaging must be at most the units of the smallest layer, 2, got 3"),
    ],
)
def test_a_bad_number_of_units_is_refused(averaging, message):
    with pytest.raises(ValueError, match=message):
        lstm(averaging=averaging)
