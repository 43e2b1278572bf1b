"""Minimisation of a finite sum by full, single-example or minibatch gradients, and when to stop."""

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax._shown import one_line
from l2ljax.classic import _vectors
from l2ljax.classic._common import Hyperparameter, Updates, require_scalars
from l2ljax.classic._line_search import ended_early, found_nothing, searches
from l2ljax.core import Key, Params, Scalar, Transformation, as_partial, as_pytree


class StopReason(enum.IntEnum):
    """Why `minimize` stopped."""

    CONVERGED = 0
    """`patience` updates in a row were shorter than the tolerance."""
    STEP_LIMIT = 1
    """All updates were made."""
    NOT_FINITE = 2
    """The params or their loss were no longer finite."""
    LINE_SEARCH_FAILED = 3
    """`patience` line searches in a row found no step to a lower loss, or gave up on their
    conditions with one that they had cut from above the tolerance to below it."""


_RUNNING = -1


class Minimum(NamedTuple):
    """What `minimize` returns.

    Attributes:
        params: the last finite params, shapes and dtypes as given.
        value: the objective at `params`, over all examples, a scalar.
        steps: updates made, int32[]: those of length zero count, one that led to params that are
            not finite does not.
        reason: the code of a `StopReason`, int32[]; `StopReason(int(reason))` has its name.
    """

    params: Params
    value: Scalar
    steps: Int[Array, ""]
    reason: Int[Array, ""]

    def __repr__(self) -> str:
        return one_line(self)


def minimize(
    tx: Transformation,
    loss: Callable[[Params, PyTree], Any],
    params: Params,
    data: PyTree = (),
    *,
    key: Key | None = None,
    batch_size: int | None = None,
    steps: int,
    tolerance: Hyperparameter,
    patience: int = 1,
) -> Minimum:
    r"""Minimises a mean over examples until the params stand still, in one compiled loop.

    $$f(w) = \frac{1}{n} \sum_{i=1}^{n} f_i(w), \qquad
      g_t = \frac{1}{|B_t|} \sum_{i \in B_t} \nabla f_i(w_{t-1}), \qquad
      \text{stop when } \|w_t - w_{t-1}\| < \epsilon$$

    $B_t$ is all examples (gradient descent), one of them (stochastic) or a few (minibatches). An
    update that is drawn may be short by chance, so the rule has to hold `patience` times in a row.

    An update that is zero where the gradient is not says nothing about convergence and is passed
    over: the first half of the updates of `optax.MultiSteps(tx, 2)`, a schedule that begins at 0.
    The same holds for a line search that failed, which ends the run with `LINE_SEARCH_FAILED`.
    Near a minimum the reason may be rounding; elsewhere the loss has a kink, a wrong gradient or a
    scale far from that of the search.

    Transformations that take `value`, `grad` or `value_fn` get them, for the same examples. With
    full gradients, value and gradient that a line search leaves in its state are not computed
    again.

    One program serves calls with the same `tx` and `loss` objects and equal shapes: a lambda that
    is written anew compiles anew. Under `jax.vmap`, over keys or starting points, each run stops by
    itself, and every field of the result has the mapped axis.

    Args:
        tx: any optax transformation.
        loss: `loss(params, batch)`, a scalar, the mean over the examples in `batch`.
        params: $w_0$, a tree of real floating-point arrays.
        data: a tree of arrays whose leading axis counts the n examples; a batch is such a tree with
            $|B_t|$ of them. Default `()`: `loss(params, ())` is a plain function.
        key: draws the examples; it is needed with `batch_size` and not used without. Update t,
            counted from 0, takes those at
            `jax.random.randint(jax.random.fold_in(key, t), (batch_size,), 0, n)`.
        batch_size: $|B_t|$ from 1 to n, drawn uniformly with replacement. Default None: all n.
        steps: the most updates that are made.
        tolerance: $\epsilon \ge 0$, a scalar; 0 is never undercut. The norm is over all leaves, in
            float32 at least.
        patience: updates in a row that have to be short, or line searches that have to fail.
            Default 1.

    Returns:
        A `Minimum`. Params that are not finite, or whose loss on the examples of the next update
        is not, end the run; those before them are returned.

    Raises:
        ValueError: leaves of `params` are not floating-point; leaves of `data` differ in their
            numbers of examples or have none; `batch_size` is larger than n, or without data or
            key; `steps`, `patience` or `batch_size` are not whole numbers of at least 1;
            `tolerance` is negative, not finite or not a scalar; the loss is not a scalar.

    Reference:
        Robbins and Monro, *A stochastic approximation method*, 1951; the three kinds of gradient:
        Bottou, Curtis and Nocedal, *Optimization methods for large-scale machine learning*, 2018,
        section 3.

    The point with the least mean squared distance to three others is their mean:

    >>> points = jnp.array([1.0, 2.0, 6.0])
    >>> def loss(w, batch):
    ...     return jnp.mean((w - batch) ** 2)
    >>> tx = optax.sgd(0.25)
    >>> for steps in (2, 99):
    ...     found = minimize(tx, loss, jnp.array(0.0), points, steps=steps, tolerance=1e-4)
    ...     print(f"{found.params:.3f} {found.steps}", StopReason(int(found.reason)).name)
    2.250 2 STEP_LIMIT
    3.000 15 CONVERGED
    """
    _checks.floating_leaves("params", params)
    _checks.count("steps", steps)
    _checks.count("patience", patience)
    _checks.non_negative("tolerance", tolerance)
    require_scalars(tolerance=tolerance)
    examples = _examples(data)
    if batch_size is not None:
        _checks.count("batch_size", batch_size)
        if examples is None or batch_size > examples:
            raise ValueError(
                f"batch_size must be at most the number of examples in data, {examples or 0}, "
                f"got {batch_size}"
            )
        if key is None:
            raise ValueError(f"key must be given with batch_size={batch_size}, got None")
        _checks.key("key", key)
    return _minimize(
        as_pytree(tx),
        as_partial(loss),
        params,
        data,
        None if batch_size is None else key,
        steps,
        tolerance,
        patience,
        batch_size=batch_size,
    )


