"""Learning to learn without gradients (Chen et al., 2017): making weights, and what they are worth.

    python benchmarks/hyper/black_box.py train black-box-2d   # resumable: type it again
    python benchmarks/paper/ship.py runs/black-box-2d black-box-2d
    python benchmarks/hyper/black_box.py compare      # writes black_box.json and .png; resumable

`train` makes `black-box-`, the LSTM alone, and `surrogate-`, the LSTM that steers a Gaussian
process, for 2, 3 and 6 variables (`-2d` and so on).

`compare` minimises Branin's, Goldstein and Price's and Hartmann's functions of 3 and 6 variables,
each in 100 places (`tasks.dixon_szego(vary=True)`), and the loss on validation data of an MLP for
the digits over Adam's rate and decays, with 100 seeds. Both that ship for so many variables, the
second also before its training, a Gaussian process with expected improvement
(`gaussian_process.fit`, `gaussian_process.propose`) and random search have 20 evaluations each; the
first is at the centre of the box, but for random search.
"""

import argparse
import functools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from l2ljax import checkpoint, classic, gaussian_process, hyper, learned, meta, tasks
from l2ljax.core import Estimator, Phi, Task, closure

BENCHMARKS = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "paper")]
import _report  # noqa: E402
import weights  # noqa: E402

HORIZON = 20
KEPT = pathlib.Path("runs/black-box")
KINDS = ("black-box", "surrogate")
NAMES = [f"{kind}-{dim}d" for kind in KINDS for dim in (2, 3, 6)]
SEEDS = 100
KEY = jax.random.key(0)
LSTM, STEERED, UNTRAINED = "LSTM", "LSTM and GP", "LSTM and GP, untrained"
GP_EI, RANDOM = "GP-EI", "random"
BAR = 1.2


def score(estimator: Estimator, key: jax.Array, phi: Phi) -> jax.Array:
    """The meta-loss of one batch of functions."""
    return estimator.estimate(phi, (), key)[0].loss


def recipe(kind: str, dim: int) -> weights.Recipe:
    if kind == "surrogate":
        opt = learned.surrogate_lstm(dim)
        # From observed improvements it learns to look elsewhere, not to come near to a minimum.
        loss, part = "log_regret", functools.partial(weights.Part, 200, 3e-3, batch=32)
    else:
        opt = learned.black_box_lstm(dim, hidden=64)
        # Of 32 functions a batch and at 5e-3, much depends on the seed.
        loss = "observed_improvement"
        part = functools.partial(weights.Part, 10_000, 1e-3, batch=128)
    task = tasks.gp_samples(dim, features=64, minimum=loss == "log_regret")
    estimator = hyper.black_box(HORIZON, loss)
    return weights.Recipe(
        opt=opt,
        task=task,
        parts=[part(estimator)],
        validate=lambda key: closure(score, estimator(opt, task, 256), key),
        trained_on=f"functions of {dim} variables from a Gaussian process, 20 evaluations each",
        limits=f"functions of {dim} variables on a box, without noise; 20 evaluations were seen",
    )


def train(name: str, folder: pathlib.Path | None, seed: int) -> None:
    command = ["python", "benchmarks/hyper/black_box.py", "train", name]
    command += ["--seed", str(seed)] * (seed != 0)
    kind, dim = name.removesuffix("d").rsplit("-", 1)
    folder = folder or pathlib.Path("runs") / name
    weights.meta_train(recipe(kind, int(dim)), folder, seed, shlex.join(command))


def digits_by_adam(steps: int = 50) -> Task:
    """The logarithm of the validation loss over Adam's rate and decays, on [-1, 1]³."""
    data = tasks.digits()
    inner = tasks.mlp_classifier(data, batch_size=64)
    held_out = tasks.mlp_classifier(data, batch_size=None, split="validation")

    def loss(x: jax.Array, problem: jax.Array, key: jax.Array) -> jax.Array:
        # 10⁻⁴ to 1; 1 - β from 0.01 and 10⁻⁴ to 1.
        rate, b1, b2 = 10 ** (2 * x[0] - 2), 1 - 10 ** (x[1] - 1), 1 - 10 ** (2 * x[2] - 2)
        tx = classic.adam(rate, b1=b1, b2=b2)
        _, params = meta.unroll(tx, inner, (), problem, horizon=steps)
        return jnp.log(held_out.loss(params, (), key))

    return Task(lambda key: key, lambda key, problem: jnp.zeros(3), loss)


