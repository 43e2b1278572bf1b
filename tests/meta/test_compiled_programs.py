"""What compiled programs hold, and how often they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax.core import as_pytree
from l2ljax.evaluate import curves
from l2ljax.learned import lstm
from l2ljax.meta import make_step, train, truncated
from l2ljax.meta._train import _jitted_chunk, _prepare
from l2ljax.meta._unroll import _unroll_batch
from l2ljax.tasks import quadratic, supervised
from l2ljax.tasks._dataset import Dataset, Split

KEY = jax.random.key(0)


def zeros(key, inputs):
    return jnp.zeros(inputs.shape[1])


def linear(params, inputs):
    return inputs @ params


def regression(examples, seed=0):
    inputs, labels = np.split(np.random.default_rng(seed).random((examples, 3), np.float32), [2], 1)
    data = Dataset(train=Split(inputs, labels[:, 0]))
    return supervised(zeros, linear, "squared_error", data, batch_size=4)


def chunk_program(task, horizon=2, batch=2):
    """The text of the program that `train` runs."""
    opt = lstm((2,))
    factory = truncated(horizon=horizon, truncation=horizon)
    _, state = make_step(opt, task, key=KEY, batch=batch, estimator=factory)
    estimates, meta = _prepare(opt, task, batch, None, factory, None)
    return _jitted_chunk.lower(estimates, meta, state, KEY, 1, capacity=3).as_text()


def curves_program(task, horizon=2):
    tx = lstm((2,)).bind(lstm((2,)).init(KEY))
    return _unroll_batch.lower(tx, task, KEY, horizon=horizon, problems=2).as_text()


@pytest.mark.parametrize("program", [chunk_program, curves_program])
def test_a_data_set_is_an_argument_of_the_program_and_no_part_of_it(program):
    small, large = program(regression(100)), program(regression(1000))
    # Only the number of examples, in shapes, is longer by a digit here and there.
    assert abs(len(large) - len(small)) < 0.01 * len(small)
    assert large.replace("1000", "100").count("\n") == small.count("\n")


@pytest.mark.parametrize("program", [chunk_program, curves_program])
def test_a_longer_horizon_makes_no_larger_program(program):
    short, long = program(quadratic(2), 2), program(quadratic(2), 50)
    assert abs(len(long) - len(short)) < 0.02 * len(short)


def test_meta_training_traces_once_for_tasks_of_equal_settings():
    settings = {
        "key": KEY,
        "steps": 3,
        "chunk": 2,
        "estimator": truncated(horizon=2, truncation=2),
        "meta_optimizer": optax.sgd(0.01),
    }
    programs = _jitted_chunk.count()
    train(lstm((2,)), regression(100), **settings)
    assert _jitted_chunk.count() == programs + 1
    # Another data set of the same size, another phi, and a last chunk that is shorter.
    train(lstm((2,)), regression(100, seed=1), **settings | {"key": jax.random.key(1), "steps": 4})
    assert _jitted_chunk.count() == programs + 1


def test_curves_are_traced_once_for_bound_optimizers_and_tasks_of_equal_settings():
    opt = lstm((2,))
    programs = _unroll_batch.count()
    for seed in range(3):
        tx = opt.bind(opt.init(jax.random.key(seed)))
        curves(tx, regression(100, seed), key=jax.random.key(seed), steps=2, problems=2)
    assert _unroll_batch.count() == programs + 1


def test_a_step_of_another_loop_is_traced_once():
    step, state = make_step(
        lstm((2,)), quadratic(2), key=KEY, estimator=truncated(horizon=2, truncation=1)
    )
    programs = step.func.count()
    for i in range(3):
        state, _ = step(state, jax.random.fold_in(KEY, i))
    assert step.func.count() == programs + 1
    assert jnp.all(state.step == 3)


def test_any_transformation_is_an_argument_once_it_is_a_pytree():
    assert (
        "while"
        in _unroll_batch.lower(
            as_pytree(optax.sgd(0.1)), quadratic(2), KEY, horizon=2, problems=2
        ).as_text()
    )
