"""What each subcommand does."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import l2ljax
from l2ljax import _checks, evaluate, kernels, learned, meta, tasks
from l2ljax.checkpoint import write_file
from l2ljax.cli import _devices as devices
from l2ljax.cli._recipes import RECIPES, Recipe
from l2ljax.cli._run import FIGURE, SETTINGS, TABLE, Run, Saver

SAVE_SECONDS = 60.0

# The options of a comparison and their defaults; None: as the task has it.
COMPARISON = {"problems": 64, "inner_steps": None, "evaluation_seed": 1_000_000}


class Interrupted(Exception):
    """Ctrl-C, after the state was saved; the text says how to go on."""


def list_tasks(arguments: argparse.Namespace) -> None:
    """Prints the catalogue."""
    del arguments
    width = max(map(len, tasks.CATALOGUE))
    for name, entry in tasks.CATALOGUE.items():
        data = "; needs --data-dir, or downloads" if entry.needs_data else ""
        print(f"{name.ljust(width)}  {entry.description}{data}")


def build(arguments: argparse.Namespace) -> None:
    """Compiles the CPU's program and says where it is."""
    path = kernels.build(arguments.compiler)
    print(f"built {path}; learned LSTMs use it from now on")


def list_weights(arguments: argparse.Namespace) -> None:
    """Prints the weights that come with the package, or one card."""
    if arguments.weights is not None:
        _, _, card = learned.restore(arguments.weights)
        print("\n".join(_outline(card)))
        return
    cards = learned.shipped()
    if not cards:
        print("no weights come with this version; `l2ljax train` makes some")
    for name, card in cards.items():
        shown = {key: card[key] for key in ("trained_on", "scores", "limits") if key in card}
        print("\n".join(_outline({name: shown})))


def _outline(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Plain JSON values, a line each, indented as they are nested."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _outline(value, indent + "  ")
        elif isinstance(value, float):
            yield f"{indent}{key}: {value:.6g}"
        else:
            yield f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}"


def train(arguments: argparse.Namespace) -> None:
    """Meta-trains, and leaves weights with a card in the run's folder."""
    mesh = devices.mesh(arguments)
    run, job = _open(arguments, mesh)
    result, history = _meta_train(run, job, arguments)
    scores = {}
    if "validation" in history:
        best = float(np.min(history["validation"]))
        scores["validation"] = best if np.isfinite(best) else None
    if not devices.leads():
        return
    _finish(run, job, result, scores)
    print(f"weights: {run.folder}\nload them: l2ljax.learned.load({str(run.folder)!r})")


