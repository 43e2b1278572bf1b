"""Learned optimizers on disk: saved with what rebuilds them, loaded without running any code."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from l2ljax import _checks, checkpoint
from l2ljax.core import LearnedOptimizer, Phi
from l2ljax.learned._adaptive_lstm import adaptive_lstm
from l2ljax.learned._lstm import lstm
from l2ljax.learned._rnnprop import rnnprop

Path = str | os.PathLike[str]

FACTORIES: dict[str, Callable[..., LearnedOptimizer]] = {
    "adaptive_lstm": adaptive_lstm,
    "lstm": lstm,
    "rnnprop": rnnprop,
}
"""The learned optimizers that a card may name."""


def save(path: Path, opt: LearnedOptimizer, phi: Phi, card: Mapping[str, Any]) -> None:
    """Saves a learned optimizer: its weights as safetensors, its architecture and history as JSON.

    Args:
        path: a folder; `weights.safetensors` and `card.json` are written into it.
        opt: the optimizer.
        phi: its meta-parameters.
        card: plain JSON values: the task, seed, meta-steps, scores, the command. The architecture
            is added under `optimizer`.

    Raises:
        ValueError: for an optimizer that cannot be rebuilt from JSON values (a function among its
            arguments, or no `spec`), a card that is not JSON, or weights that are not finite or
            not those of the optimizer.
        FileExistsError: if the folder has weights already.
        OSError: if the folder cannot be written.

    >>> import tempfile
    >>> opt = lstm(hidden=(4,))
    >>> phi = opt.init(jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, opt, phi, {"task": "none"})
    ...     again, _, card = restore(folder)
    >>> again.spec == opt.spec, card["optimizer"]["arguments"]["hidden"], card["task"]
    (True, [4], 'none')
    """
    if opt.spec is None:
        raise ValueError("opt must have a spec to be saved; only optimizers of l2ljax.learned have")
    for name, value in opt.spec["arguments"].items():
        if callable(value):
            raise ValueError(f"opt cannot be saved: its argument {name} is the function {value!r}")
    if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(phi)):
        raise ValueError("phi must be finite to be saved, got values that are not")
    checkpoint.require_same(
        "phi has another architecture than opt", jax.eval_shape(opt.init, jax.random.key(0)), phi
    )
    folder = pathlib.Path(path)
    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists; weights are never overwritten")
    checkpoint.save_weights(folder, phi, {**card, "optimizer": opt.spec})


def restore(name_or_path: Path) -> tuple[LearnedOptimizer, Phi, dict[str, Any]]:
    """Reads a learned optimizer, its meta-parameters and its card.

    Args:
        name_or_path: a folder that `save` wrote.

    Returns:
        The optimizer, φ and the card.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if the files are damaged, or the weights do not fit the architecture that the
            card names.
    """
    card = checkpoint.read_card(name_or_path)
    spec = card.get("optimizer")
    where = pathlib.Path(name_or_path) / checkpoint.CARD
    if not isinstance(spec, dict) or not isinstance(spec.get("arguments"), dict):
        raise ValueError(f"{where} must name the optimizer and its arguments, got {spec!r}")
    name = str(spec.get("name"))
    _checks.choice(f"optimizer in {where}", name, FACTORIES)
    try:
        opt = FACTORIES[name](**spec["arguments"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has arguments that {name} does not take: {error}") from error
    phi = checkpoint.read_weights(name_or_path, jax.eval_shape(opt.init, jax.random.key(0)))
    return opt, phi, card


def load(name_or_path: Path) -> optax.GradientTransformation:
    """A trained optimizer, ready to use.

    Args:
        name_or_path: a folder that `save` wrote.

    Returns:
        An ordinary optax transformation.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged or of another architecture.
    """
    opt, phi, _ = restore(name_or_path)
    return opt.bind(phi)
