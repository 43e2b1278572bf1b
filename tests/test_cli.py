import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import l2ljax
from l2ljax import evaluate, learned
from l2ljax.cli import _commands, main
from l2ljax.cli._run import Saver

ROOT = Path(__file__).parents[1]
TRAIN = "train --task quadratic --steps 4 --batch 2 --horizon 4 --truncation 2".split()
COMPARISON = "--problems 4 --inner-steps 5".split()
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    status, out, err = run(*TRAIN, "--out", folder)
    assert status == 0, err
    assert f"l2ljax.learned.load({str(folder)!r})" in out
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A finished run that may be changed."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in contents(trained).items():
        (folder / name).write_bytes(content)
    return folder


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


def interrupt_after(monkeypatch, step):
    """Ctrl-C in the middle of a run."""
    original = Saver.__call__

    def call(saver, progress):
        if int(progress.state.step) > step:
            raise KeyboardInterrupt
        original(saver, progress)

    monkeypatch.setattr(Saver, "__call__", call)


# Words.


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
        [sys.executable, "-W", "error", "-m", "l2ljax", "tasks"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == run("tasks")


def test_tasks_lists_each_with_what_it_needs():
    status, out, _ = run("tasks")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"quadratic", "digits", "mnist"}
    assert "needs --data-dir" in lines["mnist"]
    assert "needs" not in lines["digits"]


def test_no_command_is_wrong_use():
    status, _, err = run()
    assert status == 2
    assert "COMMAND" in err


# Training.


def test_train_leaves_weights_a_card_and_a_history(trained):
    assert sorted(path.name for path in trained.iterdir()) == FINISHED
    opt, _, card = learned.restore(trained)
    assert opt.spec == learned.lstm().spec
    assert card["task"] == "quadratic"
    assert card["seed"] == 0
    assert card["meta_steps"] == 4
    assert card["recipe"]["horizon"] == 4
    assert card["command"].startswith("l2ljax train --task quadratic --steps 4")
    assert card["versions"]["l2ljax"] == l2ljax.__version__
    with np.load(trained / "history.npz") as history:
        assert history["loss"].shape == (4,)
        np.testing.assert_array_equal(history["validation_step"], [1, 2, 3, 4])
        assert card["scores"]["validation"] == history["validation"].min()


def test_a_finished_run_is_not_overwritten(copy):
    before = contents(copy)
    status, _, err = run(*TRAIN, "--out", copy)
    assert status == 2
    assert f"{copy} has a finished run; --force" in err
    assert contents(copy) == before


def test_force_replaces_a_run_and_no_other_file(copy):
    before = contents(copy)
    (copy / "notes.txt").write_text("mine")
    (copy / "comparison.json").write_text("of the old weights")
    status, _, _ = run(*TRAIN, "--seed", "1", "--out", copy, "--force")
    after = contents(copy)
    assert status == 0
    assert sorted(after) == sorted([*FINISHED, "notes.txt"])
    assert after["weights.safetensors"] != before["weights.safetensors"]
    assert json.loads(after["card.json"])["seed"] == 1


