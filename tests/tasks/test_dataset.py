import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.tasks import Dataset, Split


def _split(inputs=5, labels=5, largest=2):
    return Split(np.zeros((inputs, 2)), np.full(labels, largest))


def test_images_become_floats_in_zero_to_one_a_batch_at_a_time():
    levels = np.arange(256, dtype=np.uint8)
    split = Split(levels[:, None], levels, maximum=255)
    with jax.numpy_dtype_promotion("strict"):
        inputs, labels = split.examples()
        drawn, _ = jax.jit(Split.examples)(split, jnp.array([255, 0, 51]))
    assert inputs.dtype == drawn.dtype == jnp.float32 and split.inputs.dtype == np.uint8
    np.testing.assert_allclose(inputs[:, 0], levels / 255, atol=1e-7)
    np.testing.assert_allclose(drawn[:, 0], [1, 0, 0.2], atol=1e-7)
    np.testing.assert_array_equal(labels, levels)


def test_inputs_without_a_maximum_stay_as_they_are():
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    inputs, _ = Split(tokens, np.zeros(2)).examples(jnp.array([1]))
    assert inputs.dtype == jnp.int32
    np.testing.assert_array_equal(inputs, tokens[1:])


def test_a_split_that_devices_share_has_no_slices():
    shared = Split(np.zeros((4, 2)), np.zeros(4)).split_over("problems", 2)
    with pytest.raises(ValueError, match="must be sliced before it is split over 'problems'"):
        shared[:2]


def test_dataset_is_a_pytree_of_arrays_with_static_facts():
    dataset = Dataset(train=_split(), test=_split(3, 3), name="corners", classes=3)
    assert len(jax.tree.leaves(dataset)) == 4
    doubled = jax.tree.map(lambda leaf: 2 * leaf, dataset)
    assert (doubled.name, doubled.classes, len(doubled.test)) == ("corners", 3, 3)
    # Tree operations put anything in the place of a leaf.
    assert jax.tree.map(np.ndim, dataset).train.inputs == 2
    with pytest.raises(AttributeError):
        dataset.name = "other"


@pytest.mark.parametrize(
    ("dataset", "name", "message"),
    [
        (Dataset(_split()), "training", "split must be one of .* did you mean 'train'"),
        (Dataset(_split()), "test", "the test split of data set must have examples, got none"),
        (Dataset(_split(0, 0)), "train", "the train split of data set must have examples"),
        (Dataset(_split(5, 4), name="x"), "train", "train split of x .* 5 inputs and 4 labels"),
        (Dataset(_split(largest=3), classes=3), "train", "from 0 to 2, got int64 from 3 to 3"),
        (Dataset(_split(largest=-1), classes=3), "train", "from 0 to 2, got int64 from -1"),
        (Dataset(_split(largest=0.5), classes=3), "train", "whole-number labels .* got float64"),
        (Dataset((np.zeros((5, 2)), np.zeros(5))), "train", "must be a Split, .* got a tuple"),
        (Dataset(Split({"x": np.zeros(5)}, np.zeros(5))), "train", "inputs .* got a dict"),
        (Dataset(Split(np.zeros((5, 2)), [*"abcde"])), "train", "labels .* got a list of <U1"),
    ],
)
def test_dataset_names_what_is_wrong_with_a_split(dataset, name, message):
    with pytest.raises(ValueError, match=message):
        dataset.split(name)
