import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import tasks
from l2ljax.core import LearnedTask, Task

KEY = jax.random.key(0)
START = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([4.0, 5.0])}
PLAIN = Task(
    sample=lambda key: (),
    init=lambda key, problem: START,
    loss=lambda params, problem, key: jnp.sum(params["b"]),
)


def bound(task, **psi):
    return task.bind({**task.init(KEY), **psi})


@pytest.mark.parametrize(
    ("per", "logs", "scaled_w", "scaled_b"),
    [
        ("params", np.log(2.0), 2.0, 2.0),
        ("leaf", {"w": np.log(2.0), "b": np.log(3.0)}, 2.0, 3.0),
        (
            "coordinate",
            {"w": np.log([[1.0, 2.0], [3.0, 4.0]]), "b": np.log([5.0, 6.0])},
            np.array([[1.0, 2.0], [3.0, 4.0]]),
            np.array([5.0, 6.0]),
        ),
    ],
)
def test_scales_and_penalties_are_of_all_or_of_leaves_or_of_coordinates(
    per, logs, scaled_w, scaled_b
):
    scaled = tasks.learned_init_scale(PLAIN, 0.5, per=per)
    penalised = tasks.learned_l2(PLAIN, 0.5, per=per)
    for task, name in [(scaled, "init_scale"), (penalised, "l2")]:
        psi = task.init(KEY)
        assert jax.tree.map(jnp.shape, psi) == {name: jax.tree.map(np.shape, logs)}
        assert all(np.allclose(leaf, np.log(0.5)) for leaf in jax.tree.leaves(psi))
    start = bound(scaled, init_scale=logs).init(KEY, ())
    np.testing.assert_allclose(start["w"], scaled_w * START["w"], rtol=1e-6)
    np.testing.assert_allclose(start["b"], scaled_b * START["b"], rtol=1e-6)
    task = bound(penalised, l2=logs)
    expected = np.sum(scaled_w * START["w"] ** 2) + np.sum(scaled_b * START["b"] ** 2)
    penalty = task.loss(START, (), KEY) - task.objective(START, (), KEY)
    np.testing.assert_allclose(penalty, expected, rtol=1e-6)
    assert task.objective(START, (), KEY) == 9


def test_one_start_serves_all_episodes():
    task = tasks.learned_init(tasks.quadratic(dim=3))
    psi = task.init(KEY)
    starts = [task.bind(psi).init(key, None) for key in jax.random.split(KEY, 2)]
    np.testing.assert_array_equal(*starts)
    np.testing.assert_array_equal(starts[0], psi["init"])


def digits(count=10):
    """The first images as training data, and the objective of the others."""
    data = tasks.digits()
    few = tasks.Dataset(train=data.train[:count], classes=10)
    train = tasks.mlp_classifier(few, (), batch_size=None)
    return train, tasks.mlp_classifier(data, (), batch_size=None, split="validation")


def test_data_are_those_of_the_loss_and_not_of_the_objective():
    train, held_out = digits()
    task = tasks.learned_data(train, held_out)
    psi, params = task.init(KEY), train.init(KEY, ())
    images, _ = tasks.digits().train[:10].examples()
    np.testing.assert_array_equal(psi["data"], images)
    np.testing.assert_array_equal(task.bind(psi).loss(params, (), KEY), train.loss(params, (), KEY))
    # Other images are another loss, of the same objective.
    other = task.bind({"data": 2 * psi["data"]})
    kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
    logits = 2 * np.asarray(images).reshape(10, -1) @ kernel + bias
    labels = np.asarray(tasks.digits().train.labels[:10])
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(10), labels])
    np.testing.assert_allclose(other.loss(params, (), KEY), expected, rtol=1e-5)
    np.testing.assert_array_equal(other.objective(params, (), KEY), held_out.loss(params, (), KEY))


def test_they_are_put_together_in_any_order():
    train, held_out = digits()
    first = tasks.learned_l2(tasks.learned_init_scale(tasks.learned_data(train, held_out)))
    last = tasks.learned_data(tasks.learned_init_scale(tasks.learned_l2(train)), held_out)
    psi = first.init(KEY)
    assert sorted(psi) == ["data", "init_scale", "l2"]
    assert jax.tree.map(jnp.shape, last.init(KEY)) == jax.tree.map(jnp.shape, psi)
    psi = {**psi, "l2": jnp.log(0.3), "data": psi["data"] + 0.1}
    params = first.bind(psi).init(KEY, ())
    for name in ("loss", "objective"):
        values = [getattr(task.bind(psi), name)(params, (), KEY) for task in (first, last)]
        np.testing.assert_array_equal(*values)
        assert values[0] != train.loss(params, (), KEY)


def test_what_cannot_be_learned_is_refused_by_name():
    train, held_out = digits()
    penalised = tasks.learned_l2(PLAIN)
    own = LearnedTask(init=lambda key: jnp.zeros(2), bind=lambda psi: PLAIN)
    for make, message in [
        (lambda: tasks.learned_l2(PLAIN, 0.0), "penalty must be a positive number, got 0.0"),
        (lambda: tasks.learned_init_scale(PLAIN, -1.0), "scale must be a positive number"),
        (lambda: tasks.learned_l2(PLAIN, per="leafs"), "per must be one of .* did you mean 'leaf'"),
        (lambda: tasks.learned_l2(penalised), r"no 'l2' in ψ yet, got \['l2'\]"),
        (lambda: tasks.learned_init(own), "must have a dictionary for ψ to have 'init' added"),
        (lambda: tasks.learned_data(PLAIN, held_out), "got 0 splits"),
        (
            lambda: tasks.learned_data(tasks.learned_data(train, held_out), held_out),
            "no 'data' in ψ yet",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    words = tasks.Dataset(train=tasks.Split(jnp.arange(6).reshape(3, 2), jnp.arange(3)))
    embedded = tasks.supervised(
        lambda key, x: jnp.zeros(6), lambda params, x: params[x], lambda z, y: z.sum(axis=1), words
    )
    with pytest.raises(ValueError, match="inputs must have real floating-point leaves, got int32"):
        tasks.learned_data(embedded, embedded)
