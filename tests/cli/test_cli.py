"""Training by the command line."""

import functools
import json
import shlex
import shutil

import jax
import numpy as np
import pytest
from cli_runs import FINISHED, TRAIN, assert_match, contents, phi_of, run

import l2ljax
from l2ljax import learned
from l2ljax.cli import _commands
from l2ljax.cli._run import Saver

OPTIMIZED = True

COMPARE = ["compare", "--task", "quadratic", "--weights", "lstm-quadratic"]


def interrupt_after(monkeypatch, step):
    """Ctrl-C in the middle of a run."""
    original = Saver.__call__

    def call(saver, progress):
        if int(progress.state.step) > step:
            raise KeyboardInterrupt
        original(saver, progress)

    monkeypatch.setattr(Saver, "__call__", call)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was interrupted after two steps; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patched:
        interrupt_after(patched, 2)
        assert run(*TRAIN, "--seed", "1", "--out", folder)[0] == 130
    assert (folder / "checkpoints" / "2").is_dir()
    return folder


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


@pytest.mark.parametrize(
    "name", ["history.npz", "comparison.json", "curves.png", "weights.safetensors"]
)
def test_what_a_run_would_replace_is_named_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    status, _, err = run(*TRAIN, "--out", tmp_path)
    assert status == 2
    assert f"{tmp_path} has {name}; --force begins again and replaces that" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [[], ["--force"]], ids=str)
def test_checkpoints_without_a_run_are_not_removed_even_by_force(tmp_path, words):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.bin").write_text("mine")
    (tmp_path / "history.npz").write_text("mine")
    before = contents(tmp_path)
    status, _, err = run(*TRAIN, "--out", tmp_path, *words)
    assert status == 2
    assert f"{tmp_path / 'checkpoints'} is not removed, as without run.json beside it" in err
    assert contents(tmp_path) == before


def test_force_replaces_the_checkpoints_of_an_unfinished_run(stopped, tmp_path, trained):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    status, _, err = run(*TRAIN, "--out", folder, "--force")
    assert status == 0, err
    assert phi_of(folder) == phi_of(trained)
    assert sorted(path.name for path in folder.iterdir()) == FINISHED


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
    (["--seed", str(10**23)], r"seed.*less than 2\*\*32, got 10{23}"),
    (["--seed", str(2**32)], r"seed.*less than 2\*\*32, got 4294967296"),
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


def test_the_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    words = ["--task", "mnist", "--data-dir=~/nowhere", "--out", tmp_path / "new"]
    status, _, err = run(*TRAIN, *words)
    assert status == 2
    assert f"got '{tmp_path / 'nowhere'}'" in err


def test_a_missing_task_is_asked_for(tmp_path):
    status, _, err = run("train", "--out", tmp_path / "new")
    assert status == 2
    assert "--task must name a task" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["taken", "taken/inside"])
def test_an_output_that_cannot_be_written_is_named_before_training(tmp_path, monkeypatch, place):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(_commands.meta, "train", None)
    for words in (TRAIN, ["train", "--resume"], COMPARE):
        status, _, err = run(*words, "--out", tmp_path / place)
        assert status == 2
        assert f"--out must name a folder, but {tmp_path / 'taken'} is a file" in err
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:99] + b"?" + path.read_bytes()[100:]),
        lambda path: path.write_text("mine"),
        lambda path: path.unlink(),
    ],
    ids=["cut", "empty", "changed", "text", "lost"],
)
def test_a_history_that_cannot_be_read_is_named(stopped, tmp_path, damage):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    damage(folder / "history.npz")
    status, _, err = run("train", "--out", folder, "--resume")
    assert status == 2
    assert f"{folder / 'history.npz'} cannot be read" in err
    assert "put back a copy, or begin again with --force" in err


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


def raise_interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name", "saved"),
    [(Saver, "save", 0), (_commands.learned, "save", 4), (_commands.meta, "make_step", 2)],
    ids=["saving the state", "saving the weights", "resuming"],
)
def test_a_second_interruption_also_ends_with_the_command_to_go_on(
    tmp_path, stopped, monkeypatch, owner, name, saved
):
    words = [*TRAIN, "--out", tmp_path / "new"]
    if name == "make_step":
        words = ["train", "--resume", "--out", shutil.copytree(stopped, tmp_path / "new")]
    with monkeypatch.context() as patched:
        if name == "save" and owner is Saver:
            interrupt_after(patched, 2)
        patched.setattr(owner, name, raise_interrupt)
        status, _, err = run(*words)
    assert status == 130
    assert f"{tmp_path / 'new'} holds the state after meta-step {saved} of 4" in err
    again = shlex.split(err.splitlines()[-1])
    assert again == ["l2ljax", "train", "--out", str(tmp_path / "new"), "--resume"]
    status, out, err = run(*again[1:])
    assert status == 0, err
    assert f"going on from meta-step {saved}" in out


