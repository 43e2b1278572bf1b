"""The recipes of the weights that ship: optimizers, tasks, and runs of meta-training."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from training_tasks import digits_by_rows, lower_halves, pooled

from l2ljax import classic, hyper, learned, meta, tasks
from l2ljax.core import LearnedOptimizer, Phi, Task


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of meta-training.

    Attributes:
        steps: meta-updates.
        rate: first learning rate of Adam on φ: rises over 50 meta-steps, falls by a cosine.
        estimator: of the meta-gradient.
        batch: problems of one meta-gradient.
        task: what it is trained on; None: the recipe's task.
        validate: as the recipe's; None: the recipe's.
        share: of what it finds in the φ that it leaves; the rest is the φ that it began with.
    """

    steps: int
    rate: float
    estimator: meta.EstimatorFactory
    batch: int = 1
    task: Task | list[Task] | None = None
    validate: Callable[[jax.Array], Callable[[Phi], Any]] | None = None
    share: float = 1.0

    def meta_optimizer(self) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(self.rate, self.steps)
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / 50)),
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one set of weights is made.

    Attributes:
        opt: the learned optimizer.
        task: what it is trained on: a task, or several in turns.
        parts: runs, one after the other.
        validate: `validate(key) -> score`, the score of φ that chooses the best one.
        trained_on: one line for the card.
        limits: one line for the card.
        start: `start(folder, key) -> φ`, where the first part begins; None: drawn by `opt.init`.
        finish: `finish(φ, key) -> φ`, what becomes of the φ of the last part; None: nothing.
    """

    opt: LearnedOptimizer
    task: Task | list[Task]
    parts: list[Part]
    validate: Callable[[jax.Array], Callable[[Phi], Any]]
    trained_on: str
    limits: str
    start: Callable[[pathlib.Path, jax.Array], Phi] | None = None
    finish: Callable[[Phi, jax.Array], Phi] | None = None


def whole_episodes(horizon: int = 100, second_derivatives: bool = False) -> meta.EstimatorFactory:
    """Backpropagation through whole episodes, late losses weighted most."""
    return meta.truncated(
        horizon=horizon,
        truncation=horizon,
        step_weights=meta.polynomial_weights(horizon) / horizon,
        second_derivatives=second_derivatives,
    )


def robust_mnist(data_dir: str | None) -> Recipe:
    opt = learned.adaptive_lstm(b1=(0.9, 0.99))
    base = tasks.load("mnist", data_dir).train
    # The first part alone takes steps so long that networks of ReLU do not learn: 4.3 times the
    # loss of tuned Adam, 1.5 after the second. To a ReLU, best rates are a tenth of a sigmoid's,
    # as if all params together were three times as large.
    second = tasks.augment(base, coordinate=1.0, leaf=1.5, loss=1.0)
    third = tasks.augment(base, coordinate=1.0, leaf=1.0, params=1.5)
    # Late training, for runs much longer than any episode.
    advanced = tasks.warm_start(base, classic.nesterov(1.0), steps=1800)
    late = tasks.augment(advanced, coordinate=1.0, leaf=1.0, params=1.5)

    def validate_late(key: jax.Array) -> Callable[[Phi], Any]:
        return meta.validation(
            opt, [base, third, late], key=key, horizon=(100, 100, 200), problems=8
        )

    def robust(steps: int, rate: float, scaled: Task) -> Part:
        return Part(
            steps,
            rate,
            whole_episodes(),
            task=scaled,
            validate=lambda key: meta.validation(opt, [base, scaled], key=key, problems=8),
        )

    return Recipe(
        opt=opt,
        task=tasks.augment(base, coordinate=1.0),
        parts=[
            Part(1800, 3e-3, whole_episodes()),
            robust(400, 1.5e-3, second),
            robust(500, 1e-3, third),
            Part(
                300,
                1e-3,
                meta.mixture(
                    [whole_episodes(), whole_episodes(200)], weights=[2, 1], normalize="gradient"
                ),
                task=[third, late],
                validate=validate_late,
                # All of it ends at .111 after 2,000 steps and at .293 after 100 (4 and 16 problems
                # of the training half); none of it at .140 and .284; half of it at .113 and .286.
                share=0.5,
            ),
            # Until here the meta-gradient leaves out that a step changes the gradients after it.
            Part(
                150,
                1e-3,
                meta.mixture(
                    whole_episodes(second_derivatives=True), weights=[2, 1], normalize="gradient"
                ),
                batch=4,
                task=[third, late],
                validate=validate_late,
            ),
        ],
        validate=lambda key: meta.validation(opt, base, key=key, problems=16),
        trained_on="MNIST, 784-20-10 sigmoid MLP, random scales of its params; 100 steps, and 200 "
        "from where Nesterov's method had come to after up to 1,800; then the length of its steps, "
        "by search on such problems",
        limits="one data set and one architecture were seen",
        # Problems as they are: with params of random scales, shorter is always better.
        finish=lambda phi, key: _best_length(
            opt,
            [base, advanced],
            phi,
            key,
            lengths=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
            runs=((100, 16), (200, 8)),
        ),
    )


def lstm_quadratic(data_dir: str | None) -> Recipe:
    del data_dir
    opt = learned.lstm()
    task = tasks.quadratic()
    segments = meta.truncated(horizon=100, truncation=20, step_weights=jnp.full(100, 1 / 20))
    return Recipe(
        opt=opt,
        task=task,
        # Whole episodes afterwards, at 1e-3 with late losses weighted most, undid it: .17 to .23.
        parts=[Part(6500, 1e-2, segments, batch=128)],
        validate=lambda key: meta.validation(opt, task, key=key, problems=512, window=1),
        trained_on="quadratic functions of 10 coordinates, 100 steps",
        limits="problems of this size and scale only",
    )


def lstm_mnist(data_dir: str | None) -> Recipe:
    opt = learned.lstm()
    task = tasks.load("mnist", data_dir).train
    weights = meta.polynomial_weights(100) / 20
    segments = meta.truncated(horizon=100, truncation=20, step_weights=weights)
    return Recipe(
        opt=opt,
        task=task,
        parts=[Part(1000, 1e-2, segments), Part(200, 1.5e-3, whole_episodes())],
        validate=lambda key: meta.validation(opt, task, key=key, problems=16),
        trained_on="MNIST, 784-20-10 sigmoid MLP, 100 steps",
        limits="the paper's optimizer, which fails on other activations and horizons",
    )


def _longer(phi: Phi, factor: jax.typing.ArrayLike) -> Phi:
    """φ of an LSTM whose small steps are `factor` times as long."""
    return {**phi, **{part: factor * phi[part] for part in ("output_kernel", "output_bias")}}


def _best_length(
    opt: LearnedOptimizer,
    families: list[Task],
    phi: Phi,
    key: jax.Array,
    *,
    lengths: tuple[float, ...],
    runs: tuple[tuple[int, int], ...],
    windows: tuple[int, ...] | None = None,
) -> Phi:
    """φ with steps of the length that ends lowest: the mean logarithm over tasks and runs.

    Losses below .01 count as .01: where they fall to zero their logarithms are the noise of the
    last steps, and outweigh all other tasks.

    Args:
        opt: the learned optimizer.
        families: the tasks.
        phi: φ with steps of length 1.
        key: of the problems.
        lengths: to choose from.
        runs: pairs of a horizon and a number of problems.
        windows: last losses that are averaged, of each task; default: 10.
    """
    scores = np.zeros(len(lengths))
    for horizon, problems in runs:
        for task, window in zip(families, windows or (10,) * len(families), strict=True):
            final = jax.jit(
                meta.validation(
                    opt, task, key=key, horizon=horizon, problems=problems, window=window
                )
            )
            losses = [float(final(_longer(phi, length))) for length in lengths]
            losses = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
            scores += np.log(np.maximum(losses, 0.01)) / (len(runs) * len(families))
    print({length: round(float(score), 4) for length, score in zip(lengths, scores, strict=True)})
    return _longer(phi, lengths[int(np.argmin(scores))])


def general(data_dir: str | None) -> Recipe:
    # One layer: more than twice as fast as two, for whoever uses it.
    opt = learned.adaptive_lstm((20,), b1=(0.9, 0.99))
    digits = tasks.digits()
    images = pooled(tasks.mnist(data_dir, validation=30_000))
    first = [
        tasks.mlp_classifier(digits, (20,), "sigmoid", batch_size=64),
        tasks.mlp_classifier(digits, (32,), "relu", batch_size=32),
        tasks.mlp_classifier(digits, (16, 16), "tanh", batch_size=64),
        tasks.convnet_classifier(digits, (8,), 3, (16,), batch_size=64),
        tasks.mlp_classifier(images, (20,), "relu", batch_size=64),
        tasks.mlp_classifier(images, (20, 20), "sigmoid", batch_size=64),
        tasks.quadratic(),
    ]
    windows = (10,) * 6 + (1,)
    second = [
        *first,
        digits_by_rows(),
        lower_halves(24, "tanh", 64),
        lower_halves(16, "relu", 256),
    ]
    second_windows = (*windows, 10, 10, 10)

    def scaled(families: list[Task]) -> list[Task]:
        # The quadratics' loss is squared as it is scaled, and far above one: less is enough.
        return [
            tasks.augment(task, coordinate=0.7, leaf=1.0, loss=0.0 if task is first[-1] else 2.0)
            for task in families
        ]

    def estimator(
        weights: list[float], horizons: tuple[int, ...], second_derivatives: bool = False
    ) -> meta.EstimatorFactory:
        segments = meta.truncated(
            horizon=horizons,
            truncation=100,
            step_weights=lambda horizon: meta.polynomial_weights(horizon) / 100,
            meta_loss="log",
            second_derivatives=second_derivatives,
        )
        return meta.mixture(segments, weights=weights, normalize="gradient")

    def validate_second(key: jax.Array) -> Callable[[Phi], Any]:
        return meta.validation(opt, second, key=key, horizon=400, problems=4, window=second_windows)

    varied = ([1, 1, 1, 1, 1, 1, 1, 1.5, 1.5, 1.5], (100, 200, 400, 1000))
    return Recipe(
        opt=opt,
        task=scaled(first),
        parts=[
            Part(2500, 3e-3, estimator([1, 1, 1, 1, 1, 1, 0.5], (100, 200, 400)), batch=2),
            # More kinds of tasks, and longer: the first part alone stops short of small losses.
            Part(
                1200,
                1e-3,
                estimator(*varied),
                batch=2,
                task=scaled(second),
                validate=validate_second,
            ),
            # Until here the meta-gradient leaves out that a step changes the gradients after it.
            Part(
                300,
                1e-3,
                estimator(*varied, second_derivatives=True),
                batch=4,
                task=scaled(second),
                validate=validate_second,
            ),
        ],
        validate=lambda key: meta.validation(
            opt, first, key=key, horizon=200, problems=4, window=windows
        ),
        trained_on="MLPs, a convnet, a recurrent net and regression on digits, MLPs on MNIST at "
        "14x14, quadratics; random scales of params and losses; 100 to 1000 steps",
        limits="trained on networks of some thousand params and at most 1000 steps; loses to tuned "
        "Adam where losses fall to zero (factorization without noise, long runs) and on text",
        finish=lambda phi, key: _best_length(
            opt,
            second,
            phi,
            key,
            lengths=(1.0, 0.85, 0.7, 0.6, 0.5, 0.4),
            runs=((400, 16), (1000, 8)),
            windows=second_windows,
        ),
    )


def _cifar(name: str, data_dir: str | None, trained_on: str) -> Recipe:
    """Two LSTMs, one for kernels of convolutions and one for all other params.

    Both are robust-mnist's before its exact meta-gradients, but for the length of their steps.
    Meta-training by `whole_episodes` from there, at rates of 1e-3 and 2e-4, did not make them
    better: final losses on 4 problems of CIFAR-10's training half were 1.39 after 10 meta-steps and
    1.39 to 1.42 after 30 to 50. Its gradient leaves out that a step changes the gradients after it,
    and what helps most, shorter steps, it does not find.
    """
    member = learned.adaptive_lstm(b1=(0.9, 0.99))
    opt = learned.partition({"conv": member, "fc": member}, {"Conv_*": "conv", "*": "fc"})
    task = tasks.load(name, data_dir).train

    def start(folder: pathlib.Path, key: jax.Array) -> Phi:
        # Not what ships as robust-mnist, which has a fifth part: `weights.py robust-mnist` leaves
        # this there.
        _, phi, _ = learned.restore(folder.parent / "robust-mnist" / "part-4")

        def scaled(**scales: jax.typing.ArrayLike) -> Phi:
            return {group: _longer(phi, scale) for group, scale in scales.items()}

        found = hyper.search(
            hyper.objective(lambda **scales: opt.bind(scaled(**scales)), task, problems=4),
            {group: hyper.log_uniform(0.1, 1.0) for group in ("conv", "fc")},
            key=key,
            method="bayesian",
            trials=16,
            at_once=1,
            resume=folder / "search.json",
            progress=True,
        )
        print(found)
        return scaled(**found.best)

    return Recipe(
        opt=opt,
        task=task,
        parts=[],
        validate=lambda key: meta.validation(opt, task, key=key, problems=4),
        trained_on="as robust-mnist in its first four parts, then the length of its steps, by "
        f"search, on {trained_on}: convolutional network with batch normalization, 100 steps",
        limits="params of convolutions must be named Conv_*; one architecture was seen",
        start=start,
    )


def lstm_cifar10(data_dir: str | None) -> Recipe:
    return _cifar("cifar10", data_dir, "CIFAR-10")


def lstm_cifar5_sub(data_dir: str | None) -> Recipe:
    return _cifar("cifar5-sub", data_dir, "the five labels of CIFAR-10 that CIFAR-5 leaves out")


def lstm_cifar2_sub(data_dir: str | None) -> Recipe:
    return _cifar("cifar2-sub", data_dir, "the eight labels of CIFAR-10 that CIFAR-2 leaves out")


def lstm_art(data_dir: str | None) -> Recipe:
    del data_dir
    opt = learned.adaptive_lstm((20,), b1=(0.9, 0.99))
    task = tasks.load("art").train
    # The loss is a mean over pixels: on an image twice as large its slopes are a quarter.
    scaled = tasks.augment(task, loss=2.0)
    wider = tasks.augment(task, loss=4.0)

    def validate(scaled: Task) -> Callable[[jax.Array], Callable[[Phi], Any]]:
        return lambda key: meta.validation(
            opt, [task, scaled], key=key, horizon=128, problems=4, window=1
        )

    # Of whole episodes they explode.
    exact = meta.truncated(
        horizon=128,
        truncation=32,
        step_weights=jnp.full(128, 1 / 32),
        meta_loss="log",
        second_derivatives=True,
    )
    return Recipe(
        opt=opt,
        task=task,
        parts=[
            Part(200, 1e-3, whole_episodes(128)),
            # The first part alone: .996 of tuned Nesterov in its own style, 1.017 of tuned Adam on
            # larger images.
            Part(
                200,
                1e-3,
                whole_episodes(128),
                task=scaled,
                validate=validate(scaled),
            ),
            # Until here the meta-gradient leaves out that a step changes the gradients after it.
            Part(
                600,
                5e-4,
                meta.mixture(exact, normalize="gradient"),
                batch=2,
                task=[task, wider],
                validate=validate(wider),
            ),
        ],
        validate=lambda key: meta.validation(opt, task, key=key, horizon=128, problems=8, window=1),
        trained_on="as general in its first two parts, then neural art of 64x64 pixels in one "
        "style, random scales of its loss; 128 steps",
        limits="images and losses of this kind",
        # Not what ships as general, which has a third part: `weights.py general` leaves this there.
        start=lambda folder, key: learned.restore(folder.parent / "general" / "part-2")[1],
        finish=lambda phi, key: _best_length(
            opt,
            [task, wider],
            phi,
            key,
            lengths=(0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5),
            runs=((128, 8),),
            windows=(1, 1),
        ),
    )


RECIPES: dict[str, Callable[[str | None], Recipe]] = {
    "lstm-quadratic": lstm_quadratic,
    "lstm-mnist": lstm_mnist,
    "robust-mnist": robust_mnist,
    "lstm-cifar10": lstm_cifar10,
    "lstm-cifar5-sub": lstm_cifar5_sub,
    "lstm-cifar2-sub": lstm_cifar2_sub,
    "lstm-art": lstm_art,
    "general": general,
}
