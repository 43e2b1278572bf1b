"""What no other library has, against float64 sequences written by hand, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.classic._common import safe_sqrt

STEPS = 50
CURVATURES = np.array([1.0, 0.3, 0.05])
START = np.array([1.0, -2.0, 3.0])


def gradient(w):
    """Of a function that is not quadratic, so that where it is taken matters."""
    return CURVATURES * w + 0.1 * w**3


def iterate(tx):
    """Params and states after each of 50 steps on `gradient`."""
    update, params = jax.jit(tx.update), jnp.asarray(START)
    state, history = tx.init(params), []
    for _ in range(STEPS):
        updates, state = update(gradient(params), state)
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


@pytest.mark.parametrize(
    "factory", [classic.momentum, classic.nesterov, classic.rmsprop, classic.adam]
)
def test_bfloat16_accumulates_in_float32(factory):
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(1 + 0.1 * rng.normal(size=(300, 4)), jnp.bfloat16)
    tx = factory(1e-2)

    def last_update(dtype):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, updates

        return jax.lax.scan(step, tx.init(jnp.zeros(4, dtype)), gradients.astype(dtype))[1][-1]

    low = last_update(jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        low.astype(jnp.float32), last_update(jnp.float32), rtol=float(jnp.finfo(jnp.bfloat16).eps)
    )


def test_hyperparameters_injected_in_bfloat16_are_refused_where_they_round_to_one():
    params = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match="^b2 must be"):
        optax.inject_hyperparams(classic.adam)(0.1).init(params)
    tx = optax.inject_hyperparams(classic.adam, hyperparam_dtype=jnp.float32)(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(updates.astype(jnp.float32), -0.1, rtol=1e-2)


def test_updates_have_the_dtype_of_the_gradients_not_of_the_params():
    tx = classic.adam(0.1)
    updates, state = tx.update(jnp.ones(2, jnp.bfloat16), tx.init(jnp.ones(2, jnp.float32)))
    assert updates.dtype == jnp.bfloat16
    assert state.mean.dtype == jnp.float32


def test_safe_sqrt_compiles_to_the_program_of_sqrt():
    def program(function):
        def f(x):
            return function(x)

        return jax.jit(f).lower(jnp.ones(3)).compile().as_text()

    def instructions(text):
        return [line.split(", metadata=")[0] for line in text.splitlines() if " = " in line]

    assert instructions(program(safe_sqrt)) == instructions(program(jnp.sqrt))


def test_safe_sqrt_has_the_derivative_of_sqrt_but_zero_at_zero():
    x = jnp.array([0.0, 1e-30, 4.0])
    first = jax.vmap(jax.grad(safe_sqrt))
    np.testing.assert_allclose(first(x), [0, 0.5e15, 0.25], rtol=1e-6)
    second = jax.vmap(jax.grad(jax.grad(safe_sqrt)))
    np.testing.assert_allclose(second(x[::2]), [0, -1 / 32], rtol=1e-6)
    assert np.isnan(jax.grad(safe_sqrt)(jnp.array(-1.0)))


BAD = [
    (classic.gradient_descent, {"learning_rate": -0.1}),
    (classic.gradient_descent, {"learning_rate": float("nan")}),
    (classic.gradient_descent, {"learning_rate": np.array([0.1, 0.2])}),
    (classic.momentum, {"decay": 1.0}),
    (classic.nesterov, {"decay": -0.1}),
    (classic.rmsprop, {"decay": 1.0}),
    (classic.rmsprop, {"eps": 0.0}),
    (classic.adam, {"learning_rate": float("inf")}),
    (classic.adam, {"b1": 1.0}),
    (classic.adam, {"b2": jnp.array(1.5)}),
    (classic.adam, {"b2": jnp.array([0.9, 0.99])}),
    (classic.adam, {"eps": -1e-8}),
]


@pytest.mark.parametrize(("factory", "bad"), BAD)
def test_a_bad_hyperparameter_is_refused_by_name(factory, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name} must be"):
        factory(**{"learning_rate": 0.1, **bad})


def test_gradients_of_another_structure_are_refused():
    tx = classic.momentum(0.1)
    state = tx.init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="key"):
        tx.update({"b": jnp.ones(2)}, state)
