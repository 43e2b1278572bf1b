"""Momentum run backwards: to the bit, and with the gradient of `full`."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, meta, tasks
from l2ljax.core import Task
from l2ljax.meta import _fixed_point
from tests.meta.small import KEY, estimate, start

# A double well for each coordinate, of another depth a problem, with noise a step.
WELLS = Task(
    sample=lambda key: jax.random.uniform(key, (), minval=0.5, maxval=1.5),
    init=lambda key, problem: {"a": jax.random.normal(key, (3,)), "b": jnp.full((2,), 0.2)},
    loss=lambda params, depth, key: (
        depth * jnp.sum((params["a"] ** 2 - 1) ** 2)
        + jnp.sum(params["a"][:2] * params["b"])
        + jnp.sum(jnp.cos(3 * params["b"]))
        + params["a"] @ (0.3 * jax.random.normal(key, (3,)))
    ),
)
LIKE = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
REVERSIBLE = learned.reversible_momentum(horizon=2, like=LIKE)


def schedules(horizon, rate=0.05, like=None, seed=0):
    """An optimizer and φ with other rates and decays at every step."""
    opt = learned.reversible_momentum(horizon=horizon, learning_rate=rate, decay=0.9, like=like)
    phi, random = opt.init(KEY), np.random.default_rng(seed)
    return opt, jax.tree.map(
        lambda leaf: leaf + jnp.asarray(random.normal(0, 0.3, leaf.shape), leaf.dtype), phi
    )


def result(factory, opt, phi, task=WELLS, batch=1):
    estimator = factory(opt, task, batch)
    return estimate(estimator, phi, start(estimator, phi), KEY)[0]


def assert_trees_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.usefixtures("x64")
def test_a_product_loses_nothing():
    random = np.random.default_rng(0)
    numbers = random.integers(-(2**60), 2**60, 50)
    numerators = random.integers(1, 2**13, 40)
    # What a buffer can take: each is emptied before it is full.
    spills, _ = _fixed_point.spills(jnp.asarray(numerators))
    x, buffer, kept = jnp.asarray(numbers), jnp.zeros(50, jnp.int64), []
    multiply, divide = jax.jit(_fixed_point.multiply), jax.jit(_fixed_point.divide)
    for n, spill in zip(numerators, spills, strict=True):
        if spill:
            kept.append(buffer)
            buffer = jnp.zeros_like(buffer)
        before = [int(number) for number in x]
        x, buffer = multiply(x, buffer, jnp.asarray(n))
        exact = [fractions.Fraction(number * int(n), 2**16) for number in before]
        assert all(abs(int(a) - b) <= n for a, b in zip(x, exact, strict=True))
        assert int(buffer.min()) >= 0
    assert len(kept) >= 2
    for n, spill in reversed([*zip(numerators, spills, strict=True)]):
        x, buffer = divide(x, buffer, jnp.asarray(n))
        if spill:
            assert int(abs(buffer).max()) == 0
            buffer = kept.pop()
    np.testing.assert_array_equal(x, numbers)
    np.testing.assert_array_equal(buffer, 0)


def test_the_stack_has_room_for_the_smallest_decay_that_was_declared():
    for decay in (0.1, 0.5, 0.9):
        n = _fixed_point.quantised(decay)
        spills, heights = _fixed_point.spills(jnp.full(500, n))
        assert int(spills.sum()) == int(heights[-1]) + int(spills[-1])
        assert int(spills.sum()) == _fixed_point.capacity(500, n)
        # log₂(1/γ) bits a step, in words of 64 bits of which 16 stay free.
        assert _fixed_point.capacity(500, n) <= 500 * np.log2(1 / decay) / 47 + 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("meta_loss", "like", "second_derivatives"),
    [("mean", None, True), ("log_improvement", LIKE, True), ("mean", LIKE, False)],
    ids=["mean", "log_improvement", "first derivatives"],
)
@pytest.mark.slow
def test_the_gradient_is_that_of_full(meta_loss, like, second_derivatives):
    opt, phi = schedules(12, like=like)
    # The loss is scaled, the objective is not; weights start in the middle.
    scaled = tasks.augment(WELLS, loss=1.0)
    task = Task(
        scaled.sample, scaled.init, scaled.loss, lambda *args: 9.0 + scaled.objective(*args)
    )
    settings = {
        "horizon": 12,
        "meta_loss": meta_loss,
        "step_weights": np.linspace(-1, 2, 12).clip(0),
        "second_derivatives": second_derivatives,
    }
    expected = result(meta.full(**settings), opt, phi, task, batch=2)
    found = result(meta.reversible(**settings), opt, phi, task, batch=2)
    assert_trees_close(found.grad, expected.grad, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-10)
    np.testing.assert_allclose(found.aux["losses"], expected.aux["losses"], rtol=1e-10)
    assert not any(found.aux[flag] for flag in ("overflow", "irreversible", "exhausted"))


@pytest.mark.usefixtures("x64")
def test_the_gradient_is_that_of_finite_differences():
    opt, phi = schedules(6)
    found = result(meta.reversible(horizon=6), opt, phi)
    problem_key, init_key, loss_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    depth = float(WELLS.sample(problem_key))
    noise = [
        np.asarray(0.3 * jax.random.normal(jax.random.fold_in(loss_key, t), (3,))) for t in range(7)
    ]
    first = WELLS.init(init_key, depth)

    def run(rates, decays):
        """The method and the function once more, in numpy."""
        a, b = np.asarray(first["a"], np.float64), np.asarray(first["b"], np.float64)
        va, vb, total = np.zeros(3), np.zeros(2), 0.0
        for t in range(6):
            ga = 4 * depth * a * (a**2 - 1) + np.append(b, 0) + noise[t]
            gb = a[:2] - 3 * np.sin(3 * b)
            va = decays[t] * va - (1 - decays[t]) * ga
            vb = decays[t] * vb - (1 - decays[t]) * gb
            a, b = a + rates[t] * va, b + rates[t] * vb
            total += depth * ((a**2 - 1) ** 2).sum() + a[:2] @ b + np.cos(3 * b).sum()
            total += a @ noise[t + 1]
        return total

    rates = np.exp(np.asarray(phi["learning_rate"]))
    free = 1 / (1 + np.exp(-np.asarray(phi["decay"])))
    decays = np.floor(free * 2**16 + 0.5) / 2**16
    np.testing.assert_allclose(found.loss, run(rates, decays), rtol=1e-9)
    for t, unit in enumerate(1e-6 * np.eye(6)):
        slope = (run(rates * np.exp(unit), decays) - run(rates * np.exp(-unit), decays)) / 2e-6
        np.testing.assert_allclose(found.grad["learning_rate"][t], slope, rtol=1e-6, atol=1e-8)
        slope = (run(rates, decays + unit) - run(rates, decays - unit)) / 2e-6
        slope *= free[t] * (1 - free[t])
        np.testing.assert_allclose(found.grad["decay"][t], slope, rtol=1e-6, atol=1e-8)


@functools.cache
def digits():
    return tasks.mlp_classifier(tasks.digits(), (8,), "tanh", batch_size=16)


@pytest.mark.slow
def test_in_float32_the_gradient_of_a_network_is_that_of_full():
    opt, phi = schedules(100, rate=0.2)
    found = result(meta.reversible(horizon=100), opt, phi, digits())
    expected = result(meta.full(horizon=100), opt, phi, digits())
    assert not found.aux["irreversible"]
    for name, leaf in expected.grad.items():
        scale = float(jnp.abs(leaf).max())
        np.testing.assert_allclose(found.grad[name], leaf, atol=1e-4 * scale)


@pytest.mark.parametrize("horizon", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_network_comes_back_to_the_bit(horizon):
    opt, phi = schedules(horizon, rate=0.05)
    found = result(meta.reversible(horizon=horizon, min_decay=0.7), opt, phi, digits())
    assert not any(found.aux[flag] for flag in ("overflow", "irreversible", "exhausted"))
    assert np.isfinite(found.loss)
    assert found.aux["losses"][-100:].mean() < 0.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_halves_come_back_too(dtype):
    narrow = Task(
        WELLS.sample,
        lambda key, problem: jax.tree.map(lambda x: x.astype(dtype), WELLS.init(key, problem)),
        lambda params, depth, key: WELLS.loss(params, depth.astype(dtype), key).astype(dtype),
    )
    opt, phi = schedules(20)
    found = result(meta.reversible(horizon=20), opt, phi, narrow)
    assert not found.aux["irreversible"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.grad))


def test_schedules_learn_and_other_leaves_get_others():
    opt = learned.reversible_momentum(horizon=10, learning_rate=0.005, like=LIKE)
    trained = meta.train(
        opt,
        WELLS,
        key=KEY,
        steps=40,
        batch=4,
        chunk=40,
        meta_optimizer=optax.adam(0.1),
        estimator=meta.reversible(horizon=10),
    )
    loss = trained.history["loss"]
    assert loss[-5:].mean() < 0.8 * loss[:5].mean()
    rates = trained.phi["learning_rate"]
    assert not np.allclose(rates["a"], rates["b"], atol=0.1)
    # The transformation is an ordinary one, also after its last step.
    tx = optax.chain(optax.clip_by_global_norm(1.0), opt.bind(trained.phi))
    state = tx.init(LIKE)
    for _ in range(12):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, LIKE), state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.slow
def test_a_stack_that_is_too_small_ends_the_training():
    opt = learned.reversible_momentum(horizon=200, learning_rate=1e-3, decay=0.5)
    factory = meta.reversible(horizon=200, min_decay=0.9)
    found = result(factory, opt, opt.init(KEY))
    assert found.aux["exhausted"]
    assert np.isnan(found.loss)
    assert np.isnan(found.grad["decay"]).all()
    with pytest.raises(RuntimeError, match=r"lose more bits than .*min_decay"):
        meta.train(opt, WELLS, key=KEY, steps=1, estimator=factory, chunk=1)


def test_numbers_that_are_too_large_are_no_gradient():
    opt = learned.reversible_momentum(horizon=20, learning_rate=1e6)
    found = result(meta.reversible(horizon=20), opt, opt.init(KEY))
    assert found.aux["overflow"]
    assert not found.aux["irreversible"]
    assert np.isnan(found.grad["learning_rate"]).all()


def test_gradients_that_are_not_reproducible_are_named():
    calls = iter(range(10**6))
    task = Task(
        WELLS.sample,
        WELLS.init,
        lambda params, depth, key: (
            WELLS.loss(params, depth, key)
            * jax.pure_callback(
                lambda key: np.float32(1 + 1e-6 * next(calls)),
                jax.ShapeDtypeStruct((), jnp.float32),
                jax.random.key_data(key),
                vmap_method="sequential",
            )
        ),
    )
    opt, _ = schedules(20)
    with pytest.raises(RuntimeError, match="gradients of the task's loss are not reproducible"):
        meta.train(opt, task, key=KEY, steps=1, estimator=meta.reversible(horizon=20), chunk=1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: meta.reversible(horizon=0), ValueError, "horizon must be a whole number"),
        (lambda: meta.reversible(min_decay=0), ValueError, "min_decay must be .* got 0"),
        (lambda: meta.reversible(min_decay=1.5), ValueError, r"min_decay .* in \(0, 1\], got 1.5"),
        (
            lambda: meta.reversible()(learned.lstm(), WELLS),
            TypeError,
            "needs an optimizer that can be run backwards",
        ),
        (lambda: learned.reversible_momentum(horizon=0), ValueError, "horizon"),
        (lambda: learned.reversible_momentum(horizon=1, decay=0.0), ValueError, "decay"),
        (lambda: learned.reversible_momentum(horizon=1, decay=1.0), ValueError, "decay"),
        (lambda: learned.reversible_momentum(horizon=1, learning_rate=-1), ValueError, "rate"),
        (
            lambda: (lambda opt: opt.bind(opt.init(KEY)).init(jnp.ones(2)))(
                schedules(2, like=LIKE)[0]
            ),
            ValueError,
            "structure of like",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
