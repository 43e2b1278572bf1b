"""What each subcommand does."""

import argparse
import contextlib
import json
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from l2ljax import _checks, evaluate, kernels, learned, meta, tasks
from l2ljax.checkpoint import CARD, write_file
from l2ljax.cli import COMPARISON
from l2ljax.cli import _devices as devices
from l2ljax.cli._bench import bench as bench
from l2ljax.cli._jobs import Job, check_seed, flag, open_run, typed, versions
from l2ljax.cli._optimizers import imported, restore
from l2ljax.cli._run import FIGURE, TABLE, Run, Saver, require_folder

SAVE_SECONDS = 60.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the text says what was saved and how to go on."""


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
        print(learned.read_card(arguments.weights))
        return
    cards = learned.shipped()
    print(cards or "no weights come with this version; `l2ljax train` makes some")


def train(arguments: argparse.Namespace) -> None:
    """Meta-trains, and leaves weights with a card in the run's folder."""
    mesh = devices.mesh(arguments)
    run, job = open_run(arguments, mesh)
    with _resumable(run, job, arguments):
        result, history = _meta_train(run, job, arguments)
        scores = {}
        if "validation" in history:
            best = float(np.min(history["validation"]))
            scores["validation"] = best if np.isfinite(best) else None
        if not devices.leads():
            return
        _finish(run, job, result, scores)
    own = "" if job.recipe.optimizer is None else f", opt=...)  # of {job.recipe.optimizer}"
    print(f"weights: {run.folder}\nload them: l2ljax.learned.load({str(run.folder)!r}{own or ')'}")


def compare(arguments: argparse.Namespace) -> None:
    """Compares saved weights with tuned baselines."""
    places: dict[str, str] = {}
    for text in arguments.weights:
        name, _, weights = text.rpartition("=")
        name = name or pathlib.Path(weights).resolve().name
        if name in places or name in evaluate.baselines():
            raise ValueError(
                f"--weights must have one name each, got two of {name!r}; NAME=WEIGHTS"
            )
        places[name] = weights
    own = {}
    for text in arguments.optimizer or []:
        name, _, place = text.rpartition("=")
        if name:
            _checks.choice("the NAME of --optimizer", name, places)
        own[name] = imported(place)
    optimizers = {}
    for name, weights in places.items():
        opt, phi, _ = restore(weights, own.get(name), own.get(""))
        optimizers[name] = opt.bind(phi)
    if arguments.out is None and weights in learned.shipped():
        raise ValueError(
            f"--out must name a folder for table and figure, as {weights} comes with the package; "
            "got none"
        )
    folder = pathlib.Path(arguments.out or weights)
    require_folder(folder)
    existing = [name for name in (TABLE, FIGURE) if (folder / name).exists()]
    if existing and not arguments.force:
        raise FileExistsError(f"{folder} has {' and '.join(existing)}; --force replaces them")
    family = tasks.load(arguments.task, arguments.data_dir)
    _check_comparison(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    _compare(folder, optimizers, family, arguments)


def demo(arguments: argparse.Namespace) -> None:
    """Meta-trains on the embedded digits, compares, and leaves everything in one folder."""
    arguments.task, arguments.data_dir = "digits", None
    arguments.start, arguments.optimizer = None, None
    _check_comparison(arguments)
    run, job = open_run(arguments)
    with _resumable(run, job, arguments):
        result, _ = _meta_train(run, job, arguments)
        optimizers = {"LSTM": job.opt.bind(result.phi)}
        comparison = _compare(run.folder, optimizers, tasks.load("digits"), arguments)
        _finish(run, job, result, {"comparison": comparison.to_dict()})
    print(f"weights: {run.folder}")


def _meta_train(
    run: Run, job: Job, arguments: argparse.Namespace
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
        # Of several processes, the others may be elsewhere: the last saved state it is.
        if jax.process_count() == 1:
            saver.save()
        raise
    saver.save()
    return result, saver.history()


@contextlib.contextmanager
def _resumable(run: Run, job: Job, arguments: argparse.Namespace) -> Iterator[None]:
    """Says how to go on after Ctrl-C, also after another one while the state was being saved."""
    try:
        yield
    except KeyboardInterrupt:
        if run.has(CARD):
            raise
        words = ["l2ljax", arguments.command, "--out", str(run.folder), "--resume"]
        # What is not among the settings of the run.
        if job.recipe.optimizer is not None:
            words += ["--optimizer", job.recipe.optimizer]
        for name, default in {**devices.OPTIONS, **COMPARISON}.items():
            value = getattr(arguments, name, default)
            if value != default:
                words += [flag(name)] if value is True else [flag(name), str(value)]
        raise Interrupted(
            f"interrupted; {run.folder} holds the state after meta-step {run.saved_step()} of "
            f"{job.recipe.steps}. Go on with:\n  {shlex.join(words)}"
        ) from None


def _check_comparison(arguments: argparse.Namespace) -> None:
    """Refuses before anything long begins."""
    window = tasks.CATALOGUE[arguments.task].final_window
    _checks.count("inner_steps", _inner_steps(arguments), least=window)
    _checks.count("problems", arguments.problems)
    check_seed("evaluation_seed", arguments.evaluation_seed)
    from l2ljax import plots  # noqa: F401  (only figures need matplotlib: is it there?)


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
    ours = next(row for row in comparison.rows if row.name == comparison.reference)
    beats = best.ratio_high < 1 and ours.diverged <= best.diverged
    verdict = "beats" if beats else "does not beat"
    print(
        f"{comparison.reference} {verdict} the best tuned baseline, {best.name}: ratio of final "
        f"losses {best.ratio:.3f} [{best.ratio_low:.3f}, {best.ratio_high:.3f}]"
        + (f"; it diverged on {ours.diverged} problems" if ours.diverged else "")
    )
    table = {
        "task": arguments.task,
        "versions": versions(),
        "command": typed(arguments),
        **comparison.to_dict(),
    }
    write_file(folder / TABLE, json.dumps(table, indent=2, allow_nan=False) + "\n")
    from l2ljax import plots

    axes = plots.curves(comparison)
    axes.set_title(f"{arguments.task}: fresh problems, baselines tuned")
    plots.save(axes, folder / FIGURE)
    print(f"table: {folder / TABLE}\nfigure: {folder / FIGURE}")
    return comparison


def _finish(
    run: Run,
    job: Job,
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
        "versions": versions(),
    }
    learned.save(run.folder, job.opt, result.phi, card)
    run.clear_checkpoints()
