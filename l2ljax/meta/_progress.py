"""What meta-training tells the outside while it runs and when it ends."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm
from typing_extensions import TypeAliasType

from l2ljax._shown import one_line
from l2ljax.core import Phi


class TrainState(NamedTuple):
    """All that meta-training carries from one meta-step to the next; a pytree to checkpoint.

    Attributes:
        step: meta-steps done, i32[].
        phi: present meta-parameters.
        opt_state: state of the meta-optimizer.
        estimator: state of the estimator (the episodes under way).
        best_phi: the best φ by validation so far; the first φ before any.
        best_score: its score, f32[]; infinite before any.
        stale: validations since then, i32[].
    """

    step: Int[Array, ""]
    phi: Phi
    opt_state: Any
    estimator: Any
    best_phi: Phi
    best_score: Float[Array, ""]
    stale: Int[Array, ""]

    def __repr__(self) -> str:
        return one_line(self)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What meta-training returns.

    Attributes:
        phi: the best φ by `validate`, or the last one where there is no validation.
        last_phi: φ after the last meta-step.
        history: arrays with one row a meta-step: `loss` (the meta-loss, which of a segment is a
            weighted sum over its steps), `grad_norm`, `skipped` (true where the meta-gradient was
            not finite and φ stayed), and the estimator's `aux`, of most of them with `losses` (of
            each step of the segment, the mean over problems); with validation also
            `validation_step` and `validation`.
        state: where to go on: `train(..., state=result)`, or `save_state(folder, result.state)`.
    """

    phi: Phi
    last_phi: Phi
    history: dict[str, np.ndarray]
    state: TrainState

    __repr__ = one_line


class Progress(NamedTuple):
    """What callbacks get, after every compiled chunk of meta-steps.

    Attributes:
        state: the state after the chunk.
        steps: the meta-step at which the run ends.
        metrics: arrays with a leading axis of the chunk's meta-steps: `loss`, `grad_norm`,
            `skipped`, and the estimator's `aux`.
        validation: the score of φ, if it was validated after this chunk.
    """

    state: TrainState
    steps: int
    metrics: dict[str, np.ndarray]
    validation: float | None

    def __repr__(self) -> str:
        return one_line(self)


Callback = TypeAliasType("Callback", Callable[[Progress], bool | None])
"""Called after every chunk of meta-steps; it returns True to end the run."""


def asks_to_end(answer: Any) -> bool:
    """Whether a callback returned True; what else it returns, such as a loss, says nothing."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


@contextlib.contextmanager
def keeping(result: Callable[[], TrainResult]) -> Iterator[None]:
    """Gives whatever ends a run the result so far.

    Args:
        result: makes it.
    """
    try:
        yield
    except BaseException as error:
        # If there is none, as of a device that failed, the error itself is what matters.
        with contextlib.suppress(Exception):
            error.result = result()  # type: ignore[attr-defined]
            error.add_note("what meta-training had reached is this exception's `result`")
        raise


class ProgressBar:
    """A callback that draws a tqdm bar: meta-step, losses, rate and time left.

    The meta-loss of a segment is a sum over its steps; beside it stands the loss per step, their
    mean, where the estimator measures `losses`.
    """

    def __init__(self, done: int, steps: int) -> None:
        self._bar = tqdm(total=steps, initial=done, unit="step", desc="meta-training")
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Moves the bar to the state of `progress`."""
        kept = ~progress.metrics["skipped"]
        if kept.any():
            for shown, name in (("loss per step", "losses"), ("meta-loss", "loss")):
                if name in progress.metrics:
                    self._shown[shown] = f"{progress.metrics[name][kept].mean():.4g}"
        if progress.validation is not None:
            self._shown["validation"] = f"{progress.validation:.4g}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(int(progress.state.step) - self._bar.n)
