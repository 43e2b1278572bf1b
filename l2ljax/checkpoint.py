"""What is kept on disk: weights with a card, and the state of a run. Never pickle.

Weights are two files in a folder: `weights.safetensors`, which holds arrays by name and no code,
and `card.json`, which says what they are. The card carries the digest of the weights, so a folder
with parts of two savings is noticed. The state of a run is an orbax checkpoint.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from jaxtyping import PyTree
from safetensors.numpy import save as serialize

Path = str | os.PathLike[str]

WEIGHTS, CARD = "weights.safetensors", "card.json"

# The dtypes that weights may have, by the names that a safetensors file has for them.
DTYPES = {
    "BOOL": "bool",
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
}


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a whole file or nothing: what stands at `path` is replaced at once.

    Args:
        path: the file; its folder is made if it is missing.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    # Not by `tempfile`, whose files are private to their owner; this one is as readable as any.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_weights(folder: Path, weights: PyTree, card: Mapping[str, Any]) -> None:
    """Saves a tree of arrays and its card.

    Args:
        folder: where `weights.safetensors` and `card.json` go.
        weights: a pytree of arrays of `DTYPES`.
        card: plain JSON values.

    Raises:
        ValueError: for a card that is not JSON, a leaf of another dtype, or two leaves that have
            one name, as those of `{"a/b": x, "a": {"b": y}}`.
        OSError: if the folder cannot be written.
    """
    content = serialize({name: _plain(name, leaf) for name, leaf in _named(weights)})
    try:
        text = json.dumps({**card, "sha256": _digest(content)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card must hold plain JSON values: {error}") from error
    write_file(pathlib.Path(folder) / WEIGHTS, content)
    write_file(pathlib.Path(folder) / CARD, text + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """Reads a card.

    Args:
        folder: a folder that `save_weights` wrote.

    Returns:
        The card.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON object.
    """
    path = _existing(folder, CARD)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(card).__name__}")
    return card


def read_weights(folder: Path, like: PyTree) -> PyTree:
    """Reads weights into a structure.

    Args:
        folder: a folder that `save_weights` wrote.
        like: a pytree of arrays or `jax.ShapeDtypeStruct`: the structure, shapes and dtypes that
            are expected.

    Returns:
        The weights, a tree like `like`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the file is damaged or does not belong to the card, or if names, shapes or
            dtypes are others than expected; it says which.
    """
    path = _existing(folder, WEIGHTS)
    content = path.read_bytes()
    card = read_card(folder)
    if card.get("sha256") != _digest(content):
        raise ValueError(f"{path} is damaged, or {CARD} beside it belongs to other weights")
    try:
        arrays = {name: _array(name, **entry) for name, entry in safetensors.deserialize(content)}
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
    require_same(f"{path} holds weights of another architecture", like, arrays)
    leaves = [jax.numpy.asarray(arrays[name]) for name, _ in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def require_same(problem: str, expected: PyTree, found: PyTree) -> None:
    """Requires the same names, shapes and dtypes of leaves; values do not matter.

    Args:
        problem: how the error begins.
        expected: a pytree of what has a shape and a dtype.
        found: another; a leaf's name is its place, and that of a flat dictionary its key.

    Raises:
        ValueError: listing what is missing, not expected, or another.
    """
    wanted, got = _kinds(expected), _kinds(found)
    parts = []
    for name in sorted(wanted.keys() | got.keys()):
        if name not in got:
            parts.append(f"{name} is missing")
        elif name not in wanted:
            parts.append(f"{name} is not expected")
        elif wanted[name] != got[name]:
            parts.append(f"{name} is {got[name]} instead of {wanted[name]}")
    if parts:
        raise ValueError(f"{problem}: {'; '.join(parts)}")


def save_state(folder: Path, step: int, state: PyTree) -> None:
    """Saves the state of a run; the two newest are kept, and each is whole or absent.

    Args:
        folder: of the run's checkpoints.
        step: the number that the state is saved under; a state that has it already stays.
        state: a pytree of arrays; typed PRNG keys too.

    Raises:
        ValueError: for a state that has no numbers, or two leaves that have one name.
    """
    arrays = _filled(_raw_keys(state))
    if not arrays:
        raise ValueError("state must have a leaf that is not empty to be saved, got none")
    with _manager(folder) as manager:
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(arrays), force=True)


def last_step(folder: Path) -> int | None:
    """The number of the newest state in a folder, or None if there is none."""
    if not pathlib.Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def read_state(folder: Path, like: PyTree) -> PyTree:
    """Reads the newest state of a run.

    Args:
        folder: of the run's checkpoints.
        like: a state of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and dtypes
            that are expected.

    Returns:
        The state, all of it arrays.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has another structure, shape or dtype, or cannot be read; it says which
            folder to delete to go on from the state before.
    """
    step = last_step(folder)
    if step is None:
        raise FileNotFoundError(f"{folder} has no checkpoint")
    raw = _raw_keys(like)
    arrays = _filled(raw)
    with _manager(folder) as manager:
        with _reading(manager, step):
            found = manager.item_metadata(step).tree
        require_same(f"{folder} holds another state", arrays, found)
        with _reading(manager, step):
            arrays = manager.restore(step, args=ocp.args.StandardRestore(arrays))
    leaves = [
        _placed(arrays[name], leaf) if name in arrays else _empty(leaf)
        for name, leaf in _named(raw)
    ]
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=_implementation(old)) if _is_key(old) else leaf
        ),
        jax.tree.unflatten(jax.tree.structure(like), leaves),
        like,
    )


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    # With its handler, a manager can describe a state that it has not read.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(
        pathlib.Path(folder).resolve(), options=options, item_handlers=handler
    )


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Says which state cannot be read, and how to go on."""
    try:
        yield
    except Exception as error:  # What orbax raises for a damaged file is of any kind.
        path = pathlib.Path(manager.directory) / str(step)
        earlier = [other for other in manager.all_steps() if other < step]
        advice = f"to go on from step {max(earlier)}" if earlier else "to begin again"
        raise ValueError(
            f"{path} cannot be read, it may be damaged: {textwrap.shorten(str(error), 200)}; "
            f"delete this folder {advice}"
        ) from error


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw_keys(tree: PyTree) -> PyTree:
    """Typed keys as the numbers that they stand for, or the shapes of these."""
    return jax.tree.map(lambda leaf: _numbers(leaf) if _is_key(leaf) else leaf, tree)


