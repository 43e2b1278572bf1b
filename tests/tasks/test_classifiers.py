import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate
from small_images import draw, images, loss_at, value_and_grad

from l2ljax import networks
from l2ljax.tasks import Dataset, Split, convnet_classifier, mlp_classifier


def _numpy_mlp(params, images, labels):
    """The loss and gradient of a sigmoid MLP by hand, in float64."""
    x = np.asarray(images, np.float64).reshape(len(images), -1) / 255
    w0, b0, w1, b1 = (
        np.asarray(params[layer][name], np.float64)
        for layer in ("Dense_0", "Dense_1")
        for name in ("kernel", "bias")
    )
    h = 1 / (1 + np.exp(-(x @ w0 + b0)))
    p = np.exp(h @ w1 + b1)
    p /= p.sum(axis=1, keepdims=True)
    one_hot = np.eye(3)[labels]
    dz1 = (p - one_hot) / len(x)
    dz0 = dz1 @ w1.T * h * (1 - h)
    gradient = {
        "Dense_0": {"bias": dz0.sum(0), "kernel": x.T @ dz0},
        "Dense_1": {"bias": dz1.sum(0), "kernel": h.T @ dz1},
    }
    return -np.mean(np.log(p[np.arange(len(x)), labels])), gradient


def test_mlp_loss_and_gradient_match_numpy_in_float64():
    data = images()
    task = mlp_classifier(data, hidden=(5,), batch_size=None)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), draw(task))
        loss, gradient = value_and_grad(task, params)
        assert loss.dtype == jnp.float64
        expected_loss, expected = _numpy_mlp(params, data.train.inputs, data.train.labels)
        # The pixels are floats of 32 bits; everything after them has 64.
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), gradient, expected)


def test_mlp_minibatch_is_the_one_that_its_key_draws():
    data = images()
    task = mlp_classifier(data, hidden=(5,), batch_size=4)
    params = draw(task)
    for key in (jax.random.PRNGKey(5), jax.random.key(5), jax.random.key(6)):
        drawn = np.asarray(jax.random.randint(key, (4,), 0, 12))
        split = data.train
        expected, _ = _numpy_mlp(params, split.inputs[drawn], split.labels[drawn])
        np.testing.assert_allclose(loss_at(task, params, key), expected, rtol=1e-5)


def test_mlp_initial_distributions_are_the_documented_ones():
    data = Dataset(train=Split(np.zeros((1, 100)), np.zeros(1, int)), classes=10)
    params = draw(mlp_classifier(data, hidden=(400,)))
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), 100**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(params["Dense_1"]["kernel"]), 400**-0.5, rtol=0.05)
    assert not np.any(params["Dense_0"]["bias"])
    params = draw(mlp_classifier(data, hidden=(400,), init_std=0.01))
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), 0.01, rtol=0.02)
    np.testing.assert_allclose(np.std(params["Dense_0"]["bias"]), 0.01, rtol=0.15)


def test_mlp_takes_bfloat16_params_and_sums_the_loss_in_float32():
    task = mlp_classifier(images(), hidden=(5,), batch_size=None)
    params = draw(task)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("strict"):
        exact = loss_at(task, params)
        loss, gradient = value_and_grad(task, half)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(loss, exact, rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (20, 0)}, "hidden must be a whole number of at least 1, got 0"),
        ({"activation": "sigmoidal"}, "did you mean 'sigmoid'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"split": "test"}, "the test split of random must have examples"),
        ({"init_std": -0.01}, "init_std must be a non-negative number, got -0.01"),
    ],
)
def test_mlp_classifier_names_a_bad_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        mlp_classifier(images(), **settings)


def test_classifying_without_classes_is_refused():
    for classifier in (mlp_classifier, convnet_classifier):
        with pytest.raises(ValueError, match="number of classes, got None for random"):
            classifier(Dataset(images().train, name="random"))


# Convolutional networks.

SMALL = {"channels": (3, 2), "kernel": 3, "hidden": (4,), "activation": "elu"}


def photographs(count=6, classes=3):
    """Random images, of an odd width, in two colours."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 6, 5, 2)).astype(np.uint8)
    labels = random.integers(0, classes, count).astype(np.int32)
    return Dataset(train=Split(pixels, labels, maximum=255), name="photographs", classes=classes)


def generic_like(shapes, dtype=np.float64):
    """Params in which no value is special."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape), dtype), shapes)


def small_task(**settings):
    return convnet_classifier(photographs(), **{**SMALL, "batch_size": None, **settings})


def shapes(task):
    return jax.eval_shape(lambda: task.init(jax.random.key(0), ()))


def _numpy_batch_norm(x, norm):
    x = x.reshape(-1, x.shape[-1])
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]


