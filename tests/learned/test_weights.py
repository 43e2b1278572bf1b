import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned
from l2ljax.core import LearnedOptimizer, Spec

CARD = {"task": "none", "seed": 3}


@functools.cache
def trained():
    opt = learned.lstm(hidden=(3, 2), preprocess="scale", output_scale=0.5, input_scale=2.0)
    return opt, jax.jit(opt.init)(jax.random.key(0))


@pytest.fixture
def saved(tmp_path):
    """A folder with weights and their card."""
    folder = tmp_path / "saved"
    learned.save(folder, *trained(), CARD)
    return folder


def rewrite(folder, change):
    """Changes a card, which keeps the digest of its weights."""
    path = folder / "card.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_saved_weights_are_one_file_of_arrays_and_one_of_json(saved):
    assert files(saved) == ["card.json", "weights.safetensors"]


def test_restore_gives_back_optimizer_weights_and_card(saved):
    opt, phi = trained()
    restored, again, card = learned.restore(saved)
    assert restored.spec == opt.spec
    assert jax.tree.structure(restored) == jax.tree.structure(opt)
    jax.tree.map(np.testing.assert_array_equal, again, phi)
    assert card.pop("sha256")
    assert card == {**CARD, "optimizer": json.loads(json.dumps(opt.spec))}


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "path"])
def test_load_gives_a_transformation_with_the_same_updates(saved, as_path):
    opt, phi = trained()
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}

    @jax.jit
    def updates(tx):
        return tx.update(params, tx.init(params))[0]

    tx = learned.load(as_path(saved))
    assert isinstance(tx, optax.GradientTransformation)
    jax.tree.map(np.testing.assert_array_equal, updates(tx), updates(opt.bind(phi)))


def test_what_was_restored_can_be_saved_again(saved, tmp_path):
    learned.save(tmp_path / "copy", *learned.restore(saved))
    assert learned.restore(tmp_path / "copy")[2] == learned.restore(saved)[2]


def test_a_card_cannot_name_another_optimizer_than_the_one_saved(tmp_path):
    learned.save(tmp_path, *trained(), {"optimizer": "the best"})
    assert learned.restore(tmp_path)[0].spec == trained()[0].spec


# Optimizers that no card rebuilds.

OWN = LearnedOptimizer(
    init=lambda key: {"rate": jnp.zeros(()), "decay": jnp.zeros(())},
    bind=lambda phi: optax.sgd(jnp.exp(phi["rate"]), momentum=jax.nn.sigmoid(phi["decay"])),
)


@pytest.mark.parametrize(
    "opt",
    [
        OWN,
        learned.lstm(hidden=(2,), preprocess=lambda g: jnp.stack([g, g**3], -1)),
        dataclasses.replace(OWN, spec=Spec(name="own", arguments={"start": jnp.zeros(2)})),
    ],
    ids=["without spec", "function among its arguments", "arrays in its spec"],
)
def test_an_own_optimizer_is_saved_and_loaded_with_its_weights(tmp_path, opt):
    phi = jax.tree.map(lambda leaf: leaf - 0.5, opt.init(jax.random.key(0)))
    learned.save(tmp_path, opt, phi, CARD)
    again, found, card = learned.restore(tmp_path, opt=opt)
    assert again is opt
    jax.tree.map(np.testing.assert_array_equal, found, phi)
    assert card == learned.read_card(tmp_path)
    assert card.pop("sha256")
    assert card == {**CARD, "optimizer": None}

    params = jnp.array([1.0, -2.0])
    expected, tx = opt.bind(phi), learned.load(tmp_path, opt=opt)
    updates = [each.update(params, each.init(params), params)[0] for each in (tx, expected)]
    np.testing.assert_array_equal(*updates)
    assert np.all(updates[0] != 0)

    message = r"^opt must be the learned optimizer that was saved, got none: .*card.json names none"
    with pytest.raises(ValueError, match=message):
        learned.load(tmp_path)


