"""The command line: `l2ljax demo`, `train`, `compare`, `bench`, `tasks`, `weights`."""

import argparse
import contextlib
import io
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

# Nothing here imports JAX: help and errors about words come at once.
from l2ljax import __version__

# The options of a comparison and their defaults; None: as the task has it.
COMPARISON = {"problems": 64, "inner_steps": None, "evaluation_seed": 1_000_000}

_EPILOG = """\
examples:
  l2ljax demo --out runs/demo
  l2ljax train --task quadratic --out runs/quadratic
  l2ljax train --task mnist --data-dir data --out runs/mnist
  l2ljax compare --task mnist --data-dir data --weights runs/mnist
  l2ljax bench --weights general mine=runs/mine

An optimizer that was trained is a folder, and in Python an optax transformation:
  tx = l2ljax.learned.load("runs/mnist")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    It is 0, 2 for wrong use, 130 after Ctrl-C, and 141 if what reads the output went away.

    Args:
        argv: the words after `l2ljax`; default: those of the process.

    Returns:
        The exit status.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # What a terminal's encoding lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            _execute(list(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:  # as after `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        # As in `l2ljax tasks | head -1`. What is left is not written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"l2ljax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"\n{str(interruption) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _execute(words: list[str]) -> None:
    arguments, unknown = _parser().parse_known_args(words)
    if unknown:
        arguments.parser.refuse(unknown)
    # What a card records, and what an interrupted run tells its user to type.
    arguments.words = words

    with _ending_at_once():
        from l2ljax.cli import _commands

    getattr(_commands, arguments.command)(arguments)


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the program silently; libraries that are being imported may lose it."""
    usual = signal.default_int_handler
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


