"""Transformations as pytrees, and the kinds of them."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

from l2ljax._closures import Closure, Sealed, as_partial


class CoordinatewiseTransformation(optax.GradientTransformation):
    """A transformation whose update treats every coordinate alone.

    The mark says that a batch of problems is to it one bigger problem: `update` of params stacked
    on a new axis equals `jax.vmap` of `update`. Meta-training and evaluation then skip that
    `vmap` and hand it all coordinates of the batch at once, which for a network a coordinate is
    several times faster. It takes no extra arguments.
    """


class ReplayableTransformation(CoordinatewiseTransformation):
    """One whose updates depend on gradients and state alone, and that may replay many of them.

    Where gradients are constants to a meta-gradient, its backward pass is that of the optimizer on
    gradients that are known by then. A type that has a quicker way through all of them than one
    update after another says so by this mark, and overrides `replay`; where that would compute
    again what an update knows, the update may note it.
    """

    def notes(self, state: Any, steps: int) -> Any:
        """Room for what `noting` notes of so many steps.

        Args:
            state: the state before the first step.
            steps: how many there will be.
        """
        del state, steps
        return None

    def noting(self, gradients: PyTree, state: Any, notes: Any) -> tuple[PyTree, Any, Any]:
        """`update` with notes for `replay`.

        Args:
            gradients: of one step.
            state: the state before it.
            notes: of the steps before it, first those of `notes`.

        Returns:
            Updates, the new state, and the notes with those of this step.
        """
        return (*self.update(gradients, state), notes)

    def replay(self, gradients: PyTree, state: Any, notes: Any = None) -> tuple[PyTree, Any]:
        """The updates that gradients lead to, one after another.

        Args:
            gradients: a tree of gradients with a leading axis of steps.
            state: the state before the first step.
            notes: what `noting` noted of these very steps.

        Returns:
            Updates, with that axis too, and the state after the last step; `jax.vjp` of both serves
            by the arrays of the transformation and by `state`.
        """
        del notes

        def step(state: Any, gradient: PyTree) -> tuple[Any, PyTree]:
            updates, state = self.update(gradient, state)
            return state, updates

        state, updates = jax.lax.scan(step, state, gradients)
        return updates, state


@runtime_checkable
class Transformation(Protocol):
    """What has the functions of an optax transformation; `optax.MultiSteps` has, and is none."""

    @property
    def init(self) -> Callable[..., Any]:
        """`init(params) -> state`."""

    @property
    def update(self) -> Callable[..., tuple[PyTree, Any]]:
        """`update(updates, state, params=None, **extra) -> (updates, state)`."""


def is_transformation(value: Any) -> bool:
    """Whether it is a `Transformation`, and no class of them.

    >>> is_transformation(optax.MultiSteps(optax.sgd(0.1), 2)), is_transformation(optax.sgd)
    (True, False)
    """
    functions = (getattr(value, name, None) for name in ("init", "update"))
    return not isinstance(value, type) and all(map(callable, functions))


def require_transformation(name: str, tx: Any, others: str = "") -> None:
    """Raises unless `tx` is a transformation.

    Args:
        name: the argument's name.
        tx: its value.
        others: what else there might have been.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    if is_transformation(tx):
        return
    hint = ""
    if hasattr(tx, "bind"):
        hint = "; its `bind(phi)` is a transformation, as is what `learned.load` returns"
    elif callable(tx):
        hint = "; call it with a learning rate"
    text = repr(tx)
    # Records hold whole data sets.
    shown = text if len(text) <= 60 else f"a {type(tx).__name__}"
    raise ValueError(f"{name} must be an optax transformation{others}, got {shown}{hint}")


def as_pytree(tx: Transformation, name: str = "tx") -> optax.GradientTransformation:
    """Makes any optax transformation an argument that `jax.jit` takes.

    Args:
        tx: a transformation, or another object with functions `init` and `update`, such as
            `optax.MultiSteps`; the arrays of one whose fields are `Partial` are leaves of the
            result.
        name: what an error calls it.

    Returns:
        The same transformation, of the same type, with `Partial` fields. An object of another kind
        takes extra arguments if its `update` takes any.

    Raises:
        ValueError: for what is no transformation.

    >>> structures = [jax.tree.structure(as_pytree(optax.adam(rate))) for rate in (0.1, 0.1, 0.2)]
    >>> structures[0] == structures[1], structures[0] == structures[2]
    (True, False)
    """
    require_transformation(name, tx)
    kind: Any = type(tx)
    if not isinstance(tx, optax.GradientTransformation):
        named = inspect.signature(tx.update).parameters.values()
        extra = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named)
        kind = optax.GradientTransformationExtraArgs if extra else optax.GradientTransformation
    return kind(as_partial(tx.init), as_partial(tx.update))


def seal(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Makes the arrays of a transformation a static part of it, as they are in those of optax.

    They are then no leaves, so that it may stand where no arrays may: Flax NNX refuses them in an
    attribute such as the `tx` of `nnx.Optimizer`. `jax.jit` still takes it as an argument; one with
    equal arrays shares the program, and `as_pytree` makes them leaves again.

    Args:
        tx: a transformation; one that carries traced arrays is returned as it is, since what is
            static cannot be differentiated or mapped over.

    Returns:
        The same transformation, of the same type.

    >>> from l2ljax.core import closure
    >>> def update(rate, updates, state, params=None):
    ...     return -rate * updates, state
    >>> tx = optax.GradientTransformation(closure(tuple), closure(update, jax.numpy.float32(0.5)))
    >>> sealed = seal(tx)
    >>> sealed.update(2.0, ())[0], jax.tree.leaves(sealed), jax.tree.leaves(as_pytree(sealed))
    (Array(-1., dtype=float32), [], [Array(0.5, dtype=float32)])
    """
    fields = (tx.init, tx.update)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(fields))
    return tx if traced else type(tx)(*map(_sealed, fields))


def _sealed(function: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(function, Partial) and jax.tree.leaves(function):
        return Closure(Sealed(function))
    return function
