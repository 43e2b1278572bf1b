import jax
import numpy as np
import pytest

from l2ljax.tasks import CATALOGUE, load, mnist

KEY = jax.random.key(0)


@jax.jit
def _start(task, key):
    """θ₀ of one problem, and its loss on what `key` draws."""
    problem = task.sample(KEY)
    params = task.init(KEY, problem)
    return params, task.loss(params, problem, key)


def _examples(task):
    """The images of a task: its one leaf of bytes."""
    (images,) = (leaf for leaf in jax.tree.leaves(task) if leaf.dtype == np.uint8)
    return np.asarray(images).reshape(len(images), -1)


@pytest.mark.parametrize("name", [n for n, entry in CATALOGUE.items() if not entry.needs_data])
def test_tasks_have_one_structure_and_a_final_window_of_one_where_deterministic(name):
    family = load(name)
    both = (family.train, family.evaluation)
    assert len({str(jax.eval_shape(_start, task, KEY)) for task in both}) == 1
    losses = {float(_start(family.evaluation, jax.random.key(seed))[1]) for seed in range(3)}
    assert np.isfinite(list(losses)).all()
    assert (len(losses) == 1) == (CATALOGUE[name].final_window == 1)


def test_digits_of_meta_training_and_evaluation_do_not_overlap():
    family = load("digits")
    train, evaluation = (
        {image.tobytes() for image in _examples(task)} for task in (family.train, family.evaluation)
    )
    assert (len(train), len(evaluation)) == (898, 719)
    assert not train & evaluation


def test_mnist_is_evaluated_on_images_that_meta_training_never_sees(data_dir):
    data, family = mnist(data_dir), load("mnist", data_dir)
    assert CATALOGUE["mnist"].needs_data
    train, evaluation = map(_examples, (family.train, family.evaluation))
    np.testing.assert_array_equal(train, data.train.inputs.reshape(30_000, -1))
    np.testing.assert_array_equal(evaluation, data.validation.inputs.reshape(30_000, -1))


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(ValueError, match=r"task must be one of .* did you mean 'quadratic'"):
        load("quadratics")
