"""The state of meta-training on disk."""

import os
import pathlib

from l2ljax import _checks, checkpoint
from l2ljax.meta._progress import TrainState

Folder = str | os.PathLike[str]


def save_state(folder: Folder, state: TrainState) -> None:
    """Saves a state of meta-training; the two newest of a folder are kept.

    A callback that saves now and then is `lambda progress: save_state(folder, progress.state)`.

    Args:
        folder: for the states of one run.
        state: such as `result.state`, or the state that `make_step`'s step returns.

    Raises:
        ValueError: if `state` is no `TrainState`.
        FileExistsError: if the folder has the state of this meta-step, or of a later one.
        OSError: if the folder cannot be written.

    >>> import tempfile, jax, l2ljax as l2l
    >>> settings = {"key": jax.random.key(0), "estimator": l2l.meta.full(horizon=2)}
    >>> opt = l2l.learned.hyperparameters("adam", learning_rate=0.1)
    >>> task = l2l.tasks.quadratic(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state(folder, l2l.meta.train(opt, task, steps=3, **settings).state)
    ...     state = restore_state(folder, like=l2l.meta.make_step(opt, task, **settings)[1])
    >>> int(l2l.meta.train(opt, task, steps=5, state=state, **settings).state.step)
    5
    """
    if not isinstance(state, TrainState):
        _checks.refuse("state", state, "a TrainState such as result.state")
    step, last = int(state.step), checkpoint.last_step(folder)
    if last is not None and last >= step:
        raise FileExistsError(
            f"{pathlib.Path(folder)} has the state of meta-step {last}, got one of meta-step "
            f"{step}; go on from that one, or choose another folder"
        )
    checkpoint.save_state(folder, step, state)


def restore_state(folder: Folder, like: TrainState) -> TrainState:
    """Reads the newest state that `save_state` wrote.

    Args:
        folder: what `save_state` was given.
        like: a state of the same settings, such as the one that `make_step` returns with its step.
            Its structure, shapes and dtypes count, its numbers do not.

    Returns:
        The state, for `train(..., state=state)`.

    Raises:
        ValueError: if `like` is no `TrainState`, the state is one of other settings (it says which
            arrays differ), or it cannot be read.
        FileNotFoundError: if there is none.
    """
    if not isinstance(like, TrainState):
        _checks.refuse("like", like, "a TrainState such as make_step(...)[1]")
    return checkpoint.read_state(folder, like)