def _numpy_convnet(params, x, batch_norm):
    """The logits by hand, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def hidden_layer(x, layer, kind, number):
        if batch_norm:
            norm = params[f"{kind}Norm_{number}"]
            return _numpy_batch_norm(x, norm).reshape(x.shape)
        return x + layer["bias"]

    for number in range(2):
        layer = params[f"Conv_{number}"]
        x = np.stack(
            [
                sum(
                    np.stack([correlate(image[..., i], filter_[..., i], "same") for image in x])
                    for i in range(x.shape[-1])
                )
                for filter_ in np.moveaxis(layer["kernel"], -1, 0)
            ],
            axis=-1,
        )
        x = hidden_layer(x, layer, "Conv", number)
        x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        quarters = [x[:, i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)]
        x = np.max(quarters, axis=0)
    x = x.reshape(len(x), -1) @ params["Dense_0"]["kernel"]
    x = hidden_layer(x, params["Dense_0"], "Dense", 0)
    x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch_norm", "biases"])
def test_the_convnet_is_the_formula_in_numpy(batch_norm, x64):
    x = np.random.default_rng(2).normal(size=(4, 6, 5, 2))
    params = generic_like(shapes(small_task(batch_norm=batch_norm)))
    apply = functools.partial(networks.convnet_apply, **SMALL, outputs=3, batch_norm=batch_norm)
    with jax.numpy_dtype_promotion("strict"):
        outputs = jax.jit(apply)(params, jnp.asarray(x))
    np.testing.assert_allclose(outputs, _numpy_convnet(params, x, batch_norm), rtol=1e-10)


def test_a_batch_is_normalized_by_its_own_statistics(x64):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, 5, 2)))
    params = generic_like(shapes(small_task()))
    apply = jax.jit(functools.partial(networks.convnet_apply, **SMALL, outputs=3))
    outputs = apply(params, x)
    # What the statistics take away: the scale of a layer before it.
    scaled = {**params, "Conv_0": {"kernel": 100 * params["Conv_0"]["kernel"]}}
    np.testing.assert_allclose(apply(scaled, x), outputs, rtol=1e-3)
    # They are those of the whole batch: an example's logits depend on the others.
    changed = apply(params, x.at[3].mul(2.0))
    assert np.abs(changed[0] - outputs[0]).max() > 0.01
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(params, x[order]), outputs[order], rtol=1e-10)


@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch_norm", "biases"])
def test_convnet_gradients_equal_finite_differences(batch_norm, x64):
    task = small_task(batch_norm=batch_norm)
    params = generic_like(shapes(task))
    _, gradient = value_and_grad(task, params)
    random, width = np.random.default_rng(3), 1e-6
    for _ in range(3):
        direction = jax.tree.map(lambda w: random.normal(size=w.shape), params)
        above, below = (
            loss_at(task, jax.tree.map(lambda w, d, s=s: w + s * width * d, params, direction))
            for s in (1, -1)
        )
        expected = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        np.testing.assert_allclose((above - below) / (2 * width), expected, rtol=1e-6)


@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_convnet_kernels_of_any_size_have_the_gradients_of_flax(kernel):
    x = np.random.default_rng(2).normal(size=(4, 6, 5, 2)).astype(np.float32)
    conv = nn.Conv(3, (kernel, kernel))
    shape = {"channels": (3,), "kernel": kernel, "hidden": (), "outputs": 3, "batch_norm": False}
    params = networks.convnet_init(jax.random.key(0), jnp.asarray(x), **shape)

    def theirs(params, x):
        x = conv.apply({"params": params["Conv_0"]}, x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2)).reshape(len(x), -1)
        return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    def ours(params, x):
        return networks.convnet_apply(params, x, **shape)

    results = [
        jax.jit(jax.grad(lambda p, x, f=f: jnp.sum(jnp.sin(f(p, x))), argnums=(0, 1)))(params, x)
        for f in (ours, theirs)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize("kernel", [2, 3])
def test_hessian_vector_products_of_the_convnet_equal_finite_differences(kernel, x64):
    task = small_task(batch_norm=False, kernel=kernel)
    params = generic_like(shapes(task))
    random, width = np.random.default_rng(3), 1e-6
    direction = jax.tree.map(lambda w: jnp.asarray(random.normal(size=w.shape)), params)
    gradient = jax.grad(lambda p: task.loss(p, (), jax.random.key(0)))

    def forward(params):
        return jax.jvp(gradient, (params,), (direction,))[1]

    def reverse(params):
        return jax.vjp(gradient, params)[1](direction)[0]

    above, below = (
        value_and_grad(task, jax.tree.map(lambda w, d, s=s: w + s * width * d, params, direction))
        for s in (1, -1)
    )

    def one_of_two(params):
        pair = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
        return jax.tree.map(lambda leaf: leaf[0], jax.vmap(reverse)(pair))

    for product in (forward, reverse, one_of_two):  # XLA once miscompiled the second
        jax.tree.map(
            lambda actual, a, b: np.testing.assert_allclose(
                actual, (a - b) / (2 * width), rtol=1e-5, atol=1e-6
            ),
            jax.jit(product)(params),
            above[1],
            below[1],
        )


def test_the_convnet_takes_bfloat16_params_and_sums_in_float32():
    task = small_task()
    params = generic_like(shapes(task), np.float32)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("strict"):
        exact, direction = value_and_grad(task, params)
        loss, gradient = value_and_grad(task, half)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(loss, exact, rtol=0.05)
    flat, wanted = (
        np.concatenate([np.ravel(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, direction)
    )
    assert flat @ wanted > 0.99 * np.linalg.norm(flat) * np.linalg.norm(wanted)


def test_a_batch_of_convnets_computes_each_alone():
    task = small_task()
    params = [generic_like(shapes(task), np.float32), draw(task)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    key = jax.random.key(0)
    batched = jax.jit(jax.vmap(jax.value_and_grad(task.loss), (0, None, None)))(stacked, (), key)
    for i, alone in enumerate(params):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            batched,
            value_and_grad(task, alone, key),
        )


def test_convnet_weights_are_normal_with_variance_one_over_fan_in_and_biases_are_zero():
    settings = {"channels": (64, 32), "kernel": 5, "hidden": (128,)}
    params = draw(small_task(**settings))
    assert sorted(params["Conv_0"]) == sorted(params["Dense_0"]) == ["kernel"]
    fans = {"Conv_0": 25 * 2, "Conv_1": 25 * 64, "Dense_0": 32, "Dense_1": 128}
    for layer, fan_in in fans.items():
        kernel = np.asarray(params[layer]["kernel"])
        assert abs(kernel.std() * fan_in**0.5 - 1) < 4 / (2 * kernel.size) ** 0.5
        assert abs(kernel.mean()) < 4 * (fan_in * kernel.size) ** -0.5
    for norm in ("ConvNorm_0", "ConvNorm_1", "DenseNorm_0"):
        np.testing.assert_array_equal(params[norm]["scale"], 1)
        np.testing.assert_array_equal(params[norm]["bias"], 0)
    without = draw(small_task(batch_norm=False, **settings))
    assert sorted(without) == ["Conv_0", "Conv_1", "Dense_0", "Dense_1"]
    for layer in without.values():
        np.testing.assert_array_equal(layer["bias"], 0)


def test_images_of_any_precision_give_single_precision_weights(x64):
    for dtype in (jnp.float64, jnp.bfloat16):
        init = functools.partial(networks.convnet_init, **SMALL, outputs=3)
        params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 6, 5, 2), dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_the_default_convnet_has_the_documented_layers():
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    data = Dataset(train=Split(pixels, np.zeros(1, np.int32), maximum=255), classes=10)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes(convnet_classifier(data)))
    }
    assert leaves == {
        "Conv_0/kernel": (5, 5, 3, 16),
        "Conv_1/kernel": (5, 5, 16, 16),
        "Conv_2/kernel": (5, 5, 16, 16),
        **{f"ConvNorm_{i}/{name}": (16,) for i in range(3) for name in ("scale", "bias")},
        "Dense_0/kernel": (4 * 4 * 16, 32),
        "DenseNorm_0/scale": (32,),
        "DenseNorm_0/bias": (32,),
        "Dense_1/kernel": (32, 10),
        "Dense_1/bias": (10,),
    }


def test_without_convolutions_and_norms_the_convnet_is_the_mlp():
    data = images()
    mlp = mlp_classifier(data, hidden=(5,), activation="tanh")
    net = convnet_classifier(data, (), hidden=(5,), activation="tanh", batch_norm=False)
    params = draw(mlp)
    np.testing.assert_allclose(loss_at(net, params), loss_at(mlp, params), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (3, 0)}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": (3, 3, 3)}, "channels must have fewer layers .* got 3 for images of 6x5"),
        ({"kernel": 0}, "kernel must be a whole number of at least 1, got 0"),
        ({"hidden": (0,)}, "hidden must be a whole number of at least 1, got 0"),
        ({"activation": "relux"}, "did you mean 'relu'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"split": "test"}, "the test split of photographs must have examples"),
    ],
)
def test_convnet_classifier_names_a_bad_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        small_task(**settings)


def test_inputs_that_are_no_images_are_refused():
    flat = Dataset(train=Split(np.zeros((2, 9)), np.zeros(2, int)), classes=2)
    with pytest.raises(ValueError, match=r"images \[n, height, .* got inputs of shape \(2, 9\)"):
        convnet_classifier(flat)
