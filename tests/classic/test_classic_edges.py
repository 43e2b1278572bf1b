"""Dtypes, zero gradients, wrong input."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.classic._common import safe_sqrt


@pytest.mark.parametrize(
    "factory",
    [
        classic.momentum,
        classic.nesterov,
        classic.adagrad,
        classic.rmsprop,
        classic.adadelta,
        classic.adam,
        classic.amsgrad,
    ],
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
    (classic.momentum, {"accumulator_dtype": jnp.int32}),
    (classic.nesterov, {"decay": -0.1}),
    (classic.nesterov, {"accumulator_dtype": jnp.complex64}),
    (classic.adagrad, {"eps": 0.0}),
    (classic.adagrad, {"initial_accumulator_value": -1.0}),
    (classic.rmsprop, {"decay": 1.0}),
    (classic.rmsprop, {"eps": 0.0}),
    (classic.rmsprop, {"momentum": 1.0}),
    (classic.adadelta, {"decay": 1.0}),
    (classic.adadelta, {"rho": -0.1}),
    (classic.adadelta, {"eps": -1e-6}),
    (classic.adam, {"learning_rate": float("inf")}),
    (classic.adam, {"b1": 1.0}),
    (classic.adam, {"b2": jnp.array(1.5)}),
    (classic.adam, {"b2": jnp.array([0.9, 0.99])}),
    (classic.adam, {"eps": -1e-8}),
    (classic.adamw, {"weight_decay": -0.1}),
    (classic.adamw, {"weight_decay": jnp.ones(2)}),
    (classic.adam_l2, {"penalty": float("nan")}),
    (classic.amsgrad, {"b2": 1.0}),
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


OPTIONS = """
from l2ljax import classic
wrong = {
    "momentum": {"rate_inside": 2},
    "adagrad": {"eps_in_sqrt": "no"},
    "rmsprop": {"eps_in_sqrt": 0.5},
    "rmsprop ": {"centered": "no"},
    "adam": {"bias_correction": "rates"},
    "adam ": {"eps_in_sqrt": "no"},
    "adamw": {"decay_by_rate": "no"},
    "adam  ": {"bias_correction": 1},
    "adam   ": {"bias_correction": 1.0},
    "adamw ": {"bias_correction": 0},
    "amsgrad": {"bias_correction": "max"},
    "amsgrad ": {"bias_correction": 0},
}
for name, option in wrong.items():
    try:
        getattr(classic, name.strip())(learning_rate=0.1, **option)
    except ValueError as error:
        assert str(error).startswith(f"{next(iter(option))} must be one of"), error
    else:
        raise SystemExit(f"{name} took {option}")
"""


def test_an_unknown_option_is_refused_by_name_also_where_annotations_are_not_checked():
    subprocess.run([sys.executable, "-c", OPTIONS], check=True)


@pytest.mark.parametrize(
    "name",
    [
        *("gradient_descent", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam"),
        *("amsgrad", "adamw", "adam_l2", "newton", "bfgs", "lbfgs", "saddle_free_newton"),
    ],
)
def test_no_rate_is_refused_since_the_direction_alone_climbs(name, unchecked):
    with pytest.raises(ValueError, match="^learning_rate must be a non-negative number, got None"):
        getattr(classic, name)(learning_rate=None)


@pytest.mark.parametrize("dtype", ["foo", 1.0, int])
def test_what_is_no_dtype_is_refused_by_name(dtype, unchecked):
    with pytest.raises(ValueError, match="^accumulator_dtype must be a real floating-point dtype"):
        classic.adam(0.1, accumulator_dtype=dtype)


def test_a_gradient_that_is_missing_is_named_by_its_path():
    tx, params = classic.momentum(0.1), {"a": jnp.ones(2), "b": {"c": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=r"^updates must be .* params, got None at \['b'\]\['c'\] "
    ):
        tx.update({"a": jnp.ones(2), "b": {"c": None}}, tx.init(params))
    # Where the params have none either, there is nothing to miss.
    hollow = {"a": jnp.ones(2), "b": None}
    updates, _ = tx.update(hollow, tx.init(hollow))
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)


def test_every_argument_out_of_range_is_refused_by_the_part_without_a_rate_too():
    for factory, bad in BAD:
        part = getattr(classic, f"scale_by_{factory.__name__}", None)
        if part is not None and "learning_rate" not in bad and "rate_inside" not in bad:
            if "momentum" in bad:
                continue
            with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
                part(**bad)


@pytest.mark.parametrize("factory", [classic.adamw, classic.adam_l2])
def test_missing_params_are_refused_with_what_to_pass(factory):
    tx, params = factory(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match=rf"^{factory.__name__} needs params: .*tx\.update\("):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_of_accumulators_is_an_argument(dtype):
    params = {"real": jnp.ones(2, jnp.bfloat16), "complex": jnp.ones(2, jnp.complex64)}
    for tx in (
        classic.momentum(0.1, accumulator_dtype=dtype),
        classic.nesterov(0.1, accumulator_dtype=dtype),
        classic.adagrad(0.1, accumulator_dtype=dtype),
        classic.rmsprop(0.1, centered=True, momentum=0.5, accumulator_dtype=dtype),
        classic.adadelta(0.1, accumulator_dtype=dtype),
        classic.adam(0.1, accumulator_dtype=dtype),
        classic.adamw(0.1, accumulator_dtype=dtype),
        classic.amsgrad(0.1, accumulator_dtype=dtype),
    ):
        state = tx.init(params)
        updates, new_state = tx.update(params, state, params)
        assert updates["real"].dtype == jnp.bfloat16
        for name in set(state._fields) - {"count"}:
            for tree in (getattr(state, name), getattr(new_state, name)):
                assert tree["real"].dtype == dtype
                squares = name.startswith(("mean_square", "sum_of_squares", "largest"))
                assert tree["complex"].dtype == (dtype if squares else jnp.complex64)


def test_bfloat16_accumulators_still_compute_in_float32():
    wide, narrow = classic.adam(0.1), classic.adam(0.1, accumulator_dtype=jnp.bfloat16)
    g = jnp.array([3.0, 1e-3, -7.0])
    expected, _ = wide.update(g, wide.init(g))
    updates, _ = narrow.update(g, narrow.init(g))
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_no_count_is_kept_where_nobody_asks_for_it():
    params = jnp.ones(2)
    assert classic.momentum(0.1).init(params).count is None
    assert classic.adam(0.1, bias_correction=False).init(params).count is None
    assert classic.momentum(lambda t: 0.1).init(params).count == 0
    assert (
        classic.adamw(0.1, weight_decay=lambda t: 0.1, bias_correction=False).init(params).count
        == 0
    )


def test_centered_rmsprop_stays_finite_at_a_gradient_that_does_not_change():
    tx, g = classic.rmsprop(0.1, eps_in_sqrt=False, centered=True), jnp.array([1e3, 1.1, 0.0])
    update, state = jax.jit(tx.update), tx.init(g)
    for _ in range(300):
        updates, state = update(g, state)
        assert np.all(np.isfinite(updates))
