"""The LSTM of 'Learning to learn without gradient descent by gradient descent'."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from l2ljax import _checks, networks
from l2ljax.core import ArrayLike, Key, LearnedOptimizer, Params, Phi, Spec, closure
from l2ljax.learned._black_box import EVENTS, Seen, point, see, see_nothing


class BlackBoxState(NamedTuple):
    """What is remembered of all values so far.

    Attributes:
        carry: the LSTM's (cell, hidden), each f[hidden].
        seen: statistics of all values, with the best point and its value.
    """

    carry: tuple[Float[Array, " hidden"], Float[Array, " hidden"]]
    seen: Seen


def black_box_lstm(dim: int, hidden: int = 32) -> LearnedOptimizer:
    r"""An LSTM that minimises a function on $[-1, 1]^d$ from its values alone.

    $$(\Delta, h_{t+1}) = \mathrm{LSTM}(u_t, h_t), \qquad x_{t+1} = \mathrm{fold}(x^*_t + \Delta)$$

    $$u_t = \Big(x_t,\ x^*_t,\ \frac{y_t - \bar y_t}{s_t},\ \frac{y^*_t - \bar y_t}{s_t},\
    \mathrm{log\_sign}\Big(\frac{y_t - y^*_{t-1}}{s_t}\Big)\Big)$$

    with the best point and value so far, $x^*_t$ and $y^*_t$, and the mean and standard deviation
    of the values so far, $\bar y_t$ and $s_t$. So it does not depend on the scale and the offset of
    the function. `fold` is the identity in the box, and reflects at its walls what leaves it.

    The transformation takes no notice of gradients, but needs the value at the params, as the extra
    argument `value`: `meta.unroll`, `evaluate` and `hyper.minimize_black_box` pass it. A value that
    is not finite is seen as two standard deviations above the mean, and is never the best.

    Args:
        dim: d; params are one array f[d].
        hidden: units of the LSTM.

    Returns:
        A learned optimizer; train it by `meta.train` with `hyper.black_box`.

    Raises:
        ValueError: for a size below one; from `init`, for params of another shape; from `update`,
            without params.

    Reference:
        Chen et al. (2017), 'Learning to learn without gradient descent by gradient descent'.
        There the LSTM sees $x_t$ and $y_t$ alone, and puts out $x_{t+1}$ itself.

    >>> opt = black_box_lstm(dim=2)
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> x = jnp.zeros(2)
    >>> state = tx.init(x)
    >>> updates, state = tx.update(x, state, x, value=jnp.sum((x - 1) ** 2))
    >>> int(state.seen.count), float(state.seen.best_value), updates.shape
    (1, 2.0, (2,))
    """
    _checks.count("dim", dim)
    _checks.count("hidden", hidden)
    dim, hidden = int(dim), int(hidden)
    return LearnedOptimizer(
        init=closure(_draw, dim=dim, hidden=hidden),
        bind=closure(_bind, dim=dim, hidden=hidden),
        spec=Spec(name="black_box_lstm", arguments={"dim": dim, "hidden": hidden}),
    )


def _draw(key: Key, *, dim: int, hidden: int) -> Phi:
    # A forget gate that is open from the start: 20 steps are few, and all of them matter.
    return networks.recurrent_init(
        key, features=2 * dim + EVENTS, units=hidden, outputs=dim, forget_bias=5.0
    )


def _bind(phi: Phi, *, dim: int, hidden: int) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, dim=dim, hidden=hidden), update=closure(_update, phi)
    )


def _init(params: Params, *, dim: int, hidden: int) -> BlackBoxState:
    seen = see_nothing(params, dim)
    carry = (jnp.zeros(hidden, seen.mean.dtype), jnp.zeros(hidden, seen.mean.dtype))
    return BlackBoxState(carry, seen)


def _update(
    phi: Phi,
    updates: Params,
    state: BlackBoxState,
    params: Params | None = None,
    *,
    value: ArrayLike,
    **extra: Any,
) -> tuple[Params, BlackBoxState]:
    del extra
    _checks.state(state, BlackBoxState)
    _, params = _checks.gradients(updates, point(params), state.seen.best, real=True)
    seen, features = see(state.seen, params, value)
    phi = jax.tree.map(lambda leaf: leaf.astype(features.dtype), phi)
    carry, move = networks.recurrent_apply(phi, state.carry, features)
    return _fold(seen.best + move) - params, BlackBoxState(carry, seen)


def _fold(x: Array) -> Array:
    """Reflects at -1 and 1 what lies beyond: a wave of triangles that is x from -1 to 1."""
    return 1 - jnp.abs((x + 1) % 4 - 2)
