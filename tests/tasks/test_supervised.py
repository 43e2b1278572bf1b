import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.serialize_executable import serialize
from small_images import KEY, draw, images, loss_at, value_and_grad

from l2ljax.tasks import (
    Dataset,
    Split,
    cross_entropy,
    mlp_classifier,
    squared_error,
    supervised,
)


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


def test_cross_entropy_is_finite_for_huge_logits():
    logits = jnp.array([[1e37, -1e37, 0.0], [1e37, -1e37, 0.0], [1.0, 2.0, 3.0]])
    labels = jnp.array([0, 1, 2])
    values, pull = jax.vjp(jax.jit(lambda z: cross_entropy(z, labels)), logits)
    (gradient,) = pull(jnp.ones(3))
    np.testing.assert_allclose(values, [0, 2e37, np.log1p(np.exp([-1, -2]).sum())], rtol=1e-6)
    np.testing.assert_array_equal(gradient[:2], [[0, 0, 0], [1, -1, 0]])


def test_a_label_without_a_logit_is_no_perfect_prediction():
    logits = jnp.zeros((4, 3))
    values = jax.jit(cross_entropy)(logits, jnp.array([-1, 0, 2, 3]))
    np.testing.assert_allclose(values, [np.nan, np.log(3), np.log(3), np.nan], rtol=1e-6)
    # A byte cannot count three hundred classes: class 0 must not be 256 as well.
    wide = jnp.zeros((1, 300)).at[0, 256].set(20.0)
    assert cross_entropy(wide, jnp.zeros(1, jnp.uint8)) > 19


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((4, 3), jnp.ones(4), r"labels must be integers of the shape \(4,\).*got float32"),
        ((4, 3), jnp.ones((4, 3), int), r"got int32 of the shape \(4, 3\); of one-hot labels take"),
        ((4, 3), jnp.ones((4, 1), int), r"got int32 of the shape \(4, 1\)"),
        ((4, 3), jnp.ones(3, int), r"each row of the logits \(4, 3\), got int32 of the shape \(3,"),
        (
            (4,),
            jnp.ones(4, int),
            r"logits must be .* \(n, classes\), got float32 of the shape \(4,",
        ),
    ],
)
def test_cross_entropy_refuses_what_is_no_class_number_for_each_row(
    logits, labels, message, unchecked
):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(cross_entropy, jnp.zeros(logits), labels)


def test_squared_error_does_not_broadcast(unchecked):
    with pytest.raises(ValueError, match=r"got outputs \(4, 1\) and labels \(4,\)"):
        squared_error(jnp.zeros((4, 1)), jnp.zeros(4))
    lines = Dataset(train=Split(np.eye(4), np.ones(4)))
    with pytest.raises(ValueError, match=r"got outputs \(2, 1\) and labels \(2,\)"):
        supervised(lambda key, x: jnp.zeros((4, 1)), lambda w, x: x @ w, "squared_error", lines, 2)


@pytest.mark.parametrize("loss", ["cross_entropy", cross_entropy])
@pytest.mark.parametrize(("low", "outputs"), [(0, 2), (-1, 3)])
def test_a_model_with_fewer_outputs_than_classes_is_refused(loss, low, outputs):
    data = Dataset(train=Split(np.eye(3), low + np.arange(3)))
    with pytest.raises(ValueError, match=f"from 0 to {outputs - 1}.*got {low} to {low + 2}"):
        supervised(lambda key, x: jnp.zeros((3, outputs)), lambda w, x: x @ w, loss, data, None)


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


def test_a_flax_model_is_a_task_and_computes_what_the_mlp_does():
    data, model = images(), _Network()
    task = supervised(model.init, model.apply, "cross_entropy", data)
    mlp = mlp_classifier(data, hidden=(5,))
    params = draw(task)
    losses = loss_at(task, params), loss_at(mlp, params["params"])
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
    params = draw(task)
    for _ in range(200):
        params -= 0.2 * value_and_grad(task, params)[1]
    np.testing.assert_allclose(params, truth, atol=1e-4)
    assert squared_error(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))) == 25


