"""An LSTM that reads a sequence of vectors: the network of optimizers without gradients."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Phi
from l2ljax.networks._coordinate import _CoordinateDense, _LSTMCell

Carry = tuple[Float[Array, " units"], Float[Array, " units"]]
"""The cell and the hidden state; zeros in the beginning."""


class _Recurrent(nn.Module):
    """One LSTM layer and a linear output."""

    units: int
    outputs: int

    @nn.compact
    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        carry = _LSTMCell(self.units, name="lstm")(carry, x)
        return carry, _CoordinateDense(self.outputs, name="output")(carry[1])


def recurrent_init(
    key: Key, *, features: int, units: int, outputs: int, forget_bias: float = 1.0
) -> Phi:
    """Draws the weights of the recurrent network.

    Args:
        key: PRNG key.
        features: inputs of a step.
        units: of the LSTM.
        outputs: outputs of a step.
        forget_bias: the bias of the forget gate; the larger, the longer it remembers at first.

    Returns:
        `{"lstm": {"kernel": f32[features + units, 4 units], "bias": f32[4 units]},
        "output": {"kernel": f32[units, outputs], "bias": f32[outputs]}}`; kernels N(0, 1/fan-in),
        other biases zero.
    """
    _checks.key("key", key)
    carry = (jnp.zeros(units, jnp.float32), jnp.zeros(units, jnp.float32))
    inputs = jnp.zeros(features, jnp.float32)
    phi = _Recurrent(units, outputs).init(key, carry, inputs)["params"]
    # The cell's own is one.
    bias = forget_bias * phi["lstm"]["bias"]
    return {**phi, "lstm": {**phi["lstm"], "bias": bias}}


def recurrent_apply(
    phi: Phi, carry: Carry, x: Float[Array, " features"]
) -> tuple[Carry, Float[Array, " outputs"]]:
    r"""One step of the recurrent network.

    $$(i, f, g, o) = W^\top [x; h] + b, \quad c \leftarrow \sigma(f) c + \sigma(i) \tanh(g),
    \quad h \leftarrow \sigma(o) \tanh(c), \quad y = V^\top h + a$$

    Args:
        phi: weights from `recurrent_init`.
        carry: (c, h).
        x: inputs.

    Returns:
        The new (c, h), and y.
    """
    outputs, units = phi["output"]["bias"].size, carry[0].size
    return _Recurrent(units, outputs).apply({"params": phi}, carry, x)  # type: ignore[return-value]
