"""The paper's quadratics: three seeds of the LSTM against tuned methods on fresh functions.

    python benchmarks/quadratics.py            # about ten minutes on two cores; resumable

Each seed is the command `l2ljax train --task quadratic --seed SEED` (under three minutes on two
cores). Rates are tuned on functions that are not compared; momentum and Nesterov are also shown
with their decay tuned. Final loss: the one after step 100, mean over 1,024 fresh functions.
"""

import argparse
import json
import pathlib
import time

import _report
import jax
import numpy as np

import l2ljax as l2l
from l2ljax import plots
from l2ljax.cli import main as l2ljax_command

PAPERS = ("SGD", "RMSprop", "Adam", "Nesterov")
DECAYS = (0.8, 0.9, 0.95, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/quadratics"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=1024)
    arguments = parser.parse_args()

    optimizers, cards, seconds = {}, [], []
    for seed in range(arguments.seeds):
        folder = arguments.out / f"seed-{seed}"
        clock = folder / "seconds.json"
        if not (folder / "card.json").exists():
            begun = (folder / "run.json").exists()
            words = ["train", "--task", "quadratic", "--seed", str(seed), "--out", str(folder)]
            start = time.perf_counter()
            if status := l2ljax_command([*words, *(["--resume"] if begun else [])]):
                raise SystemExit(status)
            if not begun:
                clock.write_text(json.dumps(time.perf_counter() - start))
        seconds.append(json.loads(clock.read_text()) if clock.exists() else None)
        opt, phi, card = l2l.learned.restore(folder)
        optimizers[f"LSTM, seed {seed}"] = opt.bind(phi)
        cards.append(card)

    baselines = l2l.evaluate.baselines()
    for name, factory in [
        ("momentum, decay tuned", l2l.classic.momentum),
        ("Nesterov, decay tuned", l2l.classic.nesterov),
    ]:
        rates = baselines["momentum"].grid
        baselines[name] = l2l.evaluate.Tunable(factory, {"learning_rate": rates, "decay": DECAYS})
    comparison = l2l.evaluate.compare(
        {**optimizers, **baselines},
        l2l.tasks.quadratic(),
        key=jax.random.key(1_000_000),
        problems=arguments.problems,
        # Many, because one function in thousands is so steep that momentum diverges on it.
        tuning_problems=4096,
        window=1,
        progress=True,
    )
    print(comparison)
    final = {row.name: row.final for row in comparison.rows}
    learned = [final[name] for name in optimizers]
    best = min(PAPERS, key=final.__getitem__)
    ratios = {
        f"best of {', '.join(PAPERS)}: {best}": float(np.mean(learned)) / final[best],
        **{
            name: float(np.mean(learned)) / final[name]
            for name in ("momentum", "momentum, decay tuned", "Nesterov, decay tuned")
        },
    }
    print("mean of seeds over")
    print(json.dumps(ratios, indent=2))
    content = {
        "ratios_of_seed_means": ratios,
        "training_seconds": seconds,
        "commands": [card["command"] for card in cards],
        "recipe": cards[0]["recipe"],
        **comparison.to_dict(),
    }
    print(_report.write("quadratics/comparison.json", content))
    axes = plots.curves(comparison, band=None)
    axes.set_title("quadratics of 10 coordinates, 1,024 fresh functions")
    plots.save(axes, _report.RESULTS / "quadratics" / "curves.png")


if __name__ == "__main__":
    main()
