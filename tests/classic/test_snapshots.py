"""Snapshots are the params of a plain loop at cycle ends, and their mean prediction is no worse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic, networks
from l2ljax.classic import average_predictions, with_snapshots
from l2ljax.tasks import digits

OPTIMIZED = True

START = {"w": jnp.array([2.0, -1.0]), "b": jnp.array(0.5)}
# Cycles that divide the steps, a last cycle cut short, one cycle, and a cycle for each update.
CYCLES = {(6, 2): [3, 6], (10, 4): [3, 6, 9, 10], (5, 2): [3, 5], (4, 1): [4], (3, 3): [1, 2, 3]}


def gradient(params):
    return jax.tree.map(lambda w: 2 * w + 1, params)


def run(tx, start, steps):
    """All params and the last state."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), path = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return path, state


@pytest.mark.parametrize(("steps", "cycles"), CYCLES)
def test_snapshots_are_the_params_of_a_plain_loop_at_cycle_ends(steps, cycles):
    tx = classic.adam(classic.snapshot_cosine(0.3, steps, cycles))
    snapshots = with_snapshots(tx, steps, cycles)
    params, state, kept = START, tx.init(START), []
    kept_state = snapshots.init(START)
    for t in range(1, steps + 3):
        g = gradient(params)
        expected, state = tx.update(g, state, params)
        updates, kept_state = jax.jit(snapshots.update)(g, kept_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
        params = optax.apply_updates(params, updates)
        if t in CYCLES[steps, cycles]:
            kept.append(params)
    # The two updates beyond the last step have changed nothing.
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, kept_state.snapshots, expected)
    assert kept_state.count == steps + 2


def test_a_cycle_that_has_not_ended_is_zero():
    _, state = run(with_snapshots(optax.sgd(0.1), 6, 3), START, 3)
    first, *others = state.snapshots["w"]
    assert np.all(first != 0) and not np.any(others)


def test_snapshots_of_many_runs_are_those_of_each_alone():
    starts = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w]), START)
    tx = with_snapshots(optax.chain(optax.clip(1.0), classic.momentum(0.1)), 5, 2)
    _, together = jax.vmap(lambda start: run(tx, start, 5))(starts)
    for i in range(3):
        path, _ = run(tx, jax.tree.map(lambda w, i=i: w[i], starts), 5)
        expected = jax.tree.map(lambda w: w[jnp.array([2, 4])], path)
        actual = jax.tree.map(lambda w, i=i: w[i], together.snapshots)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_snapshots_keep_the_dtypes_of_the_params(dtype):
    with jax.enable_x64(dtype == "float64"):
        start = jax.tree.map(lambda w: w.astype(dtype), START)
        path, state = run(with_snapshots(classic.gradient_descent(0.1), 4, 2), start, 4)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state.snapshots))
        np.testing.assert_array_equal(state.snapshots["w"], path["w"][jnp.array([1, 3])])


def test_extra_arguments_reach_the_optimizer_and_it_may_stand_in_a_chain():
    tx = optax.chain(with_snapshots(optax.scale_by_backtracking_linesearch(10), 2, 1))

    def loss(w):
        return 4 * jnp.sum(w**2)

    w = jnp.ones(2)
    state = tx.init(w)
    for _ in range(2):
        value, g = jax.value_and_grad(loss)(w)
        updates, state = tx.update(-g, state, w, value=value, grad=g, value_fn=loss)
        w = optax.apply_updates(w, updates)
        assert loss(w) < value
    np.testing.assert_array_equal(optax.tree.get(state, "snapshots"), w[None])


def test_an_empty_tree_has_empty_snapshots():
    tx = with_snapshots(optax.sgd(0.1), 2, 1)
    _, state = tx.update({}, tx.init({}), {})
    assert state.snapshots == {}


def test_predictions_are_averaged_over_the_last_snapshots():
    rng = np.random.default_rng(0)
    weights, inputs = rng.normal(size=(4, 3, 2)), rng.normal(size=(5, 3))

    def predict(w, x):
        return {"softmax": jax.nn.softmax(x @ w), "norm": jnp.sum(w**2)}

    exp = np.exp(np.einsum("ni,jik->jnk", inputs, weights))
    softmaxes = exp / exp.sum(axis=-1, keepdims=True)
    for last in (1, 2, 4, None):
        average = average_predictions(predict, jnp.asarray(weights), jnp.asarray(inputs), last)
        members = slice(None) if last is None else slice(-last, None)
        np.testing.assert_allclose(average["softmax"], softmaxes[members].mean(axis=0), rtol=1e-5)
        norms = (weights**2).sum(axis=(1, 2))[members]
        np.testing.assert_allclose(average["norm"], norms.mean(), rtol=1e-5)


SHAPE = {"hidden": (20,), "outputs": 10, "activation": "relu"}


def predict(params, inputs):
    return jax.nn.softmax(networks.mlp_apply(params, inputs, **SHAPE))


def cross_entropy(probabilities, labels):
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], axis=1)).mean()


@pytest.mark.slow
def test_an_ensemble_of_digit_classifiers_beats_its_mean_member_and_its_last():
    data, steps, cycles = digits(), 600, 6
    inputs, labels = data.train[:300].examples()
    schedule = classic.snapshot_cosine(0.2, steps, cycles)
    tx = with_snapshots(classic.momentum(schedule), steps, cycles)

    def train(key):
        def step(carry, t):
            params, state = carry
            i = jax.random.randint(jax.random.fold_in(key, t), (32,), 0, len(inputs))
            loss = lambda params: cross_entropy(predict(params, inputs[i]), labels[i])  # noqa: E731
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = networks.mlp_init(key, inputs[:1], **SHAPE)
        (_, state), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
        return state.snapshots

    def measure(snapshots, inputs, labels):
        members = jax.vmap(lambda w: cross_entropy(predict(w, inputs), labels))(snapshots)
        mean = average_predictions(predict, snapshots, inputs)
        return cross_entropy(mean, labels), members

    snapshots = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2))
    measure_all = jax.jit(jax.vmap(measure, in_axes=(0, None, None)))
    for split in (data.train, data.test):
        ensemble, members = measure_all(snapshots, *split.examples())
        # Jensen: -log is convex, on any data.
        assert np.all(ensemble <= members.mean(axis=1))
    assert np.all(ensemble < members[:, -1])
    assert np.mean(ensemble / members[:, -1]) < 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_snapshots(optax.sgd(0.1), 0, 1), "steps must be a whole number"),
        (lambda: with_snapshots(optax.sgd(0.1), 4, 0), "cycles must be a whole number"),
        (lambda: with_snapshots(optax.sgd(0.1), 4, 5), "cycles must be at most steps=4, got 5"),
        (
            lambda: with_snapshots(optax.sgd(0.1), 9, 4),
            "cycles must leave an update for the last one, got 4: steps=9 are over",
        ),
        (
            lambda: with_snapshots(optax.sgd(0.1), 4, 2).update(
                START, with_snapshots(optax.sgd(0.1), 4, 2).init(START)
            ),
            "with_snapshots needs params",
        ),
        (lambda: average_predictions(predict, {}, 0), "snapshots must have leaves"),
        (lambda: average_predictions(predict, 1.0, 0), "snapshots must have leaves"),
        (
            lambda: average_predictions(predict, (np.ones(2), np.ones(3)), 0),
            r"snapshots must have leaves with one leading axis of snapshots, got \[\(2,\), \(3,\)",
        ),
        (lambda: average_predictions(predict, np.ones(2), 0, last=0), "last must be a whole"),
        (lambda: average_predictions(predict, np.ones(2), 0, last=3), "last must be at most .* 2"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
