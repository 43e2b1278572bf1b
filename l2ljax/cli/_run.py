"""The folder of a run: its settings, its checkpoints, its results."""

import dataclasses
import io
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from l2ljax import checkpoint, meta
from l2ljax.checkpoint import CARD, WEIGHTS, write_file
from l2ljax.cli._devices import leads, together

SETTINGS, HISTORY, CHECKPOINTS = "run.json", "history.npz", "checkpoints"
TABLE, FIGURE = "comparison.json", "curves.png"
RESULTS = (HISTORY, WEIGHTS, CARD, TABLE, FIGURE)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder. Only files that a run writes are ever replaced or removed."""

    folder: pathlib.Path

    @classmethod
    def start(cls, folder: pathlib.Path, settings: dict[str, Any], *, force: bool) -> "Run":
        """Opens a folder for a new run, before anything long begins.

        Raises:
            FileExistsError: if what a run writes is there already and `force` is off; or if there
                are checkpoints without a run, which even `force` does not remove.
            NotADirectoryError: if a file is in the way.
            OSError: if the folder cannot be written.
        """
        require_folder(folder)
        run = cls(folder)
        if run.has(CHECKPOINTS) and not run.has(SETTINGS):
            raise FileExistsError(
                f"{folder / CHECKPOINTS} is not removed, as without {SETTINGS} beside it it may be "
                "of another program; move it away or choose another folder"
            )
        if not force:
            run._require_new()
        if (folder / CHECKPOINTS).is_dir():
            shutil.rmtree(folder / CHECKPOINTS)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        # Last: until it is replaced, the old settings say whose the rest is.
        write_file(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return run

    def _require_new(self) -> None:
        found = [name for name in (SETTINGS, *RESULTS) if self.has(name)]
        if CARD in found:
            state = "a finished run"
        elif SETTINGS in found:
            state = "an unfinished run (--resume goes on)"
        elif found:
            state = " and ".join(found)
        else:
            return
        raise FileExistsError(f"{self.folder} has {state}; --force begins again and replaces that")

    @classmethod
    def resume(cls, folder: pathlib.Path) -> tuple["Run", dict[str, Any]]:
        """Opens the folder of a run, which has a card if it is finished.

        Raises:
            FileNotFoundError: if there is no run.
            NotADirectoryError: if a file is in the way.
            ValueError: if its settings are damaged.
        """
        require_folder(folder)
        run = cls(folder)
        if not run.has(SETTINGS):
            raise FileNotFoundError(f"{folder} has no run to resume: {SETTINGS} is missing")
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / SETTINGS} must be JSON: {error}") from error
        if not (isinstance(settings, dict) and isinstance(settings.get("recipe"), dict)):
            raise ValueError(f"{folder / SETTINGS} is damaged: it must hold the key 'recipe'")
        if not run.has(CARD):
            # Weights without a card are those of a run that was stopped while it wrote them.
            (folder / WEIGHTS).unlink(missing_ok=True)
        return run, settings

    def has(self, *names: str) -> bool:
        """Whether any of these files is there."""
        return any((self.folder / name).exists() for name in names)

    def save(self, state: meta.TrainState, history: dict[str, np.ndarray]) -> None:
        """Saves a state of meta-training and the history up to it."""
        if leads():
            content = io.BytesIO()
            np.savez_compressed(content, **history)  # type: ignore[arg-type]
            write_file(self.folder / HISTORY, content.getvalue())
        # Each process has its part of the state.
        checkpoint.save_state(self.folder / CHECKPOINTS, int(state.step), state)

    def load(self, like: meta.TrainState) -> tuple[meta.TrainState | None, dict[str, np.ndarray]]:
        """The last saved state and the history up to it; None and an empty one if there is none.

        Raises:
            ValueError: if one of them cannot be read, or the state is not like `like`.
        """
        if checkpoint.last_step(self.folder / CHECKPOINTS) is None:
            return None, {}
        state = checkpoint.read_state(self.folder / CHECKPOINTS, like)
        history = self._history()
        # A run that stopped between its two files has a history that is ahead of its state.
        done = int(state.step)
        scored = history.get("validation_step", np.zeros(0)) <= done
        return state, {
            name: rows[scored] if name.startswith("validation") else rows[:done]
            for name, rows in history.items()
        }

    def saved_step(self) -> int:
        """The meta-step of the last saved state; 0 if there is none."""
        return checkpoint.last_step(self.folder / CHECKPOINTS) or 0

    def _history(self) -> dict[str, np.ndarray]:
        path = self.folder / HISTORY
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                return {name: arrays[name] for name in arrays}
        except Exception as error:  # A damaged archive may raise any of half a dozen kinds.
            raise ValueError(
                f"{path} cannot be read: {error}; put back a copy, or begin again with --force"
            ) from error

    def clear_checkpoints(self) -> None:
        """Removes the states of a run that is finished."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)


def require_folder(folder: pathlib.Path) -> None:
    """Requires a folder, or a place where one can be made.

    Raises:
        NotADirectoryError: if a file is in the way; it is named.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise NotADirectoryError(f"--out must name a folder, but {place} is a file")


class Saver:
    """A callback that keeps the newest state and history, and saves them at intervals."""

    def __init__(
        self,
        run: Run,
        state: meta.TrainState | None,
        history: dict[str, np.ndarray],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._seconds, self._clock = run, seconds, clock
        self._chunks = [history] if history else []
        self._saved = clock()
        self.state = state

    def __call__(self, progress: meta.Progress) -> None:
        """Takes in a chunk; saves if it is time."""
        self.state = progress.state
        chunk = dict(progress.metrics)
        if progress.validation is not None:
            chunk["validation"] = np.array([progress.validation])
            chunk["validation_step"] = np.array([int(progress.state.step)])
        self._chunks.append(chunk)
        if together(self._clock() - self._saved > self._seconds):
            self.save()

    def save(self) -> None:
        """Saves the newest state, if there is one."""
        if self.state is not None:
            self._run.save(self.state, self.history())
            self._saved = self._clock()

    def history(self) -> dict[str, np.ndarray]:
        """All metrics so far, those of an earlier part of the run first."""
        names = dict.fromkeys(name for chunk in self._chunks for name in chunk)
        return {
            name: np.concatenate([chunk[name] for chunk in self._chunks if name in chunk])
            for name in names
        }
