import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import Task, tasks

KEY = jax.random.key(0)
START = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}


def loss(params, problem, key):
    return jnp.sum((params["w"] - problem) ** 2) + params["b"] ** 4 + jax.random.normal(key)


plain = Task(
    sample=lambda key: jax.random.normal(key, (3,)), init=lambda key, problem: START, loss=loss
)


def test_the_function_and_its_start_are_the_tasks_in_other_coordinates():
    task = tasks.augment(plain, coordinate=2.0, leaf=1.0)
    problem = task.sample(KEY)
    params = task.init(KEY, problem)
    inner, scales, loss_scale = problem
    jax.tree.map(
        lambda p, c, s: np.testing.assert_allclose(p * c, s, rtol=1e-6), params, scales, START
    )
    assert loss_scale == 1
    np.testing.assert_allclose(
        task.loss(params, problem, KEY), plain.loss(START, inner, KEY), rtol=1e-6
    )
    gradient = jax.grad(task.loss)(params, problem, KEY)
    expected = jax.tree.map(jnp.multiply, scales, jax.grad(plain.loss)(START, inner, KEY))
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4), gradient, expected)


def scales_of(task, number=2000):
    problems = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, number))
    return jax.tree.map(np.log, problems[1:])


@pytest.mark.parametrize("kind", ["coordinate", "leaf", "params"])
def test_log_scales_are_uniform_alone_or_for_a_leaf_or_for_all(kind):
    logs, losses = scales_of(tasks.augment(plain, **{kind: 1.5}))
    w = logs["w"]
    assert np.all(losses == 0)
    np.testing.assert_allclose([w.min(), w.max()], [-1.5, 1.5], atol=0.02)
    np.testing.assert_allclose(w.std(), 1.5 / np.sqrt(3), rtol=0.05)
    for other, same in [(w[:, 1], kind != "coordinate"), (logs["b"], kind == "params")]:
        assert np.all(w[:, 0] == other) == same
        assert same or abs(np.corrcoef(w[:, 0], other)[0, 1]) < 0.1


def test_a_scaled_loss_keeps_the_objective():
    task = tasks.augment(plain, loss=2.0)
    problem = task.sample(KEY)
    inner, _, loss_scale = problem
    params = task.init(KEY, problem)
    np.testing.assert_allclose(task.objective(params, problem, KEY), plain.loss(START, inner, KEY))
    np.testing.assert_allclose(
        task.loss(params, problem, KEY), loss_scale * plain.loss(START, inner, KEY), rtol=1e-6
    )
    logs, losses = scales_of(task)
    assert np.all(logs["w"] == 0)
    np.testing.assert_allclose([losses.min(), losses.max()], [-2, 2], atol=0.03)


def test_the_objective_is_the_loss_object_if_nothing_scales_it():
    task = tasks.augment(plain, coordinate=1.0)
    assert task.objective is task.loss


def test_without_ranges_it_is_the_task():
    task = tasks.augment(plain)
    problem = task.sample(KEY)
    params = task.init(KEY, problem)
    jax.tree.map(np.testing.assert_array_equal, params, START)
    assert task.loss(params, problem, KEY) == plain.loss(params, problem[0], KEY)


def test_scales_have_the_dtype_of_the_params():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), START)
    task = tasks.augment(
        Task(sample=lambda key: (), init=lambda key, problem: half, loss=loss), coordinate=1.0
    )
    params = task.init(KEY, task.sample(KEY))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_refuses_ranges_and_params_that_cannot_be_scaled():
    for name in ("coordinate", "leaf", "params", "loss"):
        with pytest.raises(ValueError, match=f"{name} must be a non-negative number, got -1"):
            tasks.augment(plain, **{name: -1.0})
    whole = Task(
        sample=lambda key: (),
        init=lambda key, problem: jnp.arange(3),
        loss=lambda params, problem, key: jnp.sum(params * 1.0),
    )
    task = tasks.augment(whole, coordinate=1.0)
    with pytest.raises(ValueError, match="params must have real floating-point leaves"):
        task.init(KEY, task.sample(KEY))
