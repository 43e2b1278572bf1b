import os
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import checkpoint


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# Files.


def test_a_file_is_written_with_the_folders_that_it_needs(tmp_path):
    checkpoint.write_file(tmp_path / "a" / "b" / "text", "φ\n")
    checkpoint.write_file(tmp_path / "bytes", b"\0\1")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "φ\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"


def test_a_file_is_as_readable_as_any(tmp_path):
    checkpoint.write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_a_file_keeps_to_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        checkpoint.write_file(tmp_path / "file", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("fault", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fault, error):
    checkpoint.write_file(tmp_path / "file", "old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, fault, fail)
        patched.setattr("pathlib.Path.replace", fail)
        with pytest.raises(type(error)):
            checkpoint.write_file(tmp_path / "file", "new")
    assert files(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_in_the_place_of_a_folder_is_an_error_with_its_path(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        checkpoint.write_file(tmp_path / "file" / "inside", "new")
    assert files(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


# Weights.


def weights():
    rng = np.random.default_rng(0)
    return {
        "layer": {
            "kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
            "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        },
        "parts": [jnp.float32(-0.0), jnp.zeros((0, 2)), jnp.arange(3), jnp.array([True, False])],
    }


def assert_identical(actual, expected):
    """The same bits, dtypes and structure."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("tree", [weights(), jnp.arange(3.0)], ids=["nested", "one leaf"])
def test_weights_come_back_bit_for_bit_into_arrays_or_shapes(tmp_path, tree):
    checkpoint.save_weights(tmp_path, tree, {})
    assert files(tmp_path) == ["card.json", "weights.safetensors"]
    shapes = jax.eval_shape(lambda x: x, tree)
    assert_identical(checkpoint.read_weights(tmp_path, tree), tree)
    assert_identical(checkpoint.read_weights(tmp_path, shapes), tree)


def test_the_card_holds_what_was_given_and_a_digest_that_cannot_be_given(tmp_path):
    given = {"task": "φ", "scores": {"final": 0.5, "runs": [1, None]}, "sha256": "mine"}
    checkpoint.save_weights(tmp_path, weights(), given)
    card = checkpoint.read_card(tmp_path)
    digest = card.pop("sha256")
    assert len(digest) == 64
    assert card == {name: value for name, value in given.items() if name != "sha256"}


@pytest.mark.parametrize("dtype", checkpoint.DTYPES.values())
def test_every_dtype_in_the_table_comes_back(tmp_path, x64, dtype):
    tree = {"x": jnp.arange(3).astype(dtype)}
    checkpoint.save_weights(tmp_path, tree, {})
    assert_identical(checkpoint.read_weights(tmp_path, tree), tree)


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.ones(2, jnp.complex64),
        jnp.ones(2, jnp.float8_e4m3fn),
        jnp.ones(2, jnp.int4),
        jax.random.key(0),
        np.array(["a"]),
    ],
    ids=lambda leaf: str(leaf.dtype),
)
def test_a_dtype_that_cannot_be_read_is_refused_before_anything_is_written(tmp_path, leaf):
    message = re.escape(f"got {leaf.dtype} at layer/w")
    with pytest.raises(ValueError, match=f"weights must have leaves of bool, .*{message}"):
        checkpoint.save_weights(tmp_path / "new", {"layer": {"w": leaf}}, {})
    assert files(tmp_path) == []


def test_a_file_with_other_dtypes_is_refused_with_their_name(tmp_path, monkeypatch):
    tree = {"w": jnp.ones(2, jnp.float16)}
    checkpoint.save_weights(tmp_path, tree, {})
    monkeypatch.delitem(checkpoint.DTYPES, "F16")
    with pytest.raises(ValueError, match="weights.safetensors must be.*w is F16, none of BOOL"):
        checkpoint.read_weights(tmp_path, tree)


def test_weights_are_not_read_as_keys(tmp_path):
    checkpoint.save_weights(tmp_path, {"w": jnp.ones(2)}, {})
    with pytest.raises(ValueError, match=r"w is float32\[2\] instead of key<fry>\[\]"):
        checkpoint.read_weights(tmp_path, {"w": jax.random.key(0)})


def test_arrays_in_another_order_of_memory_come_back(tmp_path):
    expected = np.arange(6, dtype="float32").reshape(2, 3)
    tree = {"columns": np.asfortranarray(expected), "foreign": expected.astype(">f4")}
    checkpoint.save_weights(tmp_path, tree, {})
    like = {name: jnp.asarray(expected) for name in tree}
    assert_identical(checkpoint.read_weights(tmp_path, like), like)


TWINS = {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}


def test_two_leaves_of_one_name_are_refused(tmp_path):
    checkpoint.save_weights(tmp_path / "weights", {"a/b": jnp.ones(2)}, {})
    checkpoint.save_state(tmp_path / "state", 1, {"a/b": jnp.ones(2)})
    for action in [
        lambda: checkpoint.save_weights(tmp_path / "new", TWINS, {}),
        lambda: checkpoint.read_weights(tmp_path / "weights", TWINS),
        lambda: checkpoint.save_state(tmp_path / "new", 1, TWINS),
        lambda: checkpoint.read_state(tmp_path / "state", TWINS),
    ]:
        with pytest.raises(ValueError, match="a name for each leaf, got 2 leaves named 'a/b'"):
            action()
    assert files(tmp_path) == ["state", "weights"]


@pytest.mark.parametrize("value", [float("nan"), jnp.ones(2), {1, 2}], ids=repr)
def test_a_card_that_is_no_json_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="card must hold plain JSON values"):
        checkpoint.save_weights(tmp_path / "new", weights(), {"score": value})
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_a_missing_file_is_named(tmp_path, name):
    checkpoint.save_weights(tmp_path, weights(), {})
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*{name} does not exist"):
        checkpoint.read_weights(tmp_path, weights())


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_weights_file_is_said_to_be_damaged(tmp_path, keep):
    checkpoint.save_weights(tmp_path, weights(), {})
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="weights.safetensors is damaged"):
        checkpoint.read_weights(tmp_path, weights())


def test_a_card_of_other_weights_is_noticed(tmp_path):
    checkpoint.save_weights(tmp_path / "one", weights(), {})
    checkpoint.save_weights(tmp_path / "two", {"w": jnp.ones(2)}, {})
    (tmp_path / "two" / "card.json").replace(tmp_path / "one" / "card.json")
    with pytest.raises(ValueError, match="card.json beside it belongs to other weights"):
        checkpoint.read_weights(tmp_path / "one", weights())


def test_a_file_of_another_format_is_said_to_be_no_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "serialize", lambda arrays: b"not that")
    checkpoint.save_weights(tmp_path, weights(), {})
    with pytest.raises(ValueError, match="must be a safetensors file"):
        checkpoint.read_weights(tmp_path, weights())


def test_weights_of_another_architecture_are_listed(tmp_path):
    found = {"both": jnp.ones(2), "dtype": jnp.ones(2), "extra": jnp.ones(2), "shape": jnp.ones(2)}
    like = {
        "both": jnp.ones(2),
        "dtype": jnp.arange(2),
        "shape": jnp.ones((2, 1)),
        "wanted": jnp.ones(3),
    }
    checkpoint.save_weights(tmp_path, found, {})
    with pytest.raises(ValueError, match="another architecture") as error:
        checkpoint.read_weights(tmp_path, like)
    for part in [
        "dtype is float32[2] instead of int32[2]",
        "extra is not expected",
        "shape is float32[2] instead of float32[2, 1]",
        "wanted is missing",
    ]:
        assert part in str(error.value)
    assert "both" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task": ', "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        (b"[1, 2]", "must hold a JSON object, got list"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"card.json {message}"):
        checkpoint.read_card(tmp_path)


# The state of a run.


class State(NamedTuple):
    params: Any
    opt_state: Any
    key: Any
    raw_key: Any


def state(seed=0):
    params = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3)), jnp.float32)}
    params |= {"half": jnp.ones(2, jnp.bfloat16), "empty": jnp.zeros((0, 3))}
    key, raw_key = jax.random.key(seed), jax.random.PRNGKey(seed + 1)
    return State(params, optax.adam(0.1).init(params), jax.random.split(key, 2), raw_key)


def numbers(tree):
    """Typed keys as the numbers that they stand for."""
    return tree._replace(key=jax.random.key_data(tree.key))


def test_a_state_comes_back_bit_for_bit_with_its_structure_and_keys(tmp_path):
    checkpoint.save_state(tmp_path, 3, state())
    again = checkpoint.read_state(tmp_path, state(1))
    assert again.key.dtype == state().key.dtype
    assert isinstance(again.opt_state[0], optax.ScaleByAdamState)
    assert_identical(numbers(again), numbers(state()))


# The oldest orbax that is allowed says so of shapes.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_state_is_read_into_shapes_like_into_arrays(tmp_path):
    for step, implementation in enumerate(["threefry2x32", "rbg"]):
        key = jax.random.split(jax.random.key(0, impl=implementation), 2)
        whole = state()._replace(key=key)
        checkpoint.save_state(tmp_path, step, whole)
        again = checkpoint.read_state(tmp_path, jax.eval_shape(lambda tree: tree, whole))
        assert again.key.dtype == key.dtype
        assert_identical(numbers(again), numbers(whole))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))
        assert not any(leaf.committed for leaf in jax.tree.leaves(again))


def test_shapes_with_a_place_say_where_a_state_is_put(tmp_path):
    device = jax.devices()[1]
    sharding = jax.sharding.SingleDeviceSharding(device)
    checkpoint.save_state(tmp_path, 1, {"x": jnp.ones(2)})
    like = {"x": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding)}
    assert checkpoint.read_state(tmp_path, like)["x"].devices() == {device}


def test_a_state_without_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="state must have a leaf that is not empty"):
        checkpoint.save_state(tmp_path / "new", 1, {"x": jnp.zeros((0, 3)), "y": ()})
    assert files(tmp_path) == []


def test_a_state_that_was_read_runs_in_the_program_of_one_that_was_not(tmp_path):
    checkpoint.save_state(tmp_path, 1, state())
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state.params))
    double(state())
    double(checkpoint.read_state(tmp_path, state()))
    assert double._cache_size() == 1


def test_the_two_newest_states_are_kept_and_the_newest_is_read(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save_state(tmp_path, step, {"step": jnp.asarray(step)})
    assert files(tmp_path) == ["10", "2"]
    assert checkpoint.last_step(tmp_path) == 10
    assert checkpoint.read_state(tmp_path, {"step": jnp.asarray(0)})["step"] == 10


def test_a_step_that_is_saved_already_stays(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save_state(tmp_path, 5, {"x": jnp.asarray(value)})
    assert checkpoint.read_state(tmp_path, {"x": jnp.zeros(())})["x"] == 1


def test_a_folder_without_states_has_no_last_step_and_is_not_made(tmp_path):
    assert checkpoint.last_step(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError, match="none has no checkpoint"):
        checkpoint.read_state(tmp_path / "none", {"x": jnp.ones(2)})
    assert files(tmp_path) == []


def test_a_write_that_was_cut_short_is_no_state(tmp_path):
    checkpoint.save_state(tmp_path, 1, {"x": jnp.ones(2)})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.last_step(tmp_path) == 1


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"x": jnp.ones(3)}, r"x is float32\[2\] instead of float32\[3\]"),
        ({"x": jnp.arange(2)}, r"x is float32\[2\] instead of int32\[2\]"),
        ({"x": jnp.ones(2), "y": jnp.ones(1)}, "y is missing"),
        ({"z": {"x": jnp.ones(2)}}, "x is not expected; z/x is missing"),
    ],
)
def test_a_state_of_another_structure_is_refused_with_what_differs(tmp_path, like, message):
    checkpoint.save_state(tmp_path, 1, {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match=f"holds another state: {message}"):
        checkpoint.read_state(tmp_path, like)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder):
    """The file that holds the numbers."""
    return max(folder.glob("default/d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(largest(folder)),
        lambda folder: largest(folder).unlink(),
        lambda folder: cut(folder / "default" / "_METADATA"),
        lambda folder: (folder / "default" / "_METADATA").unlink(),
        lambda folder: cut(folder / "default" / "manifest.ocdbt"),
    ],
    ids=["values cut", "values lost", "metadata cut", "metadata lost", "manifest cut"],
)
def test_a_damaged_state_is_named_and_deleted_gives_the_one_before(tmp_path, damage):
    values = jnp.asarray(np.random.default_rng(0).normal(size=10_000), jnp.float32)
    for step in (1, 2):
        checkpoint.save_state(tmp_path, step, {"x": step * values})
    damage(tmp_path / "2")
    message = f"{tmp_path}/2 cannot be read.*delete this folder to go on from step 1$"
    with pytest.raises(ValueError, match=message):
        checkpoint.read_state(tmp_path, {"x": values})
    shutil.rmtree(tmp_path / "2")
    assert_identical(checkpoint.read_state(tmp_path, {"x": values}), {"x": values})
    damage(tmp_path / "1")
    with pytest.raises(ValueError, match=r"/1 cannot be read.*delete this folder to begin again$"):
        checkpoint.read_state(tmp_path, {"x": values})
