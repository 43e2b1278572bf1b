"""Functions with arrays and settings bound to them, as `core.closure` makes them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from l2ljax._shown import call


@dataclasses.dataclass(frozen=True)
class Configured:
    """A function with static settings; equal to another that has the same function and settings."""

    function: Callable[..., Any]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **dict(self.settings), **kwargs)


class Closure(Partial):
    """A `Partial` that is shown in one line, without its arrays' numbers."""

    def __repr__(self) -> str:
        if isinstance(self.func, Configured):
            settings = self.keywords | dict(self.func.settings)
            return call(self.func.function, *self.args, **settings)
        return call(self.func, *self.args, **self.keywords)


jax.tree_util.register_pytree_node(
    Closure,
    lambda closure: ((closure.args, closure.keywords), closure.func),
    lambda function, bound: Closure(function, *bound[0], **bound[1]),
)
