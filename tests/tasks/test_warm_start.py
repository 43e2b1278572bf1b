import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import Task, tasks

KEY = jax.random.key(0)


def loss(params, problem, key):
    return 0.5 * problem * jnp.sum(params**2)


def objective(params, problem, key):
    return loss(params, problem, key) + 1.0


plain = Task(
    sample=lambda key: jnp.float32(2.0),
    init=lambda key, problem: 1.0 + jax.random.uniform(key, (3,)),
    loss=loss,
    objective=objective,
)


def test_it_begins_after_every_number_of_steps_up_to_the_last():
    # Gradient descent on a quadratic: every step divides params by two.
    task = tasks.warm_start(plain, optax.sgd(0.25), steps=4)
    keys = jax.random.split(KEY, 2000)
    starts = jax.vmap(lambda key: task.init(key, 2.0) / plain.init(key, 2.0))(keys)
    halvings = -np.log2(starts)
    numbers = np.round(halvings[:, 0])
    np.testing.assert_allclose(halvings, np.tile(numbers[:, None], 3), atol=1e-5)
    found, counts = np.unique(numbers, return_counts=True)
    np.testing.assert_array_equal(found, range(5))
    np.testing.assert_allclose(counts / len(keys), 0.2, atol=0.04)


def test_gradients_of_minibatches_are_drawn_anew_and_momentum_is_kept():
    noisy = Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.zeros(()),
        loss=lambda params, problem, key: params * jax.random.normal(key),
    )
    # Its params are the sum of the noise; with momentum that does not decay, a sum of sums.
    ends = {}
    for decay in (0.0, 1.0):
        task = tasks.warm_start(noisy, optax.sgd(1.0, momentum=decay), steps=1)
        longer = tasks.warm_start(noisy, optax.sgd(1.0, momentum=decay), steps=30)
        keys = jax.random.split(KEY, 3000)
        ends[decay] = [
            float(jnp.var(jax.vmap(lambda key, t=t: t.init(key, ()))(keys))) for t in (task, longer)
        ]
    # n ~ U{0..N}: variances E[n] and E[n(n+1)(2n+1)/6].
    np.testing.assert_allclose(ends[0.0], [0.5, 15.0], rtol=0.15)
    np.testing.assert_allclose(
        ends[1.0][1], np.mean([n * (n + 1) * (2 * n + 1) / 6 for n in range(31)]), rtol=0.15
    )


def test_loss_objective_and_problems_are_the_tasks():
    task = tasks.warm_start(plain, optax.sgd(0.25), steps=2)
    assert (task.sample, task.loss, task.objective) == (plain.sample, plain.loss, plain.objective)
    alone = Task(plain.sample, plain.init, plain.loss)
    alone = tasks.warm_start(alone, optax.sgd(0.25), steps=2)
    assert alone.objective is alone.loss


def test_it_refuses_no_steps():
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        tasks.warm_start(plain, optax.sgd(0.25), steps=0)
