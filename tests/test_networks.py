import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import networks
from l2ljax.networks._convnet import _max_pool

HIDDEN = (3, 2)


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def lstm_arguments(*coordinates, hidden=HIDDEN, features=2, dtype=np.float32):
    """Weights, carries and inputs in which no value is special."""
    shapes = jax.eval_shape(
        lambda key: networks.lstm_init(key, features=features, hidden=hidden), jax.random.key(0)
    )
    phi = jax.tree.map(lambda s: normal(s.size, *s.shape, dtype=dtype), shapes)
    carries = tuple(
        (
            normal(i, units, *coordinates, dtype=dtype),
            normal(9 + i, units, *coordinates, dtype=dtype),
        )
        for i, units in enumerate(hidden)
    )
    return phi, carries, normal(5, features, *coordinates, dtype=dtype)


@pytest.mark.parametrize("coordinates", [(5,), (2, 3)], ids=str)
def test_the_lstm_of_many_coordinates_is_vmap_of_the_lstm_of_one(coordinates, x64):
    arguments = lstm_arguments(*coordinates, dtype=np.float64)
    one = functools.partial(networks.lstm_apply, hidden=HIDDEN)
    mapped = one
    for _ in coordinates:
        mapped = jax.vmap(mapped, in_axes=(None, -1, -1), out_axes=-1)

    def weighted(apply, *arguments):
        outputs = apply(*arguments)
        return sum(jnp.sum(jnp.cos(x) * x) for x in jax.tree.leaves(outputs)), outputs

    results = [
        jax.jit(jax.grad(functools.partial(weighted, f), argnums=(0, 1, 2), has_aux=True))(
            *arguments
        )
        for f in (one, mapped)
    ]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), *results)


def test_the_lstm_is_the_formula_in_numpy(x64):
    phi, carries, x = lstm_arguments(4, dtype=np.float64)
    new, output = networks.lstm_apply(phi, carries, x, hidden=HIDDEN)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    features = np.asarray(x)
    for layer, (cell, hidden) in enumerate(carries):
        weights = phi[f"lstm_{layer}"]
        gates = weights["kernel"].T @ np.concatenate([features, hidden])
        i, f, g, o = np.split(gates + np.asarray(weights["bias"])[:, None], 4)
        cell = sigmoid(f) * np.asarray(cell) + sigmoid(i) * np.tanh(g)
        features = sigmoid(o) * np.tanh(cell)
        np.testing.assert_allclose(new[layer][0], cell, rtol=1e-12)
        np.testing.assert_allclose(new[layer][1], features, rtol=1e-12)
    expected = np.asarray(phi["output_kernel"])[:, 0] @ features + phi["output_bias"]
    np.testing.assert_allclose(output, expected, rtol=1e-12)


def test_a_layer_is_the_lstm_cell_of_flax():
    units, features = 4, 3
    phi, ((cell, hidden),), x = lstm_arguments(hidden=(units,), features=features)
    layer = phi["lstm_0"]
    theirs = {}
    for gate, kernel, bias in zip(
        "ifgo", jnp.split(layer["kernel"], 4, axis=1), jnp.split(layer["bias"], 4), strict=True
    ):
        theirs[f"i{gate}"] = {"kernel": kernel[:features]}
        theirs[f"h{gate}"] = {"kernel": kernel[features:], "bias": bias}
    expected, _ = nn.LSTMCell(units).apply({"params": theirs}, (cell, hidden), x)
    (new,), _ = networks.lstm_apply(phi, ((cell, hidden),), x, hidden=(units,))
    for actual, wanted in zip(new, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)


@pytest.mark.parametrize(("features", "weights"), [(1, 5061), (2, 5141)])
def test_two_layers_of_twenty_units_have_the_papers_number_of_weights(features, weights):
    phi = jax.eval_shape(
        lambda key: networks.lstm_init(key, features=features, hidden=(20, 20)), jax.random.key(0)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(phi)) == weights


def assert_normal(sample, std):
    """The mean and the standard deviation lie within four standard errors."""
    sample = np.asarray(sample, np.float64).ravel()
    assert abs(sample.mean()) < 4 * std / math.sqrt(sample.size)
    assert abs(sample.std() / std - 1) < 4 / math.sqrt(2 * sample.size)
    assert abs(np.mean(sample**4) / std**4 / 3 - 1) < 0.3  # normal, not uniform


