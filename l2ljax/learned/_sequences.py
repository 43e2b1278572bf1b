"""The kind of a coordinate-wise LSTM: whether it replays known gradients by the CPU's program."""

from typing import Any

from l2ljax import kernels
from l2ljax.core import CoordinatewiseTransformation, Params, Phi, ReplayableTransformation
from l2ljax.networks import lstm_notes


class SequenceTransformation(ReplayableTransformation):
    """One with the words of `update` that the methods here use, and a state with `networks`.

    `sequence`: gradients have a leading axis of steps. `notes`: for each batch of coordinates what
    `networks.lstm_noting` notes; of one step, `update` returns them, too. The state's `networks`
    are the LSTM's memories of each batch.
    """

    def notes(self, state: Any, steps: int) -> Any:
        return lstm_notes(state.networks, steps)

    def noting(self, gradients: Params, state: Any, notes: Any) -> tuple[Params, Any, Any]:
        if notes is None:
            return super().noting(gradients, state, notes)
        return self.update(gradients, state, notes=notes)

    def replay(self, gradients: Params, state: Any, notes: Any = None) -> tuple[Params, Any]:
        return self.update(gradients, state, sequence=True, notes=notes)


def kind_of(
    phi: Phi, fused: bool | None, state_dtype: str | None
) -> type[CoordinatewiseTransformation]:
    """The type of an LSTM with these weights, which the CPU's program serves or not."""
    if fused is False or state_dtype is not None or not kernels.cpu_serves(phi):
        return CoordinatewiseTransformation
    return SequenceTransformation
