"""What `update` takes and refuses, for every public optimizer."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic, learned
from tests.public_optimizers import OPTIMIZERS, PARAMS, loss

every_optimizer = pytest.mark.parametrize("row", OPTIMIZERS, ids=str)
on_trees = pytest.mark.parametrize(
    "row", [r for r in OPTIMIZERS if isinstance(r.params, dict)], ids=str
)

NO_TRANSFORMATION = {"average_predictions", "minimize", "nesterov_iterate", "restore", "save"}
NO_TRANSFORMATION |= {"shipped", "read_card", "exp_range", "snapshot_cosine", "triangular"}
NO_TRANSFORMATION |= {"triangular2", "hyperparameter_values", "load", "published"}


def test_the_table_has_every_public_optimizer():
    names = {
        name
        for room in (classic, learned)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    }
    assert names - NO_TRANSFORMATION <= {row.name for row in OPTIMIZERS}


def with_another(tree, change):
    """The tree with its first leaf changed, and where that is."""
    if isinstance(tree, dict):
        return {**tree, "b": change(tree["b"])}, r"\['b'\]"
    return change(tree), "the only leaf"


@every_optimizer
@pytest.mark.parametrize("given", [True, False], ids=["with params", "without"])
def test_gradients_of_another_shape_are_refused_with_both_shapes(row, given):
    tx = row.make()
    state = tx.init(row.params)
    if not given and row.reads_params:
        with pytest.raises(ValueError, match="params: call|^params must be given"):
            row.update(tx, row.gradients, state)
        return
    column, place = with_another(row.gradients, lambda g: g[:, None])
    params = row.params if given else None
    size = len(jax.tree.leaves(row.params)[0])
    if not given and not row.knows_shapes:
        # A flat state knows how many there are.
        column, _ = with_another(row.gradients, lambda g: jnp.append(g, 1.0))
        if row.name != "gradient_descent":
            with pytest.raises(ValueError, match="^state must be what `init` made of params like"):
                row.update(tx, column, state)
        return
    expected = rf"^updates must have the shapes of .*, got \({size}, 1\) at .*{place}.* \({size},\)"
    if row.name.endswith("in leaves") and not given:
        expected = rf"^state must be .*\({size},\), \(2, 3\)\].*\({size}, 1\), \(2, 3\)\]"
    elif row.name.endswith("of leaves") and not given:
        expected = expected.replace(place, "the only leaf")
    with pytest.raises(ValueError, match=expected):
        row.update(tx, column, state, params)
    chain = optax.chain(optax.with_extra_args_support(optax.clip_by_global_norm(1.0)), tx)
    with pytest.raises(ValueError, match=expected):
        jax.eval_shape(lambda g, s, p: row.update(chain, g, s, p), column, ((), state), params)


@on_trees
def test_params_that_the_gradients_are_not_of_are_refused_by_name(row):
    tx = row.make()
    state = tx.init(PARAMS)
    # Where the state does not tell who is right, both are named.
    name = (
        "params must be a tree like the updates" if row.name in ADAMS else "(updates|params) must"
    )
    with pytest.raises(ValueError, match=f"^{name}"):
        row.update(tx, row.gradients, state, {**PARAMS, "more": jnp.ones(2)})
    name = "params must have the shapes of the updates" if row.name in ADAMS else name
    with pytest.raises(ValueError, match=f"^{name}.*b"):
        row.update(tx, row.gradients, state, {**PARAMS, "b": jnp.ones((3, 1))})


ADAMS = {"adam", "adamw", "adam_l2", "lbfgs without line search"}


@every_optimizer
def test_the_state_of_another_method_is_refused_with_both_names(row, unchecked):
    tx = row.make()
    expected = type(tx.init(row.params)).__name__
    for state in (optax.ScaleByLionState(jnp.zeros((), jnp.int32), row.params), (), None):
        got = "None" if state is None else type(state).__name__
        with pytest.raises(ValueError, match=rf"^state must be the {expected} .*, got {got}\b"):
            row.update(tx, row.gradients, state, row.params)


@on_trees
def test_numbers_are_taken_as_gradients_and_params(row):
    tx, params = row.make(), {"b": 1.0, "w": -2.0}
    gradients = jax.tree.map(float, jax.grad(loss)(params))
    arrays, array_gradients = (jax.tree.map(jnp.asarray, tree) for tree in (params, gradients))
    found, state = row.update(tx, gradients, tx.init(params), params)
    expected, expected_state = row.update(tx, array_gradients, tx.init(arrays), arrays)
    # A state that changes its type, weak types included, compiles the second update anew.
    assert jax.tree.map(jax.typeof, tx.init(params)) == jax.tree.map(jax.typeof, state)
    for a, b in ((found, expected), (state, expected_state)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(isinstance(u, jax.Array) and u.dtype == jnp.float32 for u in jax.tree.leaves(found))


@every_optimizer
@pytest.mark.parametrize("bad", [jnp.ones(3, jnp.int32), "one", np.ones(3, bool)], ids=repr)
def test_gradients_that_are_not_of_floating_point_are_refused_by_name(row, bad):
    tx = row.make()
    gradients, place = with_another(row.gradients, lambda g: bad)
    with pytest.raises(ValueError, match=rf"^updates must have .*floating-point leaves.*{place}"):
        row.update(tx, gradients, tx.init(row.params), row.params)


@pytest.mark.parametrize(
    "make", [classic.adam, classic.adamw, optax.adamw], ids=["adam", "adamw", "adamw of optax"]
)
def test_what_has_no_gradient_may_be_anything_in_the_params(make):
    """As a model with an activation function among its leaves, and gradients of its arrays."""
    tx, model = make(0.1), {"w": jnp.ones(2), "activation": jnp.tanh}
    arrays = {"w": jnp.ones(2), "activation": None}
    updates, _ = tx.update(arrays, tx.init(arrays), model)
    expected, _ = tx.update(arrays, tx.init(arrays), arrays)
    assert updates["activation"] is None
    np.testing.assert_array_equal(updates["w"], expected["w"])