def _numbers(key: Any) -> Any:
    if isinstance(key, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, key)
    return jax.random.key_data(key)


def _implementation(key: Any) -> Any:
    # Of shapes it cannot be asked for.
    return jax.random.key_impl(jax.numpy.empty(0, key.dtype))


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    """Leaves with their place in the tree as a name: `lstm_0/kernel`; each must be another."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    for name, count in collections.Counter(name for name, _ in named).items():
        if count > 1:
            raise ValueError(
                f"the tree must have a name for each leaf, got {count} leaves named {name!r}; "
                "rename a key that has a '/'"
            )
    return named


def _filled(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, without the empty ones, which a checkpoint cannot hold."""
    return {name: leaf for name, leaf in _named(tree) if leaf.size}


def _empty(like: Any) -> Any:
    """A leaf without numbers, of which there is nothing to read."""
    shapes = isinstance(like, jax.ShapeDtypeStruct)
    return jax.numpy.zeros(like.shape, like.dtype) if shapes else like


def _placed(array: Any, like: Any) -> Any:
    """Not tied to its device unless `like` is: a run that goes on then has the same program."""
    if isinstance(like, jax.ShapeDtypeStruct):
        tied = like.sharding is not None
    else:
        tied = getattr(like, "committed", True)
    return array if tied else jax.numpy.asarray(np.asarray(array))


def _kinds(tree: PyTree) -> dict[str, str]:
    return {
        name: f"{leaf.dtype if _is_key(leaf) else np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for name, leaf in _named(tree)
    }


def _plain(name: str, leaf: Any) -> np.ndarray:
    """In rows without gaps, as `serialize` copies the memory of an array from its start."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if dtype.name not in DTYPES.values():
        kinds = ", ".join(DTYPES.values())
        place = name or "(the only leaf)"
        raise ValueError(f"weights must have leaves of {kinds}, got {dtype} at {place}")
    return np.asarray(leaf, order="C")


def _array(name: str, dtype: str, shape: list[int], data: bytes | bytearray) -> np.ndarray:
    # `safetensors.numpy` writes bfloat16, but does not read it.
    if dtype not in DTYPES:
        raise ValueError(f"{name} is {dtype}, none of {', '.join(DTYPES)}")
    return np.frombuffer(data, np.dtype(DTYPES[dtype])).reshape(shape)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _existing(folder: Path, name: str) -> pathlib.Path:
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; weights are a folder with {WEIGHTS} and {CARD}"
        )
    return path