def at_random(task: Task, problems: Any, dim: int) -> np.ndarray:
    keys = jax.random.split(jax.random.fold_in(KEY, 1), SEEDS)

    @jax.jit
    @jax.vmap
    def values(problem: Any, key: jax.Array) -> jax.Array:
        points = jax.random.uniform(key, (HORIZON, dim), minval=-1, maxval=1)
        return jax.lax.map(lambda x: task.loss(x, problem, key), points)

    return np.asarray(values(problems, keys))


def transformation(method: str, dim: int) -> optax.GradientTransformation:
    if method == UNTRAINED:
        opt = learned.surrogate_lstm(dim)
        return opt.bind(opt.init(KEY))
    return learned.load(f"{'black-box' if method == LSTM else 'surrogate'}-{dim}d")


def by_lstm(task: Task, problems: Any, dim: int, *, method: str) -> np.ndarray:
    tx = transformation(method, dim)

    @jax.jit
    @jax.vmap
    def values(problem: Any) -> jax.Array:
        def value(x: jax.Array) -> jax.Array:
            return task.loss(x, problem, KEY)

        return hyper.minimize_black_box(tx, value, [(-1.0, 1.0)] * dim, horizon=HORIZON)[1]

    return np.asarray(values(problems))


@jax.jit
def gp_ei_step(points: jax.Array, values: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
    """The next point of the unit cube, after t values."""
    gp = gaussian_process.fit(points, values, jnp.arange(HORIZON) < t)
    return gaussian_process.propose(gp, key)


def by_gp_ei(task: Task, problems: Any, dim: int) -> np.ndarray:
    points, values = jnp.full((SEEDS, HORIZON, dim), 0.5), jnp.zeros((SEEDS, HORIZON))
    evaluate = jax.jit(jax.vmap(lambda x, problem: task.loss(2 * x - 1, problem, KEY)))
    propose = jax.jit(jax.vmap(gp_ei_step, in_axes=(0, 0, None, 0)))
    for t in range(HORIZON):
        if t:
            keys = jax.random.split(jax.random.fold_in(KEY, t), SEEDS)
            points = points.at[:, t].set(propose(points, values, t, keys))
        values = values.at[:, t].set(evaluate(points[:, t], problems))
    return np.asarray(values)


METHODS: dict[str, Callable[[Task, Any, int], np.ndarray]] = {
    **{name: functools.partial(by_lstm, method=name) for name in (LSTM, STEERED, UNTRAINED)},
    GP_EI: by_gp_ei,
    RANDOM: at_random,
}


def seconds_per_step(dim: int, repeats: int = 20) -> dict[str, float]:
    """CPU seconds of one search for its next point: the least of several."""
    x, points = jnp.zeros(dim), jax.random.uniform(KEY, (HORIZON, dim))
    values = jnp.arange(float(HORIZON))

    def by(method: str) -> Callable[[], Any]:
        tx = transformation(method, dim)
        state = tx.init(x)
        update = jax.jit(lambda state, x, value: tx.update(x, state, x, value=value))
        return lambda: update(state, x, values[0])

    steps: dict[str, Callable[[], Any]] = {
        LSTM: by(LSTM),
        STEERED: by(STEERED),
        GP_EI: lambda: gp_ei_step(points, values, HORIZON - 1, KEY),
    }
    found = {}
    for name, step in steps.items():
        times = []
        for _ in range(1 + repeats):
            start = time.process_time()
            jax.block_until_ready(step())
            times.append(time.process_time() - start)
        found[name] = min(times[1:])
    return found


def search_all(task: Task, dim: int, minimum: float | None) -> dict[str, Any]:
    """Quartiles of the lowest value so far, less the minimum, of each method."""
    problems = jax.vmap(task.sample)(jax.random.split(KEY, SEEDS))
    row: dict[str, Any] = {"dim": dim}
    for method, search in METHODS.items():
        best = np.fmin.accumulate(search(task, problems, dim), axis=1) - (minimum or 0.0)
        quartiles = np.percentile(best, [25, 50, 75], axis=0).tolist()
        row[method] = dict(zip(("low", "median", "high"), quartiles, strict=True))
    final = {method: row[method]["median"][-1] for method in METHODS}
    row["better_than_random"] = {name: final[name] < final[RANDOM] for name in (LSTM, STEERED)}
    if minimum is not None:
        row["ratio_to_gp_ei"] = {
            name: final[name] / final[GP_EI] for name in (LSTM, STEERED, UNTRAINED)
        }
        row["within_bar"] = row["ratio_to_gp_ei"][STEERED] <= BAR
    return row


def kept(name: str, digest: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found with weights of this digest, from the file where an earlier run left it."""
    file = KEPT / f"{name.split(':')[0]}-{digest}.json"
    if not file.exists():
        checkpoint.write_file(file, json.dumps(find(), allow_nan=False) + "\n")
    return json.loads(file.read_text())


def compare() -> None:
    rows: dict[str, Any] = {}
    functions: list[tuple[str, Task, int, float | None]] = [
        (name, tasks.dixon_szego(name, vary=True), len(known.bounds), known.minimum)
        for name, known in tasks.DIXON_SZEGO.items()
    ]
    functions.append(("digits: Adam's rate and decays", digits_by_adam(), 3, None))
    digests = {
        dim: "".join(learned.restore(f"{kind}-{dim}d")[2]["sha256"][:8] for kind in KINDS)
        for dim in (2, 3, 6)
    }
    for name, task, dim, minimum in functions:
        find = functools.partial(search_all, task, dim, minimum)
        rows[name] = kept(name, digests[dim], find)
        final = {method: rows[name][method]["median"][-1] for method in METHODS}
        print(name, {method: f"{value:.3g}" for method, value in final.items()}, flush=True)
    times = {dim: seconds_per_step(dim) for dim in digests}
    print("CPU seconds a step:", times)
    content = {"seeds": SEEDS, "bar": BAR, "functions": rows, "seconds_per_step": times}
    command = "python benchmarks/hyper/black_box.py compare"
    _report.publish("hyper/black_box", command, content, draw(rows, times))


def draw(rows: dict[str, Any], times: dict[int, dict[str, float]]) -> plt.Axes:
    figure, panels = plt.subplots(2, 3, figsize=(10, 5.9), layout="constrained")
    # Not the untrained one: it would hide the trained.
    looks = {
        LSTM: ("#009E73", ":"),
        STEERED: ("black", "-"),
        GP_EI: ("#0072B2", "--"),
        RANDOM: ("#E69F00", "-."),
    }
    evaluations = np.arange(1, HORIZON + 1)
    for axes, (name, row) in zip(panels.flat, rows.items(), strict=False):
        for method, (color, style) in looks.items():
            curve = row[method]
            axes.plot(evaluations, curve["median"], style, color=color, label=method)
            axes.fill_between(
                evaluations, curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0
            )
        regret = "ratio_to_gp_ei" in row
        axes.set(
            title=name,
            xlabel="evaluations",
            ylabel="simple regret" if regret else "log of the validation loss",
            yscale="log" if regret else "linear",
            xticks=(1, 5, 10, 15, 20),
        )
        axes.grid(alpha=0.25)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(looks),
        frameon=False,
        title="median and quartiles of 100",
    )
    last = panels[1, 2]
    for offset, method in ((-0.27, LSTM), (0, STEERED), (0.27, GP_EI)):
        heights = [1e3 * row[method] for row in times.values()]
        places = np.arange(len(times)) + offset
        last.bar(places, heights, 0.25, color=looks[method][0], label=method)
    last.set(
        title="time of a step",
        yscale="log",
        xlabel="variables",
        ylabel="CPU time, ms",
        xticks=np.arange(len(times)),
        xticklabels=[str(dim) for dim in times],
    )
    # Room for the legend above the bars.
    last.margins(y=0.4)
    last.legend(frameon=False, loc="upper left", ncols=2)
    return panels[0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="meta-train one of those that ship")
    training.add_argument("name", choices=NAMES)
    training.add_argument("--out", type=pathlib.Path, help="default: runs/NAME")
    training.add_argument("--seed", type=int, default=0)
    commands.add_parser("compare", help="with a Gaussian process and random search")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.name, arguments.out, arguments.seed)
    else:
        compare()


if __name__ == "__main__":
    main()
