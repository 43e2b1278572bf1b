"""What the benchmarks share: the machine and versions of a row, and where results go."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import l2ljax
from l2ljax import checkpoint, evaluate, kernels
from l2ljax.core import LearnedOptimizer, Phi, Task

RESULTS = pathlib.Path(__file__).parent / "results"


def circumstances() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    packages = ["jax", "jaxlib", "optax", "flax", "numpy"]
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "processor_model": _processor("model name"),
        "vectors": _vectors(),
        "memory_gib": _memory_gib(),
        "cpu_program_built": kernels.load(),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "l2ljax": l2ljax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _processor(what: str) -> str | None:
    """What Linux says of the processor; None elsewhere."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(what)]
    return found[0] if found else None


def _vectors() -> str | None:
    """The widest vector instructions of an x86-64 processor; None elsewhere."""
    flags = (_processor("flags") or "").split()
    return next((name for name in ("avx512f", "avx2", "sse2") if name in flags), None)


def _memory_gib() -> float | None:
    """The machine's memory; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def fingerprint(opt: LearnedOptimizer, phi: Phi) -> str:
    """Tells weights apart, wherever their folder is."""
    digest = hashlib.sha256(json.dumps(opt.spec, sort_keys=True).encode())
    for leaf in jax.tree.leaves(phi):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def write(name: str | pathlib.Path, content: dict[str, Any]) -> pathlib.Path:
    """Writes a result, with its circumstances, as JSON; a relative name is one in RESULTS."""
    path = RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"circumstances": circumstances(), **content}, indent=2, allow_nan=False)
    path.write_text(text + "\n")
    return path


def paper_folder(shipped: bool) -> pathlib.Path:
    """Where results of the paper's experiments go: those of weights of one's own replace none."""
    return RESULTS / "paper" if shipped else pathlib.Path("runs/paper").absolute()


def publish(name: str, command: str, content: dict[str, Any], axes: Any) -> None:
    """Writes a result, with the command that made it, and its figure beside it."""
    # Here, so that what measures memory does not load matplotlib.
    from l2ljax import plots

    path = write(f"{name}.json", {"command": command, **content})
    plots.save(axes, path.with_suffix(".png"))
    print(path)


def compile_anew() -> None:
    """Lets no program come from a cache on disk, whatever the environment says."""
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX settles that with its first program, which may have been one of an import.
    compilation_cache.reset_cache()


def outcome(ratio: float, floor: float, aim: float) -> str:
    """What a ratio is worth, in words."""
    if ratio > floor:
        return f"falls short of the floor {floor} by {ratio - floor:.3f}"
    if ratio > aim:
        return f"reaches the floor {floor}, misses the aim {aim}"
    return f"reaches the aim {aim}"


def median_ratio(ratios: list[float]) -> dict[str, float]:
    """The median of the ratios, and a 95 % interval of it."""
    rng, values = np.random.default_rng(0), np.array(ratios)
    medians = np.median(rng.choice(values, size=(2000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"ratio": float(np.median(values)), "low": float(low), "high": float(high)}


def in_turns(
    programs: dict[str, Callable[[], Any]], turns: int, *, calls: int = 1
) -> dict[str, Any]:
    """Milliseconds of each, the last of its calls in a turn, and ratios of turns to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, program in programs.items():
            for _ in range(calls):
                start = time.perf_counter()
                jax.block_until_ready(program())
                last = time.perf_counter() - start
            seconds[name].append(last)
    base = next(iter(seconds.values()))
    return {
        name: {
            "ms": 1e3 * float(np.median(times)),
            **median_ratio([x / y for x, y in zip(times, base, strict=True)]),
        }
        for name, times in seconds.items()
    }


def print_turns(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A line for each program that took turns."""
    for name, row in rows.items():
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(
            f"{title:32} {name:16} {row['ms']:8.2f} ms  {row['ratio']:.2f} {interval}", flush=True
        )


def kept(
    file: pathlib.Path, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What stands in the file, if it is of these settings, or is measured now and written there."""
    if not file.exists():
        start = time.perf_counter()
        content = {"settings": settings, **measure(), "wall_seconds": time.perf_counter() - start}
        checkpoint.write_file(file, json.dumps(content, allow_nan=False) + "\n")
    content = json.loads(file.read_text())
    if content["settings"] != settings:
        raise ValueError(f"{file} was made with {content['settings']}, not {settings}; remove it")
    return content


def kept_tuning(
    file: pathlib.Path, tunable: evaluate.Tunable, task: Task, *, key: jax.Array, **settings: Any
) -> tuple[evaluate.Tuning, float]:
    """What `evaluate.tune` finds, and its seconds; from the file where an earlier run left it.

    Raises:
        ValueError: for a file that was left with another grid or other settings.
    """
    grid = tunable.grid if isinstance(tunable.grid, Mapping) else {"": tunable.grid}
    asked = settings | {"grid": {name: np.asarray(row).tolist() for name, row in grid.items()}}
    if not file.exists():
        start = time.perf_counter()
        tuning = evaluate.tune(tunable.factory, task, tunable.grid, key=key, **settings)
        kept = {
            "settings": asked,
            "points": {name: column.tolist() for name, column in tuning.points.items()},
            # JSON has no infinities: a score that is None was one.
            "scores": [score if np.isfinite(score) else None for score in tuning.scores.tolist()],
            "on_edge": tuning.on_edge,
            "seconds": time.perf_counter() - start,
        }
        checkpoint.write_file(file, json.dumps(kept, allow_nan=False) + "\n")
    kept = json.loads(file.read_text())
    if kept["settings"] != asked:
        raise ValueError(f"{file} was tuned with {kept['settings']}, not {asked}; remove it")
    points = {name: np.array(column) for name, column in kept["points"].items()}
    scores = np.array([np.inf if score is None else score for score in kept["scores"]])
    best = int(np.argmin(scores))
    setting = {name: float(column[best]) for name, column in points.items()}
    tuning = evaluate.Tuning(setting, float(scores[best]), points, scores, kept["on_edge"])
    return tuning, kept["seconds"]
