"""Meta-trains the weights that ship with the package, one recipe a name.

    python benchmarks/paper/weights.py robust-mnist --data-dir DATA   # resumable: type it again

A recipe (in `recipes/`) is one run of `l2ljax.meta.train` or several, each of which begins with the
φ of the one before it, and may end with a search for some numbers in φ. The folder (default:
runs/NAME) then holds weights and card; `ship.py` takes them from there into the package.
"""

import argparse
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from recipes import RECIPES
from recipes.parts import Part, Recipe

from l2ljax import learned, meta
from l2ljax.cli._run import Run, Saver
from l2ljax.core import Phi

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report


def meta_train(recipe: Recipe, folder: pathlib.Path, seed: int, command: str) -> None:
    """Runs the parts that are not done yet; weights and card end up in `folder`."""
    described = {"trained_on": recipe.trained_on, "limits": recipe.limits}
    card = {**described, "seed": seed, "meta_steps": [], "command": command}
    card["circumstances"] = _report.circumstances()
    folder.mkdir(parents=True, exist_ok=True)
    run_key, validation_key = jax.random.split(jax.random.key(seed))
    phi = None if recipe.start is None else recipe.start(folder, run_key)
    validate = None
    for number, part in enumerate(recipe.parts, start=1):
        run = Run(folder / f"part-{number}")
        run_key, validation_key = jax.random.split(jax.random.key(seed + number - 1))
        validate = (part.validate or recipe.validate)(validation_key)
        steps = [part.steps for part in recipe.parts[:number]]
        if not run.has("card.json"):
            card = {**described, "seed": seed, "meta_steps": steps, "command": command}
            train_part(recipe, part, run, phi, run_key, validate, card)
        opt, phi, card = learned.restore(run.folder)
        if (opt.spec, card["meta_steps"]) != (recipe.opt.spec, steps):
            raise ValueError(f"{run.folder} was made by another recipe; remove it")
    validate = validate or recipe.validate(validation_key)
    card = {**card, **described, "scores": {"validation": float(jax.jit(validate)(phi))}}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        learned.save(temporary, recipe.opt, phi, card)
        for name in ("weights.safetensors", "card.json"):
            (pathlib.Path(temporary) / name).replace(folder / name)


def train_part(
    recipe: Recipe,
    part: Part,
    run: Run,
    phi: Phi | None,
    key: jax.Array,
    validate: Callable[[Phi], Any],
    card: dict[str, Any],
) -> None:
    """Meta-trains from φ on, and leaves weights and card in the folder of the run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "key": key,
        "batch": part.batch,
        "meta_optimizer": part.meta_optimizer(),
        "estimator": part.estimator,
        "phi": phi,
    }
    task = recipe.task if part.task is None else part.task
    _, like = meta.make_step(recipe.opt, task, **options)
    state, history = run.load(like)
    if state is not None:
        options["phi"] = None
    saver = Saver(run, state, history, seconds=60)
    start = time.perf_counter()
    result = meta.train(
        recipe.opt,
        task,
        **options,
        steps=part.steps,
        validate=validate,
        validate_every=max(1, part.steps // 20),
        state=state,
        callbacks=[saver],
        progress=True,
    )
    saver.save()
    found = result.phi
    if phi is not None:
        found = optax.incremental_update(found, phi, part.share)
    if part.finish is not None:
        found = part.finish(found, jax.random.key(card["seed"] + 999))
    card = {
        **card,
        "seconds": None if state is not None else time.perf_counter() - start,
        "circumstances": _report.circumstances(),
    }
    learned.save(run.folder, recipe.opt, found, card)
    run.clear_checkpoints()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data-dir", help="folder with MNIST and CIFAR-10")
    parser.add_argument("--out", type=pathlib.Path, help="default: runs/NAME")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Without the folders, which are one machine's.
    command = shlex.join(["python", "benchmarks/paper/weights.py", arguments.name])
    command += " --data-dir DATA" * (arguments.data_dir is not None)
    command += f" --seed {arguments.seed}" * (arguments.seed != 0)
    folder = arguments.out or pathlib.Path("runs") / arguments.name
    meta_train(RECIPES[arguments.name](arguments.data_dir), folder, arguments.seed, command)
    print(f"weights: {folder}")


if __name__ == "__main__":
    main()
