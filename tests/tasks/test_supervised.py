import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.serialize_executable import serialize

from l2ljax.tasks import (
    Dataset,
    Split,
    cross_entropy,
    mlp_classifier,
    squared_error,
    supervised,
)

KEY = jax.random.key(0)


def _images(n=12, seed=0):
    """Random images of 2x2 pixels in three classes."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (n, 2, 2, 1)).astype(np.uint8)
    labels = random.randint(0, 3, n).astype(np.int32)
    return Dataset(train=Split(images, labels, maximum=255), name="random", classes=3)


@jax.jit
def _init(task):
    return task.init(KEY, task.sample(KEY))


@jax.jit
def _loss(task, params, key=KEY):
    return task.loss(params, (), key)


@jax.jit
def _value_and_grad(task, params, key=KEY):
    return jax.value_and_grad(task.loss)(params, (), key)


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
    data = _images()
    task = mlp_classifier(data, hidden=(5,), batch_size=None)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _init(task))
        loss, gradient = _value_and_grad(task, params)
        assert loss.dtype == jnp.float64
        expected_loss, expected = _numpy_mlp(params, data.train.inputs, data.train.labels)
        # The pixels are floats of 32 bits; everything after them has 64.
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), gradient, expected)


def test_mlp_minibatch_is_the_one_that_its_key_draws():
    data = _images()
    task = mlp_classifier(data, hidden=(5,), batch_size=4)
    params = _init(task)
    for key in (jax.random.PRNGKey(5), jax.random.key(5), jax.random.key(6)):
        drawn = np.asarray(jax.random.randint(key, (4,), 0, 12))
        split = data.train
        expected, _ = _numpy_mlp(params, split.inputs[drawn], split.labels[drawn])
        np.testing.assert_allclose(_loss(task, params, key), expected, rtol=1e-5)


def test_minibatches_are_uniform_with_replacement():
    # The gradient of the sum of p·x over one-hot inputs x says how often each was drawn.
    data = Dataset(train=Split(np.eye(5), np.zeros(5)))
    task = supervised(
        lambda key, x: jnp.zeros(5), lambda p, x: x @ p, lambda z, y: z, data, batch_size=4
    )
    frequencies = jax.vmap(jax.grad(task.loss), (None, None, 0))
    counts = 4 * np.asarray(jax.jit(frequencies)(jnp.zeros(5), (), jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(counts.mean(axis=0), 0.8, atol=0.06)
    # All four are different in 5·4·3·2 of 5⁴ draws.
    np.testing.assert_allclose(np.mean(counts.max(axis=1) == 1), 120 / 625, atol=0.03)


def test_mlp_initial_distributions_are_the_documented_ones():
    data = Dataset(train=Split(np.zeros((1, 100)), np.zeros(1, int)), classes=10)
    params = _init(mlp_classifier(data, hidden=(400,)))
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), 100**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(params["Dense_1"]["kernel"]), 400**-0.5, rtol=0.05)
    assert not np.any(params["Dense_0"]["bias"])
    params = _init(mlp_classifier(data, hidden=(400,), init_std=0.01))
    np.testing.assert_allclose(np.std(params["Dense_0"]["kernel"]), 0.01, rtol=0.02)
    np.testing.assert_allclose(np.std(params["Dense_0"]["bias"]), 0.01, rtol=0.15)


def test_cross_entropy_is_finite_for_huge_logits():
    logits = jnp.array([[1e37, -1e37, 0.0], [1e37, -1e37, 0.0], [1.0, 2.0, 3.0]])
    labels = jnp.array([0, 1, 2])
    values, pull = jax.vjp(jax.jit(lambda z: cross_entropy(z, labels)), logits)
    (gradient,) = pull(jnp.ones(3))
    np.testing.assert_allclose(values, [0, 2e37, np.log1p(np.exp([-1, -2]).sum())], rtol=1e-6)
    np.testing.assert_array_equal(gradient[:2], [[0, 0, 0], [1, -1, 0]])


def test_mlp_takes_bfloat16_params_and_sums_the_loss_in_float32():
    task = mlp_classifier(_images(), hidden=(5,), batch_size=None)
    params = _init(task)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("strict"):
        exact = _loss(task, params)
        loss, gradient = _value_and_grad(task, half)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(loss, exact, rtol=0.02)


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


def test_a_flax_model_is_a_task_and_computes_what_the_mlp_does():
    data, model = _images(), _Network()
    task = supervised(model.init, model.apply, "cross_entropy", data)
    mlp = mlp_classifier(data, hidden=(5,))
    params = _init(task)
    losses = _loss(task, params), _loss(mlp, params["params"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_plain_functions_are_a_task_that_gradient_descent_solves():
    x = np.random.RandomState(0).randn(20, 3).astype(np.float32)
    truth = np.array([[1.0], [-2.0], [0.5]], np.float32)
    task = supervised(
        lambda key, x: jnp.zeros((x.shape[-1], 1)),
        lambda w, x: x @ w,
        "squared_error",
        Dataset(validation=Split(x, x @ truth)),
        batch_size=None,
        split="validation",
    )
    params = _init(task)
    for _ in range(200):
        params -= 0.2 * _value_and_grad(task, params)[1]
    np.testing.assert_allclose(params, truth, atol=1e-4)
    assert squared_error(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))) == 25


def test_a_loss_may_be_a_scalar_or_one_value_an_example_and_nothing_else():
    def task(loss):
        model = _Network()
        return supervised(model.init, model.apply, loss, _images(), batch_size=4)

    params = _init(task("cross_entropy"))
    scalar = task(lambda z, y: cross_entropy(z, y).mean())
    np.testing.assert_allclose(
        _loss(scalar, params), _loss(task("cross_entropy"), params), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"one value for each of 4 examples, got shape \(4, 3\)"):
        _loss(task(lambda z, y: z), params)


def test_a_model_with_mutable_collections_is_refused_by_name():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1)))

    model = Normalized()
    with pytest.raises(ValueError, match=r"no collections but 'params', got \['batch_stats'\]"):
        supervised(model.init, model.apply, "cross_entropy", _images())


def _program(task):
    return _value_and_grad.lower(task, _init(task), KEY)


def test_data_are_arguments_of_compiled_programs_and_never_constants():
    small, large = (_program(mlp_classifier(_images(n))) for n in (1_000, 10_000))
    texts = [small.as_text(), large.as_text()]
    # The programs differ in nothing but the length of the data.
    assert re.sub(r"10000|9999", "n", texts[1]) == re.sub(r"1000|999", "n", texts[0])
    assert max(map(len, re.findall(r"dense<[^>]*>", texts[1]))) < 200
    small, large = (program.compile() for program in (small, large))
    sizes = [len(serialize(program)[0]) for program in (small, large)]
    assert abs(sizes[1] - sizes[0]) < 1_000
    small, large = (program.memory_analysis() for program in (small, large))
    # Nine thousand examples more, of four bytes and a label.
    assert large.argument_size_in_bytes - small.argument_size_in_bytes == 9_000 * 8


def test_tasks_of_equal_settings_share_one_compiled_program():
    model, traces = _Network(), []

    @jax.jit
    def run(task):
        traces.append(task)
        return task.objective(task.init(KEY, task.sample(KEY)), (), KEY)

    losses = [float(run(mlp_classifier(_images(seed=seed), hidden=[5]))) for seed in (0, 1)]
    assert losses[0] != losses[1] and len(traces) == 1
    for seed in (0, 1):
        run(supervised(model.init, model.apply, "cross_entropy", _images(seed=seed)))
    assert len(traces) == 2
    run(mlp_classifier(_images(), hidden=(5,), batch_size=64))
    assert len(traces) == 3


def test_a_batch_of_problems_does_not_copy_the_data():
    task = mlp_classifier(_images(5_000), hidden=(5,))
    keys = jax.random.split(KEY, 8)
    params = jax.jit(jax.vmap(task.init, (0, None)))(keys, ())
    assert jax.vmap(task.sample)(keys) == ()  # no copy of it sits in a problem
    program = jax.jit(lambda task: jax.vmap(task.loss, (0, None, 0))(params, (), keys))
    program = program.lower(task).as_text()
    assert "tensor<5000x2x2x1xui8>" in program and "8x5000" not in program


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
        mlp_classifier(_images(), **settings)


def test_classifying_without_classes_and_unknown_losses_are_errors():
    with pytest.raises(ValueError, match="number of classes, got None for random"):
        mlp_classifier(Dataset(_images().train, name="random"))
    model = _Network()
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        supervised(model.init, model.apply, "crossentropy", _images())
