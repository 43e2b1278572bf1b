"""Tiles of coordinates: the same updates, computed one tile after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import learned
from l2ljax.learned import _tiles

OPTIMIZERS = {
    "lstm": lambda **options: learned.lstm((4, 3), **options),
    "rnnprop": lambda **options: learned.rnnprop((4,), **options),
    "adaptive_lstm": lambda **options: learned.adaptive_lstm((4,), **options),
}


@pytest.fixture
def tiles(monkeypatch):
    """Tiles of 8 coordinates, for batches of 20 and more, as on one device."""
    # The program of `kernels` has tiles of its own.
    monkeypatch.setattr("l2ljax.kernels._build.load", lambda: False)
    monkeypatch.setattr(_tiles, "_LEAST", 20)
    monkeypatch.setattr(_tiles.in_tiles, "__defaults__", (8,))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def run(opt, params, steps=3):
    """Updates and state after some steps."""
    tx = opt.bind(opt.init(jax.random.key(0)))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(jax.tree.map(lambda p, s=step: jnp.cos(p + s), params), state)
    return updates, state


def has_loop(opt, params):
    """Whether the program of an update has one."""
    tx = opt.bind(opt.init(jax.random.key(0)))
    return "stablehlo.while" in jax.jit(tx.update).lower(params, tx.init(params)).as_text()


def assert_near(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 40])
def test_tiles_are_the_whole(size, x64):
    def step(memory, gradient):
        new = jnp.tanh(memory["a"] + gradient), memory["b"] * 2 + gradient
        return {"a": new[0], "b": new[1]}, new[0].sum(0) * gradient

    gradient = jnp.linspace(-2, 3, size)
    memory = {"a": jnp.arange(3.0 * size).reshape(3, size), "b": jnp.ones(size)}
    found = jax.jit(lambda memory, gradient: _tiles.in_tiles(step, memory, gradient, 8))
    assert_near(found(memory, gradient), step(memory, gradient), 1e-14)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2"])
def test_a_memory_in_less_precision_is_never_converted_whole(dtype):
    def step(memory, gradient):
        new = jnp.tanh(memory.astype(jnp.float32) + gradient)
        return new.astype(memory.dtype), new.sum(0)

    memory, gradient = jnp.ones((4, 4000), dtype), jnp.linspace(-2, 3, 4000)
    run = jax.jit(
        lambda memory, gradient: _tiles.in_tiles(step, memory, gradient, 80), donate_argnums=0
    )
    compiled = run.lower(memory, gradient).compile()
    assert "f32[4,4000]" not in compiled.as_text()
    expected = step(memory, gradient)
    assert_near(compiled(memory, gradient), expected, 0.3 if dtype == "float8_e5m2" else 1e-2)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["flat", "leaves"])
def test_optimizers_give_the_same_updates_in_tiles(name, layout, tiles, monkeypatch):
    opt = OPTIMIZERS[name](layout=layout)
    params = {"a": jnp.linspace(-1, 1, 30).reshape(5, 6), "b": jnp.linspace(0, 2, 21)}
    in_tiles = run(opt, params)
    assert has_loop(opt, params)
    jax.clear_caches()
    monkeypatch.setattr(_tiles, "_LEAST", 1000)
    assert_near(in_tiles, run(opt, params), 1e-6)


def test_a_state_in_half_precision_stays_so(tiles, monkeypatch):
    opt = learned.lstm((4,), state_dtype="bfloat16")
    params = jnp.linspace(-1, 1, 45)
    in_tiles = run(opt, params)
    jax.clear_caches()
    monkeypatch.setattr(_tiles, "_LEAST", 1000)
    assert_near(in_tiles, run(opt, params), 1e-2)


def test_derivatives_are_those_of_the_whole(tiles, monkeypatch, x64):
    opt = learned.adaptive_lstm((4,))
    phi = jax.tree.map(lambda x: x.astype(jnp.float64), opt.init(jax.random.key(0)))
    params = jnp.linspace(-1, 1, 30)

    def length(phi):
        tx = opt.bind(phi)
        updates, state = tx.update(jnp.cos(params), tx.init(params))
        updates, _ = tx.update(jnp.sin(params), state)
        return jnp.sum(updates**2)

    direction = jax.tree.map(jnp.ones_like, phi)
    in_tiles = jax.grad(length)(phi), jax.jvp(length, (phi,), (direction,))
    jax.clear_caches()
    monkeypatch.setattr(_tiles, "_LEAST", 1000)
    assert_near(in_tiles, (jax.grad(length)(phi), jax.jvp(length, (phi,), (direction,))), 1e-12)


def test_tiles_are_mapped_over(tiles):
    opt = learned.lstm((4,))
    tx = opt.bind(opt.init(jax.random.key(0)))
    gradients = jnp.linspace(-1, 1, 60).reshape(2, 30)
    state = jax.vmap(tx.init)(gradients)
    mapped, _ = jax.vmap(lambda g, s: tx.update(g, s))(gradients, state)
    one, _ = tx.update(gradients[1], tx.init(gradients[1]))
    np.testing.assert_allclose(mapped[1], one, rtol=1e-5)


def test_several_devices_have_no_tiles(monkeypatch):
    """A tile of a leaf that is split would be gathered."""
    monkeypatch.setattr(_tiles, "_LEAST", 20)
    assert jax.device_count() > 1
    assert not has_loop(learned.lstm((4,)), jnp.ones(31))
