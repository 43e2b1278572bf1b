"""Every public function that takes a PRNG key raises the same error for anything else."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import l2ljax as l2l
from l2ljax import networks

ROOMS = (
    l2l.classic,
    l2l.evaluate,
    l2l.gaussian_process,
    l2l.hyper,
    l2l.learned,
    l2l.meta,
    l2l.suite,
    l2l.tasks,
    networks,
)

KEY = jax.random.key(0)
TASK = l2l.tasks.quadratic(2)
OPT = l2l.learned.lstm(hidden=(2,))
PENALISED = l2l.LearnedTask(init=lambda key: jnp.zeros(()), bind=lambda psi: TASK)
HYPERNETWORK = l2l.hyper.mlp_hypernetwork(lambda key: jnp.zeros(2), size=1)
POINTS = jnp.linspace(0.0, 1.0, 3)[:, None]


def process():
    known = l2l.gaussian_process.Hyperparameters(jnp.ones(1), jnp.array(1.0), jnp.array(0.1))
    return l2l.gaussian_process.condition(POINTS, POINTS[:, 0], known)


def mean_square(w, batch):
    return jnp.mean((w - batch) ** 2)


CALLS = {
    "classic.minimize": lambda key: l2l.classic.minimize(
        optax.sgd(0.1),
        mean_square,
        jnp.zeros(()),
        jnp.ones(4),
        key=key,
        batch_size=2,
        steps=1,
        tolerance=0.0,
    ),
    "evaluate.benchmark": lambda key: l2l.evaluate.benchmark({"a": optax.sgd(0.1)}, key=key),
    "evaluate.compare": lambda key: l2l.evaluate.compare({"a": optax.sgd(0.1)}, TASK, key=key),
    "evaluate.curves": lambda key: l2l.evaluate.curves(optax.sgd(0.1), TASK, key=key),
    "evaluate.range_test": lambda key: l2l.evaluate.range_test(optax.sgd, TASK, key=key),
    "evaluate.tune": lambda key: l2l.evaluate.tune(optax.sgd, TASK, [0.1], key=key),
    "gaussian_process.propose": lambda key: l2l.gaussian_process.propose(process(), key),
    "gaussian_process.sample": lambda key: l2l.gaussian_process.sample(process(), POINTS, key),
    "hyper.search": lambda key: l2l.hyper.search(
        lambda settings, key: settings["x"], {"x": l2l.hyper.uniform(0, 1)}, key=key
    ),
    "hyper.tune_global": lambda key: l2l.hyper.tune_global(
        PENALISED, HYPERNETWORK, jax.random.normal, key=key, steps=1, tuning_steps=1
    ),
    "hyper.tune_implicit": lambda key: l2l.hyper.tune_implicit(PENALISED, key=key, steps=1),
    "hyper.tune_local": lambda key: l2l.hyper.tune_local(PENALISED, HYPERNETWORK, key=key, steps=1),
    "meta.begin_episode": lambda key: l2l.meta.begin_episode(TASK, key),
    "meta.begin_episodes": lambda key: l2l.meta.begin_episodes(TASK, key, 2),
    "meta.episode_keys": lambda key: l2l.meta.episode_keys(key, 2),
    "meta.make_step": lambda key: l2l.meta.make_step(OPT, TASK, key=key),
    "meta.train": lambda key: l2l.meta.train(OPT, TASK, key=key, steps=1),
    "meta.unroll": lambda key: l2l.meta.unroll(optax.sgd(0.1), TASK, (), key, horizon=1),
    "meta.unroll_batch": lambda key: l2l.meta.unroll_batch(
        l2l.core.as_pytree(optax.sgd(0.1)), TASK, key, horizon=1, problems=1
    ),
    "meta.validation": lambda key: l2l.meta.validation(OPT, TASK, key=key),
    "networks.convnet_init": lambda key: networks.convnet_init(
        key, jnp.zeros((1, 4, 4, 1)), channels=(1,), kernel=3, hidden=(), outputs=1
    ),
    "networks.coordinate_dense_init": lambda key: networks.coordinate_dense_init(
        key, features=1, units=1
    ),
    "networks.coordinate_mlp_init": lambda key: networks.coordinate_mlp_init(
        key, features=1, hidden=(), outputs=1
    ),
    "networks.lstm_init": lambda key: networks.lstm_init(key, features=1, hidden=(1,)),
    "networks.mlp_init": lambda key: networks.mlp_init(
        key, jnp.zeros((1, 1)), hidden=(), outputs=1
    ),
    "networks.recurrent_init": lambda key: networks.recurrent_init(
        key, features=1, units=1, outputs=1
    ),
    # What learned optimizers draw.
    "learned.lstm().init": OPT.init,
    "learned.mlp().init": l2l.learned.mlp().init,
    "learned.rnnprop().init": l2l.learned.rnnprop().init,
    "learned.partition({...}).init": l2l.learned.partition({"a": OPT}, {"*": "a"}).init,
    "learned.adaptive_lstm().init": l2l.learned.adaptive_lstm().init,
    "learned.black_box_lstm(2).init": l2l.learned.black_box_lstm(2).init,
    "learned.surrogate_lstm(2).init": l2l.learned.surrogate_lstm(2).init,
}


def test_the_table_has_every_public_function_with_a_key():
    found = {
        f"{room.__name__.removeprefix('l2ljax.')}.{name}"
        for room in ROOMS
        for name, value in vars(room).items()
        if not name.startswith("_") and inspect.isroutine(value)
        if "key" in inspect.signature(value).parameters
    }
    assert found == {name for name in CALLS if not name.endswith(".init")}


@pytest.mark.parametrize("key", [0, jax.random.split(KEY)], ids=["number", "two keys"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_key_is_refused_by_name(name, key, unchecked):
    with pytest.raises(ValueError, match=r"^key must be a PRNG key such as jax.random.key\(0\)"):
        CALLS[name](key)
