"""The kind of a coordinate-wise LSTM: whether it replays known gradients by the CPU's program."""

from typing import Any

from l2ljax import kernels
from l2ljax.core import CoordinatewiseTransformation, Params, Phi, ReplayableTransformation


class SequenceTransformation(ReplayableTransformation):
    """One whose `update` also takes a sequence of gradients, on a leading axis, with that word."""

    def replay(self, gradients: Params, state: Any) -> tuple[Params, Any]:
        return self.update(gradients, state, sequence=True)


def kind_of(
    phi: Phi, fused: bool | None, state_dtype: str | None
) -> type[CoordinatewiseTransformation]:
    """The type of an LSTM with these weights, which the CPU's program serves or not."""
    if fused is False or state_dtype is not None or not kernels.cpu_serves(phi):
        return CoordinatewiseTransformation
    return SequenceTransformation
