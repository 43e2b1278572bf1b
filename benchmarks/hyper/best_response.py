"""The validation loss that a hypernetwork promises for every λ, against networks trained for it.

    python benchmarks/hyper/best_response.py --data-dir DATA

After Lorraine and Duvenaud (2018), 'Stochastic hyperparameter optimization through hypernetworks':
a linear network with 7,850 weights learns 10 images of MNIST, with the penalty exp(λ)‖w‖², and is
held against 10,000 others. *Truth* trains it for each of 36 λ's from zero until the loss has no
slope. The global algorithm has a hypernetwork 1-50-7850 with λ ~ N(0, 1.5²), the local one a linear
hypernetwork that follows λ̂. Then each weight gets an L2 penalty of its own, 7,850: by the local
algorithm through a bottleneck of 10 tanh (ReLU's all fell silent at λ̂), and by implicit gradients.
What was found is judged by training a network for it, on test images too: 7,850 penalties can learn
from the 10,000 images that they are chosen by.

The objective is measured on minibatches of 1,000 while λ̂ moves, and on all 10,000 images in the
results. Seconds are of the processor, without compilation. Each part that is done is kept in
`runs/best-response`.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import l2ljax as l2l
from l2ljax import hyper, meta

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import _report

TRAINING, HELD_OUT = 10, 10_000
SPREAD = 1.5
KEPT = pathlib.Path("runs/best-response")
LAMBDAS = np.linspace(-4, 3, 36)
RETRAINING = 500
AIM = 1.05
"""The most that the loss at the found λ may be over the least of truth."""


def classifier(dataset: l2l.tasks.Dataset, split: str, batch: int | None = None) -> l2l.Task:
    return l2l.tasks.mlp_classifier(
        dataset, hidden=(), batch_size=batch, split=split, init_std=0.01
    )


def prior(key: jax.Array) -> dict[str, jax.Array]:
    return {"l2": SPREAD * jax.random.normal(key)}


@jax.jit
def retrain(learned: l2l.LearnedTask, lams: Any) -> tuple[Any, jax.Array]:
    """Networks trained for each λ of a batch, and the norm of the slope that is left."""

    def one(lam: Any) -> tuple[Any, jax.Array]:
        task = learned.bind(lam)
        task = l2l.Task(task.sample, task.init, task.loss)
        tx = optax.adam(optax.cosine_decay_schedule(0.02, RETRAINING))
        _, params = meta.unroll(tx, task, (), jax.random.key(0), horizon=RETRAINING)
        return params, optax.tree.norm(jax.grad(task.loss)(params, (), None))

    return jax.vmap(one)(lams)


@jax.jit
def losses(task: l2l.Task, params: Any) -> jax.Array:
    """Of networks with a leading axis, on all examples of the task."""
    return jax.lax.map(lambda params: task.loss(params, (), None), params)


def batch_of_one(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def timed(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    """What a function returns once it is compiled, and the CPU seconds that it takes."""
    compiled = jax.jit(function).lower(*arguments, **named).compile()
    start = time.process_time()
    result = jax.block_until_ready(compiled(*arguments, **named))
    return result, time.process_time() - start


_RATES = {"meta_optimizer": optax.adam(0.03), "batch": 2}
METHODS = {
    "global": functools.partial(
        hyper.tune_global,
        sample=prior,
        steps=3000,
        tuning_steps=300,
        optimizer=optax.adam(1e-4),
        **_RATES,
    ),
    "local": functools.partial(
        hyper.tune_local, steps=2000, std=1.0, optimizer=optax.adam(1e-3), **_RATES
    ),
    "implicit": functools.partial(
        hyper.tune_implicit,
        steps=150,
        inner_steps=50,
        optimizer=optax.adam(0.01),
        meta_optimizer=optax.adam(0.05),
    ),
}
# The method, how many λ's, and the hypernetwork's hidden layers.
FOUND = {
    "global": ("global", 1, {"hidden": (50,)}),
    "local": ("local", 1, {}),
    "local, each weight": ("local", 7850, {"hidden": (10,), "activation": "tanh"}),
    "implicit, each weight": ("implicit", 7850, None),
}


def draw(truth: np.ndarray, curve: np.ndarray, found: dict[str, Any]) -> plt.Axes:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    left.plot(LAMBDAS, truth, "k-", lw=2.5, label="trained for each λ")
    left.plot(LAMBDAS, curve, "--", color="#0072B2", label="promised by the hypernetwork")
    for name, marker, size in [("global", "*", 13), ("local", "D", 6)]:
        place = found[name]["lambda"], found[name]["promised"]
        left.plot(*place, marker, ms=size, color="#D55E00", label=f"λ̂, {name}")
    left.set(xlabel="λ, logarithm of the L2 penalty", ylabel="validation loss, nats")
    left.legend(frameon=False, fontsize=9)
    middle.axline((truth.min(), truth.min()), slope=1, color="black", lw=1)
    shown = middle.scatter(truth, curve, c=LAMBDAS, cmap="viridis", s=22, zorder=2)
    middle.set(xlabel="validation loss, trained, nats", ylabel="promised, nats", aspect="equal")
    middle.figure.colorbar(shown, ax=middle, label="λ", shrink=0.8)
    names = ["best of 36", *found]
    places = np.arange(len(names))
    validation = [truth.min(), *(row["validation"] for row in found.values())]
    right.barh(places - 0.2, validation, 0.4, color="#56B4E9", label="validation")
    test = [row["test"] for row in found.values()]
    right.barh(places[1:] + 0.2, test, 0.4, color="#E69F00", label="test")
    right.set_yticks(places, names)
    right.set(xlabel="loss of a network trained there, nats", xlim=(0, 2.9))
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=9, loc="lower right")
    for ax in (left, middle):
        ax.grid(alpha=0.3)
    return left


class Experiment:
    """The tasks, and what is measured on them; each is kept in a file when it is done."""

    def __init__(self, data_dir: str) -> None:
        data = l2l.tasks.mnist(data_dir)
        data = l2l.tasks.Dataset(
            data.train[:TRAINING], data.validation[:HELD_OUT], data.test, name="MNIST", classes=10
        )
        training = classifier(data, "train")
        held_out = classifier(data, "validation", batch=1000)
        self.task = dataclasses.replace(training, objective=held_out.loss)
        self.whole = {split: classifier(data, split) for split in ("validation", "test")}
        self.lams = {"l2": jnp.asarray(LAMBDAS, jnp.float32)}

    def truth(self) -> dict[str, Any]:
        learned = l2l.tasks.learned_l2(self.task, 1.0)
        (params, slopes), all_seconds = timed(retrain, learned, self.lams)
        _, one_seconds = timed(retrain, learned, {"l2": self.lams["l2"][:1]})
        return {
            "losses": losses(self.whole["validation"], params).tolist(),
            "largest_slope": float(slopes.max()),
            "seconds": {"one": one_seconds, f"{len(LAMBDAS)} at once": all_seconds},
        }

    def found(self, method: str, size: int, hidden: dict[str, Any] | None) -> dict[str, Any]:
        """Where a method leads, and what a network trained there comes to."""
        per = "params" if size == 1 else "coordinate"
        learned, key = l2l.tasks.learned_l2(self.task, 1.0, per=per), jax.random.key(0)
        row: dict[str, Any] = {"hyperparameters": size}
        if hidden is None:
            result, seconds = timed(METHODS[method], learned, key=key)
            lam = result.psi
        else:
            network = hyper.mlp_hypernetwork(lambda key: self.task.init(key, ()), size, **hidden)
            result, seconds = timed(METHODS[method], learned, network, key=key)
            lam, makes = result.lam, jax.vmap(network.apply, in_axes=(None, 0))
            promised = losses(self.whole["validation"], makes(result.phi, batch_of_one(lam)))
            row["promised"] = float(promised[0])
            if method == "global":
                curve = losses(self.whole["validation"], makes(result.phi, self.lams))
                row["curve"] = curve.tolist()
        retrained, _ = retrain(learned, batch_of_one(lam))
        lam, _ = jax.flatten_util.ravel_pytree(lam)
        return row | {
            "lambda": float(lam.mean()),
            **({"deviation_of_lambda": float(lam.std())} if size > 1 else {}),
            **{split: float(losses(task, retrained)[0]) for split, task in self.whole.items()},
            "seconds": seconds,
        }

    def kept(self, name: str) -> dict[str, Any]:
        measure = self.truth if name == "truth" else functools.partial(self.found, *FOUND[name])
        row = _report.kept(KEPT / f"{name}.json", {"lambdas": LAMBDAS.tolist()}, measure)
        del row["settings"], row["wall_seconds"]
        print(name, {key: value for key, value in row.items() if np.ndim(value) == 0}, flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with MNIST")
    experiment = Experiment(parser.parse_args().data_dir)
    truth = experiment.kept("truth")
    found = {name: experiment.kept(name) for name in FOUND}
    losses, curve = np.array(truth["losses"]), np.array(found["global"]["curve"])
    for row in found.values():
        row["over_least_of_truth"] = row["validation"] / losses.min()
        row["reaches_aim"] = bool(row["over_least_of_truth"] <= AIM)
    within = np.abs(LAMBDAS) <= 2 * SPREAD
    content = {
        "lambdas": LAMBDAS.tolist(),
        "truth": truth,
        "largest_error_within_two_deviations": float(np.abs(curve - losses)[within].max()),
        "found": found,
    }
    command = "python benchmarks/hyper/best_response.py --data-dir DATA"
    _report.publish("hyper/best_response", command, content, draw(losses, curve, found))
    print(content["largest_error_within_two_deviations"])


if __name__ == "__main__":
    main()
