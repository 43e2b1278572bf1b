"""What `l2ljax bench` does: optimizers over the tasks of the suite."""

import argparse
import functools
import json
import pathlib
import time
from typing import Any

from l2ljax import evaluate, learned
from l2ljax.checkpoint import write_file
from l2ljax.cli._jobs import typed, versions
from l2ljax.cli._optimizers import named

TABLE, FIGURE, PAGE, RESULTS = "benchmark.json", "benchmark.png", "benchmark.html", "results"


def bench(arguments: argparse.Namespace) -> None:
    """Runs what is not kept yet, and writes the table, the figure and the page."""
    from l2ljax import plots  # only figures need matplotlib: is it there?

    optimizers = _optimizers(arguments)
    folder: pathlib.Path = arguments.out
    result = evaluate.benchmark(
        optimizers,
        arguments.tasks or arguments.suite,
        rivals=_rivals(arguments),
        data_dir=arguments.data_dir,
        resume=folder / RESULTS,
        steps=arguments.steps,
        problems=arguments.problems,
        clock=time.perf_counter,
        progress=True,
    )
    if arguments.reference is not None:
        result = result.against(arguments.reference)
    print(f"\n{result}\n")
    content = {"command": typed(arguments), "versions": versions(), **result.to_dict()}
    write_file(folder / TABLE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    plots.save(plots.benchmark(result), folder / FIGURE)
    write_file(folder / PAGE, plots.page(result, "l2ljax bench", typed(arguments)))
    print("\n".join(f"{folder / name}" for name in (TABLE, FIGURE, PAGE)))


def _optimizers(arguments: argparse.Namespace) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for text in arguments.weights:
        name, _, weights = text.rpartition("=")
        _add(entries, name or pathlib.Path(weights).resolve().name, _loaded(arguments, weights))
    for text in arguments.optimizer or []:
        name, _, place = text.rpartition("=")
        _add(entries, name or place.rpartition(":")[2], named(place))
    if not entries:
        raise ValueError("--weights or --optimizer must name an optimizer, got none")
    return entries


def _loaded(arguments: argparse.Namespace, weights: str) -> Any:
    if not arguments.planned:
        return learned.load(weights)
    learned.read_card(weights)  # Missing ones are missed before the first run.
    return functools.partial(_planned, weights)


def _planned(weights: str, steps: int) -> Any:
    return learned.load(weights, num_steps=steps)


def _add(entries: dict[str, Any], name: str, entry: Any) -> None:
    if name in entries:
        raise ValueError(f"optimizers must have one name each, got two of {name!r}; NAME=")
    entries[name] = entry


def _rivals(arguments: argparse.Namespace) -> dict[str, Any]:
    names = arguments.rivals
    if names in (["all"], ["none"]):
        names = "all" if names == ["all"] else []
    return evaluate.rivals(names, weights_dir=arguments.rival_weights)
