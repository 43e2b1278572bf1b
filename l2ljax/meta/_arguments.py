"""Checks of what `train` and `make_step` are given, before anything is compiled."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import PyTree

from l2ljax import _checks
from l2ljax.core import Estimator, LearnedOptimizer, as_partial, is_transformation
from l2ljax.meta._devices import DATA
from l2ljax.meta._progress import TrainState
from l2ljax.meta._segments import SegmentEstimator, TruncatedState

_OTHER = "state must be of this run's settings"

# What is annotated with `Any` may be anything: what it is, is asked here.


def require_kinds(opt: Any, meta_optimizer: Any, estimator: Any, mesh: Any, data: Any) -> None:
    """Refuses what is not of the kind that its name says, such as a function that is not called.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """
    if not isinstance(opt, LearnedOptimizer):
        _checks.refuse(
            "opt", opt, "a LearnedOptimizer such as learned.lstm(), or learned.fixed(tx)"
        )
    if meta_optimizer is not None and not is_transformation(meta_optimizer):
        _checks.refuse(
            "meta_optimizer", meta_optimizer, "an optax transformation such as optax.adam(0.1)"
        )
    if estimator is not None and not _takes_three(estimator):
        _checks.refuse(
            "estimator",
            estimator,
            "a factory (opt, task, batch) -> Estimator such as meta.truncated(horizon=100)",
        )
    if mesh is not None and not isinstance(mesh, Mesh):
        _checks.refuse(
            "mesh", mesh, 'a jax.sharding.Mesh such as jax.make_mesh((8,), ("problems",))'
        )
    _checks.choice("data", data, DATA)
    if data != DATA[0] and mesh is None:
        raise ValueError(f"mesh must be given for data={data!r}, got None")


def functions(validate: Any, callbacks: Any) -> tuple[Partial | None, list[Callable[..., Any]]]:
    """The score of φ, if there is one, and the callbacks.

    Raises:
        ValueError: for a score that is no function, or callbacks that are no sequence of them.
    """
    if validate is not None and not callable(validate):
        _checks.refuse("validate", validate, "a function of phi such as meta.validation(...)")
    listed: list[Any] = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    if not all(callable(callback) for callback in listed):
        _checks.refuse("callbacks", callbacks, "a sequence of functions such as [print]")
    return None if validate is None else as_partial(validate), listed


def require_phi(draw: Callable[..., PyTree], key: Any, phi: PyTree | None) -> None:
    """Refuses meta-parameters that nothing can be learned of, or others than the optimizer's.

    Args:
        draw: what draws the first φ.
        key: a key to draw it with.
        phi: the φ that was given; None: φ is drawn.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    drawn = jax.eval_shape(draw, key)
    _checks.inexact_leaves("phi", drawn if phi is None else phi)
    if phi is not None and (found := _difference(drawn, phi, jnp.shape)):
        raise ValueError(f"phi must be like that which opt (and task) draw: {found}")


def require_state(
    state: Any, start: Callable[[PyTree], TrainState], draw: Callable[..., PyTree], key: Any
) -> None:
    """Refuses a state that other settings made, by the shapes and dtypes of its arrays.

    Args:
        state: what a run is to go on from.
        start: makes the first state of this run from φ.
        draw: what draws the first φ.
        key: the key of this run.

    Raises:
        ValueError: naming the first leaf that differs.
    """
    if not isinstance(state, TrainState):
        _checks.refuse("state", state, "a TrainResult, or a TrainState such as result.state")
    # φ may have been given, in other dtypes than it is drawn in.
    found = _difference({"phi": jax.eval_shape(draw, key)}, {"phi": state.phi}, jnp.shape)
    if found is None:
        phi = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.phi)
        found = _difference(jax.eval_shape(start, phi), state, _described)
    if found is not None:
        hint = ""
        if found.startswith("estimator"):
            hint = "; a run goes on with the batch, the pairs and the devices that it began with"
        raise ValueError(f"{_OTHER}: {found}{hint}")


def require_segment(state: TrainState, estimates: Estimator) -> None:
    """Refuses a state in the middle of a segment of this run's estimator.

    Raises:
        ValueError: naming the inner step.
    """
    makers, episodes = _segments(estimates), _leaves_of(TruncatedState, state.estimator)
    if len(makers) != len(episodes):
        # Around them is an estimator of one's own: it knows what it does.
        return
    for maker, episode in zip(makers, episodes, strict=True):
        step, longest = int(jnp.max(episode.step)), maker.horizons.lengths[-1]
        if step % maker.truncation or step > longest:
            raise ValueError(
                f"{_OTHER}: its episodes are at inner step {step}, where no segment of "
                f"truncation={maker.truncation} and horizon={longest} ends"
            )


def _takes_three(function: Any) -> bool:
    """Whether it may be called with three arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:
        # A built-in function without a signature.
        pass
    return True


def _difference(expected: PyTree, found: PyTree, kind: Callable[[Any], Any]) -> str | None:
    """What is wrong with the first leaf that differs, or None."""
    wanted, got = _named(expected), _named(found)
    for name in [*wanted, *got]:
        if name not in got:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is not expected"
        if kind(got[name]) != kind(wanted[name]):
            return f"{name} is {_described(got[name])} and not {_described(wanted[name])}"
    return None


def _named(tree: PyTree) -> dict[str, Any]:
    """Leaves by their place in the tree: `estimator/step`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "(the only leaf)": leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _described(leaf: Any) -> str:
    return f"{jax.dtypes.result_type(leaf)}{list(jnp.shape(leaf))}"


def _segments(estimator: Estimator) -> list[SegmentEstimator]:
    """The estimators by segments of which one consists, in the order of their states."""
    if isinstance(estimator, SegmentEstimator):
        return [estimator]
    members = _leaves_of(Estimator, estimator.estimate)
    return [maker for member in members for maker in _segments(member)]


def _leaves_of(kind: type, tree: PyTree) -> list[Any]:
    """The nodes of one type."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