def test_a_loss_may_be_a_scalar_or_one_value_an_example_and_nothing_else():
    def task(loss):
        model = _Network()
        return supervised(model.init, model.apply, loss, images(), batch_size=4)

    params = draw(task("cross_entropy"))
    scalar = task(lambda z, y: cross_entropy(z, y).mean())
    np.testing.assert_allclose(
        loss_at(scalar, params), loss_at(task("cross_entropy"), params), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"one value for each of 4 examples, got shape \(4, 3\)"):
        loss_at(task(lambda z, y: z), params)


def test_a_model_with_mutable_collections_is_refused_by_name():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1)))

    model = Normalized()
    with pytest.raises(ValueError, match=r"no collections but 'params', got \['batch_stats'\]"):
        supervised(model.init, model.apply, "cross_entropy", images())


def _program(task):
    return value_and_grad.lower(task, draw(task), KEY)


def test_data_are_arguments_of_compiled_programs_and_never_constants():
    small, large = (_program(mlp_classifier(images(n))) for n in (1_000, 10_000))
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

    losses = [float(run(mlp_classifier(images(seed=seed), hidden=[5]))) for seed in (0, 1)]
    assert losses[0] != losses[1] and len(traces) == 1
    for seed in (0, 1):
        run(supervised(model.init, model.apply, "cross_entropy", images(seed=seed)))
    assert len(traces) == 2
    run(mlp_classifier(images(), hidden=(5,), batch_size=64))
    assert len(traces) == 3


def test_a_batch_of_problems_does_not_copy_the_data():
    task = mlp_classifier(images(5_000), hidden=(5,))
    keys = jax.random.split(KEY, 8)
    params = jax.jit(jax.vmap(task.init, (0, None)))(keys, ())
    assert jax.vmap(task.sample)(keys) == ()  # no copy of it sits in a problem
    program = jax.jit(lambda task: jax.vmap(task.loss, (0, None, 0))(params, (), keys))
    program = program.lower(task).as_text()
    assert "tensor<5000x2x2x1xui8>" in program and "8x5000" not in program


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    model = _Network()
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        supervised(model.init, model.apply, "crossentropy", images())


def test_a_model_with_dropout_is_refused_with_what_to_do():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1)))

    class NoisyWhenApplied(nn.Module):
        @nn.compact
        def __call__(self, x):
            quiet = self.is_initializing()
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=quiet)(x.reshape(len(x), -1)))

    for model in (Noisy(), NoisyWhenApplied()):
        with pytest.raises(ValueError, match="passes no rngs, so dropout has to be off"):
            supervised(model.init, model.apply, "cross_entropy", images())


def test_what_is_no_data_set_and_no_function_is_refused_by_its_name(unchecked):
    model, data = _Network(), images()
    for dataset, got in [((1, 2), "got <class 'tuple'>"), (data.train, "got a Split")]:
        message = rf"dataset must be a tasks\.Dataset, {got}.*Dataset\(train=Split\(x, y\)\)"
        with pytest.raises(ValueError, match=message):
            supervised(model.init, model.apply, "cross_entropy", dataset)
        with pytest.raises(ValueError, match=message):
            mlp_classifier(dataset)
    with pytest.raises(ValueError, match="loss must be a function or one of .*, got None"):
        supervised(model.init, model.apply, None, data)
    for loss, name in [("cross_entropy", "logits"), ("squared_error", "outputs")]:
        with pytest.raises(ValueError, match=f"{name} must be an array, got <class 'tuple'>"):
            supervised(model.init, lambda p, x: (model.apply(p, x), 1), loss, data)
    with pytest.raises(ValueError, match="apply must be a function, got 3"):
        supervised(model.init, 3, "cross_entropy", data)
    with pytest.raises(ValueError, match="hidden must be a sequence of whole numbers, got 20"):
        mlp_classifier(data, hidden=20)
