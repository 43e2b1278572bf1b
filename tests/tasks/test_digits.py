import hashlib

import numpy as np
import pytest

from l2ljax.tasks import digits


def test_digits_are_those_of_scikit_learn_in_the_recorded_order():
    pytest.importorskip("sklearn")
    from record_digits import shuffled_digits

    images, labels = shuffled_digits()
    splits = [digits().split(name) for name in ("train", "validation", "test")]
    np.testing.assert_array_equal(np.concatenate([s.inputs for s in splits]), images)
    np.testing.assert_array_equal(np.concatenate([s.labels for s in splits]), labels)


def test_digits_have_the_documented_splits_scale_and_content():
    data = digits()
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [898, 180, 719]
    inputs, labels = data.train.examples()
    assert inputs.shape == (898, 8, 8, 1) and inputs.dtype == np.float32
    assert labels.dtype == np.int32
    assert (inputs.min(), inputs.max()) == (0, 1)
    for split in (data.train, data.validation, data.test):
        assert np.bincount(split.labels, minlength=10).min() >= 10
    everything = b"".join(
        np.asarray(array, np.uint8).tobytes()
        for split in (data.train, data.validation, data.test)
        for array in (split.inputs, split.labels)
    )
    assert hashlib.sha256(everything).hexdigest() == (
        "111a6012d06cafec54725b32e67bcacbbb9525f28395c4ebda586ce6e21addc1"
    )


def test_digits_state_their_source_and_need_no_pickle():
    import importlib.resources

    file = importlib.resources.files("l2ljax.tasks") / "data" / "digits.npz"
    assert len(file.read_bytes()) < 115_000
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        assert "CC BY 4.0" in str(arrays["source"])
