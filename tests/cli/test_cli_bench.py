"""`l2ljax bench`: what it runs, writes and refuses."""

import json
import sys

import pytest
from cli_runs import run

import l2ljax as l2l
from l2ljax.evaluate import _measure
from l2ljax.suite import _tasks

MODULE = """
import optax
from l2ljax.evaluate import Tunable

plain = optax.sgd(0.02)
tuned = Tunable(optax.sgd, [1e-3, 1e-2])

def planned(steps):
    return optax.sgd(optax.linear_schedule(0.02, 0.0, steps))
"""
NAME = "optimizers_to_bench"


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """The working directory, with a module that lies there, and a suite of one small task."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / f"{NAME}.py").write_text(MODULE)
    bowl = l2l.suite.SuiteTask("a bowl", lambda data_dir: l2l.tasks.quadratic(2), steps=12)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "path", [place for place in sys.path if place])
        patched.setitem(_tasks.SUITE, "bowl", bowl)
        yield folder


WORDS = ["--tasks", "bowl", "--rivals", "none", "--problems", 4, "--steps", 12]
OWN = [f"{NAME}:plain", f"rate={NAME}:tuned", f"{NAME}:planned"]


def test_it_leaves_a_table_a_figure_and_a_page_and_resumes(here, monkeypatch):
    status, out, err = run("bench", "--optimizer", *OWN, "--out", "made", *WORDS)
    assert status == 0, err
    assert {path.name for path in (here / "made").iterdir()} == {
        *("benchmark.json", "benchmark.png", "benchmark.html", "results")
    }
    table = json.loads((here / "made" / "benchmark.json").read_text())
    assert [row["optimizer"] for row in table["summary"]] == ["plain", "rate", "planned", "Adam"]
    assert all(row["time"] > 0 for row in table["summary"])
    assert table["command"].startswith("l2ljax bench --optimizer") and "jax" in table["versions"]
    assert "IQM speedup" in out and "planned" in out
    page = (here / "made" / "benchmark.html").read_text()
    assert "<h1>l2ljax bench</h1>" in page and "http" not in page
    # What is there is read; ratios may then be to another one.
    monkeypatch.setattr(_measure, "_run", None)
    again = ["bench", "--optimizer", *OWN, "--out", "made", *WORDS, "--reference", "rate"]
    status, out, err = run(*again)
    assert status == 0 and "rate / this" in out, err


def test_weights_are_told_the_steps_where_that_is_asked_for(here, monkeypatch):
    entries, told = {}, []

    def stop(optimizers, *arguments, **options):
        entries.update(optimizers)
        raise ValueError("stopped")

    monkeypatch.setattr(l2l.evaluate, "benchmark", stop)
    monkeypatch.setattr(l2l.learned, "load", lambda name, **given: told.append((name, given)))
    assert run("bench", "--weights", "mine=general", "--planned")[0] == 2
    entries["mine"](70)
    assert told == [("general", {"num_steps": 70})]
    assert run("bench", "--weights", "general")[0] == 2
    assert told[1:] == [("general", {})]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--weights or --optimizer must name an optimizer"),
        (["--weights", "nothing"], "nothing does not exist"),
        (["--weights", "nothing", "--planned"], "nothing does not exist"),
        (["--optimizer", *OWN[:1], *OWN[:1]], "must have one name each, got two of 'plain'"),
        (["--optimizer", OWN[0], "--tasks", "bowls"], "did you mean 'bowl'"),
        (["--optimizer", OWN[0], "--suite", "large"], "suite must be one of"),
        (["--optimizer", OWN[0], "--rivals", "adam"], "names must be one of"),
        (["--optimizer", OWN[0], "--rival-weights", "gone"], "weights_dir must be a folder"),
        (["--optimizer", OWN[0], "--steps", 0], "steps must be a whole number"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(here, words, expected):
    status, _, err = run("bench", *words, "--out", "none")
    assert status == 2 and expected in err
    assert not (here / "none").exists()
