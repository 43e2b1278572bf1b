"""What is kept on disk: weights with a card, and the state of a run. Never pickle.

Weights are two files in a folder: `weights.safetensors`, which holds arrays by name and no code,
and `card.json`, which says what they are. The card carries the digest of the weights, so a folder
with parts of two savings is noticed. The state of a run is an orbax checkpoint.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import textwrap
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
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = pathlib.Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            # NamedTemporaryFile is private to its owner; a result is as readable as any file.
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def save_weights(folder: Path, weights: PyTree, card: Mapping[str, Any]) -> None:
    """Saves a tree of arrays and its card.

    Args:
        folder: where `weights.safetensors` and `card.json` go.
        weights: a pytree of arrays.
        card: plain JSON values.

    Raises:
        ValueError: for a card that is not JSON.
        OSError: if the folder cannot be written.
    """
    content = serialize({name: np.asarray(leaf) for name, leaf in _named(weights)})
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
        card = json.loads(path.read_text())
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
        arrays = {name: _array(**entry) for name, entry in safetensors.deserialize(content)}
    except safetensors.SafetensorError as error:
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
    """
    with _manager(folder) as manager:
        if step not in manager.all_steps():
            arrays = _filled(_raw_keys(state))
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
        like: a state with the structure, shapes and dtypes that are expected.

    Returns:
        The state.

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
    leaves = [_placed(arrays.get(name, leaf), leaf) for name, leaf in _named(raw)]
    return jax.tree.map(
        lambda leaf, old: (
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(old)) if _is_key(old) else leaf
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
    """Typed keys as the numbers that they stand for."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    """Leaves with their place in the tree as a name: `lstm_0/kernel`."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _filled(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, without the empty ones, which a checkpoint cannot hold."""
    return {name: leaf for name, leaf in _named(tree) if leaf.size}


def _placed(array: Any, like: Any) -> Any:
    """Not tied to its device unless `like` is: a run that goes on then has the same program."""
    return array if getattr(like, "committed", True) else jax.numpy.asarray(np.asarray(array))


def _kinds(tree: PyTree) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in _named(tree)}


def _array(dtype: str, shape: list[int], data: bytes | bytearray) -> np.ndarray:
    # `safetensors.numpy` writes bfloat16, but does not read it.
    kind = dtype.rstrip("0123456789")
    names = {"BOOL": "bool", "F": "float", "BF": "bfloat", "I": "int", "U": "uint"}
    return np.frombuffer(data, np.dtype(names[kind] + dtype[len(kind) :])).reshape(shape)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _existing(folder: Path, name: str) -> pathlib.Path:
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; weights are a folder with {WEIGHTS} and {CARD}"
        )
    return path
