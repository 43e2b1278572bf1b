"""BFGS: Newton's method with the inverse Hessian learned from differences of gradients."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from l2ljax import _checks
from l2ljax.classic._common import (
    Hyperparameter,
    LearningRate,
    Updates,
    require_params,
    require_scalars,
)
from l2ljax.classic._line_search import LineSearch, descend
from l2ljax.classic._vectors import flatten, inner, norm, product, safe_divide, working_dtype
from l2ljax.core import Params


class BFGSState(NamedTuple):
    """The state of `scale_by_bfgs`.

    Attributes:
        count: updates made so far, int32[].
        pairs: pairs accepted so far, int32[].
        params: $w_{t-1}$ as one vector, float32 or wider.
        gradient: $g_{t-1}$, likewise.
        inverse_hessian: $H$, [D, D]; zero until a pair is accepted.
    """

    count: Int[Array, ""]  # type: ignore[assignment]
    pairs: Int[Array, ""]
    params: Float[Array, " D"]
    gradient: Float[Array, " D"]
    inverse_hessian: Float[Array, "D D"]


class Pair(NamedTuple):
    r"""What a pair says about curvature.

    Attributes:
        accepted: whether $s^\top y > \delta \|s\| \|y\|$.
        rho: $\rho = 1 / s^\top y$; 0 where the pair is not accepted.
        scale: $s^\top y / y^\top y$; likewise.
    """

    accepted: Array
    rho: Array
    scale: Array


def measure_pair(s: PyTree, y: PyTree, min_cosine: Hyperparameter, seen: Array) -> Pair:
    """Measures a change of params and of gradients; `seen`: whether there was a point before."""
    sy, yy = inner(s, y), inner(y, y)
    accepted = seen & (sy > jnp.asarray(min_cosine, sy.dtype) * norm(s) * norm(y))
    one = jnp.ones((), sy.dtype)
    return Pair(accepted, safe_divide(one, sy, accepted), safe_divide(sy, yy, accepted))


def first_scale(gradient: PyTree) -> Array:
    r"""$\min(1, 1/\|g\|)$: without a pair, the step is no longer than 1."""
    return 1 / jnp.maximum(1, norm(gradient))


def require_min_cosine(min_cosine: Hyperparameter) -> None:
    """Refuses what is no cosine of an acute angle."""
    _checks.fraction("min_cosine", min_cosine)
    require_scalars(min_cosine=min_cosine)


def bfgs(
    learning_rate: LearningRate = 1.0,
    line_search: LineSearch = "strong_wolfe",
    min_cosine: Hyperparameter = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""BFGS: the step that is Newton's if $H$ is the inverse Hessian.

    $$w_t = w_{t-1} - \alpha_t \eta_t H_t g_t, \qquad
      H_t = (I - \rho s y^\top) H_{t-1} (I - \rho y s^\top) + \rho s s^\top$$

    $$s = w_{t-1} - w_{t-2}, \qquad y = g_t - g_{t-1}, \qquad \rho = 1 / s^\top y$$

    $g_t$ is taken at $w_{t-1}$. A pair with $s^\top y \le \delta \|s\| \|y\|$ shows no positive
    curvature and is skipped: $H$ stays positive definite. At the first pair that is not,
    $H_{t-1} = (s^\top y / y^\top y) I$, and before it $H_t = \min(1, 1 / \|g_t\|) I$. An update
    costs $O(D^2)$, in time and memory.

    The step size $\alpha_t$ that the line search finds is a constant to derivatives: those of
    updates with respect to rates, gradients or data go through $\eta_t H_t g_t$.

    Args:
        learning_rate: $\eta \ge 0$, a scalar, or a schedule whose count starts at 0; it scales the
            direction that is searched, whose first trial is $\alpha = 1$. Default 1.
        line_search: `"strong_wolfe"`, the default, is `optax.scale_by_zoom_linesearch`,
            `"backtracking"` `optax.scale_by_backtracking_linesearch`. Any optax transformation of
            that kind will do: its state must have a `learning_rate`. None: $\alpha_t = 1$.
        min_cosine: $\delta$ in [0, 1), a scalar. Default 1e-8.

    Returns:
        A transformation; updates keep the shapes and dtypes of the gradients. Its update needs
        params and, with a line search, `value`, `grad` and `value_fn`;
        `optax.value_and_grad_from_state` finds the first two in the state, where the search has
        left them, so that nothing is evaluated twice.

    Raises:
        ValueError: a hyperparameter is out of its range or not a scalar; `line_search` is none of
            those; a leaf of the params is not real floating-point; an update lacks what it needs.

    Reference:
        Nocedal and Wright, *Numerical optimization*, 2006, algorithm 6.1, the scale from
        equation 6.20; the first step is that of `optax.lbfgs`.

    A narrow valley, of which gradient descent needs thousands of steps to see the end:

    >>> import jax
    >>> def valley(w):
    ...     return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2
    >>> tx, w = bfgs(), jnp.array([-1.2, 1.0])
    >>> state, value_and_grad = tx.init(w), optax.value_and_grad_from_state(valley)
    >>> @jax.jit
    ... def step(w, state):
    ...     value, grad = value_and_grad(w, state=state)
    ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=valley)
    ...     return optax.apply_updates(w, updates), state
    >>> for t in range(36):
    ...     w, state = step(w, state)
    ...     if t % 12 == 11:
    ...         print(f"{w[0]:.1f} {w[1]:.1f}")
    -0.3 0.1
    0.5 0.3
    1.0 1.0
    """
    return descend("bfgs", scale_by_bfgs(min_cosine), learning_rate, line_search)


