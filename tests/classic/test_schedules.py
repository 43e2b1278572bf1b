"""Cyclical rates against their formulas in float64 and against recorded ones of torch."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic

RECORD = json.loads((Path(__file__).parent / "torch_schedules.json").read_text())


def smith(t, base, highest, s, scale=lambda t, c: 1.0):
    """The paper's formula, in float64."""
    t = np.asarray(t, np.float64)
    c = np.floor(1 + t / (2 * s))
    x = np.abs(t / s - 2 * c + 1)
    return base + (highest - base) * np.maximum(0, 1 - x) * scale(t, c)


def huang(t, initial, steps, cycles):
    """The paper's equation 2, in float64; t starts at 1."""
    length = np.ceil(steps / cycles)
    return initial / 2 * (np.cos(np.pi * np.mod(t - 1, length) / length) + 1)


SCHEDULES = {
    "triangular": (
        lambda s: classic.triangular(1e-3, 6e-3, s),
        lambda t, s: smith(t, 1e-3, 6e-3, s),
    ),
    "triangular2": (
        lambda s: classic.triangular2(1e-3, 6e-3, s),
        lambda t, s: smith(t, 1e-3, 6e-3, s, lambda t, c: 2.0 ** -(c - 1)),
    ),
    "exp_range": (
        lambda s: classic.exp_range(1e-3, 6e-3, s, 0.9999),
        lambda t, s: smith(t, 1e-3, 6e-3, s, lambda t, c: 0.9999**t),
    ),
    "snapshot_cosine": (
        lambda s: classic.snapshot_cosine(0.1, 5 * s - 1, 5),
        lambda t, s: huang(t + 1, 0.1, 5 * s - 1, 5),
    ),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def test_triangles_are_those_worked_out_by_hand():
    rates = classic.triangular(1.0, 4.0, 3)(jnp.arange(9))
    np.testing.assert_array_equal(rates, [1, 2, 3, 4, 3, 2, 1, 2, 3])
    rates = classic.triangular2(0.0, 8.0, 2)(jnp.arange(11))
    np.testing.assert_array_equal(rates, [0, 4, 8, 4, 0, 2, 4, 2, 0, 1, 2])
    rates = classic.exp_range(0.0, 16.0, 2, 0.5)(jnp.arange(7))
    np.testing.assert_array_equal(rates, [0, 4, 4, 1, 0, 0.25, 0.25])
    rates = classic.snapshot_cosine(2.0, 5, 2)(jnp.arange(5))
    np.testing.assert_allclose(rates, [2, 1.5, 0.5, 2, 1.5], rtol=1e-6)


@every_schedule
def test_rates_are_those_of_the_formula_over_many_cycles(name, x64):
    make, formula = SCHEDULES[name]
    for size in (2, 7, 64):
        t = np.arange(10 * size)
        rates = make(size)(jnp.asarray(t))
        assert rates.dtype == jnp.float64
        np.testing.assert_allclose(rates, formula(t, size), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("run", RECORD["runs"], ids=lambda run: f"{run['mode']}-{run['base_lr']}")
def test_rates_are_those_of_torch(run, x64):
    make = getattr(classic, run["mode"])
    decay = {"decay": run["gamma"]} if run["mode"] == "exp_range" else {}
    schedule = make(run["base_lr"], run["max_lr"], run["step_size_up"], **decay)
    rates = schedule(jnp.arange(len(run["rates"])))
    np.testing.assert_allclose(rates, run["rates"], rtol=1e-12)


@every_schedule
@pytest.mark.parametrize("start", [0, 999_000])
def test_single_precision_keeps_six_digits_for_a_million_updates(name, start, strict_promotion):
    make, formula = SCHEDULES[name]
    for size in (3, 2000):
        t = start + np.arange(1000)
        rates = jax.jit(make(size))(t)
        assert rates.dtype == jnp.float32
        np.testing.assert_allclose(rates, formula(t, size), rtol=1e-6)


def test_a_bound_that_has_fallen_for_a_million_updates_keeps_five_digits():
    rate = classic.exp_range(0.0, 1.0, 2, 0.99999)(1_000_001)
    np.testing.assert_allclose(rate, 0.5 * 0.99999**1_000_001, rtol=1e-5)


def test_half_cycles_need_not_be_whole():
    t = np.arange(20)
    rates = classic.triangular(0.1, 0.4, 2.5)(t)
    np.testing.assert_allclose(rates, smith(t, 0.1, 0.4, 2.5), rtol=1e-5)


@every_schedule
def test_counts_may_be_numbers_arrays_or_traced(name):
    schedule = SCHEDULES[name][0](4)
    counts = jnp.arange(12).reshape(3, 4)
    rates = schedule(counts)
    assert rates.shape == (3, 4)
    np.testing.assert_allclose([schedule(5), schedule(np.uint8(5))], rates[1, 1], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.jit(schedule))(counts), rates, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rates_are_never_narrower_than_float32(dtype):
    bounds = jnp.asarray([0.125, 0.5], dtype)
    assert classic.triangular(*bounds, 2)(1).dtype == jnp.float32
    assert classic.snapshot_cosine(bounds[0], 4, 2)(1).dtype == jnp.float32


def test_arguments_may_be_traced_and_have_derivatives():
    def rate(base, highest, decay):
        return classic.exp_range(base, highest, 4, decay)(6)

    base, highest, decay = 0.1, 0.5, 0.9
    gradient = jax.grad(rate, argnums=(0, 1, 2))(base, highest, decay)
    expected = [1 - 0.5 * decay**6, 0.5 * decay**6, 0.4 * 0.5 * 6 * decay**5]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    slope = jax.grad(lambda highest: classic.triangular2(base, highest, 4)(14))(highest)
    np.testing.assert_allclose(slope, 0.25, rtol=1e-6)
    sizes = jnp.array([1, 2, 3])
    rates = jax.vmap(lambda s: classic.triangular(0.0, 1.0, s)(3))(sizes)
    np.testing.assert_allclose(rates, [1, 0.5, 1], rtol=1e-6)


@every_schedule
def test_an_optimizer_follows_the_schedule_inside_scan(name):
    make, formula = SCHEDULES[name]
    tx = classic.gradient_descent(make(3))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jnp.ones(()), state, w)
        return (optax.apply_updates(w, updates), state), updates

    w = jnp.zeros(())
    _, updates = jax.lax.scan(step, (w, tx.init(w)), length=14)
    np.testing.assert_allclose(-updates, formula(np.arange(14), 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classic.triangular(-0.1, 0.5, 2), "base_rate must be a non-negative number"),
        (lambda: classic.triangular2(0.1, np.inf, 2), "max_rate must be a non-negative number"),
        (lambda: classic.triangular(0.5, 0.1, 2), "max_rate must be at least base_rate=0.5, got"),
        (lambda: classic.triangular(0.1, 0.5, 0), "step_size must be a positive number, got 0"),
        (lambda: classic.triangular(0.1, np.ones(2), 2), "max_rate must be a scalar"),
        (lambda: classic.exp_range(0.1, 0.5, 2, 0.0), "decay must be a positive number"),
        (lambda: classic.exp_range(0.1, 0.5, 2, 1.1), "decay must be a number of at most 1"),
        (lambda: classic.snapshot_cosine(-1.0, 4, 2), "initial_rate must be a non-negative"),
        (lambda: classic.snapshot_cosine(1.0, 0, 2), "steps must be a whole number"),
        (lambda: classic.snapshot_cosine(1.0, 4, 0), "cycles must be a whole number"),
        (lambda: classic.snapshot_cosine(1.0, 4, 5), "cycles must be at most steps=4, got 5"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