def _examples(data: PyTree) -> int | None:
    """The number of examples; None without data."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if not sizes:
        return None
    if len(sizes) != 1 or not sizes.isdisjoint({(), (0,)}):
        raise ValueError(
            f"data must have leaves with one leading axis of examples, got {sorted(sizes)}"
        )
    ((examples,),) = sizes
    return examples


class _Run(NamedTuple):
    """Finite params with what the next update needs there, and the state of the stopping rule."""

    params: Params
    value: Scalar
    grad: Updates
    steps: Int[Array, ""]
    opt_state: Any
    streak: Int[Array, ""]
    failures: Int[Array, ""]
    reason: Int[Array, ""]


@program("batch_size")
def _minimize(
    tx: optax.GradientTransformation,
    loss: Callable[[Params, PyTree], Any],
    params: Params,
    data: PyTree,
    key: Key | None,
    limit: Array,
    tolerance: Array,
    patience: Array,
    *,
    batch_size: int | None,
) -> Minimum:
    params = jax.tree.map(jnp.asarray, params)
    tx = optax.with_extra_args_support(tx)
    zero = jnp.zeros((), jnp.int32)

    def draw(t: Array) -> PyTree:
        if batch_size is None or key is None:
            return data
        examples = len(jax.tree.leaves(data)[0])
        i = jax.random.randint(jax.random.fold_in(key, t), (batch_size,), 0, examples)
        return jax.tree.map(lambda leaf: jnp.take(leaf, i, axis=0, mode="clip"), data)

    def measure(params: Params, t: Array) -> tuple[Scalar, Updates]:
        return jax.value_and_grad(loss)(params, draw(t))

    _checks.scalar_value("loss", jax.eval_shape(lambda: loss(params, draw(zero))))

    def advance(run: _Run) -> _Run:
        batch = draw(run.steps)
        updates, opt_state = tx.update(
            run.grad,
            run.opt_state,
            run.params,
            value=run.value,
            grad=run.grad,
            value_fn=lambda params: loss(params, batch),
        )
        moved = _any(lambda u: u != 0, updates)
        ran = searches(opt_state)
        lost = _any(jnp.asarray, [found_nothing(search, run.value, moved) for search in ran])
        lost = lost & _all_finite(updates)
        params = _where(lost, run.params, optax.apply_updates(run.params, updates))
        steps = run.steps + 1
        # The examples of the next update differ, unless all are taken.
        if batch_size is None and _remembers(opt_state, run.value, run.grad):
            look_up = optax.value_and_grad_from_state(lambda params: loss(params, data))
            value, grad = _where(lost, (run.value, run.grad), look_up(params, state=opt_state))
        else:
            value, grad = measure(params, steps)

        finite = _all_finite(params, value)
        distance = _distance(params, run.params)
        least = tolerance.astype(distance.dtype)
        short = distance < least
        # Steps that a search has cut below the tolerance from above it, and then gave up.
        cut = [
            ended_early(search) & (distance >= least * search.learning_rate.astype(least.dtype))
            for search in ran
        ]
        failed = lost | (short & moved & _any(jnp.asarray, cut))
        idle = failed | (~moved & _any(lambda g: g != 0, run.grad))
        streak = jnp.where(idle, run.streak, jnp.where(short, run.streak + 1, 0))
        failures = jnp.where(failed, run.failures + 1, 0)
        reason = jnp.select(
            [~finite, streak >= patience, failures >= patience, steps >= limit],
            [
                StopReason.NOT_FINITE,
                StopReason.CONVERGED,
                StopReason.LINE_SEARCH_FAILED,
                StopReason.STEP_LIMIT,
            ],
            _RUNNING,
        ).astype(jnp.int32)
        params, value, grad, steps = _where(finite, (params, value, grad, steps), run[:4])
        return _Run(params, value, grad, steps, opt_state, streak, failures, reason)

    value, grad = measure(params, zero)
    reason = jnp.where(_all_finite(params, value), _RUNNING, StopReason.NOT_FINITE)
    start = _Run(params, value, grad, zero, tx.init(params), zero, zero, reason.astype(jnp.int32))
    run = jax.lax.while_loop(lambda run: run.reason == _RUNNING, advance, start)
    return Minimum(run.params, loss(run.params, data), run.steps, run.reason)


def _where(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, condition), yes, no)


def _any(holds: Callable[[Array], Array], tree: PyTree) -> Array:
    """Whether it holds for any coordinate; never for a tree without leaves."""
    leaves = [jnp.any(holds(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.any(jnp.stack(leaves)) if leaves else jnp.zeros((), bool)


def _all_finite(*tree: PyTree) -> Array:
    return ~_any(lambda leaf: ~jnp.isfinite(leaf), tree)


def _distance(a: Params, b: Params) -> Array:
    dtype = _vectors.working_dtype(a)
    a, b = _vectors.widen(a, dtype), _vectors.widen(b, dtype)
    return _vectors.norm(jax.tree.map(jnp.subtract, a, b))


def _remembers(state: Any, value: Scalar, grad: Updates) -> bool:
    """Whether the state holds what `optax.value_and_grad_from_state` can hand out.

    It raises where there is none or more than one, and a state may have another precision.
    """
    found = [optax.tree.get_all_with_path(state, name) for name in ("value", "grad")]
    if any(len(entries) != 1 for entries in found):
        return False
    return _layout(tuple(entries[0][1] for entries in found)) == _layout((value, grad))


def _layout(tree: PyTree) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
