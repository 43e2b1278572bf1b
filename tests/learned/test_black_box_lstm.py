import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned

DIM, HIDDEN = 2, 3


@functools.cache
def bound():
    """A transformation with weights in which no value is special, and its jitted update."""
    opt = learned.black_box_lstm(DIM, HIDDEN)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(opt.init, jax.random.key(0))
    phi = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.7, s.shape), s.dtype), shapes)
    tx = opt.bind(phi)

    @jax.jit
    def step(x, state, value):
        updates, state = tx.update(jnp.full_like(x, jnp.nan), state, x, value=value)
        return optax.apply_updates(x, updates), state

    return tx, phi, step


def run(values, dtype=np.float64, start=(0.3, -0.2)):
    """The points that follow from values, whatever the points are."""
    tx, _, step = bound()
    x = jnp.asarray(start, dtype)
    state, points = tx.init(x), [x]
    for value in values:
        x, state = step(x, state, jnp.asarray(value, dtype))
        points.append(x)
    return np.array(points), state


def test_it_is_the_formula_in_numpy(x64):
    values = [3.0, 1.0, 1.5, -2.0, -1.9, -1.9]
    points, state = run(values)
    _, phi, _ = bound()
    lstm, output = (
        {k: np.asarray(v, np.float64) for k, v in phi[name].items()} for name in ("lstm", "output")
    )

    def log_sign(x):
        small = np.abs(x) < np.exp(-12.0)
        log = np.where(small, -1, np.log(np.where(small, 1, np.abs(x))) / 12)
        return np.concatenate([log, np.where(small, np.exp(12.0) * x, np.sign(x))])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x, cell, hidden = np.array([0.3, -0.2]), np.zeros(HIDDEN), np.zeros(HIDDEN)
    best, lowest = x, values[0]
    for t, y in enumerate(values):
        seen = np.array(values[: t + 1])
        spread = seen.std() or 1.0
        gain = (y - lowest) / spread
        if y < lowest:
            best, lowest = x, y
        inputs = [x, best, [(y - seen.mean()) / spread, (lowest - seen.mean()) / spread]]
        inputs += [log_sign(np.array([gain])), hidden]
        gates = lstm["kernel"].T @ np.concatenate(inputs) + lstm["bias"]
        i, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        x = best + output["kernel"].T @ hidden + output["bias"]
        while (np.abs(x) > 1).any():
            x = np.where(x > 1, 2 - x, np.where(x < -1, -2 - x, x))
        np.testing.assert_allclose(points[t + 1], x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.seen.best, best)
    assert float(state.seen.best_value) == -2.0


def test_scale_and_offset_of_the_values_do_not_matter(x64):
    values = np.array([3.0, 1.0, 1.5, -2.0, -1.9])
    points, _ = run(values)
    np.testing.assert_allclose(run(1e6 * values - 40)[0], points, atol=1e-8)
    assert np.ptp(points, axis=0).min() > 1e-3


def test_points_stay_in_the_box():
    rng = np.random.default_rng(1)
    points, _ = run(rng.normal(size=50), np.float32, start=(1.0, -1.0))
    assert np.abs(points).max() <= 1


def test_values_that_are_not_finite_are_never_the_best():
    points, state = run([np.nan, np.inf, 5.0, np.nan, -np.inf, 7.0], np.float32)
    assert np.isfinite(points).all() and np.isfinite(np.concatenate(state.carry)).all()
    assert (int(state.seen.count), float(state.seen.best_value), float(state.seen.mean)) == (
        2,
        5.0,
        6.0,
    )
    np.testing.assert_array_equal(state.seen.best, points[2])


def test_the_forget_gate_is_open_at_first():
    phi = learned.black_box_lstm(DIM, HIDDEN).init(jax.random.key(0))
    np.testing.assert_array_equal(phi["lstm"]["bias"], [0] * 3 + [5] * 3 + [0] * 6)


def test_it_is_saved_and_restored(tmp_path):
    opt = learned.black_box_lstm(DIM, HIDDEN)
    learned.save(tmp_path, opt, bound()[1], {})
    again, phi, _ = learned.restore(tmp_path)
    assert again.spec == opt.spec
    jax.tree.map(np.testing.assert_array_equal, phi, bound()[1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="dim must be a whole number of at least 1, got 0"):
        learned.black_box_lstm(0)
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
        learned.black_box_lstm(1, 0)
    tx, _, _ = bound()
    with pytest.raises(ValueError, match=r"params must be one array of shape \(2,\).*\(3,\)"):
        tx.init(jnp.zeros(3))
    with pytest.raises(ValueError, match="params must have real floating-point leaves"):
        tx.init(jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)), value=jnp.zeros(()))