def jitted(init, **settings):
    """Faster than an `init` that compiles each of its operations alone."""
    return jax.jit(functools.partial(init, **settings))


def test_lstm_layers_are_normal_with_variance_one_over_fan_in_and_forget_biases_are_one():
    phi = jitted(networks.lstm_init, features=2, hidden=(30, 40))(jax.random.key(0))
    assert_normal(phi["lstm_0"]["kernel"], (2 + 30) ** -0.5)
    assert_normal(phi["lstm_1"]["kernel"], (30 + 40) ** -0.5)
    np.testing.assert_array_equal(phi["lstm_0"]["bias"], np.repeat([0, 1, 0, 0], 30))
    np.testing.assert_array_equal(phi["lstm_1"]["bias"], np.repeat([0, 1, 0, 0], 40))
    np.testing.assert_array_equal(phi["output_bias"], [0])
    assert phi["output_kernel"].shape == (40, 1)


def test_an_untrained_lstm_makes_updates_of_a_tenth_of_the_usual_size():
    phi = jitted(networks.lstm_init, features=2, hidden=(2, 900))(jax.random.key(0))
    assert_normal(phi["output_kernel"], 0.1 * 900**-0.5)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_typed_and_raw_keys_draw_the_same_weights(make_key):
    init = jitted(networks.lstm_init, features=1, hidden=(2,))
    phi, expected = init(make_key(3)), init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, phi, expected)


def test_mlp_kernels_are_normal_with_variance_one_over_fan_in_and_biases_are_zero():
    inputs = jnp.zeros((5, 8, 8))
    params = jitted(networks.mlp_init, hidden=(100,), outputs=10)(jax.random.key(0), inputs)
    assert_normal(params["Dense_0"]["kernel"], 64**-0.5)
    assert_normal(params["Dense_1"]["kernel"], 100**-0.5)
    for layer in params.values():
        np.testing.assert_array_equal(layer["bias"], 0)


def test_init_std_is_the_spread_of_kernels_and_biases():
    inputs = jnp.zeros((1, 30))
    params = jitted(networks.mlp_init, hidden=(2000,), outputs=1, init_std=0.01)(
        jax.random.key(0), inputs
    )
    assert_normal(params["Dense_0"]["kernel"], 0.01)
    assert_normal(params["Dense_0"]["bias"], 0.01)


def layer(seed, inputs, outputs):
    return {"kernel": normal(seed, inputs, outputs), "bias": normal(9 + seed, outputs)}


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("sigmoid", lambda v: 1 / (1 + np.exp(-v))),
        ("tanh", np.tanh),
        ("relu", lambda v: np.maximum(v, 0)),
        ("elu", lambda v: np.where(v > 0, v, np.expm1(v))),
    ],
)
def test_the_mlp_is_the_formula_in_numpy(activation, function):
    inputs, shape = normal(0, 4, 2, 3), {"hidden": (5,), "outputs": 2, "activation": activation}
    params = {"Dense_0": layer(1, 6, 5), "Dense_1": layer(2, 5, 2)}
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = function(np.asarray(inputs).reshape(4, 6) @ first["kernel"] + first["bias"])
    expected = hidden @ second["kernel"] + second["bias"]
    outputs = networks.mlp_apply(params, inputs, **shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_without_hidden_layers_the_mlp_is_affine():
    inputs, params = normal(0, 4, 3), {"Dense_0": layer(1, 3, 2)}
    init = functools.partial(networks.mlp_init, hidden=(), outputs=2)
    shapes = jax.eval_shape(init, jax.random.key(0), inputs)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    outputs = networks.mlp_apply(params, inputs, hidden=(), outputs=2)
    expected = inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_an_unknown_activation_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="activation.*'sigmoyd'.*did you mean 'sigmoid'"):
        networks.mlp_init(
            jax.random.key(0), jnp.zeros((1, 2)), hidden=(), outputs=1, activation="sigmoyd"
        )


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_pooling_keeps_what_is_not_a_number(place):
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    assert _max_pool(x).item() == 3
    assert jnp.isnan(_max_pool(x.at[0, *place, 0].set(jnp.nan))).item()
