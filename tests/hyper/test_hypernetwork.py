"""Hypernetworks against their formulas in numpy, and published numbers of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import hyper
from l2ljax.core import Task

KEY = jax.random.key(0)


def draw(key):
    return {"bias": jnp.full(3, 0.5), "kernel": jax.random.normal(key, (2, 3), jnp.float32)}


def logistic(key):
    return {"bias": jnp.zeros(10), "kernel": jnp.zeros((784, 10))}


@pytest.mark.parametrize(
    ("size", "hidden", "published"),
    [(1, (50,), 400_450), (1, (), 15_700), (7850, (10,), 164_860)],
)
def test_numbers_of_weights_are_those_of_the_paper(size, hidden, published):
    network = hyper.mlp_hypernetwork(logistic, size, hidden=hidden)
    phi = jax.eval_shape(network.init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(phi)) == published


def test_an_mlp_answers_any_tree_of_metaparameters():
    network = hyper.mlp_hypernetwork(draw, 2, hidden=(4,), output_scale=0.5)
    phi = network.init(KEY)
    found = network.apply(phi, {"x": jnp.array(0.3), "y": jnp.array([-2.0])})
    first, last = (jax.tree.map(np.asarray, phi[f"Dense_{i}"]) for i in range(2))
    units = np.maximum(np.array([0.3, -2.0]) @ first["kernel"] + first["bias"], 0)
    flat = units @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(found["bias"], flat[:3], rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], flat[3:].reshape(2, 3), rtol=1e-5)
    # Where λ says nothing, the weights are those that were drawn.
    np.testing.assert_array_equal(network.apply(phi, jnp.zeros(2))["bias"], 0.5)
    with pytest.raises(ValueError, match=r"^lam must hold size=2 numbers, got 3"):
        network.apply(phi, jnp.zeros(3))


def test_knots_interpolate_each_weight():
    network = hyper.interpolating_hypernetwork(draw, -1.0, 2.0, knots=4)
    phi = network.init(KEY)
    places = np.array([-3.0, -1.0, -0.2, 0.0, 1.7, 2.0, 9.0], np.float32)
    found = jax.vmap(network.apply, in_axes=(None, 0))(phi, {"l2": places})["kernel"]
    for i, j in np.ndindex(2, 3):
        expected = np.interp(places, [-1.0, 0.0, 1.0, 2.0], phi["kernel"][:, i, j])
        np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(phi["kernel"], axis=0).min() > 0


def test_a_structured_response_scales_units():
    network = hyper.self_tuning_hypernetwork(draw, 2)
    phi = network.init(KEY)
    random = np.random.default_rng(0)
    phi["response"] = {name: random.normal(size=(2, 3)) for name in ("bias", "kernel")}
    lam = np.array([0.5, -1.0])
    found = network.apply(phi, jnp.asarray(lam))
    # The paper's matrices have a row for each unit; here it is a column.
    diagonal = np.diag(phi["response"]["kernel"].T @ lam)
    expected = phi["elementwise"]["kernel"].T + diagonal @ phi["hyper"]["kernel"].T
    np.testing.assert_allclose(found["kernel"].T, expected, rtol=1e-5)
    bias = phi["elementwise"]["bias"] * (1 + phi["response"]["bias"].T @ lam)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-5)


def test_blocks_of_weights_come_from_embeddings():
    shapes = {"a": (7, 5), "b": (4,), "c": ()}
    network = hyper.static_hypernetwork(
        lambda key: {name: jnp.zeros(shape) for name, shape in shapes.items()},
        block=(3, 4),
        embedding=2,
        width=5,
        size=1,
    )
    phi = network.init(KEY)
    phi = {name: jnp.asarray(leaf) + 0.1 for name, leaf in phi.items()}
    found = network.apply(phi, jnp.array(0.7))
    rows = []
    for z in np.asarray(phi["embeddings"]):
        for w, b in zip(phi["rows"], phi["row_biases"], strict=True):
            a = np.asarray(w).T @ np.append(z, 0.7) + b
            rows.append(a @ phi["out"] + phi["out_bias"])
    blocks = np.array(rows).reshape(-1, 12)
    assert len(blocks) == 5  # three for 35 weights, one for 4, one for 1
    for name, whole, fan_in in [
        ("a", blocks[:3].ravel()[:35], 7),
        ("b", blocks[3][:4], 4),
        ("c", blocks[4][:1], 1),
    ]:
        assert found[name].shape == shapes[name]
        np.testing.assert_allclose(found[name].ravel(), whole / np.sqrt(fan_in), rtol=1e-4)


def test_generated_weights_begin_with_the_variance_of_drawn_ones():
    network = hyper.static_hypernetwork(lambda key: jnp.zeros((400, 100)), embedding=8, width=32)
    made = jax.vmap(network.apply, in_axes=(0, None))(
        jax.vmap(network.init)(jax.random.split(KEY, 20)), ()
    )
    assert 0.85 < np.var(made) * 400 < 1.15


def test_a_generated_task_is_the_task_at_generated_weights():
    task = Task(
        sample=lambda key: jnp.array(2.0),
        init=lambda key, problem: draw(key),
        loss=lambda params, problem, key: problem * jnp.sum(params["kernel"] ** 2),
        objective=lambda params, problem, key: jnp.sum(params["bias"]),
    )
    network = hyper.mlp_hypernetwork(lambda key: task.init(key, ()), 1)
    through = hyper.generated(task, network, jnp.array(0.3))
    phi = through.init(KEY, ())
    params = network.apply(phi, jnp.array(0.3))
    for name in ("loss", "objective"):
        assert getattr(through, name)(phi, 2.0, KEY) == getattr(task, name)(params, 2.0, KEY)
    plain = hyper.generated(Task(task.sample, task.init, task.loss), network, jnp.array(0.3))
    assert plain.objective is plain.loss


def test_bad_networks_are_refused_by_name():
    for make, name in [
        (lambda: hyper.mlp_hypernetwork(draw, 0), "size"),
        (lambda: hyper.mlp_hypernetwork(draw, 1, hidden=(0,)), "hidden"),
        (lambda: hyper.mlp_hypernetwork(draw, 1, activation="relus"), "activation"),
        (lambda: hyper.mlp_hypernetwork(draw, 1, output_scale=0.0), "output_scale"),
        (lambda: hyper.mlp_hypernetwork(lambda key: jnp.arange(3), 1), "init"),
        (lambda: hyper.interpolating_hypernetwork(draw, 0.0, 1.0, knots=1), "knots"),
        (lambda: hyper.interpolating_hypernetwork(draw, 1.0, 1.0), "high"),
        (lambda: hyper.self_tuning_hypernetwork(draw, 0), "size"),
        (lambda: hyper.static_hypernetwork(draw, block=(0, 3)), "block"),
        (lambda: hyper.static_hypernetwork(draw, embedding=0), "embedding"),
        (lambda: hyper.static_hypernetwork(draw, width=0), "width"),
        (lambda: hyper.static_hypernetwork(draw, size=-1), "size"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            make()
