"""Whatever takes a transformation takes any object with `init` and `update`, with equal results."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2ljax as l2l
from l2ljax import classic, evaluate, hyper, learned, meta, tasks
from tests.meta.small import ridge

KEY = jax.random.key(0)
QUADRATIC = tasks.quadratic(2)
EPISODE = {"horizon": 2, "truncation": 1}


class Own:
    """An optimizer as somebody writes one who does not know optax."""

    def init(self, params):
        return ()

    def update(self, updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, updates), state


class ByValue(Own):
    """One that sees values alone."""

    def update(self, updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda p: 0.1 * value - p / 2, params), state


def steps():
    return optax.MultiSteps(optax.sgd(0.1), 2)


def train(**settings):
    settings = {"key": KEY, "steps": 3, "estimator": meta.truncated(**EPISODE), **settings}
    opt = settings.pop("opt", learned.lstm((2,)))
    return meta.train(opt, settings.pop("task", QUADRATIC), **settings).last_phi


def with_snapshots(tx):
    tx = classic.with_snapshots(tx, steps=4, cycles=2)
    params, state = jnp.ones(2), tx.init(jnp.ones(2))
    for _ in range(4):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params, state.snapshots


def steps_of(opt):
    return meta.unroll(opt.bind(opt.init(KEY)), QUADRATIC, QUADRATIC.sample(KEY), KEY, horizon=3)


def make_step(tx):
    step, state = meta.make_step(learned.lstm((2,)), QUADRATIC, key=KEY, meta_optimizer=tx)
    return step(state, KEY)[0].phi


def network():
    return hyper.mlp_hypernetwork(lambda key: jnp.zeros(()), size=1, hidden=(2,))


TAKERS = {
    "minimize": lambda tx: classic.minimize(
        tx, lambda w, batch: jnp.sum(w**2), jnp.ones(2), steps=4, tolerance=0.0
    ),
    "with_snapshots": with_snapshots,
    "fixed": lambda tx: steps_of(learned.fixed(tx)),
    "a bind of one's own": lambda tx: train(
        opt=l2l.LearnedOptimizer(lambda key: jnp.ones(()), lambda phi: tx)
    ),
    "hyperparameters": lambda tx: steps_of(
        learned.hyperparameters(lambda learning_rate: tx, learning_rate=0.1)
    ),
    "partition": lambda tx: steps_of(learned.partition({"all": learned.fixed(tx)}, {"*": "all"})),
    "scaled": lambda tx: steps_of(learned.fixed(learned.scaled(tx, scale=0.5))),
    "guarded": lambda tx: steps_of(learned.fixed(learned.guarded(tx, tx))),
    "train": lambda tx: train(meta_optimizer=tx),
    "make_step": make_step,
    "imitation": lambda tx: train(estimator=meta.imitation(tx, **EPISODE)),
    "unroll": lambda tx: meta.unroll(tx, QUADRATIC, QUADRATIC.sample(KEY), KEY, horizon=3),
    "unroll_batch": lambda tx: meta.unroll_batch(tx, QUADRATIC, KEY, horizon=3, problems=2),
    "curves": lambda tx: evaluate.curves(tx, QUADRATIC, key=KEY, steps=3, problems=2),
    "compare": lambda tx: list(
        evaluate.compare(
            {"tx": tx, "tuned": evaluate.Tunable(lambda rate: tx, [0.1, 1.0])},
            QUADRATIC,
            key=KEY,
            steps=3,
            problems=2,
            window=1,
        ).curves.values()
    ),
    "range_test": lambda tx: (
        evaluate.range_test(lambda rate: tx, QUADRATIC, key=KEY, steps=4, problems=2).losses
    ),
    "warm_start": lambda tx: tasks.warm_start(QUADRATIC, tx, steps=3).init(
        KEY, QUADRATIC.sample(KEY)
    ),
    "objective": lambda tx: hyper.objective(
        lambda rate: tx, QUADRATIC, steps=3, problems=2, window=1
    )({"rate": 1.0}, KEY),
    "tune_implicit": lambda tx: hyper.tune_implicit(
        ridge(), key=KEY, steps=3, optimizer=tx, meta_optimizer=tx
    ),
    "tune_global": lambda tx: hyper.tune_global(
        ridge(),
        network(),
        jax.random.normal,
        key=KEY,
        steps=3,
        tuning_steps=3,
        optimizer=tx,
        meta_optimizer=tx,
    ),
    "tune_local": lambda tx: hyper.tune_local(
        ridge(), network(), key=KEY, steps=2, std=1.0, optimizer=tx, meta_optimizer=tx
    ),
}


def assert_equal(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert found
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TAKERS)
def test_an_object_is_taken_for_the_transformation_that_it_is(name):
    taker = TAKERS[name]
    assert_equal(taker(steps()), taker(steps().gradient_transformation()))


@pytest.mark.parametrize("name", ["unroll", "train", "minimize"])
def test_an_object_of_ones_own_is_taken_too(name):
    assert_equal(TAKERS[name](Own()), TAKERS[name](optax.sgd(0.1)))


def test_an_object_that_sees_values_asks_and_is_told():
    bounds = [(-1.0, 1.0)] * 2
    plain = optax.GradientTransformationExtraArgs(ByValue().init, ByValue().update)
    runs = [
        hyper.minimize_black_box(tx, lambda x: jnp.sum(x**2) + 1, bounds, horizon=3)
        for tx in (ByValue(), plain)
    ]
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
    asked = hyper.ask_tell(ByValue(), bounds)
    np.testing.assert_allclose(asked.ask(asked.tell(asked.init(), 2.0)), [0.2, 0.2])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", [None, optax.MultiSteps, learned.lstm()])
@pytest.mark.parametrize(
    "name", sorted({*TAKERS} - {"train", "make_step", "tune_implicit", "tune_global", "tune_local"})
)
def test_what_is_no_transformation_is_refused_by_name(name, given):
    with pytest.raises(ValueError, match=r"must be an? .*transformation|must make an optax"):
        TAKERS[name](given)
