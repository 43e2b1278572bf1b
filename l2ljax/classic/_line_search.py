"""From a direction to a step: a rate, and on request one of optax's line searches."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._placeholders import init_to_find_params, stands_for_params
from l2ljax._programs import in_one_program
from l2ljax._sharding import without_explicit_axes
from l2ljax.classic._common import (
    Count,
    Leaf,
    LearningRate,
    Updates,
    first_count,
    leafwise,
    next_count,
    rate_at,
    require_params,
    require_rate,
    step,
)
from l2ljax.classic._vectors import inner, widen, working_dtype
from l2ljax.core import Params

LineSearch = TypeAliasType(
    "LineSearch",
    Literal["strong_wolfe", "backtracking"] | optax.GradientTransformationExtraArgs | None,
)
"""A line search by name, an optax transformation that is one, or None."""


class DescentState(NamedTuple):
    """The state of a method that steps along a direction.

    Attributes:
        count: updates made so far, int32[]; None unless the learning rate is a schedule.
        direction: the state of what gives the direction, `scale_by_...`.
        line_search: the state of optax's line search, where `optax.value_and_grad_from_state`
            finds value and gradient; None without one, and for params without leaves.
    """

    count: Count  # type: ignore[assignment]
    direction: PyTree
    line_search: PyTree


def require_extra(method: str, extra: dict[str, Any], *names: str) -> list[Any]:
    """Those extra arguments of an update, or an error about the first one that is missing."""
    for name in names:
        if extra.get(name) is None:
            raise ValueError(
                f"{method} needs {name}: call tx.update(gradients, state, params, value=..., "
                "grad=..., value_fn=...)"
            )
    return [extra[name] for name in names]


def widen_function(
    value_fn: Callable[..., Any], params: Params, dtype: jnp.dtype, extra: dict[str, Any]
) -> Callable[[Params], Array]:
    """The function of params in the working dtype.

    Args:
        value_fn: the function of params in their own dtypes.
        params: they tell the dtypes.
        dtype: of the argument and the value.
        extra: further arguments of `update`; those that `value_fn` names are bound, as optax does
            it for the data of a batch.
    """
    names = set(inspect.signature(value_fn).parameters) - {"value", "grad", "value_fn"}
    function = functools.partial(value_fn, **{k: v for k, v in extra.items() if k in names})

    def widened(wide: Params) -> Array:
        value = _checks.scalar_value("value_fn", function(optax.tree.cast_like(wide, params)))
        return jnp.asarray(value, dtype)

    return widened


def resolve(line_search: LineSearch, keep: bool) -> optax.GradientTransformationExtraArgs | None:
    """The transformation that a name stands for.

    Args:
        line_search: as the methods take it.
        keep: whether a search begins at the step size that the last one found, as suits
            directions without a scale of their own, or at 1.
    """
    if line_search is None or isinstance(line_search, optax.GradientTransformation):
        return line_search
    _checks.choice("line_search", line_search, ("strong_wolfe", "backtracking", None))
    if line_search == "strong_wolfe":
        return optax.scale_by_zoom_linesearch(
            max_linesearch_steps=30, initial_guess_strategy="keep" if keep else "one"
        )
    # Almost any decrease is enough for Newton's step, which is rarely shortened. Along the
    # gradient, steps just short of divergence decrease a little, too.
    return optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=50,
        slope_rtol=0.3 if keep else 1e-4,
        decrease_factor=0.5,
        increase_factor=2.0 if keep else jnp.inf,
        max_learning_rate=jnp.inf if keep else 1.0,
        store_grad=True,
    )


def descend(
    method: str,
    direction: optax.GradientTransformation,
    learning_rate: LearningRate,
    line_search: LineSearch,
    keep: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Steps along a direction: $w \leftarrow w - \alpha \eta d$.

    The step size $\alpha$ is 1, or what the line search finds. To derivatives it is a constant,
    since no search can be differentiated in reverse: they go through $\eta$ and $d$.

    Args:
        method: its name, for errors.
        direction: gives $d$.
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0.
        line_search: `"strong_wolfe"`, `"backtracking"`, an optax transformation whose state has
            a `learning_rate`, or None. Where $d$ is no direction of descent, the search follows
            the gradient instead.
        keep: as in `resolve`.
    """
    require_rate(learning_rate)
    search = resolve(line_search, keep)
    direction = optax.with_extra_args_support(direction)

    def rule(minus_rate: Array) -> Leaf:
        return lambda d: (step(minus_rate, d),)

    def init(params: Params) -> DescentState:
        _checks.floating_leaves("params", params)
        searched = None
        if search is not None and stands_for_params(params):
            searched = init_to_find_params(search.init, params)
        elif search is not None and jax.tree.leaves(params):
            searched = _strong(search.init(jax.tree.map(jnp.asarray, params)))
            if not hasattr(searched, "learning_rate"):
                raise ValueError(
                    "line_search must be an optax line search, whose state has a learning_rate, "
                    f"got one with the state {type(searched).__name__}"
                )
        return DescentState(first_count(callable(learning_rate)), direction.init(params), searched)

    def update(
        updates: Updates, state: DescentState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DescentState]:
        _checks.state(state, DescentState)
        updates, params = _checks.gradients(updates, params)
        d, inner_state = direction.update(updates, state.direction, params, **extra)
        searched = state.line_search
        if searched is not None:
            params = require_params(method, params)
            (gradient,) = require_extra(method, extra, "grad")
            expected, got = map(str, map(jax.tree.structure, (params, gradient)))
            if got != expected:
                raise ValueError(
                    f"grad must be a tree like the params, {expected}, got {got}; a line search "
                    "cannot see a part of the params only, as optax.masked and optax.partition "
                    "show it"
                )
            gradient, _ = _checks.gradients(gradient, real=True)
            _checks.alike("grad", gradient, "the params", params, holder="the params have")
            d = _descending(d, gradient)
        minus_rate = -jnp.asarray(rate_at(learning_rate, state.count))
        (steps,) = leafwise(rule, {"minus_rate": minus_rate}, d)
        if searched is not None:
            asked = require_extra(method, extra, "value", "grad", "value_fn")
            steps, searched = _search(search, steps, searched, params, asked, extra)
        return steps, DescentState(next_count(state.count), inner_state, searched)

    return optax.GradientTransformationExtraArgs(init, in_one_program(update))


