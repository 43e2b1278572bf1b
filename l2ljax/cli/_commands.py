"""What each subcommand does."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax
import numpy as np

import l2ljax
from l2ljax import evaluate, learned, meta, plots, tasks
from l2ljax.checkpoint import write_file
from l2ljax.cli._recipes import RECIPES, Recipe
from l2ljax.cli._run import FIGURE, TABLE, Run, Saver

SAVE_SECONDS = 60.0


class Interrupted(Exception):
    """Ctrl-C, after the state was saved; the text says how to go on."""


def list_tasks(arguments: argparse.Namespace) -> None:
    """Prints the catalogue."""
    del arguments
    width = max(map(len, tasks.CATALOGUE))
    for name, entry in tasks.CATALOGUE.items():
        data = "; needs --data-dir, or downloads" if entry.needs_data else ""
        print(f"{name.ljust(width)}  {entry.description}{data}")


def train(arguments: argparse.Namespace) -> None:
    """Meta-trains, and leaves weights with a card in the run's folder."""
    run, settings, resumed = _open(arguments)
    opt, result, history = _meta_train(run, settings, resumed, arguments)
    scores = {"validation": float(min(history["validation"]))} if "validation" in history else {}
    _finish(run, opt, result, settings, scores, _typed(arguments))
    print(f"weights: {run.folder}\nload them: l2ljax.learned.load({str(run.folder)!r})")


def compare(arguments: argparse.Namespace) -> None:
    """Compares saved weights with tuned baselines."""
    optimizers: dict[str, Any] = {}
    for text in arguments.weights:
        name, _, path = text.rpartition("=")
        path = pathlib.Path(path)
        optimizers[name or path.resolve().name] = learned.load(path)
    folder = pathlib.Path(arguments.out or path)
    existing = [name for name in (TABLE, FIGURE) if (folder / name).exists()]
    if existing and not arguments.force:
        raise FileExistsError(f"{folder} has {' and '.join(existing)}; --force replaces them")
    family = tasks.load(arguments.task, arguments.data_dir)
    _compare(folder, optimizers, arguments.task, family, arguments)


def demo(arguments: argparse.Namespace) -> None:
    """Meta-trains on the embedded digits, compares, and leaves everything in one folder."""
    arguments.task, arguments.data_dir = "digits", None
    run, settings, resumed = _open(arguments)
    opt, result, _ = _meta_train(run, settings, resumed, arguments)
    family = tasks.load("digits")
    comparison = _compare(run.folder, {"LSTM": opt.bind(result.phi)}, "digits", family, arguments)
    scores = {"comparison": comparison.to_dict()}
    _finish(run, opt, result, settings, scores, _typed(arguments))
    print(f"weights: {run.folder}")


def _open(arguments: argparse.Namespace) -> tuple[Run, dict[str, Any], bool]:
    if arguments.resume:
        run, settings = Run.resume(arguments.out)
        return run, settings, True
    if arguments.task is None:
        raise ValueError("--task must name a task (`l2ljax tasks` lists them), got none")
    settings = {
        "task": arguments.task,
        "data_dir": None if arguments.data_dir is None else os.path.abspath(arguments.data_dir),
        "seed": arguments.seed,
        "recipe": dataclasses.asdict(_recipe(arguments)),
    }
    # Everything that can be refused is refused before the folder is touched.
    tasks.load(arguments.task, arguments.data_dir)
    return Run.start(arguments.out, settings, force=arguments.force), settings, False


def _recipe(arguments: argparse.Namespace) -> Recipe:
    fields = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(arguments, name, None) for name in fields}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[arguments.task], **changes)


def _meta_train(
    run: Run, settings: dict[str, Any], resumed: bool, arguments: argparse.Namespace
) -> tuple[l2ljax.LearnedOptimizer, meta.TrainResult, dict[str, np.ndarray]]:
    recipe = Recipe(**settings["recipe"])
    entry = tasks.CATALOGUE[settings["task"]]
    task = tasks.load(settings["task"], settings["data_dir"]).train
    opt = recipe.optimizer()
    training = recipe.training(opt, task, seed=settings["seed"], window=entry.final_window)
    state: meta.TrainState | None = None
    history: dict[str, np.ndarray] = {}
    if resumed:
        like = meta.make_step(
            opt, task, **{k: training[k] for k in ("key", "batch", "meta_optimizer", "estimator")}
        )[1]
        state, history = run.load(like)
        print(f"going on from meta-step {0 if state is None else int(state.step)}")
    saver = Saver(run, history, SAVE_SECONDS)
    try:
        result = meta.train(
            opt, task, **training, state=state, callbacks=[saver], progress=sys.stderr.isatty()
        )
    except KeyboardInterrupt:
        saver.save()
        done = 0 if saver.state is None else int(saver.state.step)
        again = shlex.join(["l2ljax", arguments.name, "--out", str(run.folder), "--resume"])
        raise Interrupted(
            f"interrupted; {run.folder} holds the state after meta-step {done} of {recipe.steps}."
            f" Go on with:\n  {again}"
        ) from None
    saver.save()
    return opt, result, saver.history()


def _typed(arguments: argparse.Namespace) -> str:
    return shlex.join(["l2ljax", *arguments.words])


def _compare(
    folder: pathlib.Path,
    optimizers: dict[str, Any],
    name: str,
    family: tasks.Family,
    arguments: argparse.Namespace,
) -> evaluate.Comparison:
    entry = tasks.CATALOGUE[name]
    comparison = evaluate.compare(
        {**optimizers, **evaluate.baselines()},
        family.evaluation,
        key=jax.random.key(arguments.evaluation_seed),
        steps=arguments.inner_steps or entry.horizon,
        problems=arguments.problems,
        window=entry.final_window,
        progress=sys.stderr.isatty(),
    )
    print(f"\n{comparison}\n")
    best = comparison.best_rival
    verdict = "beats" if best.ratio_high < 1 else "does not beat"
    print(
        f"{comparison.reference} {verdict} the best tuned baseline, {best.name}: ratio of final "
        f"losses {best.ratio:.3f} [{best.ratio_low:.3f}, {best.ratio_high:.3f}]"
    )
    table = {
        "task": name,
        "versions": _versions(),
        "command": _typed(arguments),
        **comparison.to_dict(),
    }
    write_file(folder / TABLE, json.dumps(table, indent=2, allow_nan=False) + "\n")
    axes = plots.curves(comparison)
    axes.set_title(f"{name}: fresh problems, baselines tuned")
    plots.save(axes, folder / FIGURE)
    print(f"table: {folder / TABLE}\nfigure: {folder / FIGURE}")
    return comparison


def _finish(
    run: Run,
    opt: l2ljax.LearnedOptimizer,
    result: meta.TrainResult,
    settings: dict[str, Any],
    scores: dict[str, Any],
    command: str,
) -> None:
    card = {
        "task": settings["task"],
        "seed": settings["seed"],
        "meta_steps": int(result.state.step),
        "recipe": settings["recipe"],
        "scores": scores,
        "command": command,
        "versions": _versions(),
    }
    learned.save(run.folder, opt, result.phi, card)
    run.clear_checkpoints()


def _versions() -> dict[str, str]:
    packages = ["jax", "jaxlib", "optax", "flax", "numpy"]
    return {
        "l2ljax": l2ljax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
