"""What `optax.tree_map_params` passes to `init` instead of params."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree


@functools.cache
def _placeholder() -> type:
    seen: list[Any] = []
    optax.tree_map_params(seen.append, lambda leaf: leaf, None)
    return type(seen[0])


def stands_for_params(params: PyTree) -> bool:
    """Whether it is what `optax.tree_map_params` passes to `init` to find the places of params.

    It is a tree without leaves, and the state has to be what it is for any params, with this in the
    place of each tree like them; one leaf may stand for a part whose structure depends on them.
    """
    return isinstance(params, _placeholder())


class _Marked(NamedTuple):
    leaf: Array


def init_to_find_params(init: Callable[[PyTree], Any], params: PyTree) -> Any:
    """The state of an `init` that needs leaves, with `params` in the place of each tree like them.

    Args:
        init: of a transformation that takes params of any structure.
        params: what `stands_for_params`.
    """

    def marked(node: Any) -> bool:
        return isinstance(node, _Marked)

    state = init(_Marked(jnp.zeros(())))
    return jax.tree.map(lambda x: params if marked(x) else x, state, is_leaf=marked)
