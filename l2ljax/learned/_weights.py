"""Learned optimizers on disk: saved with what rebuilds them, loaded without running any code."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from l2ljax import _checks, checkpoint
from l2ljax._masks import Mask
from l2ljax.core import LearnedOptimizer, Phi
from l2ljax.learned._adaptive_lstm import adaptive_lstm
from l2ljax.learned._black_box_lstm import black_box_lstm
from l2ljax.learned._card import Card, Cards
from l2ljax.learned._celo import celo
from l2ljax.learned._celo_adam import celo_adam
from l2ljax.learned._hyperparameters import hyperparameters
from l2ljax.learned._lstm import lstm
from l2ljax.learned._mlp import mlp
from l2ljax.learned._partition import partition
from l2ljax.learned._reversible_momentum import reversible_momentum
from l2ljax.learned._rnnprop import rnnprop
from l2ljax.learned._scaled import Rate, scaled
from l2ljax.learned._surrogate_lstm import surrogate_lstm
from l2ljax.learned._tensorwise import tensorwise

Path = str | os.PathLike[str]


def _partition(optimizers: Mapping[str, Any], labels: Mapping[str, str]) -> LearnedOptimizer:
    """A partition from what its card holds: the members' specs."""
    return partition({name: _rebuild(name, spec) for name, spec in optimizers.items()}, labels)


FACTORIES: dict[str, Callable[..., LearnedOptimizer]] = {
    "adaptive_lstm": adaptive_lstm,
    "black_box_lstm": black_box_lstm,
    "celo": celo,
    "celo_adam": celo_adam,
    "hyperparameters": hyperparameters,
    "lstm": lstm,
    "mlp": mlp,
    "partition": _partition,
    "reversible_momentum": reversible_momentum,
    "rnnprop": rnnprop,
    "surrogate_lstm": surrogate_lstm,
    "tensorwise": tensorwise,
}
"""The learned optimizers that a card may name."""

SHIPPED = pathlib.Path(__file__).parent / "weights"
"""The folder of the weights that come with the package: one folder each, by name."""


