"""How the tests of the command line run it."""

import contextlib
import io

import pytest

from l2ljax.cli import main

TRAIN = "train --task quadratic --steps 4 --batch 2 --horizon 4 --truncation 2".split()
FINISHED = ["card.json", "history.npz", "run.json", "weights.safetensors"]


def run(*words):
    """The exit status and what went to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit:  # argparse
            status = exit.code
    return status, out.getvalue(), err.getvalue()


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def phi_of(folder):
    return (folder / "weights.safetensors").read_bytes()


def assert_match(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
