"""The range test finds known edges of stability, and bounds that training can use."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.core import Task, as_partial
from l2ljax.evaluate import RangeTest, curves, range_test
from l2ljax.evaluate._range_test import _bounds, _smooth, _sweep
from l2ljax.tasks import digits, mlp_classifier

KEY = jax.random.key(0)


def quadratic(curvatures, noise=0.0):
    """A sum of parabolas whose gradient has noise of that deviation."""
    curvatures = jnp.asarray(curvatures)

    def loss(w, problem, key):
        kick = noise * jax.random.normal(key, w.shape)
        return 0.5 * jnp.sum(curvatures * w**2) + jnp.sum(kick * w)

    def init(key, problem):
        return jax.random.normal(key, curvatures.shape)

    return Task(sample=lambda key: (), init=init, loss=loss)


BOWL = quadratic([20.0])
SETTINGS = {"key": KEY, "steps": 60, "problems": 4}


@pytest.mark.parametrize(
    ("spacing", "lowest", "highest"), [("linear", 1e-3, 0.4), ("log", 1e-4, 1.0)]
)
def test_of_one_curvature_the_maximum_is_the_edge_of_stability(spacing, lowest, highest):
    sweep = {"lowest": lowest, "highest": highest, "spacing": spacing}
    found = range_test(classic.gradient_descent, BOWL, **SETTINGS, **sweep)
    assert found.reached
    # Descent contracts below 2 / L, and in the middle fastest.
    assert 1.2 < found.maximum * 20 < 2.1
    assert found.base < 0.2 * found.maximum


@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("steps", [100, 200])
def test_with_noise_the_maximum_is_the_edge_for_any_spectrum(spacing, steps):
    task = quadratic(np.geomspace(0.01, 20, 20), noise=0.1)
    sweep = {"lowest": 1e-3, "highest": 0.5, "spacing": spacing}
    found = range_test(classic.gradient_descent, task, key=KEY, steps=steps, **sweep)
    assert found.reached
    assert 1.4 < found.maximum * 20 < 2.8


def test_losses_are_those_after_each_update_at_its_rate():
    found = range_test(
        classic.gradient_descent, BOWL, **SETTINGS, lowest=0.01, highest=0.09, spacing="linear"
    )
    np.testing.assert_allclose(found.rates, np.linspace(0.01, 0.09, 60))
    start = np.asarray(curves(optax.sgd(0.1), BOWL, key=KEY, steps=1, problems=4))[:, :1]
    expected = start * np.cumprod((1 - 20 * found.rates) ** 2)
    np.testing.assert_allclose(found.losses[:, :9], expected[:, :9], rtol=1e-4)
    assert found.losses.shape == (4, 60) and found.losses.dtype == np.float32


def test_rates_are_geometric_on_request():
    sweep = {"lowest": 1e-4, "highest": 1.0, "spacing": "log"}
    found = range_test(optax.sgd, BOWL, key=KEY, steps=5, problems=1, **sweep)
    np.testing.assert_allclose(found.rates, [1e-4, 1e-3, 1e-2, 1e-1, 1], rtol=1e-12)
    assert found.rates.dtype == np.float64


@pytest.mark.parametrize(
    ("factory", "highest"),
    [
        (classic.gradient_descent, 100.0),
        pytest.param(classic.adam, 10.0, marks=pytest.mark.slow),
    ],
)
def test_digits_are_learned_between_the_bounds(factory, highest):
    task = mlp_classifier(digits(), batch_size=32)
    found = range_test(factory, task, key=KEY, lowest=1e-4, highest=highest, steps=100, problems=4)
    assert found.reached

    def train(rates):
        # By the program that is compiled already; on other problems.
        losses = _sweep(as_partial(factory), task, jax.random.key(1), rates, 4)
        return losses, losses[:, -10:].mean()

    cyclical, final = train(classic.triangular(found.base, found.maximum, 25)(jnp.arange(100)))
    _, slow = train(jnp.full(100, found.base))
    assert final < 0.5 * slow
    # No run is ever far above its start.
    assert np.all(cyclical < 1.5 * cyclical[:, :1])


def test_a_maximum_beyond_the_sweep_is_said_to_be_so():
    found = range_test(classic.gradient_descent, BOWL, **SETTINGS, lowest=1e-5, highest=1e-2)
    assert not found.reached
    assert found.base < found.maximum == found.rates[-1]


def test_a_loss_that_never_falls_has_no_bounds():
    tiny = range_test(optax.sgd, BOWL, **SETTINGS, lowest=1.0, highest=10.0)
    assert (tiny.base, tiny.maximum, tiny.reached) == (None, None, False)
    assert np.isinf(tiny.smoothed[-1]) and not np.all(np.isfinite(tiny.losses))
    still = range_test(lambda rate: optax.set_to_zero(), BOWL, **SETTINGS)
    assert (still.base, still.maximum, still.reached) == (None, None, False)
    up = range_test(lambda rate: optax.sgd(lambda t: -rate(t)), BOWL, **SETTINGS)
    assert (up.base, up.maximum, up.reached) == (None, None, False)


def bounds(level):
    level = np.asarray(level, np.float64)
    return _bounds(level, _smooth(level))


def test_noise_about_a_level_does_not_fall():
    rng = np.random.default_rng(0)
    for steps in (20, 100, 400):
        falls = [bounds(10 + rng.normal(size=steps)) is not None for _ in range(100)]
        assert np.mean(falls) < 0.04


def test_bounds_of_a_curve_drawn_by_hand():
    flat, fall, rise = np.full(50, 10.0), np.linspace(10, 2, 41), np.linspace(2, 30, 41)
    base, maximum, reached = bounds([*flat, *fall, *rise])
    # A tenth of the fall of 8 is made 4 steps after it begins, and the minimum is at step 90.
    assert abs(base - 54) <= 2 and abs(maximum - 90) <= 2 and reached
    # A run that diverges at once, a run that has one spike on the way, and ragged descent.
    gone = bounds([*flat, *fall, *np.full(41, np.inf)])
    assert abs(gone[0] - base) <= 1 and abs(gone[1] - maximum) <= 4 and gone[2]
    spike = np.concatenate([flat, fall, rise])
    spike[20] = np.inf
    assert bounds(spike)[2]
    # The first rise counts, even if the loss is lower later on.
    ragged = bounds([*flat, *fall, *rise, *np.linspace(30, 1, 41)])
    assert abs(ragged[0] - base) <= 1 and abs(ragged[1] - maximum) <= 1 and ragged[2]


def test_a_start_that_is_not_finite_has_no_bounds():
    assert bounds([np.inf, *np.linspace(10, 1, 30)]) is None


def test_runs_that_diverge_count_as_infinite_and_raise_no_warning():
    sweep = {"lowest": 1e-2, "highest": 1e4, "spacing": "log"}
    found = range_test(classic.gradient_descent, BOWL, **SETTINGS, **sweep)
    assert found.reached and np.isfinite(found.maximum)
    assert not np.any(np.isnan(found.smoothed))


def test_sweeps_of_one_factory_share_a_program():
    programs = _sweep.count()
    for lowest, spacing in [(1e-4, "log"), (1e-3, "linear"), (1e-3, "log")]:
        settings = {"key": jax.random.key(3), "steps": 7, "problems": 2}
        range_test(classic.momentum, BOWL, **settings, lowest=lowest, spacing=spacing)
    assert _sweep.count() == programs + 1


def test_the_result_is_immutable():
    found = range_test(optax.sgd, BOWL, key=KEY, steps=5, problems=1)
    assert isinstance(found, RangeTest)
    with pytest.raises(AttributeError):
        found.base = 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 0.0}, "lowest must be a positive number, got 0.0"),
        ({"highest": np.inf}, "highest must be a positive number, got inf"),
        ({"lowest": 0.1, "highest": 0.1}, "highest must be more than lowest=0.1, got 0.1"),
        ({"lowest": [0.1, 0.2]}, r"lowest must be one finite number, got \[0.1, 0.2\]"),
        ({"key": None}, "key must be a PRNG key"),
        ({"task": "quadratic"}, "task must be a core.Task"),
        ({"factory": lambda rate: None}, "what factory makes must be an optax .*, got None"),
        ({"steps": 1}, "steps must be a whole number of at least 2, got 1"),
        ({"problems": 0}, "problems must be a whole number of at least 1, got 0"),
        ({"spacing": "lin"}, "spacing must be one of .* did you mean 'linear'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, unchecked):
    good = {"factory": optax.sgd, "task": BOWL, "key": KEY}
    with pytest.raises(ValueError, match=message):
        range_test(**good | arguments)
