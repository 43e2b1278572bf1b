"""RNNprop: an LSTM proposes a bounded step from Adam's and RMSprop's directions."""

from collections.abc import Sequence

from l2ljax import _checks
from l2ljax.core import DTypeLike, LearnedOptimizer
from l2ljax.learned import _coordinates
from l2ljax.learned._adaptive import Design


def rnnprop(
    hidden: Sequence[int] = (20, 20),
    output_scale: float = 0.1,
    *,
    encoder: int = 20,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    wait_for_gradient: bool = False,
    state_dtype: DTypeLike | None = None,
    layout: str = "auto",
) -> LearnedOptimizer:
    r"""RNNprop.

    $$x_t = \Big(\frac{\hat m_t}{\sqrt{\hat v_t}}, \frac{\nabla_t}{\sqrt{\hat v_t}}\Big), \qquad
    \theta_{t+1} = \theta_t + \alpha \tanh(\mathrm{RNN}(x_t, h_t, \phi))$$

    with Adam's averages $\hat m$ and $\hat v$, corrected for their bias. Inputs do not change with
    the scale of the loss, and no step is larger than $\alpha$, so that it runs for thousands of
    steps after meta-training over a hundred; `tasks.augment` is the other half of the paper's
    recipe. The RNN is a dense layer with ELU, the LSTM layers and a linear output.

    Args:
        hidden: units of each LSTM layer.
        output_scale: $\alpha$, 0.1 in the paper.
        encoder: units of the dense layer; 0 leaves it out.
        b1: $\beta_1 \in [0, 1)$.
        b2: $\beta_2 \in [0, 1)$.
        eps: $\epsilon > 0$; the root is $\sqrt{\hat v + \epsilon^2}$.
        wait_for_gradient: as in `adaptive_lstm`.
        state_dtype: of the LSTM's state between steps, as in `lstm`; averages stay as they are.
        layout: as in `lstm`.

    Returns:
        A learned optimizer; its transformation has the state `AdaptiveState`, 82 floats a
        coordinate by default.

    Raises:
        ValueError: for a size below 1 (`encoder`: below 0), a decay outside [0, 1), a scale or ε
            that is not positive, an unknown layout; from `init` and `update`, for params with
            leaves that are not floating-point.

    Reference:
        Lv, Jiang and Li, 'Learning gradient descent: better generalization and longer horizons',
        2017, section 4.

    >>> import jax, jax.numpy as jnp
    >>> opt = rnnprop()
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> small, _ = tx.update(jnp.array([1e-6]), tx.init(jnp.zeros(1)))
    >>> large, _ = tx.update(jnp.array([1e6]), tx.init(jnp.zeros(1)))
    >>> bool(jnp.isclose(small[0], large[0], rtol=1e-3))
    True
    """
    _checks.count("encoder", encoder, least=0)
    hidden = _checks.counts("hidden", hidden)
    stored = _coordinates.state_dtype_name(state_dtype)
    design = Design(
        hidden=hidden,
        encoder=int(encoder),
        decays=(b1,),
        decay_square=b2,
        eps=eps,
        logarithms=False,
        p=10.0,
        output_scale=output_scale,
        bounded=True,
        wait_for_gradient=wait_for_gradient,
        state_dtype=stored,
        layout=layout,
    )
    return design.optimizer(
        "rnnprop",
        hidden=list(hidden),
        output_scale=float(output_scale),
        encoder=int(encoder),
        b1=float(b1),
        b2=float(b2),
        eps=float(eps),
        wait_for_gradient=bool(wait_for_gradient),
        **({} if stored is None else {"state_dtype": stored}),
    )
