"""What meta-training measured, collected on the host."""

import numpy as np

FAILURES = 25
"""Meta-steps without a finite meta-gradient, one after the other, that end a run."""


class History:
    """The metrics of chunks and the scores of validations.

    Args:
        done: meta-steps that the state had done before.
        before: the history of an earlier part of the run, to be gone on with; None: there is none.

    Attributes:
        chunks: a dictionary of arrays for each chunk, one row a meta-step.
    """

    def __init__(self, done: int, before: dict[str, np.ndarray] | None = None) -> None:
        rows = dict(before or {})
        scored = zip(rows.pop("validation_step", ()), rows.pop("validation", ()), strict=True)
        self.chunks: list[dict[str, np.ndarray]] = [rows] if rows else []
        self._scores = [(int(step), float(score)) for step, score in scored]
        self._first, self._done, self._failures = done, done, 0

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Keeps a chunk.

        Raises:
            FloatingPointError: where `FAILURES` meta-steps one after the other came to nothing,
                wherever chunks begin and end.
        """
        self.chunks.append(metrics)
        for skipped in metrics["skipped"]:
            self._done += 1
            self._failures = self._failures + 1 if skipped else 0
            if self._failures == FAILURES:
                self._fail()

    def finish(self) -> None:
        """Says that the last chunk was added.

        Raises:
            FloatingPointError: if all meta-steps of a run came to nothing.
        """
        if self._first == 0 and 0 < self._failures == self._done:
            self._fail()

    def add_score(self, score: float) -> None:
        """Keeps the score of φ after the last chunk."""
        self._scores.append((self._done, score))

    def arrays(self) -> dict[str, np.ndarray]:
        """The `history` of a `TrainResult`."""
        names = self.chunks[-1] if self.chunks else {}
        history = {
            name: np.concatenate([chunk[name] for chunk in self.chunks])
            for name in names
            if all(name in chunk for chunk in self.chunks)
        }
        if self._scores:
            steps, scores = zip(*self._scores, strict=True)
            history |= {"validation_step": np.array(steps), "validation": np.array(scores)}
        return history

    def _fail(self) -> None:
        raise FloatingPointError(
            f"no meta-gradient was finite in meta-steps {self._done - self._failures} to "
            f"{self._done - 1}; lower the rate of meta_optimizer, clip its gradients "
            "(optax.clip_by_global_norm) or lower the optimizer's output_scale"
        )
