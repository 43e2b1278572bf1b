"""Weights that come with the package, and the script that puts them there."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import core, learned
from l2ljax.learned import _weights

ROOT = pathlib.Path(__file__).parents[2]
MEBIBYTE = 2**20
CARD = {
    "trained_on": "quadratics of 10 coordinates, episodes of 100 steps",
    "scores": {"validation": 0.5},
    "limits": "not tried beyond 100 steps",
    "command": "l2ljax train --task quadratic --out runs/quadratic",
}


@functools.cache
def trained():
    opt = learned.lstm(hidden=(2,))
    shapes = jax.eval_shape(opt.init, jax.random.key(0))
    return opt, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.25, leaf.dtype), shapes)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package's folder of weights, with those of one optimizer."""
    folder = tmp_path / "package" / "weights"
    monkeypatch.setattr(_weights, "SHIPPED", folder)
    learned.save(folder / "tiny-lstm", *trained(), CARD)
    return folder


def other_phi():
    return jax.tree.map(lambda leaf: leaf + 1, trained()[1])


def defects(folder):
    """What is wrong with a folder of weights that ship."""
    found = []
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size >= MEBIBYTE:
        found.append(f"{size} bytes")
    for path in sorted(folder.glob("*")):
        try:
            opt, phi, card = learned.restore(path)
        except (ValueError, OSError) as error:
            found.append(f"{path.name}: {error}")
            continue
        found += [f"{path.name}: no {key}" for key in CARD if not card.get(key)]
        params, extra = {"scale": jnp.ones(()), "w": jnp.arange(6.0).reshape(2, 3)}, {}
        if opt.spec["name"] in {"black_box_lstm", "surrogate_lstm"}:
            params, extra = jnp.zeros(opt.spec["arguments"]["dim"]), {"value": jnp.ones(())}
        tx = opt.bind(phi)
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params, **extra)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates)):
            found.append(f"{path.name}: updates are not finite")
    return found


# What ships.


def test_all_that_ships_is_small_loads_and_has_a_whole_card():
    assert defects(_weights.SHIPPED) == []


def test_cards_say_what_coordinates_without_gradients_do():
    for name, card in learned.shipped().items():
        waits = '"wait_for_gradient": true' in json.dumps(card)
        assert ("without_gradient" in card) == waits, name
        assert waits != name.startswith(("black-box", "surrogate"))


def test_defects_are_found(package):
    assert defects(package) == []
    learned.save(package / "silent", *trained(), {**CARD, "limits": ""})
    learned.save(package / "torn", *trained(), CARD)
    (package / "torn" / "weights.safetensors").write_bytes(b"")
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), trained()[1])
    learned.save(package / "wild", trained()[0], huge, CARD)
    (package / "wild" / "notes").write_bytes(bytes(MEBIBYTE))
    expected = ["bytes", "silent: no limits", "torn: .*damaged", "wild: updates are not finite"]
    found = defects(package)
    assert len(found) == len(expected)
    for defect, pattern in zip(found, expected, strict=True):
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(defect)


def test_without_a_folder_nothing_ships(monkeypatch, tmp_path):
    monkeypatch.setattr(_weights, "SHIPPED", tmp_path / "none")
    assert learned.shipped() == {}


def test_shipped_lists_the_cards_by_name(package):
    learned.save(package / "also", *trained(), CARD)
    (package / "notes.txt").write_text("mine")
    cards = learned.shipped()
    assert list(cards) == ["also", "tiny-lstm"]
    assert {key: cards["tiny-lstm"][key] for key in CARD} == CARD


# Names and paths.


def test_a_name_is_loaded_from_the_package(package):
    opt, phi, card = learned.restore("tiny-lstm")
    assert opt.spec == trained()[0].spec
    jax.tree.map(np.testing.assert_array_equal, phi, trained()[1])
    assert card["limits"] == CARD["limits"]
    loaded = jax.tree.leaves(core.as_pytree(learned.load("tiny-lstm")))
    assert len(loaded) == 2 * len(jax.tree.leaves(phi))


