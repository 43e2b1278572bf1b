"""What `search.py` tunes: Adam on the digits' MLP of 20 sigmoid units."""

from typing import Any

import jax
import optax

from l2ljax import classic, hyper, tasks
from l2ljax.core import Key, Scalar, closure

STEPS, PROBLEMS, BATCH = 100, 2, 64
PROBLEM_KEY = jax.random.key(1)

SPACE = {
    "learning_rate": hyper.log_uniform(1e-4, 1.0),
    # Decays by their distance from one, of which the logarithm counts.
    "one_minus_b1": hyper.log_uniform(1e-2, 1.0),
    "one_minus_b2": hyper.log_uniform(1e-4, 1.0),
}


def adam(learning_rate: Any, one_minus_b1: Any, one_minus_b2: Any) -> optax.GradientTransformation:
    return classic.adam(learning_rate, 1 - one_minus_b1, 1 - one_minus_b2)


def train() -> Any:
    return family("train", BATCH)()


def validation(split: str = "validation") -> Any:
    """The loss on all examples of a split."""
    return family(split, None)()


def family(split: str, batch_size: int | None) -> Any:
    """A task by its network; the images are leaves, not constants of each network's program."""
    return closure(_task, tasks.digits(), split=split, batch_size=batch_size)


def _task(
    data: tasks.Dataset,
    hidden: tuple[int, ...] = (20,),
    activation: str = "sigmoid",
    *,
    split: str,
    batch_size: int | None,
) -> Any:
    return tasks.mlp_classifier(data, hidden, activation, batch_size, split)


def on_the_same_problems(objective: Any) -> Any:
    """Searches with other keys draw other settings, but see the same starts and minibatches."""
    return closure(_fixed, objective, PROBLEM_KEY)


def _fixed(objective: Any, problem_key: Key, settings: dict[str, Any], key: Key) -> Scalar:
    del key
    return objective(settings, problem_key)


def adam_objective() -> Any:
    """Validation loss after 100 steps, the mean of two starts."""
    return on_the_same_problems(
        hyper.objective(adam, train(), steps=STEPS, problems=PROBLEMS, validation=validation())
    )
