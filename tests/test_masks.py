"""A tree, or a function that makes one: which of both it is, as optax decides."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from l2ljax import classic, learned


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    """A module that is a tree and can be called."""

    b: Any
    w: Any

    def __call__(self, x):
        raise AssertionError("a model is no function from params to a mask")


PARAMS = Model(b=jnp.ones(3), w=jnp.ones((2, 3)))
# So small that a penalty in the gradient turns the sign, which is what Adam's first step shows.
GRADIENTS = jax.tree.map(lambda w: -1e-5 * w, PARAMS)


@pytest.mark.parametrize("factory", [classic.adamw, classic.adam_l2])
@pytest.mark.parametrize(
    "mask",
    [
        Model(b=False, w=True),
        Model(b=np.bool_(False), w=np.bool_(True)),
        Partial(lambda params: Model(b=False, w=True)),
        Model(b=False, w={}),
    ],
    ids=["module", "module of NumPy's", "Partial", "prefix of nothing"],
)
def test_a_module_of_booleans_is_a_mask_and_no_function(factory, mask):
    params, gradients = PARAMS, GRADIENTS
    if isinstance(mask, Model) and mask.w == {}:
        params, gradients = (dataclasses.replace(tree, w={}) for tree in (params, gradients))

    def updates(tx):
        return tx.update(gradients, tx.init(params), params)[0]

    plain, decaying, found = (
        updates(t) for t in (classic.adam(0.1), factory(0.1), factory(0.1, mask=mask))
    )
    np.testing.assert_array_equal(found.b, plain.b)
    jax.tree.map(np.testing.assert_array_equal, found.w, decaying.w)
    assert np.abs(decaying.b - plain.b).max() > 1e-9


def test_a_module_of_labels_is_a_tree_and_no_function():
    members = {"one": learned.lstm(hidden=(2,)), "other": learned.lstm(hidden=(3,))}
    opt = learned.partition(members, Model(b="one", w="other"))
    state = jax.eval_shape(lambda key: opt.bind(opt.init(key)).init(PARAMS), jax.random.key(0))
    shapes = {name: member.layers[0][0].shape for name, member in state.members.items()}
    assert shapes == {"one": (2, 3), "other": (3, 6)}
    assert opt.spec is not None


@pytest.mark.parametrize("factory", [classic.adamw, classic.adam_l2])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"b": 1.0, "w": True}, "mask must have booleans as leaves, got 1.0"),
        ({"b": len, "w": True}, "mask must have booleans as leaves, got <built-in function len>"),
        ({"b": True}, "mask must be a tree like the params, or a prefix of them, got .*'b'"),
        (lambda params: {"w": True}, "mask must be a tree like the params.*'w'"),
        (False, "mask must be a tree of booleans, .*got False; .*static_args='mask'"),
    ],
    ids=["number", "function", "another tree", "another tree by a function", "boolean"],
)
def test_what_is_no_mask_is_refused_by_name(factory, mask, message):
    params = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=f"^{message}"):
        tx = factory(0.1, mask=mask)
        tx.update(params, tx.init(params), params)
