"""Fully connected networks that are optimized."""

import flax.linen as nn
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax.core import Key, Params
from l2ljax.networks._common import ACTIVATIONS, scaled_normal


class _MLP(nn.Module):
    """Fully connected layers, flattened inputs, an activation between layers."""

    hidden: tuple[int, ...]
    outputs: int
    activation: str
    init_std: float | None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        kernel_init, bias_init = scaled_normal, nn.initializers.zeros_init()
        if self.init_std is not None:
            kernel_init = bias_init = nn.initializers.normal(self.init_std)
        x = inputs.reshape(inputs.shape[0], -1)
        for units in self.hidden:
            x = nn.Dense(units, kernel_init=kernel_init, bias_init=bias_init)(x)
            x = ACTIVATIONS[self.activation](x)
        return nn.Dense(self.outputs, kernel_init=kernel_init, bias_init=bias_init)(x)


def mlp_init(
    key: Key,
    inputs: Float[Array, "batch *features"],
    *,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "sigmoid",
    init_std: float | None = None,
) -> Params:
    """Draws the weights of a fully connected network.

    Args:
        key: PRNG key.
        inputs: examples; only their shape matters.
        hidden: units of each hidden layer; `()` is logistic regression.
        outputs: number of outputs.
        activation: a name in `ACTIVATIONS`.
        init_std: if None, weights are N(0, 1/fan-in) and biases zero; else both N(0, init_std²).

    Returns:
        `{"Dense_0": {"kernel": f32[in, h0], "bias": f32[h0]}, ...}`.

    Raises:
        ValueError: for an unknown activation.
    """
    _checks.key("key", key)
    _checks.choice("activation", activation, ACTIVATIONS)
    return _MLP(hidden, outputs, activation, init_std).init(key, inputs)["params"]


def mlp_apply(
    params: Params,
    inputs: Float[Array, "batch *features"],
    *,
    hidden: tuple[int, ...],
    outputs: int,
    activation: str = "sigmoid",
) -> Float[Array, "batch outputs"]:
    """The outputs of a fully connected network; arguments as in `mlp_init`."""
    return _MLP(hidden, outputs, activation, None).apply({"params": params}, inputs)  # type: ignore[return-value]
