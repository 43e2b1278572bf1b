"""Meta-trains `learned.tensorwise` on the families of `recipes/families.py`.

    python benchmarks/paper/tensorwise.py --data-dir DATA --minutes 60  # resumable
    python benchmarks/paper/tensorwise.py --data-dir DATA --validate 200  # scores

A meta-step draws some families, and for each a horizon. Evolution strategies over whole episodes
give a direction of φ for each family, all of one length (see `meta.es`), and Adam takes their mean.
One program is compiled for each family, so that families run, and compile, side by side. Weights,
card, and the state from which a run resumes are in `runs/tensorwise`.

Validation tunes Adam for each validation family, at constant rates and with cosine decay, on other
problems than the comparison. Nothing here is decided by it: a person chooses.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipes import families

from l2ljax import checkpoint, classic, evaluate, learned, meta
from l2ljax.core import Estimator, LearnedOptimizer, Phi, Task

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

HORIZONS = (50, 80, 120, 200, 320, 500, 800, 1200)
# Their steps take much longer than those of the others.
SHORT = {"lookback": 3, "gru-chain": 3, "attention": 3, "lstm-sums": 4, "digits-convnet": 4}
STD = 0.05
PAIRS = 8
FAMILIES = 6
"""Of a meta-step."""

RATES = np.geomspace(1e-3, 1.0, 10)


def last_losses(horizon: int) -> jax.Array:
    """What the benchmark reports: the mean of the last 5 % of losses, and of ten at least."""
    return meta.final_weights(horizon, max(10, horizon // 20))


@jax.jit
def direction(estimator: Estimator, phi: Phi, key: jax.Array) -> tuple[Phi, jax.Array, jax.Array]:
    """The direction in which one family's losses rise, of length one; horizon and final loss."""
    estimate, _ = estimator.estimate(phi, (), key)
    norm = optax.tree.norm(estimate.grad)
    unit = jax.tree.map(lambda g: g / jnp.where(norm > 0, norm, 1), estimate.grad)
    return unit, estimate.aux["horizon"], estimate.aux["final"]


@dataclasses.dataclass
class Training:
    """The state of a run.

    Attributes:
        folder: where it is kept.
        opt: what is trained.
        rate: first learning rate of Adam on φ.
        steps: meta-steps of the run, over which the rate falls to a tenth by a cosine.
    """

    folder: pathlib.Path
    opt: LearnedOptimizer
    rate: float
    steps: int

    def __post_init__(self) -> None:
        schedule = optax.cosine_decay_schedule(self.rate, self.steps, alpha=0.1)
        self.meta_optimizer = optax.adam(schedule, b1=0.9, b2=0.99, eps=1e-3)
        phi = self.opt.init(jax.random.key(0))
        self.state = (jnp.zeros((), jnp.int32), phi, self.meta_optimizer.init(phi))
        if checkpoint.last_step(self.folder / "states") is not None:
            self.state = checkpoint.read_state(self.folder / "states", self.state)

    def save(self, card: dict[str, Any]) -> None:
        """The state, and the weights as they are."""
        step, phi, _ = self.state
        checkpoint.save_state(self.folder / "states", int(step), self.state)
        card = {**card, "meta_steps": int(step), "optimizer": self.opt.spec}
        checkpoint.save_weights(self.folder, phi, card)