def test_weights_load_where_float64_is_the_default(package, x64):
    _, phi, _ = learned.restore("tiny-lstm")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(phi)} == {"float32"}


def test_a_folder_of_the_same_name_is_meant_by_a_path_only(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learned.save("tiny-lstm", trained()[0], other_phi(), {})
    bias = {
        str(where): float(learned.restore(where)[1]["output_bias"][0])
        for where in ("tiny-lstm", "./tiny-lstm", str(tmp_path / "tiny-lstm"))
    }
    assert list(bias.values()) == [0.25, 1.25, 1.25]
    assert learned.restore(pathlib.Path("tiny-lstm"))[1]["output_bias"] == 1.25


def test_a_folder_that_does_not_ship_is_loaded_by_its_bare_name(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learned.save("mine", trained()[0], other_phi(), {})
    assert learned.restore("mine")[1]["output_bias"] == 1.25


def test_an_unknown_name_is_refused_with_those_that_ship(package):
    with pytest.raises(FileNotFoundError, match=r"huge-lstm.*\['tiny-lstm'\].*path of a folder"):
        learned.load("huge-lstm")


@pytest.mark.parametrize("name", ["nowhere/tiny-lstm", pathlib.Path("tiny-lstm"), "../tiny-lstm"])
def test_a_path_is_no_name(package, name):
    with pytest.raises(FileNotFoundError, match=r"card\.json does not exist"):
        learned.load(name)


# The script.


@functools.cache
def script():
    spec = importlib.util.spec_from_file_location("ship", ROOT / "benchmarks" / "paper" / "ship.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "run"
    learned.save(folder, *trained(), {key: CARD[key] for key in ("scores", "command")})
    return folder


def ship(run, name, *words):
    script().main([str(run), name, "--trained-on", "digits", "--limits", "no ReLU", *words])


def test_a_run_that_was_shipped_is_loaded_by_its_name(package, finished):
    ship(finished, "new-lstm")
    opt, phi, card = learned.restore("new-lstm")
    arguments = {**trained()[0].spec["arguments"], "wait_for_gradient": True}
    assert opt.spec == {"name": "lstm", "arguments": arguments}
    assert "stands still" in card["without_gradient"]
    jax.tree.map(np.testing.assert_array_equal, phi, trained()[1])
    assert (card["trained_on"], card["limits"]) == ("digits", "no ReLU")
    assert (card["scores"], card["command"]) == (CARD["scores"], CARD["command"])
    assert defects(package) == []


def test_a_comparison_joins_the_scores_without_its_curves(package, finished):
    rows = [{"name": "LSTM", "final": 0.1, "ratio": 1.0}, {"name": "Adam", "final": 0.2}]
    comparison = {"task": "digits", "problems": 64, "versions": {}, "rows": rows}
    (finished / "comparison.json").write_text(json.dumps(comparison))
    ship(finished, "new-lstm")
    assert learned.shipped()["new-lstm"]["scores"] == {
        "validation": 0.5,
        "comparison": {"task": "digits", "problems": 64, "final": {"LSTM": 0.1, "Adam": 0.2}},
    }


def test_weights_that_ship_are_replaced_by_force_only(package, finished, capsys):
    before = (package / "tiny-lstm" / "card.json").read_text()
    with pytest.raises(SystemExit):
        ship(finished, "tiny-lstm")
    assert "exists" in capsys.readouterr().err
    assert (package / "tiny-lstm" / "card.json").read_text() == before
    ship(finished, "tiny-lstm", "--force")
    assert learned.shipped()["tiny-lstm"]["trained_on"] == "digits"


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("new-lstm", [], "must have the command"),
        ("New LSTM", [], "name must be"),
        ("../new", [], "name must be"),
        ("new-lstm", ["--limits", " "], "limits must say something"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(
    package, tmp_path, capsys, name, words, message
):
    learned.save(tmp_path / "run", *trained(), {"scores": {}})
    with pytest.raises(SystemExit):
        ship(tmp_path / "run", name, *words)
    assert message in capsys.readouterr().err
    assert list(learned.shipped()) == ["tiny-lstm"]