def save(path: Path, opt: LearnedOptimizer, phi: Phi, card: Mapping[str, Any]) -> None:
    """Saves a learned optimizer: its weights as safetensors, its architecture and history as JSON.

    Args:
        path: a folder; `weights.safetensors` and `card.json` are written into it.
        opt: the optimizer.
        phi: its meta-parameters.
        card: plain JSON values: the task, seed, meta-steps, scores, the command. The architecture
            is added under `optimizer`. It is null where JSON values cannot rebuild the optimizer:
            for one of your own (without `spec`), or one with a function among its arguments.
            `load` and `restore` then need it as `opt=`.

    Raises:
        ValueError: for what is no learned optimizer, a card that is not JSON, or weights that are
            not finite or not those of the optimizer.
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
    if not isinstance(opt, LearnedOptimizer):
        raise ValueError(f"opt must be a learned optimizer, got {opt!r}")
    if not isinstance(card, Mapping):
        raise ValueError(f"card must be a mapping of plain JSON values, got {card!r}")
    if not all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(phi)):
        raise ValueError(f"phi must be a tree of arrays, such as opt.init draws, got {phi!r}")
    if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(phi)):
        raise ValueError("phi must be finite to be saved, got values that are not")
    checkpoint.require_same(
        "phi has another architecture than opt", jax.eval_shape(opt.init, jax.random.key(0)), phi
    )
    folder = pathlib.Path(path)
    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists; weights are never overwritten")
    spec = opt.spec if _is_plain(opt.spec) else None
    checkpoint.save_weights(folder, phi, {**card, "optimizer": spec})


def shipped() -> Cards:
    """The weights that come with the package.

    Returns:
        The card of each by the name that `load` takes. A card says among other things what the
        weights were `trained_on`, their `scores` and `limits`, and the `command` that made them.

    Raises:
        ValueError: if a card is damaged.

    >>> all("limits" in card for card in shipped().values())
    True
    """
    return Cards({path.parent.name: read_card(path.parent) for path in _shipped_cards()})


def read_card(name_or_path: Path) -> Card:
    """The card of saved weights.

    Args:
        name_or_path: as in `restore`.

    Returns:
        The card.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or `name_or_path` is neither a name nor a path.

    >>> read_card("lstm-quadratic")["optimizer"]["name"]
    'lstm'
    """
    return Card(checkpoint.read_card(_folder(name_or_path)))


def restore(
    name_or_path: Path, *, opt: LearnedOptimizer | None = None, **settings: Any
) -> tuple[LearnedOptimizer, Phi, Card]:
    """Reads a learned optimizer, its meta-parameters and its card.

    Args:
        name_or_path: the name of weights that come with the package (see `shipped`), or a folder
            that `save` wrote. A text that is such a name means these weights on every machine,
            also where a folder has the same name: that folder is `"./name"`, or a `pathlib.Path`,
            which is never a name.
        opt: the optimizer that the weights belong to, instead of the one that the card names. An
            optimizer of your own is always given, as no code is loaded from a folder.
        **settings: arguments of the optimizer beside those on the card, or instead of them, such as
            `state_dtype="bfloat16"` or `layout="leaves"`.

    Returns:
        The optimizer, φ and the card.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if the files are damaged, the weights do not fit `opt` or the architecture that
            the card and `settings` name, the optimizer does not take `settings`, there are both
            `opt` and `settings`, the card names no optimizer and there is no `opt`, or
            `name_or_path` is neither a name nor a path.

    Gradient descent with a learned rate:

    >>> import tempfile
    >>> mine = LearnedOptimizer(init=lambda key: jax.numpy.zeros(()),
    ...                         bind=lambda phi: optax.sgd(jax.numpy.exp(phi)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, mine, jax.numpy.array(-1.5), {"task": "none"})
    ...     _, phi, card = restore(folder, opt=mine)
    >>> phi.item(), card["optimizer"]
    (-1.5, None)
    """
    folder = _folder(name_or_path)
    card = read_card(folder)
    where, spec = str(folder / checkpoint.CARD), card.get("optimizer", "nothing")
    if opt is not None:
        if not isinstance(opt, LearnedOptimizer):
            raise ValueError(f"opt must be a learned optimizer, got {opt!r}")
        if settings:
            raise ValueError(f"opt has its own settings, got it with {settings}")
    elif spec is None:
        raise ValueError(
            f"opt must be the learned optimizer that was saved, got none: {where} names none of "
            "l2ljax.learned that plain JSON values rebuild"
        )
    else:
        opt = _rebuild(where, spec, settings)
    phi = checkpoint.read_weights(folder, jax.eval_shape(opt.init, jax.random.key(0)))
    return opt, phi, card


def load(
    name_or_path: Path,
    *,
    opt: LearnedOptimizer | None = None,
    num_steps: int | None = None,
    scale: Rate = 1.0,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
    **settings: Any,
) -> optax.GradientTransformation:
    r"""A trained optimizer, ready to use.

    $$\theta_{t+1} = \theta_t + s_t r_t (u_t - \lambda_t \theta_t)$$

    with its updates u. The ramp r is 1 for the first 70 % of `num_steps` updates, then goes to zero
    linearly; after the last of them it stays where it is. See `scaled` for each factor.

    It may stand wherever one of optax may: in a chain, in a training state, and in Flax NNX,
    `nnx.Optimizer(model, load("general"), wrt=nnx.Param)`.

    Args:
        name_or_path: the name of weights that come with the package, or a folder that `save` wrote;
            as in `restore`.
        opt: as in `restore`.
        num_steps: updates of the whole run, where it is known; None: no ramp. An optimizer that
            plans the run itself, as `celo` and `tensorwise` do, gets it instead of the ramp.
        scale: s, a number, a scalar array or a schedule whose count starts at 0.
        weight_decay: λ, likewise: the share of the params that is taken off per step at s = r = 1.
        mask: which params decay, as in `scaled`.
        **settings: as in `restore`.

    Returns:
        An ordinary optax transformation; with none of these arguments that which `bind` returns.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged or of another architecture, the optimizer does not take
            `settings`, `opt` is needed or is there with `settings`, or `name_or_path` is neither a
            name nor a path; for the other arguments as in `scaled`.

    >>> tx = load("general", num_steps=1000, scale=0.5, weight_decay=1e-4)
    >>> state = tx.init(jax.numpy.ones(3))
    >>> int(state.count), state.inner.layers[0][0].shape
    (0, (20, 3))
    """
    if num_steps is not None and opt is None and _plans(read_card(name_or_path)):
        settings, num_steps = settings | {"num_steps": num_steps}, None
    opt, phi, _ = restore(name_or_path, opt=opt, **settings)
    return scaled(
        opt.bind(phi), num_steps=num_steps, scale=scale, weight_decay=weight_decay, mask=mask
    )


def _plans(card: Mapping[str, Any]) -> bool:
    """Whether the optimizer of a card asks for the number of steps itself."""
    spec = card.get("optimizer")
    return isinstance(spec, Mapping) and "num_steps" in (spec.get("arguments") or {})


def _shipped_cards() -> list[pathlib.Path]:
    return sorted(SHIPPED.glob(f"*/{checkpoint.CARD}"))


def _folder(name_or_path: Path) -> pathlib.Path:
    """The folder of a name or path."""
    if not isinstance(name_or_path, str | os.PathLike) or name_or_path == "":
        raise ValueError(
            f"name_or_path must be a folder or one of {[*shipped()]}, got {name_or_path!r}"
        )
    path = pathlib.Path(name_or_path)
    if not isinstance(name_or_path, str) or path.name != name_or_path:
        return path
    names = [card.parent.name for card in _shipped_cards()]
    if name_or_path in names:
        return SHIPPED / name_or_path
    if not path.is_dir():
        raise FileNotFoundError(
            f"{name_or_path} does not exist: it is no folder, and none of the weights that come "
            f"with l2ljax, {names}; expected one of these names, or the path of a folder with "
            f"{checkpoint.WEIGHTS} and {checkpoint.CARD}{_checks.near(name_or_path, names)}"
        )
    return path


def _rebuild(where: str, spec: Any, settings: Mapping[str, Any] | None = None) -> LearnedOptimizer:
    """The optimizer of a spec that was read from a card, with settings beside or instead of it."""
    if not isinstance(spec, dict) or not isinstance(spec.get("arguments"), dict):
        raise ValueError(f"{where} must name the optimizer and its arguments, got {spec!r}")
    name = str(spec.get("name"))
    _checks.choice(f"optimizer in {where}, without opt=,", name, FACTORIES)
    try:
        return FACTORIES[name](**{**spec["arguments"], **(settings or {})})
    except (AttributeError, TypeError, ValueError) as error:
        beside = f" with {dict(settings)}" if settings else ""
        raise ValueError(
            f"{where}{beside} has arguments that {name} does not take: {error}"
        ) from error


def _is_plain(value: Any) -> bool:
    """Whether a card can hold a value; no function is kept."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)