def compare(arguments: argparse.Namespace) -> None:
    """Compares saved weights with tuned baselines."""
    optimizers: dict[str, Any] = {}
    for text in arguments.weights:
        name, _, weights = text.rpartition("=")
        name = name or pathlib.Path(weights).resolve().name
        if name in optimizers or name in evaluate.baselines():
            raise ValueError(
                f"--weights must have one name each, got two of {name!r}; NAME=WEIGHTS"
            )
        optimizers[name] = learned.load(weights)
    if arguments.out is None and weights in learned.shipped():
        raise ValueError(
            f"--out must name a folder for table and figure, as {weights} comes with the package; "
            "got none"
        )
    folder = pathlib.Path(arguments.out or weights)
    existing = [name for name in (TABLE, FIGURE) if (folder / name).exists()]
    if existing and not arguments.force:
        raise FileExistsError(f"{folder} has {' and '.join(existing)}; --force replaces them")
    family = tasks.load(arguments.task, arguments.data_dir)
    _check_comparison(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    _compare(folder, optimizers, family, arguments)


def demo(arguments: argparse.Namespace) -> None:
    """Meta-trains on the embedded digits, compares, and leaves everything in one folder."""
    arguments.task, arguments.data_dir, arguments.start = "digits", None, None
    _check_comparison(arguments)
    run, job = _open(arguments)
    result, _ = _meta_train(run, job, arguments)
    optimizers = {"LSTM": job.opt.bind(result.phi)}
    try:
        comparison = _compare(run.folder, optimizers, tasks.load("digits"), arguments)
    except KeyboardInterrupt:
        raise _interrupted(run, arguments, "the state after the last meta-step") from None
    _finish(run, job, result, {"comparison": comparison.to_dict()})
    print(f"weights: {run.folder}")


class _Job(NamedTuple):
    """Meta-training whose settings were all accepted, and whose data are there."""

    settings: dict[str, Any]
    command: str
    recipe: Recipe
    opt: l2ljax.LearnedOptimizer
    task: l2ljax.Task
    training: dict[str, Any]
    start: dict[str, Any] | None


def _job(settings: dict[str, Any], source: pathlib.Path | None = None) -> _Job:
    """What settings ask for, which were read from the file `source` or were typed."""
    with _blaming(source):
        _check_seed("seed", settings["seed"])
        _checks.choice("task", settings["task"], tasks.CATALOGUE)
        recipe = Recipe(**settings["recipe"])
        opt = recipe.optimizer()
        command, data_dir, weights = (settings[name] for name in ("command", "data_dir", "start"))
    task = tasks.load(settings["task"], data_dir).train
    window = tasks.CATALOGUE[settings["task"]].final_window
    with _blaming(source):
        training = recipe.training(opt, task, seed=settings["seed"], window=window)
    start = None
    if weights is not None:
        earlier, training["phi"], start = learned.restore(weights)
        if earlier.spec != opt.spec:
            raise ValueError(
                f"start must hold the optimizer of the recipe, {opt.spec}, got {earlier.spec}"
            )
    return _Job(settings, command, recipe, opt, task, training, start)


@contextlib.contextmanager
def _blaming(source: pathlib.Path | None) -> Iterator[None]:
    """Names the file of settings that are refused; data and weights have errors of their own."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        if source is None:
            raise
        raise ValueError(f"{source} is damaged: {error!r}") from error


def _check_seed(name: str, seed: Any) -> None:
    _checks.count(name, seed, least=0)
    # A key has the last 32 bits of its seed: larger ones would repeat the results of these.
    if seed >= 2**32:
        raise ValueError(f"{name} must be less than 2**32, got {seed}")


def _open(arguments: argparse.Namespace, mesh: Mesh | None = None) -> tuple[Run, _Job]:
    if arguments.resume:
        return _open_again(arguments, mesh)
    if arguments.task is None:
        raise ValueError("--task must name a task (`l2ljax tasks` lists them), got none")
    _checks.choice("task", arguments.task, tasks.CATALOGUE)
    given = _given(arguments)
    settings = {
        **{name: given[name] for name in ("task", "data_dir", "start")},
        "seed": 0 if given["seed"] is None else given["seed"],
        "command": _typed(arguments),
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


def _open_again(arguments: argparse.Namespace, mesh: Mesh | None) -> tuple[Run, _Job]:
    if arguments.force:
        raise ValueError("--resume goes on with a run and --force replaces it, got both")
    run, settings = Run.resume(arguments.out)
    own = {**settings, **settings["recipe"]}
    for name, value in _given(arguments).items():
        # A setting that is missing is reported as damage below.
        if value not in (None, own.get(name, value)):
            raise ValueError(f"{_flag(name)} must be that of the run, {own[name]!r}, got {value!r}")
    devices.require_same(settings.get("devices", devices.count(mesh)), mesh)
    return run, _on(mesh, _job(settings, run.folder / SETTINGS))


def _on(mesh: Mesh | None, job: _Job) -> _Job:
    if mesh is not None:
        devices.require_shares(job.recipe.batch, mesh)
        job.training["mesh"] = mesh
    return job


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run that were typed; the others are None."""
    data_dir = arguments.data_dir
    return {
        "task": arguments.task,
        "data_dir": None if data_dir is None else os.path.abspath(data_dir),
        "seed": arguments.seed,
        "start": _start(arguments.start),
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Recipe)},
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _start(weights: str | None) -> str | None:
    """What names the same weights from any folder: a run may be resumed from another one."""
    if weights is None or weights in learned.shipped():
        return weights
    return os.path.abspath(weights)


def _recipe(given: Mapping[str, Any]) -> Recipe:
    fields = [field.name for field in dataclasses.fields(Recipe)]
    changes = {name: given[name] for name in fields if given[name] is not None}
    return dataclasses.replace(RECIPES[given["task"]], **changes)


