import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, meta
from l2ljax.core import CoordinatewiseTransformation, LearnedOptimizer, Task, closure

PATTERNS = {"Conv*": "conv", "*/bias": "fc", "Dense_0/kernel": "fc"}
OWN = LearnedOptimizer(lambda key: jnp.ones(()), optax.sgd)  # without a spec
TREE = {"Conv_0": "conv", "Dense_0": {"kernel": "fc", "bias": "fc"}}


def by_rank(params):
    """What optax's users write: labels from shapes."""
    return jax.tree.map(lambda w: "conv" if w.ndim == 4 else "fc", params)


def random_tree(seed, *leading):
    random = np.random.default_rng(seed)
    shapes = {"Conv_0": {"kernel": (2, 2, 1, 2)}, "Dense_0": {"kernel": (3, 2), "bias": (2,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=(*leading, *shape)), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@functools.cache
def members():
    return {"conv": learned.lstm(hidden=(3,)), "fc": learned.lstm(hidden=(2,), preprocess=None)}


@functools.cache
def phi():
    return jax.jit(learned.partition(members(), PATTERNS).init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnames="steps")
def run(tx, gradients, steps=3):
    """The updates of some steps, each with another multiple of the gradients."""
    state, updates = tx.init(gradients), []
    for t in range(steps):
        update, state = tx.update(jax.tree.map(lambda g, t=t: (t + 1) * g, gradients), state)
        updates.append(update)
    return updates


def parts(tree):
    return {"conv": {"Conv_0": tree["Conv_0"]}, "fc": {"Dense_0": tree["Dense_0"]}}


def assert_same(actual, expected, rtol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), actual, expected
    )


@pytest.mark.parametrize("labels", [PATTERNS, TREE, by_rank], ids=["patterns", "tree", "function"])
def test_each_part_is_updated_as_its_optimizer_does_alone(labels):
    gradients = random_tree(0)
    updates = run(learned.partition(members(), labels).bind(phi()), gradients)
    for name, opt in members().items():
        alone = run(opt.bind(phi()[name]), parts(gradients)[name])
        assert_same([parts(update)[name] for update in updates], alone)


def test_one_call_of_a_member_treats_all_its_leaves():
    calls = []

    def update(updates, state, params=None):
        calls.append((sorted(updates), params and sorted(params)))
        return updates, state

    opt = LearnedOptimizer(
        lambda key: jnp.zeros(()),
        lambda phi: optax.GradientTransformation(lambda params: (), update),
    )
    both = learned.partition({"conv": opt, "fc": opt, "idle": opt}, PATTERNS)
    tx, tree = both.bind(both.init(jax.random.key(0))), random_tree(0)
    updates, state = tx.update(tree, tx.init(tree), tree)
    paths = ["Dense_0/bias", "Dense_0/kernel"]
    assert calls == [(["Conv_0/kernel"],) * 2, (paths, paths), ([], {})]
    assert isinstance(state, learned.PartitionState) and set(state.members) == set(phi()) | {"idle"}
    assert_same(updates, tree)


@pytest.mark.parametrize("labels", [PATTERNS, TREE, by_rank], ids=["patterns", "tree", "function"])
def test_a_batch_of_problems_is_treated_as_each_alone(labels):
    opt = learned.partition(members(), labels)
    gradients = random_tree(0, 2)
    # As meta-training does: at once if the type allows it.
    tx = opt.bind(phi())
    at_once = isinstance(tx, CoordinatewiseTransformation)
    updates = run(tx, gradients) if at_once else jax.vmap(run, (None, 0))(tx, gradients)
    for i in range(2):
        alone = run(tx, jax.tree.map(lambda g, i=i: g[i], gradients))
        assert_same(jax.tree.map(lambda u, i=i: u[i], updates), alone, rtol=1e-5)


def test_the_partition_is_coordinatewise_where_its_members_are():
    tx = learned.partition(members(), PATTERNS).bind(phi())
    assert isinstance(tx, CoordinatewiseTransformation)
    # Labels by rank would be others with an axis more.
    assert type(learned.partition(members(), by_rank).bind(phi())) is optax.GradientTransformation
    mixed = learned.partition({**members(), "fc": learned.mlp()}, PATTERNS)
    assert type(mixed.bind(mixed.init(jax.random.key(0)))) is optax.GradientTransformation


def test_extra_arguments_reach_the_members_that_take_them():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda u: value * u, updates), state

    scaled = LearnedOptimizer(
        lambda key: (),
        lambda phi: optax.GradientTransformationExtraArgs(lambda params: (), update),
    )
    opt = learned.partition({"conv": scaled, "fc": members()["fc"]}, PATTERNS)
    tx, gradients = opt.bind({"conv": (), "fc": phi()["fc"]}), random_tree(0)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    updates, _ = tx.update(gradients, tx.init(gradients), value=3.0, unknown=None)
    assert_same(updates["Conv_0"], jax.tree.map(lambda g: 3 * g, gradients["Conv_0"]))
    (alone,) = run(members()["fc"].bind(phi()["fc"]), parts(gradients)["fc"], steps=1)
    assert_same(updates["Dense_0"], alone["Dense_0"])