def scale_by_bfgs(min_cosine: Hyperparameter = 1e-8) -> optax.GradientTransformation:
    r"""The direction $H_t g_t$ of `bfgs`, to be chained with a rate or a line search.

    Args:
        min_cosine: as in `bfgs`.

    Returns:
        A transformation from gradients to directions; it does not change their sign. Its update
        needs params.

    Raises:
        ValueError: as in `bfgs`.

    Two directions of different curvature; from the third step on they are known:

    >>> tx, w = scale_by_bfgs(), jnp.array([1.0, 1.0])
    >>> state = tx.init(w)
    >>> for _ in range(5):
    ...     direction, state = tx.update(jnp.array([1.0, 10.0]) * w, state, w)
    ...     w = w - direction
    ...     print(f"{jnp.abs(w).max():.3f}", end=" ")
    0.900 0.808 0.025 0.003 0.000
    """
    require_min_cosine(min_cosine)

    def init(params: Params) -> BFGSState:
        _checks.floating_leaves("params", params)
        w, _ = flatten(params, working_dtype(params))
        # Nothing twice: a buffer that stands in two places of a state cannot be donated.
        return BFGSState(
            count=jnp.zeros((), jnp.int32),
            pairs=jnp.zeros((), jnp.int32),
            params=jnp.zeros_like(w),
            gradient=jnp.zeros_like(w),
            inverse_hessian=jnp.zeros((w.size, w.size), w.dtype),
        )

    def update(
        updates: Updates, state: BFGSState, params: Params | None = None
    ) -> tuple[Updates, BFGSState]:
        _checks.state(state, BFGSState)
        params = require_params("bfgs", params)
        updates, params = _checks.gradients(updates, params, real=True)
        w, _ = flatten(params, state.params.dtype)
        if w.size != state.params.size:
            raise ValueError(
                "state must be what `init` made of params like these: it has "
                f"{state.params.size} coordinates, the params have {w.size}"
            )
        g, unflatten = flatten(updates, state.params.dtype)
        s, y = w - state.params, g - state.gradient
        pair = measure_pair(s, y, min_cosine, state.count > 0)
        h = jnp.where(
            pair.accepted & (state.pairs == 0),
            pair.scale * jnp.eye(g.size, dtype=g.dtype),
            state.inverse_hessian,
        )
        # Multiplied out: three outer products instead of two products of matrices. Where the
        # pair is not accepted, rho is 0.
        hy = product(h, y)
        cross = jnp.outer(s, hy)
        square = (1 + pair.rho * inner(y, hy)) * jnp.outer(s, s)
        h = h + pair.rho * (square - cross - cross.T)
        pairs = jnp.where(pair.accepted, optax.safe_increment(state.pairs), state.pairs)
        d = product(h, g)
        d = jnp.where(pairs == 0, first_scale(g) * g, d)
        return optax.tree.cast_like(unflatten(d), updates), BFGSState(
            optax.safe_increment(state.count), pairs, w, g, h
        )

    return optax.GradientTransformation(init, update)
