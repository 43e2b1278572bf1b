"""The optimizer for other people's models."""

from collections.abc import Callable
from typing import Any

import jax

from l2ljax import learned, meta, tasks
from l2ljax.core import Phi, Task
from recipes.lengths import best_length
from recipes.parts import Part, Recipe
from recipes.training_tasks import digits_by_rows, lower_halves, pooled


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
    second = [
        *first,
        digits_by_rows(),
        lower_halves(24, "tanh", 64),
        lower_halves(16, "relu", 256),
    ]

    def windows(families: list[Task]) -> tuple[int, ...]:
        # Of the quadratics' losses none is a minibatch's.
        return tuple(1 if task is first[-1] else 10 for task in families)

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

    def validate(families: list[Task], horizon: int) -> Callable[[jax.Array], Callable[[Phi], Any]]:
        return lambda key: meta.validation(
            opt, families, key=key, horizon=horizon, problems=4, window=windows(families)
        )

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
                validate=validate(second, 400),
            ),
            # Until here the meta-gradient leaves out that a step changes the gradients after it.
            # 1,200 such meta-steps more, with embeddings, gates and CIFAR-10 at 8x8 among the
            # tasks, left the median of the held-out ones at .99 instead of .92 (10 problems each);
            # a fifth of what they changed, 3 % better on the training tasks, left it at .98.
            Part(
                300,
                1e-3,
                estimator(*varied, second_derivatives=True),
                batch=4,
                task=scaled(second),
                validate=validate(second, 400),
                finish=lambda phi, key: best_length(
                    opt,
                    second,
                    phi,
                    key,
                    lengths=(1.0, 0.85, 0.7, 0.6, 0.5, 0.4),
                    runs=((400, 16), (1000, 8)),
                    windows=windows(second),
                ),
            ),
        ],
        validate=validate(first, 200),
        trained_on="MLPs, a convnet, a recurrent net and regression on digits, MLPs on MNIST at "
        "14x14, quadratics; random scales of params and losses; 100 to 1000 steps",
        limits="trained on networks of some thousand params and at most 1000 steps; loses to tuned "
        "Adam where losses fall to zero (factorization without noise, long runs) and on text; "
        "it does not end a run: a ReLU MLP on MNIST (784-32-10) is at .132 after 1,000 steps and "
        "at .055 after 10,000, where Adam at 1e-3 has .208 and .024; with num_steps=10_000 at "
        ".015, with scale=0.25 at .007 (benchmarks/long_runs.py)",
    )
