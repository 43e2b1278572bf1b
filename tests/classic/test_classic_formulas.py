"""What no other library has, against float64 sequences written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic

STEPS = 120
CURVATURES = np.array([1.0, 0.3, 0.05])
START = np.array([1.0, -2.0, 3.0])


def gradient(w):
    """Of a function that is not quadratic, so that where it is taken matters."""
    return CURVATURES * w + 0.1 * w**3


def iterate(tx):
    """Params and states after each step on `gradient`."""
    update, params = jax.jit(tx.update), jnp.asarray(START)
    state, history = tx.init(params), []
    for _ in range(STEPS):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def assert_sequence(actual, expected):
    assert actual[0].dtype == jnp.float64
    np.testing.assert_allclose(np.stack(actual), np.stack(expected), rtol=1e-12, atol=1e-14)


def decaying(t):
    return 0.1 * 0.95**t


def test_momentum_keeps_the_rate_of_the_step_that_made_the_velocity(x64):
    w, h, expected = START, 0.0, []
    for t in range(STEPS):
        h = 0.9 * h + decaying(t) * gradient(w)
        w = w - h
        expected.append(w)
    assert_sequence([w for w, _ in iterate(classic.momentum(decaying))], expected)


def test_momentum_differs_from_optax_under_a_schedule(x64):
    ours = iterate(classic.momentum(decaying))[-1][0]
    theirs = iterate(optax.sgd(decaying, momentum=0.9))[-1][0]
    assert np.abs(ours - theirs).max() > 0.01


@pytest.mark.parametrize("rate", [lambda t: 0.05, decaying], ids=["constant", "decaying"])
def test_nesterov_iterate_follows_the_literal_recursion(rate, x64):
    w, h, expected = START, 0.0, []
    for t in range(STEPS):
        h_before = h
        h = 0.9 * h_before + rate(t) * gradient(w - 0.9 * h_before)
        w = w - h
        expected.append(w)
    history = iterate(classic.nesterov(rate))
    assert_sequence([classic.nesterov_iterate(y, state) for y, state in history], expected)


@pytest.mark.parametrize("inside", [False, True], ids=["eps_outside", "eps_inside"])
@pytest.mark.parametrize("correction", [False, "rate"])
def test_adam_without_and_with_corrected_rate_follows_its_formula(correction, inside, x64):
    a, b1, b2, eps = 0.05, 0.8, 0.99, 1e-3
    w, m, v, expected = START, 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = gradient(w)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        a_t = a * np.sqrt(1 - b2**t) / (1 - b1**t) if correction == "rate" else a
        w = w - a_t * m / (np.sqrt(v + eps) if inside else np.sqrt(v) + eps)
        expected.append(w)
    tx = classic.adam(a, b1, b2, eps, eps_in_sqrt=inside, bias_correction=correction)
    assert_sequence([w for w, _ in iterate(tx)], expected)


@pytest.mark.parametrize(
    ("correction", "length"), [(True, 1.0), (False, 0.1 / np.sqrt(0.001)), ("rate", 1.0)]
)
def test_the_first_step_of_adam_has_the_documented_length(correction, length):
    tx, g = classic.adam(0.5, bias_correction=correction), jnp.array([3.0, -2.0])
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, -0.5 * length * np.sign(g), rtol=1e-5)


@pytest.mark.parametrize("inside", [False, True], ids=["eps_outside", "eps_inside"])
def test_amsgrad_in_the_order_of_the_paper_follows_its_formula(inside, x64):
    b1, b2, eps = 0.8, 0.9, 1e-3
    w, m, v, largest, expected = START, 0.0, 0.0, 0.0, []
    for t in range(STEPS):
        g = gradient(w)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        largest = np.maximum(largest, v)
        w = w - decaying(t) * m / (np.sqrt(largest + eps) if inside else np.sqrt(largest) + eps)
        expected.append(w)
    tx = classic.amsgrad(decaying, b1, b2, eps, eps_in_sqrt=inside)
    assert_sequence([w for w, _ in iterate(tx)], expected)


def test_adadelta_with_two_decays_follows_its_formula(x64):
    decay, rho, eps = 0.9, 0.7, 1e-2
    w, v, delta, expected = START, 0.0, 0.0, []
    for _ in range(STEPS):
        g = gradient(w)
        v = decay * v + (1 - decay) * g**2
        u = np.sqrt(delta + eps) / np.sqrt(v + eps) * g
        w = w - u
        delta = rho * delta + (1 - rho) * u**2
        expected.append(w)
    tx = classic.adadelta(decay=decay, rho=rho, eps=eps)
    assert_sequence([w for w, _ in iterate(tx)], expected)


def test_adagrad_with_eps_inside_under_a_schedule_follows_its_formula(x64):
    w, v, expected = START, 0.2, []
    for t in range(STEPS):
        v = v + gradient(w) ** 2
        w = w - 3 * decaying(t) * gradient(w) / np.sqrt(v + 1e-3)
        expected.append(w)
    tx = classic.adagrad(lambda t: 3 * decaying(t), eps=1e-3, initial_accumulator_value=0.2)
    assert_sequence([w for w, _ in iterate(tx)], expected)


@pytest.mark.parametrize("rate_inside", [False, True], ids=["rate_outside", "rate_inside"])
def test_centered_rmsprop_with_momentum_follows_its_formula(rate_inside, x64):
    w, m, v, h, expected = START, 0.0, 0.0, 0.0, []
    for t in range(STEPS):
        g = gradient(w)
        m = 0.9 * m + 0.1 * g
        v = 0.9 * v + 0.1 * g**2
        direction = g / np.sqrt(v - m**2 + 1e-2)
        h = 0.5 * h + (decaying(t) * direction if rate_inside else direction)
        w = w - (h if rate_inside else decaying(t) * h)
        expected.append(w)
    tx = classic.rmsprop(decaying, eps=1e-2, centered=True, momentum=0.5, rate_inside=rate_inside)
    assert_sequence([w for w, _ in iterate(tx)], expected)


def adam_direction(m, v, t, b1=0.9, b2=0.999, eps=1e-8):
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def test_adamw_with_a_decay_of_its_own_schedule_follows_the_paper(x64):
    w, m, v, expected = START, 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = gradient(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.05 * adam_direction(m, v, t) - 0.2 * decaying(t - 1) * w
        expected.append(w)
    tx = classic.adamw(0.05, weight_decay=lambda t: 0.2 * decaying(t), decay_by_rate=False)
    assert_sequence([w for w, _ in iterate(tx)], expected)


def test_adam_with_a_scheduled_l2_penalty_is_adam_on_the_penalized_loss(x64):
    w, m, v, expected = START, 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = gradient(w) + 2 * 0.2 * decaying(t - 1) * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.05 * adam_direction(m, v, t)
        expected.append(w)
    tx = classic.adam_l2(0.05, penalty=lambda t: 0.2 * decaying(t))
    assert_sequence([w for w, _ in iterate(tx)], expected)


@pytest.mark.parametrize("factory", [classic.adamw, classic.adam_l2])
def test_a_mask_leaves_weights_to_plain_adam(factory):
    params = {"bias": jnp.ones(2), "layer": {"kernel": jnp.ones((2, 2))}}
    # Weak enough for the penalty to turn the sign, which is all that Adam's first step shows.
    gradients = jax.tree.map(lambda w: -1e-5 * w, params)

    def updates(tx):
        return tx.update(gradients, tx.init(params), params)[0]

    plain, all_decay = updates(classic.adam(0.1)), updates(factory(0.1))
    for mask in ({"bias": False, "layer": True}, lambda params: {"bias": False, "layer": True}):
        masked = updates(factory(0.1, mask=mask))
        np.testing.assert_array_equal(masked["bias"], plain["bias"])
        np.testing.assert_array_equal(masked["layer"]["kernel"], all_decay["layer"]["kernel"])
    assert np.abs(all_decay["bias"] - plain["bias"]).max() > 1e-9
