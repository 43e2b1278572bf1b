import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from l2ljax import hyper, learned, meta, tasks

DIM, HORIZON, BATCH = 2, 5, 3
KEY = jax.random.key(3)
LOSSES = ("sum", "observed_improvement", "expected_improvement", "log_regret")


@functools.cache
def settings():
    """An optimizer with weights that move, and functions from a Gaussian process."""
    opt = learned.black_box_lstm(DIM, 3)
    shapes = jax.eval_shape(opt.init, KEY)
    rng = np.random.default_rng(0)
    phi = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape)), shapes)
    return opt, tasks.gp_samples(DIM, features=16, minimum=True), phi


@functools.cache
def estimated(loss):
    with jax.enable_x64(True):
        opt, task, phi = settings()
        est = hyper.black_box(HORIZON, loss)(opt, task, BATCH)
        estimate = jax.jit(lambda phi: est.estimate(phi, est.init(KEY, phi), KEY)[0])
        return estimate, estimate(phi)


@functools.cache
def episodes():
    """Points, values and problems of the episodes, by asking and telling."""
    with jax.enable_x64(True):
        opt, task, phi = settings()
        optimizer = hyper.ask_tell(opt.bind(phi), [(-1, 1)] * DIM)
        tell, loss = jax.jit(optimizer.tell), jax.jit(task.loss)
        found = []
        for key in meta.episode_keys(KEY, BATCH):
            problem = meta.begin_episode(task, key).problem
            state, xs, ys = optimizer.init(), [], []
            for _ in range(HORIZON):
                xs.append(np.asarray(optimizer.ask(state)))
                ys.append(float(loss(xs[-1], problem, key)))
                state = tell(state, ys[-1])
            found.append((np.array(xs), np.array(ys), jax.tree.map(np.asarray, problem)))
        return found


def expected_improvements(xs, ys, scale):
    """For each point but the first, by the regression on those before it."""

    def kernel(a, b):
        return np.exp(-np.sum(((a[:, None] - b) / scale) ** 2, axis=-1) / 2)

    for t in range(1, len(ys)):
        known = kernel(xs[:t], xs[:t]) + 1e-3 * np.eye(t)
        cross = kernel(xs[:t], xs[t : t + 1])[:, 0]
        weights = np.linalg.solve(known, cross)
        mean, std = weights @ ys[:t], np.sqrt(1 + 1e-3 - weights @ cross)
        z = (ys[:t].min() - mean) / std
        yield std * (z * stats.norm.cdf(z) + stats.norm.pdf(z))


@pytest.mark.slow
def test_losses_are_those_of_the_episodes():
    expected = {loss: [] for loss in LOSSES}
    for xs, ys, problem in episodes():
        best = np.minimum.accumulate(ys)
        expected["sum"].append(ys.sum())
        expected["observed_improvement"].append(best[-1] - ys[0])
        expected["expected_improvement"].append(
            -sum(expected_improvements(xs, ys, problem["length_scale"]))
        )
        regret = np.maximum(best - problem["minimum"], 0)
        expected["log_regret"].append(np.log(regret + 1e-4).mean())
    assert np.ptp([ys for _, ys, _ in episodes()]) > 0.5
    assert min(expected["observed_improvement"]) < -0.1
    for loss, values in expected.items():
        np.testing.assert_allclose(estimated(loss)[1].loss, np.mean(values), rtol=1e-9)
    values = np.array([ys for _, ys, _ in episodes()])
    aux = estimated("sum")[1].aux
    np.testing.assert_allclose(aux["losses"], values.mean(axis=0), rtol=1e-9)
    lowest = np.minimum.accumulate(values, axis=1).mean(axis=0)
    np.testing.assert_allclose(aux["lowest"], lowest, rtol=1e-9)


@pytest.mark.parametrize("loss", ["sum", "expected_improvement", "log_regret"])
def test_the_gradient_is_that_of_finite_differences(loss, x64):
    estimate, found = estimated(loss)
    _, _, phi = settings()
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), phi)

    def at(step):
        return estimate(optax.tree.add_scale(phi, step, direction)).loss

    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    np.testing.assert_allclose(optax.tree.vdot(found.grad, direction), slope, rtol=1e-5)


