"""The devices and processes that a command runs on."""

import argparse
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

T = TypeVar("T")

# The options of devices and their defaults.
OPTIONS = {
    "mesh": False,
    "distributed": False,
    "coordinator": None,
    "processes": None,
    "process": None,
}


def mesh(arguments: argparse.Namespace) -> Mesh | None:
    """What `--mesh` and `--distributed` ask for, or None; joins the other processes first.

    Raises:
        ValueError: if processes are described without `--distributed`, or cannot find each other.
    """
    described = {
        "--coordinator": arguments.coordinator,
        "--processes": arguments.processes,
        "--process": arguments.process,
    }
    if not arguments.distributed:
        for name, value in described.items():
            if value is not None:
                raise ValueError(f"{name} needs --distributed, got {value!r} without it")
        if not arguments.mesh:
            return None
    else:
        missing = [name for name, value in described.items() if value is None]
        if 0 < len(missing) < 3:
            raise ValueError(
                "--coordinator, --processes and --process go together, got none for "
                + ", ".join(missing)
            )
        try:
            jax.distributed.initialize(
                arguments.coordinator, arguments.processes, arguments.process
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"--distributed found no other processes: {error}; --coordinator, --processes and "
                "--process say where they are"
            ) from error
    return jax.make_mesh((jax.device_count(),), ("problems",), axis_types=(AxisType.Auto,))


def count(mesh: Mesh | None) -> int | None:
    """How many devices share the batch; None without a mesh."""
    return None if mesh is None else mesh.size


def require_shares(batch: int, mesh: Mesh) -> None:
    """Requires a batch that the devices can share evenly.

    Raises:
        ValueError: for another one.
    """
    if batch % mesh.size:
        raise ValueError(f"--batch must be a multiple of the {mesh.size} devices, got {batch}")


def require_same(used: int | None, mesh: Mesh | None) -> None:
    """Requires as many devices as a run has used, since each has a state of its own.

    Args:
        used: the `count` of the run.
        mesh: the devices that there are now.

    Raises:
        ValueError: for others.
    """
    if used != count(mesh):
        raise ValueError(f"this run used {_described(used)}, got {_described(count(mesh))}")


def _described(devices: int | None) -> str:
    if devices is None:
        return "one device without --mesh"
    return f"{devices} device{'s' * (devices != 1)} with --mesh or --distributed"


def leads() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def together(decision: bool) -> bool:
    """The first process's decision, for all."""
    if jax.process_count() == 1:
        return decision
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(decision)))


def after_leader(action: Callable[[], T]) -> T:
    """Runs an action in each process, in the others when the first has done its own.

    Raises:
        OSError: in the others, if the first one failed.
    """
    if jax.process_count() == 1:
        return action()
    if not leads():
        if not together(True):
            raise OSError("the first process could not open the run's folder")
        return action()
    done = False
    try:
        result = action()
        done = True
    finally:
        together(done)
    return result