def test_opt_replaces_the_optimizer_of_a_card_if_the_weights_fit(saved):
    _, phi = trained()
    other = learned.lstm(hidden=(3, 2), preprocess="scale", output_scale=2.0)
    opt, found, card = learned.restore(saved, opt=other)
    assert opt is other and card["optimizer"]["arguments"]["output_scale"] == 0.5
    jax.tree.map(np.testing.assert_array_equal, found, phi)
    with pytest.raises(ValueError, match="another architecture.*rate is missing"):
        learned.load(saved, opt=OWN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opt": OWN, "output_scale": 0.5}, r"^opt has its own settings, got it with .*output_sc"),
        ({"opt": optax.sgd(0.1)}, "^opt must be a learned optimizer, got GradientTransf"),
    ],
    ids=["settings", "transformation"],
)
def test_an_opt_that_cannot_be_used_is_named(saved, arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        learned.load(saved, **arguments)


# What cannot be saved; nothing is written then.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_cannot_be_saved(tmp_path, value):
    opt, phi = trained()
    with pytest.raises(ValueError, match="phi must be finite"):
        learned.save(tmp_path / "new", opt, {**phi, "output_bias": jnp.array([value])}, CARD)
    assert files(tmp_path) == []


def test_weights_of_another_optimizer_cannot_be_saved(tmp_path):
    opt, phi = trained()
    phi = {**phi, "output_bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"phi.*output_bias is float32\[2\] instead of .*\[1\]"):
        learned.save(tmp_path / "new", opt, phi, CARD)
    assert files(tmp_path) == []


def test_a_card_that_is_no_json_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="card must hold plain JSON values"):
        learned.save(tmp_path / "new", *trained(), {"score": np.float32(1)})
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card": None}, "^card must be a mapping of plain JSON values, got None"),
        ({"opt": optax.adam(0.1)}, "^opt must be a learned optimizer, got GradientTransf"),
        ({"phi": 3}, "^phi must be a tree of arrays, such as opt.init draws, got 3"),
    ],
    ids=["card", "opt", "phi"],
)
def test_what_is_no_optimizer_no_weights_and_no_card_is_named(tmp_path, change, message, unchecked):
    opt, phi = trained()
    with pytest.raises(ValueError, match=message):
        learned.save(**{"path": tmp_path / "new", "opt": opt, "phi": phi, "card": CARD} | change)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", None, 3])
def test_what_is_neither_a_name_nor_a_path_is_refused(name, unchecked):
    message = rf"^name_or_path must be a folder or one of \[.*'lstm-mnist'.*\], got {name!r}"
    with pytest.raises(ValueError, match=message):
        learned.load(name)


# The oldest Flax that is allowed, with its JAX.
@pytest.mark.filterwarnings("ignore:jax.*[rR]ef is deprecated:DeprecationWarning")
def test_in_a_chain_it_works_in_nnx_too(saved):
    from flax import nnx

    tx = learned.load(saved)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(tx), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 3))) ** 2))(model)
        optimizer.update(model, gradients)
        return gradients

    def arrays(tree):
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(tree, nnx.Param))]

    params = arrays(model)
    assert [leaf.shape for leaf in params] == [(2,), (3, 2)]
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(arrays(step(model, optimizer)), state, params)
        params = optax.apply_updates(params, updates)
    for found, expected in zip(arrays(model), params, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_weights_are_never_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} exists"):
        learned.save(tmp_path, *trained(), CARD)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_an_error_and_stays(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        learned.save(tmp_path / "taken", *trained(), CARD)
    assert files(tmp_path) == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


# What cannot be loaded.


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{saved / name} does not exist"):
        learned.load(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
        learned.load(tmp_path / "nowhere")


def test_a_misspelt_name_of_shipped_weights_proposes_the_nearest():
    with pytest.raises(FileNotFoundError, match="genral does not exist.*did you mean 'general'"):
        learned.load("genral")


def test_truncated_weights_are_said_to_be_damaged(saved):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="weights.safetensors is damaged"):
        learned.load(saved)


def test_weights_of_another_architecture_are_listed(saved):
    rewrite(saved, lambda card: card["optimizer"]["arguments"].update(hidden=[3]))
    with pytest.raises(ValueError, match="another architecture.*lstm_1/kernel is not expected"):
        learned.load(saved)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "lstn", "arguments": {}}, "optimizer in .*card.json.*did you mean 'lstm'"),
        ({"name": "lstm", "arguments": {"units": 3}}, "card.json.*does not take.*units"),
        ({"name": "lstm", "arguments": {"p": -1.0}}, "card.json.*p must be a positive number"),
        ({"name": "lstm", "arguments": [3]}, "card.json must name the optimizer and its arg"),
        ({"name": "lstm"}, "card.json must name the optimizer and its arguments"),
        (3, "card.json must name the optimizer and its arguments, got 3"),
    ],
    ids=str,
)
def test_a_card_with_another_optimizer_is_refused_with_its_path(saved, optimizer, message):
    rewrite(saved, lambda card: card.update(optimizer=optimizer))
    with pytest.raises(ValueError, match=message):
        learned.load(saved)


def test_a_card_that_is_no_json_is_named(saved):
    (saved / "card.json").write_text("{")
    with pytest.raises(ValueError, match="card.json must be JSON"):
        learned.load(saved)