def found_nothing(search: Any, before: Array, moved: Array | bool = True) -> Array:
    """Whether a line search found no step to a lower value.

    Args:
        search: the state that it left, as optax's line searches have it or with a `learning_rate`.
        before: the value from which it started, [].
        moved: whether the update is not zero. A wrapper such as `optax.MultiSteps` makes updates of
            zero without a search, and the state is still that of the last one, or of none.
    """
    failed = search.learning_rate <= 0
    error = getattr(getattr(search, "info", None), "decrease_error", None)
    if error is not None:
        # Of the last trial, and not of the step that was made: that may be an earlier trial's.
        lower = search.value < before.astype(search.value.dtype)
        failed = failed | ((error > 0) & ~lower & moved)
    return failed


def ended_early(search: Any) -> Array | bool:
    """Whether a line search of optax gave up on its conditions, with or without a step."""
    info = getattr(search, "info", None)
    errors = [getattr(info, f"{name}_error", 0.0) for name in ("decrease", "curvature")]
    return (errors[0] > 0) | (errors[1] > 0)


def searches(state: Any) -> list[Any]:
    """The states of line searches, of this library's methods and of optax, in a state."""
    kinds = (
        DescentState,
        optax.ScaleByBacktrackingLinesearchState,
        optax.ScaleByZoomLinesearchState,
    )
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    found = [n.line_search if isinstance(n, DescentState) else n for n in nodes]
    return [search for search in found if hasattr(search, "learning_rate")]


def _strong(tree: PyTree) -> PyTree:
    """Without weak types, which would compile the second update anew."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.result_type(x)), tree)


def _descending(d: Updates, gradient: Updates) -> Updates:
    """The direction, or the gradient where the direction leads up."""
    dtype = working_dtype(d)
    down = inner(widen(d, dtype), widen(gradient, dtype)) > 0
    return jax.tree.map(lambda d, g: jnp.where(down, d, g.astype(d.dtype)), d, gradient)


def _search(
    search: Any,
    steps: Updates,
    state: Any,
    params: Params,
    asked: list[Any],
    extra: dict[str, Any],
) -> tuple[Updates, Any]:
    """Scales the steps by the size that the search finds for them."""
    value, gradient, value_fn = asked
    dtype = working_dtype(params)
    # A loop with tangents in it cannot be transposed, also where nobody asks for them. The
    # function has its own: those of the data that it closes over.
    at, along, gradient = jax.lax.stop_gradient(widen((params, steps, gradient), dtype))
    # The dtype of a Python float, which optax's searches take for that of values.
    values = jnp.result_type(float)
    value = jax.lax.stop_gradient(jnp.asarray(value, values))
    function = widen_function(value_fn, params, values, extra)
    constant, hoisted = jax.closure_convert(function, at)
    hoisted = jax.lax.stop_gradient(hoisted)
    # A search that failed leaves the step size 0, from which optax's searches never recover.
    wide_state = widen(state, dtype)
    size = wide_state.learning_rate
    wide_state = wide_state._replace(learning_rate=jnp.where(size > 0, size, 1))

    # The function has been traced by now; what remains is optax's own arithmetic, which mixes
    # float64 constants with float32 params where float64 is enabled.
    def run(
        function: Callable[[Params], Array],
        state: Any,
        at: Params,
        along: Updates,
        gradient: Updates,
        value: Array,
    ) -> Any:
        return search.update(along, state, at, value=value, grad=gradient, value_fn=function)[1]

    def function_of(trial: Params) -> Array:
        return constant(widen(trial, dtype), *hoisted)

    with jax.numpy_dtype_promotion("standard"):
        found = without_explicit_axes(run, function_of, wide_state, at, along, gradient, value)
    found = widen(found, dtype)
    failed = found_nothing(found, value)
    start = {"learning_rate": 0.0, "value": value, "grad": gradient}
    # A search of optax that fails ends with a tiny step, which may lead up, or with none.
    found = found._replace(
        **{
            name: jax.tree.map(
                lambda a, b: jnp.where(failed, jnp.asarray(a, dtype), b), start[name], end
            )
            for name, end in found._asdict().items()
            if name in start and end is not None
        }
    )
    size = jax.lax.stop_gradient(found.learning_rate)
    scaled = jax.tree.map(lambda u: (size * u.astype(dtype)).astype(u.dtype), steps)
    return scaled, optax.tree.cast_like(found, state)
