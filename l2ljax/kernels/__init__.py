"""The step of the coordinate LSTM as one program: in C++ for a CPU, in Pallas for an NVIDIA GPU.

`networks.lstm_apply` defines what they compute, chooses between them, and is what runs elsewhere.
The CPU's program has to be built once for each environment, by `build()` or `l2ljax build`. That of
a GPU is in `l2ljax.kernels.gpu`, which is imported where it is wanted: Pallas takes a while.
"""

from l2ljax.kernels._build import build, load
from l2ljax.kernels._cpu import (
    Notes,
    cpu_lstm,
    cpu_lstm_noting,
    cpu_lstm_sequence,
    cpu_notes,
    cpu_serves,
)
from l2ljax.kernels._leaves import cpu_join, cpu_split
from l2ljax.kernels._primitives import cpu_has_whole

__all__ = [
    "Notes",
    "build",
    "cpu_has_whole",
    "cpu_join",
    "cpu_lstm",
    "cpu_lstm_noting",
    "cpu_lstm_sequence",
    "cpu_notes",
    "cpu_serves",
    "cpu_split",
    "load",
]
