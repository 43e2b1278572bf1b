"""An LSTM optimizer that sees gradients and their averages, as they are and normalised."""

from collections.abc import Sequence

from l2ljax import _checks
from l2ljax.core import DTypeLike, LearnedOptimizer
from l2ljax.learned import _coordinates
from l2ljax.learned._adaptive import Design


def adaptive_lstm(
    hidden: Sequence[int] = (20, 20),
    output_scale: float = 0.1,
    *,
    b1: float | Sequence[float] = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    p: float = 10.0,
    bounded: bool = True,
    wait_for_gradient: bool = False,
    state_dtype: DTypeLike | None = None,
    fused: bool | None = None,
    layout: str = "auto",
) -> LearnedOptimizer:
    r"""The coordinate-wise LSTM with richer inputs: of Andrychowicz et al. and of RNNprop at once.

    $$m \leftarrow \beta_1 m + (1 - \beta_1) \nabla, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) \nabla^2, \quad
    \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t}$$

    $$x_t = \Big(\frac{\nabla}{\sqrt{\hat v}}, \frac{\hat m}{\sqrt{\hat v}},
    \mathrm{log\_sign}(\nabla), \mathrm{log\_sign}(\hat m)\Big), \qquad
    \theta_{t+1} = \theta_t + \alpha \tanh(\mathrm{LSTM}(x_t, h_t))$$

    The normalised inputs keep their size on other problems and at the end of a run, where the
    gradients that the plain LSTM sees are ones it was never trained on; the logarithms say how
    large a gradient is, which RNNprop does not know.

    Args:
        hidden: units of each LSTM layer.
        output_scale: $\alpha$.
        b1: $\beta_1 \in [0, 1)$, or several of them; each adds three inputs.
        b2: $\beta_2 \in [0, 1)$.
        eps: $\epsilon > 0$; the root is $\sqrt{\hat v + \epsilon^2}$.
        p: of `log_sign`, see `lstm`.
        bounded: whether tanh bounds the step by $\alpha$; without it the output is linear.
        wait_for_gradient: as in `lstm`, without a state of its own: a coordinate stands still while
            m and v are exactly zero. They are again where a coordinate has had no gradient for so
            long that its last one has left them: 8,700 steps at $\beta_1$ = 0.99.
        state_dtype: of the LSTM's state between steps, as in `lstm`; averages stay as they are.
        fused: as in `lstm`.
        layout: as in `lstm`.

    Returns:
        A learned optimizer; its transformation has the state `AdaptiveState`, 82 floats a
        coordinate by default.

    Raises:
        ValueError: for a size below 1, a decay outside [0, 1), no decay, a scale, ε or p that is
            not positive, a p of 87 or more, an unknown layout; from `init` and `update`, for params
            with leaves that are not floating-point.

    Reference:
        Inputs of Andrychowicz et al. (2016), appendix A, and Lv et al. (2017), section 4.

    >>> import jax, jax.numpy as jnp
    >>> opt = adaptive_lstm(b1=(0.5, 0.9))
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state)
    >>> updates["w"].shape, state.means.shape, bool(abs(updates["w"]).max() < 0.1)
    ((3, 2), (2, 8), True)
    """
    hidden = _checks.counts("hidden", hidden)
    stored = _coordinates.state_dtype_name(state_dtype)
    numbers = "numbers in [0, 1)"
    decays = (b1,) if isinstance(b1, int | float) else _checks.sequence("b1", b1, numbers)
    design = Design(
        hidden=hidden,
        encoder=0,
        decays=decays,
        decay_square=b2,
        eps=eps,
        logarithms=True,
        p=p,
        output_scale=output_scale,
        bounded=bool(bounded),
        wait_for_gradient=wait_for_gradient,
        state_dtype=stored,
        fused=fused,
        layout=layout,
    )
    return design.optimizer(
        "adaptive_lstm",
        hidden=list(hidden),
        output_scale=float(output_scale),
        b1=list(map(float, decays)),
        b2=float(b2),
        eps=float(eps),
        p=float(p),
        bounded=bool(bounded),
        wait_for_gradient=bool(wait_for_gradient),
        **({} if stored is None else {"state_dtype": stored}),
    )