class _Parser(argparse.ArgumentParser):
    """A parser of whole words; its subcommands are alike."""

    def __init__(self, **options: Any) -> None:
        # A beginning of an option that works today is another option tomorrow.
        super().__init__(**options, allow_abbrev=False)
        self.set_defaults(parser=self)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Ends the program for words that are no arguments, and proposes the nearest option."""
        from l2ljax import _checks

        hint = _checks.near(words[0].split("=")[0], self._option_string_actions)
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="l2ljax",
        description="Meta-train optimizers, and compare them with tuned hand-designed ones.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "demo",
        help="meta-train on the embedded digits and compare: the whole job in five minutes",
        description="Meta-trains the LSTM optimizer on a small network over embedded handwritten "
        "digits, tunes hand-designed optimizers on the same problem, compares all on fresh ones.",
    )
    command.set_defaults(command="demo")
    _add_run(command, default_out="runs/demo")
    _add_recipe(command)
    _add_comparison(command)

    command = commands.add_parser(
        "train",
        help="meta-train an LSTM optimizer on a task",
        description="Meta-trains an LSTM optimizer. The folder then holds weights.safetensors, "
        "card.json and the history of the run.",
    )
    command.set_defaults(command="train")
    command.add_argument("--task", help="a name that `l2ljax tasks` lists")
    _add_data(command)
    command.add_argument("--start", metavar="WEIGHTS", help="begin with these, a folder or a name")
    command.add_argument(
        "--optimizer",
        metavar="MODULE:NAME",
        help="train this learned optimizer, yours, in place of the LSTM: a LearnedOptimizer, or a "
        "function without arguments that makes one",
    )
    _add_run(command, default_out=None)
    _add_recipe(command)
    _add_devices(command)

    command = commands.add_parser(
        "compare",
        help="compare trained optimizers with tuned baselines",
        description="Tunes SGD, momentum, Nesterov, RMSprop and Adam on the task, runs all "
        "optimizers on the same fresh problems, and writes a table and a figure.",
    )
    command.set_defaults(command="compare")
    command.add_argument("--task", required=True, help="a name that `l2ljax tasks` lists")
    command.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="[NAME=]WEIGHTS",
        help="trained optimizers, folders or names that `l2ljax weights` lists; the first is the "
        "one that ratios compare with",
    )
    command.add_argument(
        "--optimizer",
        nargs="+",
        metavar="[NAME=]MODULE:NAME",
        help="the learned optimizer, yours, of the weights of that name; without NAME=, of all "
        "weights whose card names none of l2ljax.learned",
    )
    _add_data(command)
    command.add_argument(
        "--out", type=_folder, help="folder for table and figure (default: the last weights')"
    )
    command.add_argument("--force", action="store_true", help="replace an earlier table and figure")
    _add_comparison(command)

    command = commands.add_parser(
        "bench",
        help="compare optimizers over the tasks of a suite with tuned and learned rivals",
        description="Runs optimizers on the tasks of a suite, beside Adam with a rate that is "
        "tuned for each task. OUT then has benchmark.json, benchmark.png and benchmark.html, and "
        "each result: what is there is not run again.",
    )
    command.set_defaults(command="bench")
    command.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="[NAME=]WEIGHTS",
        help="trained optimizers, folders or names that `l2ljax weights` lists",
    )
    command.add_argument(
        "--planned",
        action="store_true",
        help="tell them the number of steps, as `load(..., num_steps=)` does",
    )
    command.add_argument(
        "--optimizer",
        nargs="+",
        metavar="[NAME=]MODULE:NAME",
        help="other optimizers, yours: transformations, `evaluate.Tunable` ones or functions of "
        "the number of steps",
    )
    command.add_argument("--suite", default="small", help="small (default), or full: with images")
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="these of the suite only")
    command.add_argument(
        "--rivals",
        nargs="+",
        metavar="RIVAL",
        help="names as in `evaluate.rivals`, all or none (default: Adam cosine, and all of "
        "--rival-weights)",
    )
    command.add_argument(
        "--rival-weights", metavar="FOLDER", help="safetensors files of published optimizers"
    )
    command.add_argument("--reference", help="what ratios compare with (default: Adam)")
    _add_data(command)
    command.add_argument("--steps", type=int, help="of each run (default: the task's)")
    command.add_argument("--problems", type=int, help="of each task (default: the task's)")
    command.add_argument(
        "--out",
        type=_folder,
        default=pathlib.Path("runs/bench"),
        help="folder of the results (default: runs/bench)",
    )

    command = commands.add_parser("tasks", help="list the tasks")
    command.set_defaults(command="list_tasks")

    command = commands.add_parser(
        "weights",
        help="list the trained optimizers that come with the package",
        description="Lists the trained optimizers that come with the package: what they were "
        "trained on, their scores and their limits. `l2ljax.learned.load(NAME)` loads one.",
    )
    command.set_defaults(command="list_weights")
    command.add_argument(
        "weights", nargs="?", metavar="NAME", help="shows the whole card of one, or of a folder"
    )

    command = commands.add_parser(
        "build",
        help="compile the LSTM's program for this CPU, once for each environment",
        description="Compiles the program that computes a step of learned LSTMs on a CPU, with "
        "this machine's GCC, for this machine. Until then XLA computes it, more slowly.",
    )
    command.set_defaults(command="build")
    command.add_argument("--compiler", help="GCC; default: the first of c++ and g++ found")
    return parser


def _folder(text: str) -> pathlib.Path:
    # As of a variable that is not set; a path would be the working directory.
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got an empty text")
    return pathlib.Path(text)


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir",
        help="folder with the task's data, or its parent; without it, data are downloaded",
    )


def _add_run(command: argparse.ArgumentParser, default_out: str | None) -> None:
    command.add_argument(
        "--out",
        type=_folder,
        required=default_out is None,
        default=None if default_out is None else pathlib.Path(default_out),
        help="folder of the run" + (f" (default: {default_out})" if default_out else ""),
    )
    command.add_argument("--seed", type=int, help="of all randomness (default: 0)")
    command.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run, with its settings"
    )
    command.add_argument("--force", action="store_true", help="replace a run that is there")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "meta-training", "each task has a recipe of its own; these change parts of it"
    )
    group.add_argument("--steps", type=int, help="meta-updates")
    group.add_argument("--batch", type=int, help="problems of one meta-gradient")
    group.add_argument("--horizon", type=int, help="inner steps of an episode")
    group.add_argument("--truncation", type=int, help="inner steps of one meta-update")
    group.add_argument("--meta-rate", type=float, help="first learning rate of Adam on the weights")
    group.add_argument("--clip", type=float, help="largest norm of a meta-gradient")
    group.add_argument("--power", type=float, help="losses are weighted by step^POWER")
    group.add_argument("--preprocess", help="log_sign, scale or none")
    group.add_argument("--output-scale", type=float, help="of the network's output")


def _add_devices(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "devices", "the batch is split evenly; a run goes on with as many devices as it began with"
    )
    group.add_argument("--mesh", action="store_true", help="use all devices of this process")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="use all devices of all processes, which find each other as jax.distributed does "
        "(SLURM, Open MPI, Kubernetes, TPU), or by the next three; --out is a folder they share",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process", type=int, help="number of this one, from 0")


def _add_comparison(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("comparison")
    group.add_argument("--problems", type=int, help="fresh problems (default: 64)")
    group.add_argument("--inner-steps", type=int, help="steps of a run (default: the task's)")
    group.add_argument("--evaluation-seed", type=int, help="of the fresh problems")
    command.set_defaults(**COMPARISON)
