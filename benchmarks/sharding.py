"""What a device holds when a learned optimizer is applied to a model that is split over eight.

    python benchmarks/sharding.py

The model has the shapes of a transformer with 10⁸ params; each matrix is split along one axis over
a mesh of eight devices. Programs are lowered and compiled, never run: no param is allocated. For
each learned optimizer, and for a flat state of the LSTM beside it, the rows hold XLA's own count of
the bytes on a device, and of those that devices exchange: an exchange of state would be an
all-gather. Devices are virtual ones of the CPU, whose temporary memory is not that of a GPU;
arguments and outputs are the same anywhere.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import _report
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from l2ljax import learned
from l2ljax.core import LearnedOptimizer

DEVICES = 8
KEY = jax.random.key(0)
OPTIMIZERS: dict[str, Callable[..., LearnedOptimizer]] = {
    "lstm": learned.lstm,
    "lstm, bfloat16": lambda **layout: learned.lstm(state_dtype="bfloat16", **layout),
    "adaptive_lstm": learned.adaptive_lstm,
    "rnnprop": learned.rnnprop,
    "mlp": learned.mlp,
}
EXCHANGES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def model(width: int, blocks: int, tokens: int) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Shapes, and the axis that is split over the devices, where one is."""
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {"embedding": ((tokens, width), 0)}
    for block in range(blocks):
        shapes |= {
            f"{block}/attention/in": ((width, 3 * width), 1),
            f"{block}/attention/in/bias": ((3 * width,), None),
            f"{block}/attention/out": ((width, width), 0),
            f"{block}/attention/out/bias": ((width,), None),
            f"{block}/norm": ((2, width), None),
            f"{block}/up": ((width, 4 * width), 1),
            f"{block}/up/bias": ((4 * width,), None),
            f"{block}/down": ((4 * width, width), 0),
            f"{block}/down/bias": ((width,), None),
        }
    return shapes


def split(shapes: dict[str, tuple[tuple[int, ...], int | None]]) -> dict[str, Any]:
    """The params as shapes on a mesh."""
    mesh = jax.make_mesh((DEVICES,), ("model",), axis_types=(AxisType.Auto,))
    params = {}
    for name, (shape, axis) in shapes.items():
        spec = [None if i != axis else "model" for i in range(len(shape))]
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        params[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    return params


def exchanges(program: str) -> dict[str, int]:
    """The bytes on a device that each kind of exchange writes."""
    found = {}
    for kind in EXCHANGES:
        lines = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program)
        found[kind] = sum(map(_bytes, lines))
    return {kind: size for kind, size in found.items() if size}


def _bytes(shapes: str) -> int:
    sizes = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(
        sizes[kind] * int(np.prod([int(n) for n in d.split(",") if n])) for kind, d in arrays
    )


def memory(compiled: Any) -> dict[str, int]:
    """Bytes on one device."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "reused": found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }


def measure(name: str, layout: str, params: dict[str, Any]) -> dict[str, Any]:
    opt = OPTIMIZERS[name](layout=layout)
    tx = opt.bind(opt.init(KEY))
    start = time.perf_counter()
    init = jax.jit(tx.init).lower(params).compile()
    everywhere = NamedSharding(params["embedding"].sharding.mesh, PartitionSpec())

    def placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        # What depends on no param is on one device, and goes to all with the first update.
        sharding = sharding if len(sharding.device_set) == DEVICES else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(placed, jax.eval_shape(tx.init, params), init.output_shardings)
    update = jax.jit(tx.update, donate_argnums=(0, 1)).lower(params, state, params).compile()
    updates, after = update.output_shardings
    kept = all(
        updates[key].is_equivalent_to(leaf.sharding, len(leaf.shape))
        for key, leaf in params.items()
    ) and all(
        new.is_equivalent_to(old.sharding, len(old.shape))
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    )
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {
        "optimizer": name,
        "layout": layout,
        "state_bytes": whole,
        "state_bytes_on_a_device": memory(init)["outputs"],
        "shardings_kept": kept,
        "update": memory(update),
        "exchanged_bytes": exchanges(update.as_text()),
        "seconds_to_compile": time.perf_counter() - start,
    }


def draw(rows: list[dict[str, Any]], params: int) -> plt.Axes:
    """The state of each optimizer on a device, beside an eighth of it."""
    _, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = [row["optimizer"] + ", flat" * (row["layout"] == "flat") for row in rows]
    places = np.arange(len(rows))
    sizes = [row["state_bytes_on_a_device"] / 2**30 for row in rows]
    ideal = [row["state_bytes"] / DEVICES / 2**30 for row in rows]
    axes.plot(ideal, places, "k|", ms=14, label="an eighth of the whole state")
    axes.plot(sizes, places, "o", label="on a device")
    for size, place in zip(sizes, places, strict=True):
        axes.annotate(
            f"{size:.3g}", (size, place), (10, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    whole = f"{params / 1e6:.0f} M params"
    axes.set(xlabel=f"state of {whole}, split over {DEVICES} devices, GiB", xscale="log")
    axes.margins(x=0.1, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="x", linewidth=0.5)
    axes.legend(frameon=False, loc="upper left")
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=19_600)
    parser.add_argument("--quick", action="store_true", help="a small model, and write nothing")
    arguments = parser.parse_args()
    sizes = (arguments.width, arguments.blocks, arguments.tokens)
    if arguments.quick:
        sizes = (512, 1, 1024)
    params = split(model(*sizes))
    count = sum(leaf.size for leaf in params.values())
    print(f"{count:,} params in {len(params)} leaves")
    rows = []
    for name, layout in [("lstm", "flat"), *((name, "auto") for name in OPTIMIZERS)]:
        rows.append(row := measure(name, layout, params))
        exchanged = sum(row["exchanged_bytes"].values()) / 2**20
        print(
            f"{name:16} {layout:5} state {row['state_bytes'] / 2**30:6.2f} GiB, on a device "
            f"{row['state_bytes_on_a_device'] / 2**30:6.2f}; update: temporary "
            f"{row['update']['temporary'] / 2**30:6.2f} GiB, exchanged {exchanged:.2f} MiB; "
            f"shardings kept: {row['shardings_kept']}; {row['seconds_to_compile']:.1f} s",
            flush=True,
        )
    if arguments.quick:
        return
    content = {
        "params": count,
        "leaves": len(params),
        "mesh": {"model": DEVICES},
        "rows": rows,
    }
    _report.publish("sharding", "python benchmarks/sharding.py", content, draw(rows, count))


if __name__ == "__main__":
    main()
