"""`optax.tree_map_params` finds the trees like params in every state, as for specs of shardings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned
from tests.public_optimizers import OPTIMIZERS


def has_shape_of(node, params):
    """Whether it is a tree like the params, perhaps with axes before theirs."""
    if jax.tree.structure(node) != jax.tree.structure(params):
        return False
    pairs = zip(jax.tree.leaves(node), jax.tree.leaves(params), strict=True)
    return all(a.shape[a.ndim - p.ndim :] == p.shape for a, p in pairs)


@pytest.mark.parametrize("row", OPTIMIZERS, ids=str)
def test_each_tree_like_the_params_is_found(row):
    tx = row.make()
    state = jax.eval_shape(tx.init, row.params)
    marks = jax.tree.map(lambda leaf: str(leaf.shape), row.params)
    found = optax.tree_map_params(
        tx, lambda leaf, mark: mark, state, marks, transform_non_params=lambda _: None
    )
    if isinstance(row.params, dict):
        like = functools.partial(has_shape_of, params=row.params)
        trees = [node for node in jax.tree.leaves(state, is_leaf=like) if like(node)]
        assert jax.tree.leaves(found) == [*jax.tree.leaves(marks)] * len(trees)
    else:
        assert found.seen.best == marks and jax.tree.leaves(found) == [marks]
    kept = optax.tree_map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    assert jax.tree.leaves(kept) == jax.tree.leaves(state)


def test_the_memories_of_large_leaves_are_no_params():
    tx = learned.load("general")
    params = {"large": jnp.ones((512, 512)), "small": jnp.ones(3)}
    state = jax.eval_shape(tx.init, params)
    found = optax.tree_map_params(
        tx, lambda leaf: "params", state, transform_non_params=lambda _: "other"
    )
    assert set(jax.tree.leaves(found)) == {"other"}


def test_specs_made_of_it_shard_a_jitted_init():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)) for spec in (("x",), ())
    )
    params = {"w": jnp.ones((8, 2)), "b": jnp.ones(2)}
    tx = optax.chain(learned.load("general", layout="leaves"), optax.trace(0.9))
    specs = optax.tree_map_params(
        tx,
        lambda _, spec: spec,
        jax.eval_shape(tx.init, params),
        {"w": split, "b": whole},
        transform_non_params=lambda _: whole,
    )
    state = jax.jit(tx.init, out_shardings=specs)(params)
    assert state[1].trace["w"].sharding.is_equivalent_to(split, 2)
    np.testing.assert_array_equal(state[1].trace["w"], np.zeros((8, 2)))