def train(training: Training, tasks: dict[str, Task], minutes: float, card: dict[str, Any]) -> None:
    """Takes meta-steps until the time is over or the run is."""
    estimators = {
        name: meta.es(
            horizon=HORIZONS[: SHORT.get(name, len(HORIZONS))],
            std=STD,
            pairs=PAIRS,
            step_weights=last_losses,
            meta_loss="log",
            shaping="ranks",
        )(training.opt, task)
        for name, task in tasks.items()
    }
    names, start, saved = sorted(tasks), time.monotonic(), time.monotonic()
    log = (training.folder / "log.jsonl").open("a")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        while time.monotonic() - start < 60 * minutes and training.state[0] < training.steps:
            step, phi, opt_state = training.state
            key = jax.random.fold_in(jax.random.key(1), step)
            # Each family once before any comes again.
            turn, place = divmod(int(step) * FAMILIES, len(names))
            shuffled = [
                name
                for i in (0, 1)
                for name in np.random.default_rng(turn + i).permutation(names).tolist()
            ]
            drawn = list(dict.fromkeys(shuffled[place : place + FAMILIES]))
            keys = jax.random.split(key, len(drawn))
            jobs = [
                pool.submit(direction, estimators[name], phi, own)
                for name, own in zip(drawn, keys, strict=True)
            ]
            found = [job.result() for job in jobs]
            grad = jax.tree.map(lambda *g: sum(g) / len(g), *(unit for unit, _, _ in found))
            updates, opt_state = training.meta_optimizer.update(grad, opt_state, phi)
            training.state = (step + 1, optax.apply_updates(phi, updates), opt_state)
            row = {name: [int(h), float(f)] for name, (_, h, f) in zip(drawn, found, strict=True)}
            print(json.dumps({"step": int(step), **row}), file=log, flush=True)
            if time.monotonic() - saved > 60:
                training.save(card)
                saved = time.monotonic()
    training.save(card)


def validate(opt: LearnedOptimizer, phi: Phi, tasks: dict[str, Task], steps: int) -> None:
    """Prints for each family the log of our final loss over that of Adam, tuned in two ways."""

    def cosine(rate: Any) -> optax.GradientTransformation:
        return classic.adam(optax.cosine_decay_schedule(rate, steps))

    told = learned.tensorwise(opt.spec["arguments"]["units"], num_steps=steps)
    window = max(10, steps // 20)
    rows = []
    for name, task in tasks.items():
        found = evaluate.compare(
            {
                "ours": told.bind(phi),
                "constant": evaluate.Tunable(classic.adam, RATES),
                "cosine": evaluate.Tunable(cosine, RATES),
            },
            task,
            key=jax.random.key(7),
            steps=steps,
            problems=8,
            tuning_problems=4,
            window=window,
        ).rows
        rows.append([np.log(found[0].final / row.final) for row in found[1:]])
        print(f"{name:18} {found[0].final:9.4g}  {rows[-1][0]:+.3f} {rows[-1][1]:+.3f}", flush=True)
    for label, values in zip(("constant", "cosine"), np.transpose(rows), strict=True):
        print(
            f"ours / Adam, {label}: median {np.exp(np.median(values)):.3f}, "
            f"geometric mean {np.exp(values.mean()):.3f}, worst {np.exp(values.max()):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST and CIFAR-10")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/tensorwise"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=1000, help="meta-steps of the whole run")
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--families", nargs="+", help="default: all")
    parser.add_argument("--validate", type=int, metavar="STEPS", help="validate and train no more")
    arguments = parser.parse_args()
    training = Training(arguments.out, learned.tensorwise(), arguments.rate, arguments.steps)
    if arguments.validate:
        tasks = families.validation(arguments.data_dir)
    else:
        tasks = families.training(arguments.data_dir)
    if arguments.families:
        tasks = {name: tasks[name] for name in arguments.families}
    if arguments.validate:
        validate(training.opt, training.state[1], tasks, arguments.validate)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = {
        "trained_on": "thirty families of small problems: networks with and without attention, "
        "recurrence, convolutions, normalization and embeddings, on digits, MNIST, CIFAR-10 and "
        "drawn functions; quadratics; 50 to 1,200 steps",
        "limits": "not trained on networks of more than 30,000 params, nor more than 1,200 steps",
        "command": "python benchmarks/paper/tensorwise.py --data-dir DATA",
        "circumstances": _report.circumstances(),
    }
    train(training, tasks, arguments.minutes, card)


if __name__ == "__main__":
    main()
