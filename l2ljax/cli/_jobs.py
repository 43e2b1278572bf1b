"""From words to a job: the settings of a run are checked, its data and folder opened."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

import l2ljax
from l2ljax import _checks, learned, tasks
from l2ljax.checkpoint import CARD
from l2ljax.cli import _devices as devices
from l2ljax.cli._optimizers import restore
from l2ljax.cli._recipes import RECIPES, Recipe
from l2ljax.cli._run import SETTINGS, Run


class Job(NamedTuple):
    """Meta-training whose settings were all accepted, and whose data are there."""

    settings: dict[str, Any]
    command: str
    recipe: Recipe
    opt: l2ljax.LearnedOptimizer
    task: l2ljax.Task
    training: dict[str, Any]
    start: dict[str, Any] | None


def _job(settings: dict[str, Any], source: pathlib.Path | None = None) -> Job:
    """What settings ask for, which were read from the file `source` or were typed."""
    with _blaming(source):
        check_seed("seed", settings["seed"])
        _checks.choice("task", settings["task"], tasks.CATALOGUE)
        recipe = Recipe(**settings["recipe"])
        command, data_dir, weights = (settings[name] for name in ("command", "data_dir", "start"))
    opt = recipe.learned_optimizer()
    task = tasks.load(settings["task"], data_dir).train
    window = tasks.CATALOGUE[settings["task"]].final_window
    with _blaming(source):
        training = recipe.training(opt, task, seed=settings["seed"], window=window)
    start = None
    if weights is not None:
        own = None if recipe.optimizer is None else opt
        earlier, training["phi"], start = restore(weights, own)
        if _as_trained(earlier) != _as_trained(opt):
            raise ValueError(
                f"start must hold the optimizer of the recipe, {opt.spec}, got {earlier.spec}"
            )
    return Job(settings, command, recipe, opt, task, training, start)


def _as_trained(opt: l2ljax.LearnedOptimizer) -> dict[str, Any] | None:
    """The spec without what weights that ship have, and training does without."""
    if opt.spec is None:
        return None
    return {**opt.spec, "arguments": {**opt.spec["arguments"], "wait_for_gradient": False}}


@contextlib.contextmanager
def _blaming(source: pathlib.Path | None) -> Iterator[None]:
    """Names the file of settings that are refused; data and weights have errors of their own."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        if source is None:
            raise
        raise ValueError(f"{source} is damaged: {error!r}") from error


def check_seed(name: str, seed: Any) -> None:
    """Requires a seed that no other one repeats.

    Raises:
        ValueError: for another one.
    """
    _checks.count(name, seed, least=0)
    # A key has the last 32 bits of its seed: larger ones would repeat the results of these.
    if seed >= 2**32:
        raise ValueError(f"{name} must be less than 2**32, got {seed}")


def open_run(arguments: argparse.Namespace, mesh: Mesh | None = None) -> tuple[Run, Job]:
    """Opens the folder of the run that is asked for, a new one or one to go on with.

    Raises:
        ValueError: for settings that cannot be, or are not those of the run to go on with.
        OSError: for data, weights or a folder that cannot be had.
    """
    if arguments.resume:
        return _open_again(arguments, mesh)
    if arguments.task is None:
        raise ValueError("--task must name a task (`l2ljax tasks` lists them), got none")
    _checks.choice("task", arguments.task, tasks.CATALOGUE)
    given = _given(arguments)
    settings = {
        **{name: given[name] for name in ("task", "data_dir", "start")},
        "seed": 0 if given["seed"] is None else given["seed"],
        "command": typed(arguments),
        "recipe": dataclasses.asdict(_recipe(given)),
        "devices": devices.count(mesh),
    }
    # Everything that can be refused is refused before the folder is touched.
    job = _on(mesh, _job(settings))
    if not devices.leads():
        return devices.after_leader(lambda: Run(arguments.out)), job
    return devices.after_leader(
        lambda: Run.start(arguments.out, settings, force=arguments.force)
    ), job


def _open_again(arguments: argparse.Namespace, mesh: Mesh | None) -> tuple[Run, Job]:
    if arguments.force:
        raise ValueError("--resume goes on with a run and --force replaces it, got both")
    run, settings = Run.resume(arguments.out)
    if run.has(CARD):
        raise FileExistsError(_finished(run, settings, arguments))
    # Those that an earlier version did not have are as they are by default.
    fields = dataclasses.fields(Recipe)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    own = {**defaults, **settings, **settings["recipe"]}
    if own["optimizer"] is not None and arguments.optimizer is None:
        raise ValueError(
            f"--optimizer must be that of the run, {own['optimizer']!r}, got none: no code is "
            "imported that only a file names"
        )
    for name, value in _given(arguments).items():
        # A setting that is missing is reported as damage below.
        if value not in (None, own.get(name, value)):
            raise ValueError(f"{flag(name)} must be that of the run, {own[name]!r}, got {value!r}")
    devices.require_same(settings.get("devices", devices.count(mesh)), mesh)
    return run, _on(mesh, _job(settings, run.folder / SETTINGS))


def _finished(run: Run, settings: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """Why a finished run is not resumed, and how its weights are trained further."""
    task, recipe = settings.get("task"), settings["recipe"]
    words = ["l2ljax", "train", "--task", str(task), "--start", str(run.folder)]
    if settings.get("data_dir") is not None:
        words += ["--data-dir", settings["data_dir"]]
    usual = dataclasses.asdict(RECIPES[task]) if task in RECIPES else {}
    for name, value in {**recipe, "steps": arguments.steps or recipe.get("steps")}.items():
        if value not in (None, usual.get(name)):
            words += [flag(name), str(value)]
    words += ["--out", f"{run.folder}-more"]
    return (
        f"{run.folder} has a finished run; there is nothing to resume. Its learning rate has "
        f"fallen to zero; a new run trains its weights further:\n  {shlex.join(words)}"
    )


def _on(mesh: Mesh | None, job: Job) -> Job:
    if mesh is not None:
        devices.require_shares(job.recipe.batch, mesh)
        job.training["mesh"] = mesh
    return job


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run that were typed; the others are None."""
    data_dir = arguments.data_dir
    return {
        "task": arguments.task,
        "data_dir": None if data_dir is None else os.path.abspath(os.path.expanduser(data_dir)),
        "seed": arguments.seed,
        "start": _start(arguments.start),
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Recipe)},
    }


def flag(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def _start(weights: str | None) -> str | None:
    """What names the same weights from any folder: a run may be resumed from another one."""
    if weights is None or weights in learned.shipped():
        return weights
    learned.read_card(weights)
    return os.path.abspath(weights)


def _recipe(given: Mapping[str, Any]) -> Recipe:
    fields = [field.name for field in dataclasses.fields(Recipe)]
    changes = {name: given[name] for name in fields if given[name] is not None}
    if given["optimizer"] is not None:
        for name in ("preprocess", "output_scale"):
            if name in changes:
                raise ValueError(f"{flag(name)} is of the LSTM, got it with --optimizer")
            changes[name] = None
    return dataclasses.replace(RECIPES[given["task"]], **changes)


def typed(arguments: argparse.Namespace) -> str:
    """The command as it was typed."""
    return shlex.join(["l2ljax", *arguments.words])


def versions() -> dict[str, str]:
    """What results depend on."""
    packages = ["jax", "jaxlib", "optax", "flax", "numpy"]
    return {
        "l2ljax": l2ljax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