def _meta_train(
    run: Run, job: _Job, arguments: argparse.Namespace
) -> tuple[meta.TrainResult, dict[str, np.ndarray]]:
    state: meta.TrainState | None = None
    history: dict[str, np.ndarray] = {}
    if arguments.resume:
        names = ("key", "batch", "meta_optimizer", "estimator", "phi", "mesh")
        options = {name: job.training[name] for name in names if name in job.training}
        _, like = meta.make_step(job.opt, job.task, **options)
        state, history = run.load(like)
        if devices.leads():
            print(f"going on from meta-step {0 if state is None else int(state.step)}")
        if state is not None:
            job.training.pop("phi", None)
    saver = Saver(run, state, history, SAVE_SECONDS)
    try:
        result = meta.train(
            job.opt,
            job.task,
            **job.training,
            state=state,
            callbacks=[saver],
            progress=devices.leads(),
        )
    except KeyboardInterrupt:
        if jax.process_count() > 1:  # The others may be elsewhere: the last saved state it is.
            raise
        saver.save()
        done = 0 if saver.state is None else int(saver.state.step)
        what = f"the state after meta-step {done} of {job.recipe.steps}"
        raise _interrupted(run, arguments, what) from None
    saver.save()
    return result, saver.history()


def _interrupted(run: Run, arguments: argparse.Namespace, what: str) -> Interrupted:
    words = ["l2ljax", arguments.name, "--out", str(run.folder), "--resume"]
    # What is not among the settings of the run.
    for name, default in {**devices.OPTIONS, **COMPARISON}.items():
        value = getattr(arguments, name, default)
        if value != default:
            words += [_flag(name)] if value is True else [_flag(name), str(value)]
    again = shlex.join(words)
    return Interrupted(f"interrupted; {run.folder} holds {what}. Go on with:\n  {again}")


def _typed(arguments: argparse.Namespace) -> str:
    return shlex.join(["l2ljax", *arguments.words])


def _plots() -> types.ModuleType:
    """Only figures need matplotlib; without it, all other commands work."""
    try:
        from l2ljax import plots
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'l2ljax[plots]'") from error
    return plots


def _check_comparison(arguments: argparse.Namespace) -> None:
    """Refuses before anything long begins."""
    window = tasks.CATALOGUE[arguments.task].final_window
    _checks.count("inner_steps", _inner_steps(arguments), least=window)
    _checks.count("problems", arguments.problems)
    _check_seed("evaluation_seed", arguments.evaluation_seed)
    _plots()


def _inner_steps(arguments: argparse.Namespace) -> int:
    steps: int | None = arguments.inner_steps
    return tasks.CATALOGUE[arguments.task].horizon if steps is None else steps


def _compare(
    folder: pathlib.Path,
    optimizers: dict[str, Any],
    family: tasks.Family,
    arguments: argparse.Namespace,
) -> evaluate.Comparison:
    comparison = evaluate.compare(
        {**optimizers, **evaluate.baselines()},
        family.evaluation,
        key=jax.random.key(arguments.evaluation_seed),
        steps=_inner_steps(arguments),
        problems=arguments.problems,
        window=tasks.CATALOGUE[arguments.task].final_window,
        progress=True,
    )
    print(f"\n{comparison}\n")
    best = comparison.best_rival
    verdict = "beats" if best.ratio_high < 1 else "does not beat"
    print(
        f"{comparison.reference} {verdict} the best tuned baseline, {best.name}: ratio of final "
        f"losses {best.ratio:.3f} [{best.ratio_low:.3f}, {best.ratio_high:.3f}]"
    )
    table = {
        "task": arguments.task,
        "versions": _versions(),
        "command": _typed(arguments),
        **comparison.to_dict(),
    }
    write_file(folder / TABLE, json.dumps(table, indent=2, allow_nan=False) + "\n")
    plots = _plots()
    axes = plots.curves(comparison)
    axes.set_title(f"{arguments.task}: fresh problems, baselines tuned")
    plots.save(axes, folder / FIGURE)
    print(f"table: {folder / TABLE}\nfigure: {folder / FIGURE}")
    return comparison


def _finish(
    run: Run,
    job: _Job,
    result: meta.TrainResult,
    scores: dict[str, Any],
) -> None:
    card = {
        "task": job.settings["task"],
        "seed": job.settings["seed"],
        "meta_steps": int(result.state.step),
        "recipe": job.settings["recipe"],
        "scores": scores,
        "command": job.command,
        **({} if job.start is None else {"start": job.start}),
        "versions": _versions(),
    }
    learned.save(run.folder, job.opt, result.phi, card)
    run.clear_checkpoints()


def _versions() -> dict[str, str]:
    packages = ["jax", "jaxlib", "optax", "flax", "numpy"]
    return {
        "l2ljax": l2ljax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
