"""How far results of README.md that depend on a seed or on rounding spread.

    python benchmarks/spread.py             # resumable: type it again; some fifteen minutes
    python benchmarks/spread.py snippet     # a part: snippet, demo

*demo*: `l2ljax demo` with five seeds of meta-training. Each time the final loss of the LSTM over
that of the best of SGD, Adam, RMSprop and Nesterov's method, all on the same fresh problems, rates
tuned on others; the interval of one seed is over problems. *snippet*: the first example, with ten
initial networks. Adam has the rate of nine half decades with which its median is lowest.
"""

import argparse
import contextlib
import functools
import io
import json
import pathlib
from typing import Any

import _report
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2ljax as l2l
from l2ljax import cli

FOLDER = pathlib.Path("runs") / "spread"
SEEDS = 5
NETWORKS = 10
RIVALS = ("SGD", "Adam", "RMSprop", "Nesterov")
RATES = tuple(float(f"{rate:.0e}") for rate in np.geomspace(1e-4, 1.0, 9))


def demo(seed: int) -> dict[str, Any]:
    """The ratio that a demo with this seed ends at."""
    folder = FOLDER / f"demo-{seed}"
    if not (folder / "card.json").exists():
        words = ["demo", "--seed", str(seed), "--out", str(folder)]
        words += ["--resume"] if (folder / "run.json").exists() else []
        with contextlib.redirect_stdout(io.StringIO()):
            if status := cli.main(words):
                raise SystemExit(status)
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    best = min((row for row in rows if row["name"] in RIVALS), key=lambda row: row["final"])
    return {
        "seed": seed,
        "best": best["name"],
        **{key: best[key] for key in ("ratio", "ratio_low", "ratio_high")},
    }


@functools.partial(jax.jit, static_argnames="steps")
def run(tx: optax.GradientTransformation, keys: jax.Array, steps: int = 200) -> jax.Array:
    """The final losses of the example's network, one for each key."""
    model = nn.Sequential([nn.Dense(32), nn.swish, nn.LayerNorm(), nn.Dense(1)])
    x = jnp.linspace(-3, 3, 256)[:, None]
    tx = optax.chain(optax.clip_by_global_norm(1.0), tx)

    def loss(params: Any) -> jax.Array:
        return jnp.mean((model.apply(params, x) - jnp.sin(2 * x)) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def train(key: jax.Array) -> jax.Array:
        params = model.init(key, x)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return loss(params)

    return jax.vmap(train)(keys)


def snippet() -> dict[str, Any]:
    """Final losses of `general` and of Adam at each rate."""
    keys = jax.vmap(jax.random.key)(jnp.arange(NETWORKS))
    members = {
        "general": l2l.learned.load("general"),
        "general, num_steps": l2l.learned.load("general", num_steps=200),
        **{f"Adam at {rate:g}": l2l.classic.adam(rate) for rate in RATES},
    }
    return {
        name: np.asarray(run(l2l.core.as_pytree(tx), keys)).tolist() for name, tx in members.items()
    }


def print_snippet(losses: dict[str, list[float]]) -> None:
    for name, finals in losses.items():
        between = f"[{min(finals):.4f}, {max(finals):.4f}]"
        print(f"snippet  {name:20} median {np.median(finals):.4f} {between}", flush=True)


def demos() -> list[dict[str, Any]]:
    """The demo with each seed."""
    rows = []
    for seed in range(SEEDS):
        rows.append(demo(seed))
        line = "demo     seed {seed}: {ratio:.2f} [{ratio_low:.2f}, {ratio_high:.2f}] of {best}"
        print(line.format(**rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows]
    print(f"demo     median {np.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="snippet, demo; default: both")
    parts = parser.parse_args().parts or ["snippet", "demo"]
    if "snippet" in parts:
        losses = snippet()
        print_snippet(losses)
        command = "python benchmarks/spread.py snippet"
        print(_report.write("spread-snippet.json", {"command": command, "finals": losses}))
    if "demo" in parts:
        command = "python benchmarks/spread.py demo"
        print(_report.write("spread-demo.json", {"command": command, "seeds": demos()}))


if __name__ == "__main__":
    main()
