"""The suite: that its problems are those of earlier figures, and what they are made of."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import networks, suite, tasks
from l2ljax.meta import begin_episodes
from l2ljax.networks._suite import Conv
from l2ljax.suite import _data as data
from l2ljax.suite import _losses as losses
from l2ljax.suite import _tasks

ROOT = pathlib.Path(__file__).parents[2]
WITHOUT_DATA = [name for name, task in suite.SUITE.items() if not task.needs_data]
WITH_DATA = [name for name, task in suite.SUITE.items() if task.needs_data]

STARTS = {
    "iris": 1.23491,
    "wine": 1.29351,
    "breast-cancer": 0.67784,
    "diabetes": 1.02448,
    "teacher": 1.11489,
    "low-rank": 1.31794,
    "digits-residual": 2.75363,
    "digits-hinge": 8.9748,
    "digits-noise": 2.35334,
    "digits-autoencoder": 20.90356,
    "text-gru": 4.31925,
    "text-transformer": 4.85448,
    "mnist-convnet": 2.31469,
    "mnist-deep": 2.32441,
    "mnist-autoencoder": 543.64697,
    "cifar-convnet": 2.31344,
    "cifar-mlp": 2.31487,
}
"""Mean losses at θ₀ of the 20 problems that figures from before the suite was public are of."""


@jax.jit
def start_of(task, key):
    episodes = begin_episodes(task, key, 20)

    def loss(problem, params, loss_key):
        return task.objective(params, problem, jax.random.fold_in(loss_key, 0))

    return jax.vmap(loss)(*episodes).mean()


def require_the_same_problems(name, data_dir):
    task = suite.SUITE[name].make(data_dir)
    np.testing.assert_allclose(start_of(task, jax.random.key(2_000_000)), STARTS[name], rtol=1e-4)
    params = jax.eval_shape(task.init, jax.random.key(0), ())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 30_000
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_problems_are_those_of_earlier_figures(name):
    require_the_same_problems(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_DATA)
def test_so_are_those_of_mnist_and_cifar(name, data_dir):
    require_the_same_problems(name, data_dir)


def test_the_suite_is_run_as_it_always_was():
    assert list(STARTS) == list(suite.SUITE) and len(WITHOUT_DATA) == 12
    for task in suite.SUITE.values():
        assert (task.problems, task.tuning_problems, task.minibatches) == (20, 4, True)
        assert task.steps == 1000 if "1,000 steps" in task.description else task.steps == 200
        assert task.window == {200: 10, 1000: 50}[task.steps]


def test_the_final_loss_is_that_of_the_last_twentieth_of_the_run():
    task = suite.SUITE["iris"]
    windows = {steps: dataclasses.replace(task, steps=steps).window for steps in (4, 100, 5000)}
    assert windows == {4: 4, 100: 10, 5000: 250}
    assert dataclasses.replace(task, minibatches=False).window == 1


def test_a_part_of_the_suite_and_tasks_of_ones_own_are_chosen_by_name():
    assert [*suite.select()] == WITHOUT_DATA and suite.select("full") == suite.SUITE
    mine = tasks.quadratic(2)
    chosen = suite.select({**suite.select(["iris"]), "mine": mine})
    assert [*chosen] == ["iris", "mine"] and chosen["mine"].make(None) is mine
    with pytest.raises(ValueError, match=r"suite must be one of.*'small'"):
        suite.select("smal")
    with pytest.raises(ValueError, match="did you mean 'iris'"):
        suite.select(["irs"])
    with pytest.raises(ValueError, match="at least one task"):
        suite.select([])


def test_what_is_no_task_is_refused_by_its_name(unchecked):
    with pytest.raises(ValueError, match=r"suite\['mine'\] must be a suite\.SuiteTask"):
        suite.select({"mine": tasks.quadratic})


def test_a_missing_scikit_learn_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"data set iris needs scikit-learn.*l2ljax\[bench\]"):
        suite.SUITE["iris"].make(None)


def test_the_licence_of_the_text_tasks_is_that_of_the_repository():
    assert data.LICENCE.read_bytes() == (ROOT / "LICENSE").read_bytes()


def first_key():
    """Of the generator that compiles fastest."""
    return jax.random.key(0, impl="unsafe_rbg")


def random_like(shapes):
    """Params of these shapes. Compiling their initializers would take most of the time here."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


# Models, losses and data by hand.


@pytest.mark.parametrize("size", [6, 7])
def test_the_product_of_patches_is_a_convolution_with_stride_two(size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    params = {"Dense_0": {"kernel": kernel.reshape(27, 4), "bias": np.zeros(4, np.float32)}}
    found = jax.jit(Conv(4).apply)({"params": params}, images)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [networks.SuiteRecurrent(4, 5), networks.SuiteTransformer(4, 2, 5)],
    ids=["gru", "transformer"],
)
def test_a_model_of_text_does_not_look_ahead(model):
    characters = np.array([[0, 1, 2, 3, 4, 0], [0, 1, 2, 1, 4, 0]])
    params = random_like(jax.eval_shape(model.init, first_key(), characters))
    before, after = np.asarray(jax.jit(model.apply)(params, characters))
    np.testing.assert_allclose(before[:3], after[:3], atol=1e-5)
    assert all(np.abs(before[i] - after[i]).max() > 1e-3 for i in range(3, 6))


def test_losses_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 4)).astype(np.float32)
    labels = rng.integers(4, size=6)
    margins = [
        sum(max(0.0, 1 - z[y] + z[j]) for j in range(4) if j != y)
        for z, y in zip(outputs, labels, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(losses.hinge)(outputs, labels), margins, rtol=1e-5)

    share = rng.random((6, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    by_pixel = -(share * np.log(p) + (1 - share) * np.log(1 - p))
    found = jax.jit(losses.logistic)(outputs, share)
    np.testing.assert_allclose(found, by_pixel.sum(1), rtol=1e-5)

    logits, labels = outputs.reshape(2, 3, 4), labels.reshape(2, 3)
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(chance, labels[..., None], -1)[..., 0])
    found = jax.jit(losses.sequence_cross_entropy)(logits, labels)
    np.testing.assert_allclose(found, nats.mean(1), rtol=1e-5)


def test_labels_of_text_are_the_characters_that_follow():
    dataset, vocabulary = data.text()
    inputs, labels = dataset.train.inputs, dataset.train.labels
    assert inputs.shape[1] == labels.shape[1] == 32
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    np.testing.assert_array_equal(inputs[1:, -1], labels[:-1, -1])
    assert inputs.max() == vocabulary - 1
    symbols = sorted(set(" ".join(data.LICENCE.read_text(encoding="utf-8").split())))
    assert "".join(symbols[i] for i in inputs[0]).startswith("Apache License Version 2.0")


def test_the_entries_of_the_matrix_are_of_low_rank_but_for_noise():
    split = data.low_rank((60, 40), rank=4).train
    assert len(np.unique(split.inputs, axis=0)) == len(split) == 1200
    task = suite.SUITE["low-rank"].make(None)
    params = random_like(jax.eval_shape(task.init, first_key(), ()))
    places = jnp.array([[3, 5], [59, 39]])
    product = params["rows"] @ params["columns"].T
    found = _tasks.factors_apply(jax.tree.map(jnp.asarray, params), places)
    np.testing.assert_allclose(found, product[places[:, 0], places[:, 1]], rtol=1e-5)


def test_a_fifth_of_the_labels_is_random():
    clean, noisy = data.digits().train.labels, data.noisy_digits().train.labels
    # A tenth of those that are drawn anew is right by chance.
    assert 0.14 < np.mean(np.asarray(clean) != noisy) < 0.22
