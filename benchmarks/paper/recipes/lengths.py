"""The length of a learned optimizer's steps, by search."""

import jax
import numpy as np

from l2ljax import meta
from l2ljax.core import LearnedOptimizer, Phi, Task


def longer(phi: Phi, factor: jax.typing.ArrayLike) -> Phi:
    """φ of an LSTM whose small steps are `factor` times as long."""
    return {**phi, **{part: factor * phi[part] for part in ("output_kernel", "output_bias")}}


def best_length(
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
    last steps, and outweigh all other tasks. Of lengths within .1 % of the lowest the longest is
    taken: so little is noise, too, and long steps are ahead early.

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
            losses = [float(final(longer(phi, length))) for length in lengths]
            losses = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
            scores += np.log(np.maximum(losses, 0.01)) / (len(runs) * len(families))
    print({length: round(float(score), 4) for length, score in zip(lengths, scores, strict=True)})
    return longer(phi, float(np.array(lengths)[scores <= scores.min() + 0.001].max()))
