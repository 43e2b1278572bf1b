"""The words of the command line: help, errors about words, and what a terminal cannot show."""

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import TRAIN, run

import l2ljax
from l2ljax import cli, tasks
from l2ljax.cli import _commands

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-W", "error", "-m", "l2ljax"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}


def test_help_shows_commands_and_examples():
    status, out, _ = run("--help")
    assert status == 0
    for word in ["demo", "train", "compare", "tasks", "examples:", "l2ljax.learned.load("]:
        assert word in out


@pytest.mark.parametrize("command", ["demo", "train", "compare", "tasks"])
def test_every_command_has_help(command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"usage: l2ljax {command}" in out


def test_version_is_that_of_the_package():
    assert run("--version") == (0, f"{l2ljax.__version__}\n", "")


def test_the_module_runs_as_a_program_and_without_matplotlib(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [*PROGRAM, "tasks"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == run("tasks")


def test_tasks_lists_each_with_what_it_needs():
    status, out, _ = run("tasks")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == set(tasks.CATALOGUE)
    assert "needs --data-dir" in lines["mnist"]
    assert "needs" not in lines["digits"]


def test_no_command_is_wrong_use():
    status, _, err = run()
    assert status == 2
    assert "COMMAND" in err


def test_help_comes_without_jax():
    program = """
import atexit, sys
atexit.register(lambda: print(sorted({"jax", "numpy"} & {*sys.modules})))
from l2ljax.cli import main
main(["train", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: l2ljax train")
    assert done.stdout.endswith("\n[]\n")


def test_the_package_alone_has_its_other_packages_as_attributes():
    program = "import l2ljax; print(l2ljax.checkpoint.CARD, l2ljax.core.Task is l2ljax.Task)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "card.json True\n"


def test_the_package_has_its_names_though_it_imports_them_late():
    for name in l2ljax.__all__:
        assert getattr(l2ljax, name) is not None
        assert name in dir(l2ljax)
    assert l2ljax.Task is l2ljax.core.Task
    assert l2ljax.tasks is tasks
    with pytest.raises(AttributeError, match="module 'l2ljax' has no attribute 'task'"):
        l2ljax.task  # noqa: B018


# Options.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TRAIN, "--out", "new", "--step", "3"], "arguments: --step 3; did you mean '--steps'?"),
        ([*TRAIN, "--out", "new", "--step=3"], "arguments: --step=3; did you mean '--steps'?"),
        (["demo", "--problem", "9"], "arguments: --problem 9; did you mean '--problems'?"),
        (["tasks", "mnist"], "arguments: mnist\n"),
        ([*TRAIN, "--out", ""], "--out: must name a folder, got an empty text"),
    ],
    ids=str,
)
def test_words_that_are_no_arguments_are_refused_before_anything_is_done(
    words, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


# What reads the output.


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(_commands, "list_tasks", lambda arguments: print("losses of φ"))
    assert cli.main(["tasks"]) == 0
    assert written.getvalue() == b"losses of \\u03c6\n"


@pytest.mark.parametrize("command", ["demo", "train", "compare", "tasks", "weights", "build"])
def test_help_is_ascii(command):
    assert run(command, "--help")[1].isascii()


def test_a_reader_that_went_away_is_no_error():
    process = subprocess.Popen(
        [*PROGRAM, "train", "--help"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_a_program_without_standard_output_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["tasks"]) == 0


def test_an_interruption_of_imports_ends_the_program_silently():
    # A library that loses the interruption, as compiled ones may.
    program = """
import os, signal, sys
from l2ljax.cli import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "l2ljax.cli._commands":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("lost")

sys.meta_path.insert(0, Finder())
main(["tasks"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_interruption_of_help_is_no_traceback(monkeypatch):
    def print_help(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", print_help)
    assert run("--help") == (130, "", "\ninterrupted\n")
