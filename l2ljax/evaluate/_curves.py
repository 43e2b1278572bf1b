"""Loss curves of one optimizer over many problems."""

from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Task, Transformation, require_transformation
from l2ljax.evaluate._arguments import require_task
from l2ljax.meta import unroll_batch


def curves(
    tx: Transformation,
    task: Task,
    *,
    key: Key,
    steps: int = 100,
    problems: int = 64,
) -> Float[Array, "{problems} {steps}+1"]:
    """Runs an optimizer on fresh problems, by the unroll that meta-training uses.

    Args:
        tx: any optax transformation.
        task: the family that problems are drawn from.
        key: problem i uses `fold_in(key, i)`: with one key, optimizers see the same problems, the
            same θ₀ and the same minibatches.
        steps: inner steps T.
        problems: number of problems.

    Returns:
        The objective at θ₀ … θ_T, one run a row; not finite where a run diverged.

    Raises:
        ValueError: for sizes below 1, and for what is no transformation, no task or no key.

    >>> import jax, optax, l2ljax as l2l
    >>> losses = curves(optax.sgd(0.01), l2l.tasks.quadratic(), key=jax.random.key(0), steps=9)
    >>> losses.shape, bool(losses[:, -1].mean() < losses[:, 0].mean())
    ((64, 10), True)
    """
    require_transformation("tx", tx)
    require_task("task", task)
    _checks.key("key", key)
    _checks.count("steps", steps)
    _checks.count("problems", problems)
    return unroll_batch(tx, task, key, horizon=steps, problems=problems)
