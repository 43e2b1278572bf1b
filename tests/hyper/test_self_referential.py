import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import Task, hyper, meta

KEY = jax.random.key(0)
HORIZON = 10


def sample(key):
    """A stream whose outputs are a multiple of its inputs, another one each time."""
    gain, inputs = jax.random.split(key)
    inputs = jax.random.uniform(inputs, (HORIZON, 1), maxval=2)
    return {"inputs": inputs, "targets": jax.random.uniform(gain, minval=-1) * inputs}


TASK = Task(sample, init=lambda key, problem: (), loss=lambda params, problem, key: 0.0)


@functools.cache
def random_weights(inputs=2, outputs=1, hidden=1):
    shape = jax.eval_shape(hyper.self_referential(inputs, outputs, hidden).init, KEY).shape
    return np.random.default_rng(0).normal(0, 0.8, shape)


def address(i, j, bits):
    return [i >> b & 1 for b in range(bits)] + [j >> b & 1 for b in range(bits)]


def literally(weights, inputs, targets, hidden, sharpness):
    """The formulas, one weight after the other."""
    w = np.array(weights)
    rows, columns = w.shape
    outputs = targets.shape[1]
    bits = (rows - outputs - hidden - 1) // 4
    everything = [(i, j) for i in range(rows) for j in range(columns)]
    addresses = np.array([address(i, j, bits) for i, j in everything])
    assert len(np.unique(addresses, axis=0)) == rows * columns
    units, val, evaluation, found = np.zeros(rows), 0.0, np.zeros(outputs), []
    for seen, target in zip(inputs, targets, strict=True):
        net = w @ np.concatenate([seen, evaluation, [val, 1.0], units])
        units = net.copy()
        units[outputs : outputs + hidden + 1] = np.tanh(net[outputs : outputs + hidden + 1])
        units[outputs + hidden + 1 :] = 1 / (1 + np.exp(-net[outputs + hidden + 1 :]))
        ana, mod = np.split(units[outputs + hidden + 1 :], 2)
        g = [
            np.exp(-sharpness * np.sum((pointer - addresses) ** 2, axis=1)).reshape(w.shape)
            for pointer in (ana, mod)
        ]
        val = np.sum(g[0] * w)
        w = w + units[outputs + hidden] * g[1]
        evaluation = target - units[:outputs]
        found.append(units[:outputs])
    return np.array(found), w, val


def test_it_is_the_formulas_weight_by_weight(x64):
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(6, 2)), rng.normal(size=(6, 1))
    weights = random_weights()
    tx = hyper.self_referential(2, 1, hidden=1, sharpness=0.7).bind(jnp.asarray(weights))
    outputs, states = hyper.run_stream(tx, jnp.asarray(inputs), jnp.asarray(targets))
    expected, last, val = literally(weights, inputs, targets, 1, 0.7)
    np.testing.assert_allclose(outputs, expected, rtol=1e-9)
    np.testing.assert_allclose(states.weights[-1], last, rtol=1e-9)
    np.testing.assert_allclose(states.val[-1], val, rtol=1e-9)
    assert np.abs(last - weights).max() > 0.1

    tx = hyper.self_referential(2, 1, hidden=1, modifying=False).bind(jnp.asarray(weights))
    _, states = hyper.run_stream(tx, jnp.asarray(inputs), jnp.asarray(targets))
    np.testing.assert_array_equal(states.weights[-1], weights)


def test_a_sharp_pointer_writes_one_weight(x64):
    weights = np.zeros_like(random_weights())
    bits = (len(weights) - 3) // 4
    # The bias saturates the units: they write 1 at (1, 3).
    weights[2, 4] = 40.0
    weights[-2 * bits :, 4] = 80.0 * np.array(address(1, 3, bits)) - 40.0
    tx = hyper.self_referential(2, 1, hidden=1, sharpness=30.0).bind(jnp.asarray(weights))
    _, state = tx.update(jnp.zeros(3), tx.init(jnp.zeros(1)))
    change = np.asarray(state.weights) - weights
    np.testing.assert_allclose(change[1, 3], 1, rtol=1e-9)
    change[1, 3] = 0
    assert np.abs(change).max() < 1e-12


def test_the_meta_gradient_is_that_of_finite_differences(x64):
    opt = hyper.self_referential(1, 1, hidden=1)
    phi = jnp.asarray(random_weights(1, 1, 1))
    est = hyper.stream()(opt, TASK, batch=2)
    estimate = jax.jit(lambda phi: est.estimate(phi, est.init(KEY, phi), KEY)[0])
    found = estimate(phi)
    direction = jnp.asarray(np.random.default_rng(2).normal(size=phi.shape))
    slope = (estimate(phi + 1e-6 * direction).loss - estimate(phi - 1e-6 * direction).loss) / 2e-6
    np.testing.assert_allclose(jnp.vdot(found.grad, direction), slope, rtol=1e-6)
    np.testing.assert_allclose(found.loss, found.aux["losses"].sum(), rtol=1e-12)


@pytest.mark.slow
def test_meta_training_makes_it_change_its_weights_to_good_effect():
    opt = hyper.self_referential(1, 1)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    settings = {"key": KEY, "steps": 250, "batch": 32, "meta_optimizer": tx}
    result = meta.train(opt, TASK, estimator=hyper.stream(), **settings)
    streams = jax.vmap(sample)(jax.random.split(jax.random.key(1), 200))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def run(tx, stream):
        outputs, states = hyper.run_stream(tx, stream["inputs"], stream["targets"])
        return (outputs - stream["targets"]) ** 2, states.weights

    errors, weights = run(opt.bind(result.phi), streams)
    # Of the gain's variance 1/3 and the inputs' mean square 4/3, what is left in the end.
    late = errors[:, -3:].mean()
    assert late < 0.1 * (1 / 3) * (4 / 3)
    # The weight from input to output comes to be the gain, or part of it.
    gain = streams["targets"][:, 0, 0] / streams["inputs"][:, 0, 0]
    assert np.corrcoef(weights[:, -1, 0, 0], gain)[0, 1] > 0.9
    still = hyper.self_referential(1, 1, modifying=False).bind(result.phi)
    assert run(still, streams)[0][:, -3:].mean() > 3 * late


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="inputs must be a whole number of at least 1, got 0"):
        hyper.self_referential(0, 1)
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
        hyper.self_referential(1, 1, hidden=0)
    with pytest.raises(ValueError, match="sharpness must be a positive number, got 0"):
        hyper.self_referential(1, 1, sharpness=0)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1, got 0"):
        hyper.stream()(hyper.self_referential(1, 1), TASK, 0)
