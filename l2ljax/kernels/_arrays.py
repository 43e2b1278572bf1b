"""The weights and the state of the coordinate LSTM as lists of arrays, which programs take."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, PyTree

Carries = tuple[tuple[Array, Array], ...]


def weights_of(phi: PyTree, layers: int) -> list[Array]:
    """Kernel and bias of each layer, then those of the output."""
    names = [phi[f"lstm_{layer}"] for layer in range(layers)]
    flat = [leaf for layer in names for leaf in (layer["kernel"], layer["bias"])]
    return [*flat, phi["output_kernel"], phi["output_bias"]]


def phi_of(weights: Sequence[Any]) -> PyTree:
    """What `weights_of` took apart."""
    *layers, (kernel, bias) = pairs(weights)
    phi: dict[str, Any] = {
        f"lstm_{layer}": {"kernel": kernel, "bias": bias}
        for layer, (kernel, bias) in enumerate(layers)
    }
    return phi | {"output_kernel": kernel, "output_bias": bias}


def pairs(leaves: Sequence[Any]) -> Any:
    """Neighbours together: kernel and bias, cell and hidden units."""
    return tuple(zip(leaves[::2], leaves[1::2], strict=True))
