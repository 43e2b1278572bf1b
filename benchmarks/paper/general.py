"""`general` as it ships, untuned, on the suite beside tuned and learned rivals, and its bars.

    python benchmarks/paper/general.py --data-dir DATA --rival-weights FOLDER
    python benchmarks/paper/general.py --data-dir DATA --weights runs/general --rivals "Adam cosine"

`l2ljax bench` for one optimizer, with a verdict: `l2ljax.evaluate.benchmark` over the tasks of
`l2ljax.suite`, where the optimizer is told the number of steps. Each result is kept in
`runs/benchmark`: type the command again to resume. The table and its figure go to `results/paper`,
those of other weights to `runs/paper`. The suite judges: it decides between no recipes.
"""

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from l2ljax import evaluate, learned, plots, suite

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

KEPT = pathlib.Path("runs") / "benchmark"
OURS, COSINE, CELO = "general", "Adam cosine", "celo"
RATE_FREE = ("Prodigy", "D-Adaptation", "DoWG", "Mechanic", "Momo", "schedule-free")


class Bar(NamedTuple):
    """What is asked for; a bar is a least value, or a largest one if the floor is above the aim."""

    what: str
    value: float
    floor: float
    aim: float

    def __str__(self) -> str:
        sign = -1 if self.floor > self.aim else 1
        reached = "aim" if sign * (self.value - self.aim) >= 0 else "floor"
        if sign * (self.value - self.floor) < 0:
            reached = "neither"
        bounds = f"floor {self.floor:g}, aim {self.aim:g}"
        return f"{self.what}: {self.value:.3g} ({bounds}): {reached}"


def judge(result: evaluate.Benchmark) -> list[Bar]:
    """The bars that the rivals which ran allow to judge; numbers of tasks are for all of them."""
    tasks = len(result.tasks)

    def of(name: str, against: evaluate.Benchmark) -> evaluate.SummaryRow:
        return next(row for row in against.summary if row.optimizer == name)

    ours = of(OURS, result)
    bars = [
        Bar("median ratio to tuned Adam", ours.median_ratio, 0.85, 0.75),
        Bar("worst ratio to tuned Adam", ours.worst, 1.6, 1.2),
        Bar("interquartile mean of tuned Adam / ours", ours.iqm, 1.2, 1.4),
        Bar("interquartile mean of speedup", ours.speedup, 1.3, 1.86),
    ]
    if COSINE in result.optimizers:
        row = of(OURS, result.against(COSINE))
        bars += [
            Bar("median ratio to tuned cosine Adam", row.median_ratio, 1.0, 0.9),
            Bar("tasks worse than 1.1 of tuned cosine Adam", row.worse, 3, 1),
        ]
    if CELO in result.optimizers:
        better = of(OURS, result.against(CELO)).better
        bars.append(Bar(f"lower than Celo, of {tasks} tasks", better, 10, 14))
    rate_free = [name for name in result.optimizers if name.startswith(RATE_FREE)]
    if rate_free:
        best = min(rate_free, key=lambda name: of(name, result).median_ratio)
        better = of(OURS, result.against(best)).better
        bars.append(Bar(f"lower than {best}, of {tasks} tasks", better, 13, tasks))
    return bars


def planned(weights: str, steps: int) -> Any:
    return learned.load(weights, num_steps=steps)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=OURS, help="name or folder; default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=suite.SUITE, metavar="TASK")
    parser.add_argument("--rivals", nargs="+", metavar="RIVAL", help="default: all there are")
    parser.add_argument("--rival-weights", help="folder of others' weights, as safetensors")
    parser.add_argument("--data-dir", help="folder with MNIST and CIFAR-10")
    arguments = parser.parse_args(argv)
    try:
        opt, phi, card = learned.restore(arguments.weights)
        rivals = evaluate.rivals(arguments.rivals or "all", weights_dir=arguments.rival_weights)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    result = evaluate.benchmark(
        {OURS: functools.partial(planned, arguments.weights)},
        arguments.tasks or "full",
        rivals=rivals,
        data_dir=arguments.data_dir,
        resume=KEPT,
        clock=time.perf_counter,
        progress=True,
    )
    print(f"{result}\n")
    bars = judge(result)
    print("\n".join(map(str, bars)))
    if arguments.tasks is not None:
        print("not written: these are some of the tasks")
        return
    content = {
        "command": "python benchmarks/paper/general.py --data-dir DATA --rival-weights FOLDER",
        "weights": {
            "fingerprint": _report.fingerprint(opt, phi),
            "trained_on": card.get("trained_on"),
        },
        "verdict": [bar._asdict() for bar in bars],
        **result.to_dict(),
    }
    path = _report.write(_report.paper_folder(arguments.weights == OURS) / "general.json", content)
    plots.save(plots.benchmark(result), path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