def test_a_save_that_was_due_at_the_last_step_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_commands, "SAVE_SECONDS", -1.0)
    status, _, err = run(*TRAIN, "--out", tmp_path / "new")
    assert status == 0, err


def test_a_finished_run_is_not_resumed_but_its_weights_are_trained_further(copy):
    before = contents(copy)
    status, _, err = run("train", "--out", copy, "--resume", "--steps", "6")
    assert status == 2
    assert "finished run; there is nothing to resume" in err
    more = shlex.split(err.splitlines()[-1])
    assert more[:2] == ["l2ljax", "train"]
    status, _, err = run(*more[1:])
    assert status == 0, err
    assert contents(copy) == before
    _, _, card = learned.restore(f"{copy}-more")
    assert card["recipe"] == {**learned.read_card(copy)["recipe"], "steps": 6}
    assert card["start"] == learned.read_card(copy)


def test_a_missing_run_is_not_resumed(tmp_path):
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


@pytest.fixture
def unfinished(copy):
    """A run that was stopped before it saved its first state."""
    (copy / "card.json").unlink()
    (copy / "weights.safetensors").unlink()
    return copy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "100"], "--steps must be that of the run, 4, got 100"),
        (["--batch", "7"], "--batch must be that of the run, 2, got 7"),
        (["--horizon", "8"], "--horizon must be that of the run, 4, got 8"),
        (["--truncation", "1"], "--truncation must be that of the run, 2, got 1"),
        (["--meta-rate", "1"], "--meta-rate must be that of the run, 0.01, got 1.0"),
        (["--clip", "2"], "--clip must be that of the run, 1.0, got 2.0"),
        (["--power", "1"], "--power must be that of the run, 0.0, got 1.0"),
        (["--preprocess", "none"], "--preprocess must be that of the run, 'log_sign', got 'none'"),
        (["--output-scale", "-1"], "--output-scale must be that of the run, 0.1, got -1.0"),
        (["--optimizer", "mine:make"], "--optimizer must be that of the run, None, got 'mine:ma"),
        (["--seed", "5"], "--seed must be that of the run, 0, got 5"),
        (["--start", "general"], "--start must be that of the run, None, got 'general'"),
        (["--data-dir", "/data"], "--data-dir must be that of the run, None, got '/data'"),
        (["--force"], "--resume goes on with a run and --force replaces it, got both"),
    ],
    ids=str,
)
def test_settings_other_than_those_of_the_run_are_refused(unfinished, words, message):
    before = contents(unfinished)
    status, _, err = run("train", "--out", unfinished, "--resume", *words)
    assert status == 2
    assert message in err
    assert contents(unfinished) == before


def test_an_interrupted_run_on_a_mesh_goes_on_as_it_says(tmp_path, monkeypatch):
    words = [*TRAIN, "--batch", "8", "--mesh", "--out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        status, _, err = run(*words)
    assert status == 130
    again = shlex.split(err.splitlines()[-1])
    assert again[0] == "l2ljax"
    status, out, err = run(*again[1:])
    assert status == 0, err
    assert "going on from meta-step 2" in out


@pytest.mark.parametrize(
    ("used", "words", "message"),
    [
        ("8", [], "used 8 devices with --mesh or --distributed, got one device without --mesh"),
        ("1", ["--mesh"], "used 1 device with --mesh or --distributed, got 8 devices with"),
        ("null", ["--mesh"], "used one device without --mesh, got 8 devices with --mesh"),
    ],
)
def test_a_run_on_other_devices_is_refused_with_how_many(unfinished, used, words, message):
    settings = unfinished / "run.json"
    text = settings.read_text()
    assert '"devices": null' in text
    settings.write_text(text.replace('"devices": null', f'"devices": {used}'))
    before = contents(unfinished)
    status, _, err = run("train", "--out", unfinished, "--resume", *words)
    assert status == 2
    assert message in err
    assert contents(unfinished) == before


def test_a_batch_that_devices_cannot_share_is_refused_before_the_folder_is_touched(copy):
    before = contents(copy)
    status, _, err = run(*TRAIN, "--mesh", "--batch", "3", "--out", copy, "--force")
    assert status == 2
    assert "--batch must be a multiple of the 8 devices, got 3" in err
    assert contents(copy) == before


def test_lost_weights_to_begin_with_are_no_damage_of_the_settings(copy, tmp_path, monkeypatch):
    folder = tmp_path / "more"

    def train(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_commands.meta, "train", train)
    assert run(*TRAIN, "--start", copy, "--out", folder)[0] == 130
    (copy / "weights.safetensors").write_bytes(b"")
    status, _, err = run("train", "--out", folder, "--resume")
    assert status == 2
    assert f"{copy / 'weights.safetensors'} is damaged" in err
    assert "run.json" not in err


@pytest.mark.slow
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
