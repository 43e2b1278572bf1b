"""Optimizers that a benchmark has beside Adam with a tuned rate, with budgets stated."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import optax
from jaxtyping import Array

from l2ljax import _checks, classic, learned
from l2ljax.core import Transformation
from l2ljax.evaluate._compare import Tunable
from l2ljax.evaluate._tune import Factory, Grid

Plan: TypeAlias = Callable[[int], Transformation | Tunable]
"""An optimizer that depends on the number of steps: `plan(num_steps)`."""

Entrant: TypeAlias = Transformation | Tunable | Plan

RATES: tuple[float, ...] = tuple(np.geomspace(1e-4, 1.0, 11).tolist())
"""The learning rates that hand-designed optimizers are tuned over; an edge widens them."""

DEFAULT = ("Adam cosine",)


def cosine(factory: Factory, rates: Grid = RATES) -> Plan:
    """An optimizer whose rate falls to zero by a cosine from a peak that is tuned.

    Args:
        factory: `factory(learning_rate)`, of a schedule.
        rates: the peak rates.

    Returns:
        A function of the number of steps, to be an entry of `benchmark`.

    >>> tunable = cosine(optax.adam, [1e-3, 1e-2])(100)
    >>> tunable.grid, isinstance(tunable.factory(1e-3), optax.GradientTransformation)
    ([0.001, 0.01], True)
    """
    return lambda num_steps: Tunable(functools.partial(_cosine, factory, num_steps), rates)


def _cosine(factory: Factory, num_steps: int, peak: float | Array) -> Transformation:
    return factory(optax.cosine_decay_schedule(peak, num_steps))


def _fixed_cosine(factory: Factory) -> Plan:
    """From a peak of one, for methods that find the rate."""
    return lambda num_steps: _cosine(factory, num_steps, 1.0)


def _mechanic(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    return optax.contrib.mechanize(optax.adam(learning_rate))


def _hand_designed() -> dict[str, Entrant]:
    contrib = optax.contrib
    return {
        "Adam untuned": classic.adam(1e-3),
        "Adam cosine": cosine(classic.adam),
        "AdamW untuned": optax.adamw(1e-3),
        "AdamW": Tunable(optax.adamw, RATES),
        "AdamW cosine": cosine(optax.adamw),
        "NAdamW untuned": optax.nadamw(1e-3),
        "NAdamW": Tunable(optax.nadamw, RATES),
        "NAdamW cosine": cosine(optax.nadamw),
        "Muon": Tunable(contrib.muon, RATES),
        "Muon cosine": cosine(contrib.muon),
        "Prodigy": contrib.prodigy(),
        "Prodigy cosine": _fixed_cosine(contrib.prodigy),
        "D-Adaptation": contrib.dadapt_adamw(),
        "D-Adaptation cosine": _fixed_cosine(contrib.dadapt_adamw),
        "DoWG": contrib.dowg(),
        "DoWG cosine": _fixed_cosine(contrib.dowg),
        "Momo": contrib.momo(),
        "Momo-Adam": contrib.momo_adam(),
        "schedule-free AdamW": contrib.schedule_free_adamw(),
        "Mechanic": _mechanic(1.0),
        "Mechanic cosine": _fixed_cosine(_mechanic),
    }


def rivals(
    names: str | Sequence[str] | None = None,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Entrant]:
    """Optimizers to stand beside those of a benchmark, whose yardstick is Adam with a tuned rate.

    | budget | names |
    |---|---|
    | none: defaults of optax, rates 1e-3 | `"Adam untuned"`, `"AdamW untuned"`, `"NAdamW untuned"` |
    | 11 constant rates | `"AdamW"`, `"NAdamW"`, `"Muon"` |
    | 11 peak rates of a cosine to zero | `"Adam cosine"`, `"AdamW cosine"`, `"NAdamW cosine"`, `"Muon cosine"` |
    | none: the rate is found | `"Prodigy"`, `"D-Adaptation"`, `"DoWG"`, `"Mechanic"` (of Adam), each also with `" cosine"`; `"Momo"`, `"Momo-Adam"`, `"schedule-free AdamW"` |
    | none: meta-trained by others | the names of the files in `weights_dir` |

    Rates span the four decades from 1e-4 to 1, and more beyond an edge that is best. The loss of
    schedule-free AdamW is measured where it takes gradients, not at its average.

    Args:
        names: which ones; `"all"`; default: `"Adam cosine"`, and all that `weights_dir` has.
        weights_dir: a folder of safetensors files that `learned.published` reads.

    Returns:
        Entries of `benchmark` by name.

    Raises:
        FileNotFoundError: if `weights_dir` is no folder with such files.
        ValueError: for an unknown name.

    >>> [*rivals(["Prodigy", "Muon cosine"])]
    ['Prodigy', 'Muon cosine']
    """  # noqa: E501
    pretrained = {} if weights_dir is None else _pretrained(pathlib.Path(weights_dir))
    known = {**_hand_designed(), **pretrained}
    if names is None:
        names = (*DEFAULT, *pretrained)
    elif isinstance(names, str):
        _checks.choice("names", names, ["all"])
        names = tuple(known)
    for name in names:
        _checks.choice("names", name, known)
    return {name: known[name] for name in names}


def _pretrained(folder: pathlib.Path) -> dict[str, Entrant]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"weights_dir must be a folder with safetensors files, got {str(folder)!r}"
        )
    return {file.stem: functools.partial(_read, file) for file in files}


def _read(file: pathlib.Path, num_steps: int) -> Transformation:
    opt, phi = learned.published(file, num_steps=num_steps)
    return opt.bind(phi)
