"""Learned optimizers of a user's own on the command line, by `module:name`."""

import json
import sys

import numpy as np
import pytest
from cli_runs import FINISHED, TRAIN, assert_match, contents, run

from l2ljax import evaluate, learned
from l2ljax.cli import _commands

MODULE = """
import jax, optax, jax.numpy as jnp
from l2ljax.core import LearnedOptimizer

made = LearnedOptimizer(
    init=lambda key: {"rate": jnp.array(-3.0)}, bind=lambda phi: optax.sgd(jnp.exp(phi["rate"]))
)

def make():
    return made

def of_size(hidden):
    return made

number = 3
"""
NAME = "an_own_optimizer"


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """The working directory, with a module that lies there and nowhere else."""
    folder = tmp_path_factory.mktemp("here")
    (folder / f"{NAME}.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "path", [place for place in sys.path if place])
        yield folder
    del sys.modules[NAME]


@pytest.fixture(scope="module")
def own(here):
    """The folder of a finished run; not to be changed."""
    folder = here / "own"
    status, out, err = run(*TRAIN, "--optimizer", f"{NAME}:make", "--out", folder)
    assert status == 0, err
    assert f"l2ljax.learned.load({str(folder)!r}, opt=...)  # of {NAME}:make" in out
    return folder


def test_an_own_optimizer_is_trained_and_its_weights_are_saved(own):
    assert sorted(path.name for path in own.iterdir()) == FINISHED
    opt = sys.modules[NAME].made
    _, phi, card = learned.restore(own, opt=opt)
    assert phi["rate"] != -3.0
    assert card["optimizer"] is None
    assert card["recipe"]["optimizer"] == f"{NAME}:make"
    assert card["recipe"]["preprocess"] is card["recipe"]["output_scale"] is None
    assert "optimizer: null" in run("weights", own)[1].splitlines()


@pytest.mark.parametrize("option", [f"{NAME}:made", f"mine={NAME}:make"])
def test_compare_binds_its_weights(own, tmp_path, monkeypatch, option):
    def compare(optimizers, *_, **__):
        compared.update(optimizers)
        raise KeyboardInterrupt

    compared = {}
    monkeypatch.setattr(evaluate, "compare", compare)
    words = ["compare", "--task", "quadratic", "--weights", f"mine={own}", "lstm-quadratic"]
    status, _, err = run(*words, "--out", tmp_path, "--optimizer", option)
    assert (status, err) == (130, "\ninterrupted\n")
    expected = learned.load(own, opt=sys.modules[NAME].made)
    for tx in (compared["mine"], expected):
        updates, _ = tx.update(np.ones(2, np.float32), tx.init(np.zeros(2, np.float32)))
        np.testing.assert_allclose(updates, -np.exp(learned_rate(own)), rtol=1e-6)
    state = compared["lstm-quadratic"].init(np.zeros(2, np.float32))
    assert isinstance(state, learned.LSTMState)


def learned_rate(folder):
    return learned.restore(folder, opt=sys.modules[NAME].made)[1]["rate"]


def test_training_starts_with_its_weights_and_is_resumed_by_the_command_that_is_told(
    own, tmp_path, monkeypatch
):
    def train(*_, phi, **__):
        begun.append(phi["rate"])
        raise KeyboardInterrupt

    begun = []
    monkeypatch.setattr(_commands.meta, "train", train)
    folder = tmp_path / "more"
    words = ["--start", own, "--optimizer", f"{NAME}:make", "--out", folder]
    status, _, err = run(*TRAIN, *words)
    assert status == 130
    again = err.splitlines()[-1].split()
    assert again[-2:] == ["--optimizer", f"{NAME}:make"]
    assert run(*again[1:])[0] == 130
    np.testing.assert_array_equal(begun, [learned_rate(own)] * 2)

    # A folder may be anybody's.
    before = contents(folder)
    status, _, err = run("train", "--resume", "--out", folder)
    assert status == 2
    assert f"--optimizer must be that of the run, '{NAME}:make', got none: no code is" in err
    assert contents(folder) == before


def test_a_run_of_before_there_was_the_option_has_the_lstm(trained, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    settings = json.loads((trained / "run.json").read_text())
    assert settings["recipe"].pop("optimizer", settings) is None
    (folder / "run.json").write_text(json.dumps(settings))
    status, _, err = run("train", "--resume", "--out", folder, "--optimizer", f"{NAME}:make")
    assert status == 2
    assert "--optimizer must be that of the run, None, got" in err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (NAME, "--optimizer must be MODULE:NAME, such as mine:make, got 'an_own_optimizer'"),
        (":make", "--optimizer must be MODULE:NAME, such as mine:make, got ':make'"),
        ("no_such.module:make", "--optimizer must name a module, got 'no_such.module:make': No mo"),
        (f"{NAME}:mak", f"must name what {NAME} has, got 'mak'; did you mean 'make'"),
        (f"{NAME}:of_size", f"function without arguments, got '{NAME}:of_size': missing a requ"),
        (f"{NAME}:number", f"a LearnedOptimizer or a function that makes one at {NAME}:n.*got 3"),
    ],
)
def test_what_is_no_optimizer_is_named_before_the_folder_is_touched(tmp_path, place, message):
    for words in (TRAIN, ["compare", "--task", "quadratic", "--weights", "lstm-quadratic"]):
        status, _, err = run(*words, "--optimizer", place, "--out", tmp_path / "new")
        assert status == 2
        assert_match(message, err)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--optimizer must be MODULE:NAME of the optimizer of .*own, got none: its card names"),
        (["--optimizer", f"owm={NAME}:make"], "the NAME of --optimizer must .*did you mean 'own'"),
        (["--optimizer", "l2ljax.learned:mlp"], "another architecture.*rate is not expected"),
    ],
)
def test_weights_without_their_optimizer_are_not_compared(own, tmp_path, words, message):
    status, _, err = run(
        *["compare", "--task", "quadratic", "--weights", own, "--out", tmp_path / "new", *words]
    )
    assert status == 2
    assert_match(message, err)
    assert not (tmp_path / "new").exists()


def test_options_of_the_lstm_are_refused(tmp_path):
    words = ["--optimizer", f"{NAME}:make", "--output-scale", "0.5", "--out", tmp_path / "new"]
    status, _, err = run(*TRAIN, *words)
    assert status == 2
    assert "--output-scale is of the LSTM, got it with --optimizer" in err
