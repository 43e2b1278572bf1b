"""Comparing by the command line, and the demo."""

import functools
import json
import shlex
import sys

import pytest
from cli_runs import FINISHED, assert_match, contents, run

import l2ljax
from l2ljax import evaluate, learned

OPTIMIZED = True

COMPARISON = "--problems 4 --inner-steps 5".split()


@pytest.fixture(scope="module")
def one_baseline():
    """Tunes one method at few rates: less to compile."""
    few = functools.partial(evaluate.baselines, ["SGD"], per_decade=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "baselines", few)
        yield


@pytest.fixture(scope="module")
def compared(trained, one_baseline, tmp_path_factory):
    """The folder of a comparison, and what it printed."""
    folder = tmp_path_factory.mktemp("compared") / "new" / "folder"
    status, out, err = run(
        *["compare", "--task", "quadratic", "--weights", f"mine={trained}"],
        *["--out", folder, *COMPARISON],
    )
    assert status == 0, err
    return folder, out


# Comparing. Before `one_baseline`, which replaces the others for the rest of this file.


def test_compare_tunes_five_baselines_and_can_be_interrupted(trained, tmp_path, monkeypatch):
    def compare(optimizers, *_, **__):
        names.extend(optimizers)
        raise KeyboardInterrupt

    names = []
    monkeypatch.setattr(evaluate, "compare", compare)
    words = ["--weights", f"one={trained}", trained, "--out", tmp_path]
    assert run("compare", "--task", "quadratic", *words) == (130, "", "\ninterrupted\n")
    assert names == ["one", "trained", "SGD", "momentum", "Nesterov", "RMSprop", "Adam"]


def test_compare_prints_a_table_and_a_verdict(compared):
    folder, out = compared
    for name in ["mine", "SGD"]:
        assert any(line.startswith(name) for line in out.splitlines())
    assert "the best tuned baseline, SGD" in out
    assert f"table: {folder / 'comparison.json'}" in out
    assert f"figure: {folder / 'curves.png'}" in out


def test_compare_writes_the_table_as_json_and_the_curves_as_a_picture(compared):
    folder, _ = compared
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.json", "curves.png"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    table = json.loads((folder / "comparison.json").read_text(), parse_constant=refuse)
    assert (table["task"], table["reference"]) == ("quadratic", "mine")
    assert (table["problems"], table["steps"], table["confidence"]) == (4, 5, 0.95)
    assert table["command"].startswith("l2ljax compare --task quadratic")
    assert {"jax", "l2ljax", "python"} <= table["versions"].keys()
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["mine", "SGD"]
    assert rows["mine"]["setting"] is None
    assert rows["mine"]["ratio"] == 1
    assert rows["SGD"]["setting"]["learning_rate"] > 0
    for row in rows.values():
        assert row["final_low"] <= row["final"] <= row["final_high"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_a_comparison_is_not_overwritten_without_force(compared, trained):
    folder, _ = compared
    before = contents(folder)
    words = ["compare", "--task", "quadratic", "--weights", trained, "--out", folder, *COMPARISON]
    status, _, err = run(*words)
    assert status == 2
    assert f"{folder} has comparison.json and curves.png; --force replaces them" in err
    assert contents(folder) == before
    status, _, _ = run(*words, "--force")
    assert status == 0
    table = json.loads((folder / "comparison.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["trained", "SGD"]
    for name, content in before.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems", "0"], "problems.*at least 1, got 0"),
        (["--inner-steps", "0"], "inner_steps.*at least 1, got 0"),
        (["--evaluation-seed", "-1"], "evaluation_seed.*at least 0, got -1"),
        (["--evaluation-seed", str(10**23)], r"evaluation_seed.*less than 2\*\*32, got 10{23}"),
        (["--task", "cubic"], "task.*'cubic'"),
        (["--task", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["--weights", "nowhere"], "nowhere.*does not exist"),
    ],
    ids=str,
)
def test_a_bad_comparison_is_refused_before_it_begins(trained, tmp_path, words, message):
    out = tmp_path / "new"
    status, _, err = run(
        *["compare", "--task", "quadratic", "--weights", trained, "--out", out], *words
    )
    assert status == 2
    assert_match(message, err)
    assert not out.exists()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "SGD")])
def test_two_optimizers_of_one_name_are_refused(trained, tmp_path, names):
    weights = [f"{name}={trained}" for name in names]
    status, _, err = run("compare", "--task", "quadratic", "--out", tmp_path, "--weights", *weights)
    assert status == 2
    assert f"two of {names[1]!r}" in err


def test_a_comparison_that_cannot_be_written_is_refused_before_it_begins(
    trained, tmp_path, monkeypatch
):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(evaluate, "compare", None)
    status, _, err = run(
        *["compare", "--task", "quadratic", "--weights", trained, "--out", tmp_path / "taken"]
    )
    assert status == 2
    assert str(tmp_path / "taken") in err
    assert (tmp_path / "taken").read_text() == "mine"


def test_without_matplotlib_a_demo_is_refused_before_training(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("l2ljax.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(vars(l2ljax), "plots", raising=False)
    status, _, err = run("demo", "--out", tmp_path / "demo")
    assert status == 2
    assert "pip install 'l2ljax[plots]'" in err
    assert not (tmp_path / "demo").exists()


# The demo.

DEMO = "demo --steps 2 --batch 1 --horizon 10 --truncation 5 --problems 4 --inner-steps 10".split()


@pytest.mark.slow
def test_demo_leaves_everything_in_one_folder(tmp_path, one_baseline, monkeypatch):
    folder = tmp_path / "demo"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "compare", interrupt)
        status, _, err = run(*DEMO, "--out", folder)
    assert status == 130
    again = f"l2ljax demo --out {folder} --resume --problems 4 --inner-steps 10"
    assert err.splitlines()[-1].strip() == again

    status, out, _ = run(*shlex.split(again)[1:])
    assert status == 0
    assert "going on from meta-step 2" in out
    assert "the best tuned baseline, SGD" in out
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FINISHED, "comparison.json", "curves.png"]
    )
    _, _, card = learned.restore(folder)
    table = json.loads((folder / "comparison.json").read_text())
    assert card["task"] == table["task"] == "digits"
    assert card["scores"]["comparison"]["rows"] == table["rows"]


def test_a_demo_with_too_few_inner_steps_is_refused_before_training(tmp_path):
    status, _, err = run(*DEMO, "--inner-steps", "9", "--out", tmp_path / "demo")
    assert status == 2
    assert "inner_steps must be a whole number of at least 10, got 9" in err
    assert not (tmp_path / "demo").exists()
