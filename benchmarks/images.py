"""The paper's base MLP on images: the LSTM against tuned methods on problems that it never saw.

    python benchmarks/images.py digits
    python benchmarks/images.py mnist --data-dir DATA     # resumable: type it again

These are the commands `l2ljax train` and `l2ljax compare`; table, figure and card are kept in
`results/`. On digits the task's recipe is all. On MNIST a second run begins where it ends and
backpropagates through whole episodes: segments of 20 steps learn fast but greedily, and stop
at .32. Final loss: the mean of the losses after the last 10 of 100 updates, mean over 64 fresh
problems, on images that meta-training never saw.
"""

import argparse
import json
import pathlib
import shutil
import time

import _report

from l2ljax.cli import main as l2ljax_command

WHOLE_EPISODES = ("--truncation", "100", "--steps", "200", "--meta-rate", "0.001")


def run(*words: str) -> None:
    """Runs a command of the command line, and stops where it fails."""
    if status := l2ljax_command(words):
        raise SystemExit(status)


def train(folder: pathlib.Path, *words: str) -> float | None:
    """Meta-trains into a folder; the seconds, or None if it was begun or finished before."""
    if (folder / "card.json").exists():
        return None
    begun = (folder / "run.json").exists()
    start = time.perf_counter()
    run("train", "--out", str(folder), *(["--resume"] if begun else words))
    return None if begun else time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["digits", "mnist"])
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, help="default: runs/TASK")
    arguments = parser.parse_args()
    folder = arguments.out or pathlib.Path("runs") / arguments.task
    data = [] if arguments.data_dir is None else ["--data-dir", arguments.data_dir]

    seconds = {}
    if arguments.task == "mnist":
        first = folder.with_name(f"{folder.name}-first")
        seconds["first part"] = train(first, "--task", arguments.task, *data)
        words = ["--task", arguments.task, *data, "--start", str(first), *WHOLE_EPISODES]
        seconds["second part"] = train(folder, *words)
    else:
        seconds["training"] = train(folder, "--task", arguments.task)
    start = time.perf_counter()
    run("compare", "--task", arguments.task, "--weights", f"LSTM={folder}", *data, "--force")
    seconds["tuning and comparison"] = time.perf_counter() - start

    results = _report.RESULTS / arguments.task
    results.mkdir(parents=True, exist_ok=True)
    for name in ("curves.png", "card.json"):
        shutil.copy(folder / name, results / name)
    table = json.loads((folder / "comparison.json").read_text())
    path = _report.write(f"{arguments.task}/comparison.json", {"seconds": seconds, **table})
    print(path)


if __name__ == "__main__":
    main()