def test_the_gradient_of_observed_improvement_holds_the_minimum_before_constant(x64):
    _, found = estimated("observed_improvement")
    opt, task, phi = settings()
    # Where a step improves, its value counts as it is: a weighted sum by hand.
    weights = jnp.array(
        [[0, *(ys[1:] < np.minimum.accumulate(ys)[:-1])] for _, ys, _ in episodes()], float
    )
    problems = meta.begin_episodes(task, KEY, BATCH).problem

    def improving(phi):
        def values(problem):
            function = functools.partial(task.loss, problem=problem, key=KEY)
            box = [(-1, 1)] * DIM
            return hyper.minimize_black_box(opt.bind(phi), function, box, horizon=HORIZON)[1]

        return jnp.sum(weights * jax.vmap(values)(problems)) / BATCH

    assert weights.sum(axis=1).max() > 1
    grad = jax.jit(jax.grad(improving))(phi)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found.grad, grad)


def test_a_loss_of_what_is_not_known_is_refused():
    opt, _, phi = settings()
    est = hyper.black_box(HORIZON, "log_regret")(opt, tasks.gp_samples(DIM, features=2))
    with pytest.raises(ValueError, match=r"task must have problems with a 'minimum' for this loss"):
        est.estimate(phi, est.init(KEY, phi), KEY)


# Asking and telling.

BRANIN = tasks.DIXON_SZEGO["branin"]


def transformation():
    opt, _, phi = settings()
    return opt.bind(phi)


def test_asking_and_telling_is_minimising():
    tx = transformation()
    xs, ys = jax.jit(
        lambda start: hyper.minimize_black_box(
            tx, BRANIN.function, BRANIN.bounds, horizon=HORIZON, start=start
        )
    )(np.array([1.0, 14.0]))
    optimizer = hyper.ask_tell(tx, BRANIN.bounds, start=[1.0, 14.0])
    state = optimizer.init()
    for x, y in zip(xs, ys, strict=True):
        asked = [float(c) for c in optimizer.ask(state)]
        np.testing.assert_allclose(asked, x, rtol=1e-4)
        value = float(BRANIN.function(jnp.array(asked)))
        np.testing.assert_allclose(value, y, rtol=1e-3)
        state = optimizer.tell(state, value)
    np.testing.assert_allclose(xs[0], [1.0, 14.0], rtol=1e-6)
    assert np.ptp(xs, axis=0).min() > 0.1


def test_points_are_within_the_bounds_to_the_bit():
    # With no inner point of float32 between them, rounding alone would leave the box.
    bounds = np.array([(0.1, 0.3), (1e7, 1e7 + 3)])
    rng = np.random.default_rng(0)
    optimizer = hyper.ask_tell(transformation(), bounds)
    state, tell = optimizer.init(), jax.jit(optimizer.tell)
    low, high = bounds.astype(np.float32).T
    for value in rng.normal(size=20):
        x = optimizer.ask(state)
        assert (low <= x).all() and (x <= high).all()
        state = tell(state, value)
    np.testing.assert_array_equal(optimizer.ask(state._replace(x=jnp.ones(2))), high)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(0, 1, 2)], "bounds must be a lower and an upper one a variable"),
        ([], "bounds must be a lower and an upper one a variable"),
        ([(1, 0)], r"bounds must be finite, the lower below the upper, got \[\(1, 0\)\]"),
        ([(0, np.inf)], "bounds must be finite, the lower below the upper"),
    ],
)
def test_bad_bounds_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        hyper.ask_tell(transformation(), bounds)


def test_bad_settings_are_refused():
    opt, task, _ = settings()
    for start in ([11.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="start must be a point within bounds"):
            hyper.ask_tell(transformation(), BRANIN.bounds, start)
    with pytest.raises(ValueError, match="horizon must be a whole number of at least 2, got 1"):
        hyper.black_box(1)
    with pytest.raises(ValueError, match="horizon must be a whole number of at least 1, got 0"):
        hyper.minimize_black_box(transformation(), jnp.sum, BRANIN.bounds, horizon=0)
    with pytest.raises(ValueError, match=r"loss must be one of \['sum'.*got 'improvement'"):
        hyper.black_box(loss="improvement")
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        hyper.black_box()(opt, task, 0)