BAD = [
    (["--truncation", "3"], "truncation must divide horizon.*truncation=3.*horizon=4"),
    (["--truncation", "0"], "truncation.*at least 1, got 0"),
    (["--horizon", "-4"], "horizon.*at least 1, got -4"),
    (["--steps", "0"], "steps.*at least 1, got 0"),
    (["--batch", "0"], "batch.*at least 1, got 0"),
    (["--meta-rate", "-1"], "meta_rate.*positive number, got -1"),
    (["--meta-rate", "nan"], "meta_rate.*positive number, got nan"),
    (["--clip", "0"], "clip.*positive number, got 0"),
    (["--power", "-1"], "power.*non-negative number, got -1"),
    (["--output-scale", "0"], "output_scale.*positive number, got 0"),
    (["--preprocess", "logsign"], "preprocess.*'logsign'; did you mean 'log_sign'"),
    (["--seed", "-1"], "seed.*at least 0, got -1"),
    (["--task", "quadratics"], "task.*'quadratics'; did you mean 'quadratic'"),
    (["--task", "digits"], "window.*horizon=4, got 10"),
    (["--task", "mnist", "--data-dir", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=str)
def test_bad_settings_are_refused_before_the_folder_is_touched(copy, words, message):
    before = contents(copy)
    for folder in (copy, copy.parent / "new"):
        status, _, err = run(*TRAIN, *words, "--out", folder, "--force")
        assert status == 2
        assert_match(message, err)
    assert contents(copy) == before
    assert not (copy.parent / "new").exists()


def assert_match(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_a_missing_task_is_asked_for(tmp_path):
    status, _, err = run("train", "--out", tmp_path / "new")
    assert status == 2
    assert "--task must name a task" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["taken", "taken/inside"])
def test_an_output_that_cannot_be_written_is_named_before_training(tmp_path, monkeypatch, place):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(_commands.meta, "train", None)
    status, _, err = run(*TRAIN, "--out", tmp_path / place)
    assert status == 2
    assert str(tmp_path / place) in err
    assert (tmp_path / "taken").read_text() == "mine"


# Interrupted, and gone on with.


def test_a_run_interrupted_and_resumed_ends_like_one_that_was_not(tmp_path, trained, monkeypatch):
    folder = tmp_path / "cut"
    for words in ([], ["--resume"]):  # the second time before anything new was done
        with monkeypatch.context() as patched:
            interrupt_after(patched, 2)
            status, _, err = run(*TRAIN, "--out", folder, *words)
        assert status == 130
        assert f"{folder} holds the state after meta-step 2 of 4" in err
        assert f"l2ljax train --out {folder} --resume" in err
        assert not (folder / "card.json").exists()

    status, _, err = run(*TRAIN, "--out", folder)
    assert status == 2
    assert "an unfinished run (--resume goes on)" in err

    status, out, _ = run("train", "--out", folder, "--resume")
    assert status == 0
    assert "going on from meta-step 2" in out
    assert sorted(path.name for path in folder.iterdir()) == FINISHED
    assert phi_of(folder) == phi_of(trained)
    with np.load(folder / "history.npz") as ours, np.load(trained / "history.npz") as theirs:
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_interrupted_before_anything_was_done_it_says_what_is_there(tmp_path, copy, monkeypatch):
    def train(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_commands.meta, "train", train)
    status, _, err = run(*TRAIN, "--out", tmp_path / "new")
    assert status == 130
    assert "after meta-step 0 of 4" in err
    status, out, _ = run("train", "--out", tmp_path / "new", "--resume")
    assert status == 130
    assert "going on from meta-step 0" in out


def test_a_save_that_was_due_at_the_last_step_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_commands, "SAVE_SECONDS", -1.0)
    status, _, err = run(*TRAIN, "--out", tmp_path / "new")
    assert status == 0, err


def test_a_finished_or_missing_run_is_not_resumed(trained, tmp_path):
    before = contents(trained)
    status, _, err = run("train", "--out", trained, "--resume")
    assert status == 2
    assert "finished run; there is nothing to resume" in err
    assert contents(trained) == before
    status, _, err = run("train", "--out", tmp_path / "none", "--resume")
    assert status == 2
    assert "no run to resume: run.json is missing" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: "[]",
        lambda text: text.replace('"recipe"', '"receipt"'),
        lambda text: text.replace('"horizon"', '"horizons"'),
        lambda text: text.replace('"quadratic"', '"cubic"'),
        lambda text: text.replace('"truncation": 2', '"truncation": 3'),
    ],
    ids=["cut", "list", "no recipe", "unknown setting", "unknown task", "bad setting"],
)
def test_damaged_settings_are_refused_with_their_path(copy, damage):
    (copy / "card.json").unlink()
    settings = copy / "run.json"
    settings.write_text(damage(settings.read_text()))
    status, _, err = run("train", "--out", copy, "--resume")
    assert status == 2
    assert str(settings) in err


@pytest.mark.parametrize("words", [["demo"], ["train", "--task", "digits"]], ids=" ".join)
def test_a_run_of_another_task_is_not_resumed(copy, words):
    (copy / "card.json").unlink()
    status, _, err = run(*words, "--out", copy, "--resume")
    assert status == 2
    assert "--task must be that of the run, 'quadratic', got 'digits'" in err


def test_training_begins_with_the_weights_that_are_given(trained, tmp_path):
    folder = tmp_path / "more"
    words = ["--start", trained, "--meta-rate", "1e-9", "--out", folder]
    status, _, err = run(*TRAIN, *words)
    assert status == 0, err
    (_, before, earlier), (_, after, card) = learned.restore(trained), learned.restore(folder)
    assert card["start"] == earlier
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), after, before)


def test_weights_of_another_optimizer_are_no_start(trained, tmp_path):
    words = ["--start", trained, "--output-scale", "0.5", "--out", tmp_path / "more"]
    status, _, err = run(*TRAIN, *words)
    assert status == 2
    assert "start must hold the optimizer of the recipe" in err
    assert not (tmp_path / "more").exists()


def test_a_run_that_never_had_a_finite_score_is_saved_without_one(copy, tmp_path, monkeypatch):
    original = _commands.meta.train

    def train(*arguments, **options):
        return original(*arguments, **{**options, "validate": lambda phi: np.inf})

    monkeypatch.setattr(_commands.meta, "train", train)
    status, _, err = run(*TRAIN, "--out", tmp_path / "new")
    assert status == 0, err
    assert learned.restore(tmp_path / "new")[2]["scores"] == {"validation": None}


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
    monkeypatch.setitem(sys.modules, "l2ljax.plots", None)
    monkeypatch.delattr(l2ljax, "plots", raising=False)
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
    assert f"l2ljax demo --out {folder} --resume" in err

    status, out, _ = run(*DEMO, "--out", folder, "--resume")
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
