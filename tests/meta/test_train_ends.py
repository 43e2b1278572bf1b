"""How a run ends early, fails, goes on and is kept."""

import numpy as np
import pytest

from l2ljax.meta import make_step, restore_state, save_state
from tests.meta.runs import (
    ESTIMATOR,
    KEY,
    OPT,
    SETTINGS,
    TASK,
    failing_train,
    meta_train,
)
from tests.meta.small import assert_identical

OPTIMIZED = True


@pytest.mark.parametrize("truth", [True, np.bool_(True)])
def test_a_callback_that_returns_true_ends_the_run_and_keeps_the_result(truth):
    seen = []
    ended = meta_train(callbacks=[lambda progress: truth, seen.append])
    # The others are called, too.
    assert [int(progress.state.step) for progress in seen] == [3]
    expected = meta_train(steps=3)
    assert_identical(ended.state, expected.state)
    assert_identical(ended.history, expected.history)
    assert_identical(ended.phi, expected.phi)
    # And a run can go on from there.
    assert_identical(meta_train(state=ended).state, meta_train().state)


@pytest.mark.parametrize("answer", [None, False, 1, 0.5, "done", np.ones(1)], ids=repr)
def test_a_callback_that_returns_anything_else_does_not_end_the_run(answer):
    assert int(meta_train(callbacks=[lambda progress: answer]).state.step) == 9


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, StopIteration])
def test_an_exception_in_a_callback_has_the_result_so_far(kind):
    def stop(progress):
        if int(progress.state.step) == 6:
            raise kind("here")

    with pytest.raises(kind, match="here") as raised:
        meta_train(callbacks=[stop])
    expected = meta_train(steps=6)
    assert_identical(raised.value.result.state, expected.state)
    assert_identical(raised.value.result.history, expected.history)
    assert_identical(raised.value.result.phi, expected.phi)
    assert raised.value.__notes__ == ["what meta-training had reached is this exception's `result`"]


def test_a_run_that_fails_has_the_result_so_far():
    with pytest.raises(FloatingPointError) as raised:
        failing_train(range(3, 28), steps=40, chunk=1)
    result = raised.value.result
    assert len(result.history["loss"]) == int(result.state.step) == 28
    assert_identical(result.last_phi, failing_train([], steps=3).last_phi)


def test_history_goes_on_from_a_result():
    half = meta_train(steps=5)
    whole, expected = meta_train(state=half), meta_train()
    assert_identical(whole.state, expected.state)
    # At the end of its five steps the first run was validated, too.
    at = expected.history["validation_step"]
    np.testing.assert_array_equal(whole.history["validation_step"], [3, 5, *at[1:]])
    for name in set(expected.history) - {"validation", "validation_step"}:
        np.testing.assert_array_equal(whole.history[name], expected.history[name], strict=True)
    # Without a new meta-step it stays.
    assert_identical(meta_train(steps=5, state=half).history, half.history)


def test_a_state_is_saved_and_restored_by_one_call_each(tmp_path):
    half, whole = meta_train(steps=5), meta_train()
    save_state(tmp_path, half.state)
    names = ("key", "batch", "estimator", "meta_optimizer")
    _, like = make_step(OPT, TASK, **{name: SETTINGS[name] for name in names if name in SETTINGS})
    restored = restore_state(tmp_path, like)
    assert_identical(restored, half.state)
    assert_identical(meta_train(state=restored).state.phi, whole.state.phi)
    with pytest.raises(FileExistsError, match=r"has the state of meta-step 5, got one of .* 5"):
        save_state(tmp_path, half.state)
    save_state(tmp_path, whole.state)
    assert int(restore_state(tmp_path, like).step) == 9


def test_a_state_of_other_settings_is_not_restored(tmp_path, unchecked):
    save_state(tmp_path, meta_train(steps=1, validate=None).state)
    _, like = make_step(OPT, TASK, key=KEY, batch=3, estimator=ESTIMATOR)
    with pytest.raises(ValueError, match="holds another state: .*estimator"):
        restore_state(tmp_path, like)
    with pytest.raises(FileNotFoundError, match="nothing has no checkpoint"):
        restore_state(tmp_path / "nothing", like)
    with pytest.raises(ValueError, match="state must be a TrainState such as result.state, got 3"):
        save_state(tmp_path, 3)
    with pytest.raises(ValueError, match=r"like must be a TrainState such as make_step"):
        restore_state(tmp_path, 3)
