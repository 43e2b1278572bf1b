"""What the benchmarks share: the machine and versions of a row, and where results go."""

import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

import l2ljax

RESULTS = pathlib.Path(__file__).parent / "results"


def circumstances() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    packages = ["jax", "jaxlib", "optax", "flax", "numpy"]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "l2ljax": l2ljax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def write(name: str, content: dict[str, Any]) -> pathlib.Path:
    """Writes a result, with its circumstances, as JSON."""
    path = RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"circumstances": circumstances(), **content}, indent=2, allow_nan=False)
    path.write_text(text + "\n")
    return path


def outcome(ratio: float, floor: float, aim: float) -> str:
    """What a ratio is worth, in words."""
    if ratio > floor:
        return f"falls short of the floor {floor} by {ratio - floor:.3f}"
    if ratio > aim:
        return f"reaches the floor {floor}, misses the aim {aim}"
    return f"reaches the aim {aim}"