def test_the_meta_gradient_of_each_member_is_that_of_its_own_part(x64):
    """Two learned rates: u = -exp(φ) ∇, so a meta-loss ½‖θ + u‖² has a derivative by hand."""
    rate = LearnedOptimizer(
        lambda key: jnp.zeros(()),
        lambda phi: optax.GradientTransformation(lambda params: (), closure(_rate_update, phi)),
    )
    opt = learned.partition({"conv": rate, "fc": rate}, PATTERNS)
    params, gradients = random_tree(0), random_tree(1)

    def meta_loss(phi):
        tx = opt.bind(phi)
        updates, _ = tx.update(gradients, tx.init(params))
        new = optax.apply_updates(params, updates)
        return sum(jnp.sum(w**2) / 2 for w in jax.tree.leaves(new))

    rates = {"conv": jnp.array(0.3), "fc": jnp.array(-1.0)}
    derivative = jax.jit(jax.grad(meta_loss))(rates)
    for name, log_rate in rates.items():
        w, g = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(parts(tree)[name])])
            for tree in (params, gradients)
        )
        step = np.exp(log_rate) * g
        np.testing.assert_allclose(derivative[name], -(w - step) @ step, rtol=1e-6)


def _rate_update(phi, updates, state, params=None):
    return jax.tree.map(lambda g: -jnp.exp(phi) * g, updates), state


def test_meta_training_reaches_all_members():
    opt = learned.partition(members(), {"first": "conv", "*": "fc"})
    step, state = meta.make_step(
        opt,
        _two_layers(),
        key=jax.random.key(0),
        batch=2,
        estimator=meta.truncated(horizon=4, truncation=2),
        phi=phi(),
    )
    new, _ = step(state, jax.random.key(1))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new.phi, phi())
    assert {name: any(jax.tree.leaves(part)) for name, part in changed.items()} == {
        "conv": True,
        "fc": True,
    }


def _two_layers():
    return Task(
        sample=lambda key: jax.random.normal(key, (2,)),
        init=lambda key, y: {"first": jnp.ones(2), "second": jnp.ones(2)},
        loss=lambda params, y, key: jnp.sum((params["first"] * params["second"] - y) ** 2),
    )


# Labels.


def labelled(labels, tree=None):
    """Which leaves each member gets."""
    tree = random_tree(0) if tree is None else tree
    return labelled_by(learned.partition(members(), labels), tree)


def labelled_by(opt, tree):
    state = opt.bind(phi()).init(tree)
    return {name: member.layers[0][0].shape[1] for name, member in state.members.items()}


def shown(value):
    """The same in every process, which the address of a function is not."""
    return "function" if callable(value) else str(value)


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ({"*": "fc"}, (0, 16)),
        ({"Dense_0": "fc", "*": "conv"}, (8, 8)),
        ({"*/kernel": "conv", "*": "fc"}, (14, 2)),
        ({"*": "fc", "*/kernel": "conv"}, (0, 16)),  # the first that matches
        ({"Conv_[0-9]/*": "conv", "Dense_?": "fc"}, (8, 8)),
        ({"Conv_0": "conv", "Dense_0": {"kernel": "conv", "bias": "fc"}}, (14, 2)),
        ("fc", (0, 16)),
        (lambda params: {"Conv_0": "conv", "Dense_0": "fc"}, (8, 8)),
    ],
    ids=shown,
)
def test_labels_are_patterns_trees_or_functions(labels, counts):
    assert tuple(labelled(labels).values()) == counts


def test_params_may_be_lists_one_leaf_or_nothing():
    assert labelled({"0": "conv", "1/*": "fc"}, [jnp.ones(3), (jnp.ones(2), jnp.ones(()))]) == {
        "conv": 3,
        "fc": 3,
    }
    assert labelled(["conv", "fc"], [jnp.ones(3), (jnp.ones(2), None)]) == {"conv": 3, "fc": 2}
    assert labelled({"*": "fc"}, jnp.ones(3)) == {"conv": 0, "fc": 3}
    assert labelled({"*": "fc"}, {}) == {"conv": 0, "fc": 0}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"Conv*": "conv"}, "a label for each leaf, got none for 'Dense_0/bias'"),
        ({"Conv_0": "conv", "Dense_0": {"bias": "fc"}}, "got none for 'Dense_0/kernel'"),
        (lambda params: {"Dense_0": "fc", "Conv_0": {}}, "got none for 'Conv_0/kernel'"),
        ({"Conv*": "cnv", "*": "fc"}, r"the label of 'Conv\*' must be .* did you mean 'conv'"),
        ({"Conv_0": "conv", "Dense_0": {"kernel": "x"}}, "the label of 'Dense_0/kernel' must be"),
        (lambda p: jax.tree.map(lambda w: "x", p), "the label of 'Conv_0/kernel' must be one of"),
        (lambda p: p, "the label of 'Conv_0/kernel' must be one of"),
    ],
    ids=shown,
)
def test_a_missing_or_unknown_label_names_the_leaf(labels, message):
    with pytest.raises(ValueError, match=message):
        labelled(labels)


