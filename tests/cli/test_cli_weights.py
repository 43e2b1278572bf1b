"""Weights that come with the package, on the command line."""

import json

import jax
import jax.numpy as jnp
import pytest
from cli_runs import TRAIN, assert_match, run

from l2ljax import evaluate, learned
from l2ljax.cli import _commands
from l2ljax.learned import _weights

CARD = {
    "trained_on": "quadratics",
    "scores": {"validation": 0.123456789, "comparison": {"final": {"LSTM": 0.5, "Adam": None}}},
    "limits": "short runs only",
    "command": "l2ljax train --task quadratic",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package's folder of weights, with those of the usual LSTM."""
    folder = tmp_path / "package"
    monkeypatch.setattr(_weights, "SHIPPED", folder)
    # As what ships does; training goes on from it without.
    opt = learned.lstm(wait_for_gradient=True)
    shapes = jax.eval_shape(opt.init, jax.random.key(0))
    phi = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    learned.save(folder / "tiny", opt, phi, CARD)
    return folder


def test_weights_lists_each_with_what_it_was_trained_on_its_scores_and_limits(package):
    expected = """\
tiny:
  trained_on: quadratics
  scores:
    validation: 0.123457
    comparison:
      final:
        LSTM: 0.5
        Adam: null
  limits: short runs only
"""
    assert run("weights") == (0, expected, "")


def test_weights_shows_a_whole_card_by_name_or_folder(package):
    status, out, err = run("weights", "tiny")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "command: l2ljax train --task quadratic" in lines
    assert "    hidden: [20, 20]" in lines
    assert lines[0] == "trained_on: quadratics"
    assert run("weights", package / "tiny") == (status, out, err)


def test_weights_says_so_if_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_weights, "SHIPPED", tmp_path / "none")
    status, out, _ = run("weights")
    assert status == 0
    assert "no weights come with this version" in out


def test_an_unknown_name_is_refused_with_those_there_are(package):
    status, out, err = run("weights", "huge")
    assert (status, out) == (2, "")
    assert_match(r"huge does not exist.*\['tiny'\]", err)


@pytest.mark.parametrize(
    "words",
    [
        ["weights", "tinny"],
        ["compare", "--task", "quadratic", "--weights", "tinny", "--out", "new"],
        [*TRAIN, "--start", "tinny", "--out", "new"],
    ],
    ids=["weights", "compare", "train"],
)
def test_a_misspelt_name_proposes_the_nearest(package, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "tinny does not exist" in err and "did you mean 'tiny'?" in err
    assert not (tmp_path / "new").exists()


def test_compare_takes_a_name_and_then_asks_for_a_folder(package, tmp_path, monkeypatch):
    def compare(optimizers, *_, **__):
        names.extend(optimizers)
        raise KeyboardInterrupt

    names = []
    monkeypatch.setattr(evaluate, "compare", compare)
    words = ["compare", "--task", "quadratic", "--weights", "tiny"]
    status, _, err = run(*words)
    assert status == 2
    assert "--out must name a folder" in err
    assert run(*words, "--out", tmp_path / "out") == (130, "", "\ninterrupted\n")
    assert names[0] == "tiny"


def test_training_starts_with_a_name(package, tmp_path, monkeypatch):
    def train(*_, phi, **__):
        drawn.append(phi)
        raise KeyboardInterrupt

    drawn = []
    monkeypatch.setattr(_commands.meta, "train", train)
    folder = tmp_path / "more"
    status, _, _ = run(*TRAIN, "--start", "tiny", "--out", folder)
    assert status == 130
    assert json.loads((folder / "run.json").read_text())["start"] == "tiny"
    status, _, _ = run("train", "--out", folder, "--resume")
    assert status == 130
    _, expected, _ = learned.restore("tiny")
    for phi in drawn:
        jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("other weights"), phi, expected)
    assert len(drawn) == 2