def test_two_leaves_of_one_path_and_a_partition_of_nothing_are_refused():
    with pytest.raises(ValueError, match="different paths, got two of 'a/b'"):
        labelled({"*": "fc"}, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
    with pytest.raises(ValueError, match="optimizers must have at least one optimizer"):
        learned.partition({}, {"*": "fc"})


# On disk.


def test_a_member_that_is_no_learned_optimizer_is_named(unchecked):
    message = r"^optimizers\['a'\] must be a learned optimizer, got Grad.*; learned.fixed\(tx\)"
    with pytest.raises(ValueError, match=message):
        learned.partition({"a": optax.adam(0.1)}, {"*": "a"})


def test_a_partition_by_patterns_is_saved_and_restored(tmp_path):
    opt = learned.partition(members(), PATTERNS)
    learned.save(tmp_path, opt, phi(), {"task": "none"})
    restored, again, card = learned.restore(tmp_path)
    assert restored.spec == opt.spec and jax.tree.structure(restored) == jax.tree.structure(opt)
    jax.tree.map(np.testing.assert_array_equal, again, phi())
    assert card["optimizer"] == json.loads(json.dumps(opt.spec))
    assert list(card["optimizer"]["arguments"]["labels"]) == list(PATTERNS)  # in their order
    gradients = random_tree(0)
    assert_same(run(learned.load(tmp_path), gradients), run(opt.bind(phi()), gradients))


def test_a_partition_by_a_tree_is_saved_as_patterns(tmp_path):
    tree = {"Conv_0": "conv", "[*]": {"?": "fc", "x": ["conv", "fc"]}}
    opt = learned.partition(members(), tree)
    learned.save(tmp_path, opt, phi(), {})
    restored, _, _ = learned.restore(tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(opt)
    params = {"Conv_0": {"kernel": jnp.ones(1)}, "[*]": {"?": jnp.ones(2), "x": [jnp.ones(4)] * 2}}
    for partitioned in (opt, restored):
        assert labelled_by(partitioned, params) == {"conv": 5, "fc": 6}
    with pytest.raises(ValueError, match=r"got none for '\*'"):
        labelled_by(restored, {"*": jnp.ones(1)})


def test_a_partition_of_partitions_is_saved(tmp_path):
    inner = learned.partition({"a": members()["fc"]}, {"*": "a"})
    opt = learned.partition({"conv": members()["conv"], "fc": inner}, PATTERNS)
    learned.save(tmp_path, opt, {"conv": phi()["conv"], "fc": {"a": phi()["fc"]}}, {})
    gradients = random_tree(0)
    plain = learned.partition(members(), PATTERNS).bind(phi())
    assert_same(run(learned.load(tmp_path), gradients), run(plain, gradients))


@pytest.mark.parametrize(
    ("labels", "changed"),
    [
        (by_rank, {}),
        (PATTERNS, {"conv": learned.lstm(hidden=(3,), preprocess=jnp.atleast_2d)}),
        (PATTERNS, {"conv": OWN}),
    ],
    ids=["function", "function of a member", "member"],
)
def test_what_json_cannot_rebuild_is_loaded_by_opt_alone(tmp_path, labels, changed):
    opt = learned.partition({**members(), **changed}, labels)
    weights = opt.init(jax.random.key(1))
    learned.save(tmp_path, opt, weights, {})
    with pytest.raises(ValueError, match="^opt must be the learned optimizer that was saved"):
        learned.load(tmp_path)
    again, found, _ = learned.restore(tmp_path, opt=opt)
    assert again is opt
    jax.tree.map(np.testing.assert_array_equal, found, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizers": {"conv": {"name": "lstn", "arguments": {}}}}, "did you mean 'lstm'"),
        ({"optimizers": {"conv": {"name": "lstm"}}}, "conv must name the optimizer and its arg"),
        ({"optimizers": {"conv": None}}, "conv must name the optimizer and its arg"),
        ({"labels": {"*": "x"}}, "the label of '\\*' must be one of"),
    ],
    ids=shown,
)
def test_a_card_with_another_partition_is_refused_with_its_path(tmp_path, arguments, message):
    learned.save(tmp_path, learned.partition(members(), PATTERNS), phi(), {})
    path = tmp_path / "card.json"
    card = json.loads(path.read_text())
    card["optimizer"]["arguments"].update(arguments)
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"card.json has arguments that partition .*{message}"):
        learned.load(tmp_path)
