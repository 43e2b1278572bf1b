"""How the LSTM optimizer's step is computed, beside other ways of computing it.

    python benchmarks/lstm_step.py

Segments of meta-training without their task: 20 steps of the 2x20 LSTM on given gradients, and the
sum of updates times gradients with its derivative by φ, four segments in one compiled call, as
`meta.train` has many in one; then a step alone, forwards. All variants of a size compute the
same numbers, which is checked, and run in turns in one process, segments by two calls of which the
second counts; figures are medians of the ratios of neighbouring turns to the library's own way
without its program, below 1 where a variant is faster, with a 95 % interval of the median
(bootstrap).

library: XLA computes the step, and again in the backward pass. program: that of `l2ljax.kernels`
for a CPU does both, where it was built (`l2ljax build`). replayed: its derivative takes some
coordinates at a time through all steps, as in meta-training where gradients are constants, if gates
would take more than 1 GiB. noted: the same with gates that the forward steps wrote, as the library
does otherwise. kept: XLA keeps gates instead. custom VJP: the derivative of a cell written by
hand. one tanh: all four gates by one tanh, since σ(x) = (1 + tanh(x/2))/2. unrolled: two steps in
one round of the loop. whole: all coordinates at once. tiles: 4,096 after another, which the library
does from 32,768 on, forwards, without the program.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import kernels, networks
from l2ljax.learned._tiles import in_tiles

HIDDEN = (20, 20)
STEPS, IN_A_CALL = 20, 4
SIZES = {"quadratics, 1,280": 1280, "MNIST MLP, 15,910": 15_910, "1,002,660": 1_002_660}
Memory = tuple[tuple[jax.Array, jax.Array], ...]
Step = Callable[[Any, Memory, jax.Array], tuple[Memory, jax.Array]]
Segment = Callable[[Any, Memory, jax.Array], tuple[Memory, jax.Array]]


def library(phi: Any, memory: Memory, gradient: jax.Array) -> tuple[Memory, jax.Array]:
    return networks.lstm_apply(phi, memory, gradient[None], hidden=HIDDEN, fused=False)


def program(phi: Any, memory: Memory, gradient: jax.Array) -> tuple[Memory, jax.Array]:
    return networks.lstm_apply(phi, memory, gradient[None], hidden=HIDDEN)


def by_cell(cell: Callable[..., tuple[jax.Array, jax.Array]]) -> Step:
    """The network with another cell: `cell(kernel, bias, inputs, c) -> (c, h)`."""

    def step(phi: Any, memory: Memory, gradient: jax.Array) -> tuple[Memory, jax.Array]:
        x, new = gradient[None], []
        for layer, (c, h) in enumerate(memory):
            weights = phi[f"lstm_{layer}"]
            new.append(cell(weights["kernel"], weights["bias"], jnp.concatenate([x, h]), c))
            x = new[-1][1]
        return tuple(new), (phi["output_kernel"].T @ x)[0] + phi["output_bias"]

    return step


def one_tanh(kernel: Any, bias: Any, inputs: Any, c: Any) -> tuple[jax.Array, jax.Array]:
    halves = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5]), kernel.shape[1] // 4)
    i, f, g, o = jnp.split(jnp.tanh((kernel * halves).T @ inputs + (bias * halves)[:, None]), 4)
    c = 0.5 * ((f + 1) * c + (i + 1) * g)
    return c, 0.5 * (o + 1) * jnp.tanh(c)


@jax.custom_vjp
def by_hand(kernel: Any, bias: Any, inputs: Any, c: Any) -> tuple[jax.Array, jax.Array]:
    return by_hand_forward(kernel, bias, inputs, c)[0]


def by_hand_forward(kernel: Any, bias: Any, inputs: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = jnp.split(kernel.T @ inputs + bias[:, None], 4)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * c + i * g
    squashed = jnp.tanh(new)
    return (new, o * squashed), (kernel, inputs, c, i, f, g, o, squashed)


def by_hand_backward(kept: Any, cotangent: Any) -> tuple[jax.Array, ...]:
    kernel, inputs, c, i, f, g, o, squashed = kept
    dc, dh = cotangent
    dc = dc + dh * o * (1 - squashed**2)
    gates = jnp.concatenate(
        [
            dc * g * i * (1 - i),
            dc * c * f * (1 - f),
            dc * i * (1 - g**2),
            dh * squashed * o * (1 - o),
        ]
    )
    return inputs @ gates.T, gates.sum(1), kernel @ gates, dc * f


by_hand.defvjp(by_hand_forward, by_hand_backward)


def segment(
    step: Step,
    phi: Any,
    memory: Memory,
    gradients: jax.Array,
    *,
    recompute: bool = True,
    unroll: int = 1,
) -> tuple[Memory, jax.Array]:
    """New memory; as one vector the sum of updates times gradients, and its derivative."""

    def total(phi: Any) -> tuple[jax.Array, Memory]:
        def body(memory: Memory, gradient: jax.Array) -> tuple[Memory, jax.Array]:
            memory, update = step(phi, memory, gradient)
            return memory, jnp.vdot(update, gradient)

        body = jax.checkpoint(body, prevent_cse=False) if recompute else body
        new, products = jax.lax.scan(body, memory, gradients, unroll=unroll)
        return products.sum(), new

    (found, new), derivative = jax.value_and_grad(total, has_aux=True)(phi)
    return new, as_vector((found, derivative))


def replayed(phi: Any, memory: Memory, gradients: jax.Array) -> tuple[Memory, jax.Array]:
    new, updates = jax.lax.scan(functools.partial(program, phi), memory, gradients)

    def again(phi: Any) -> jax.Array:
        return networks.lstm_sequence(phi, memory, gradients[:, None], hidden=HIDDEN)[1]

    (derivative,) = jax.vjp(again, phi)[1](gradients)
    return new, as_vector((jnp.vdot(updates, gradients), derivative))


def noted(phi: Any, memory: Memory, gradients: jax.Array) -> tuple[Memory, jax.Array]:
    def body(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        memory, notes = state
        memory, update, notes = networks.lstm_noting(
            phi, memory, gradient[None], notes, hidden=HIDDEN
        )
        return (memory, notes), update

    (notes,) = networks.lstm_notes([memory], len(gradients))
    (new, notes), updates = jax.lax.scan(body, (memory, notes), gradients)

    def again(phi: Any) -> jax.Array:
        return networks.lstm_sequence(phi, memory, gradients[:, None], notes, hidden=HIDDEN)[1]

    (derivative,) = jax.vjp(again, phi)[1](gradients)
    return new, as_vector((jnp.vdot(updates, gradients), derivative))


def as_vector(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(part) for part in jax.tree.leaves(tree)])


def tiles(phi: Any, memory: Memory, gradient: jax.Array) -> tuple[Memory, jax.Array]:
    return in_tiles(functools.partial(library, phi), memory, gradient)


SEGMENTS: dict[str, Segment] = {
    "library": functools.partial(segment, library),
    **(
        {"program": functools.partial(segment, program), "replayed": replayed, "noted": noted}
        if kernels.load()
        else {}
    ),
    "kept": functools.partial(segment, library, recompute=False),
    "custom VJP": functools.partial(segment, by_cell(by_hand)),
    "custom VJP, kept": functools.partial(segment, by_cell(by_hand), recompute=False),
    "one tanh": functools.partial(segment, by_cell(one_tanh)),
    "unrolled": functools.partial(segment, library, unroll=2),
}


def one_after_another(segment: Segment, phi: Any, gradients: jax.Array) -> jax.Array:
    """The vectors of all segments, each of which goes on from the memory of the one before."""
    memory = networks.lstm_carry(gradients.shape[2:], "float32", hidden=HIDDEN)
    return jax.lax.scan(functools.partial(segment, phi), memory, gradients)[1]


def measure_segments(size: int, turns: int) -> dict[str, Any]:
    """Every variant of a segment; each must have the library's derivative."""
    phi = networks.lstm_init(jax.random.key(0), features=1, hidden=HIDDEN)
    gradients = jax.random.normal(jax.random.key(1), (IN_A_CALL, STEPS, size))
    programs, found = {}, {}
    for name, function in SEGMENTS.items():
        run = jax.jit(functools.partial(one_after_another, function))
        compiled = run.lower(phi, gradients).compile()
        found[name] = compiled(phi, gradients)
        programs[name] = functools.partial(compiled, phi, gradients)
    for name, derivative in found.items():
        scale = jnp.abs(found["library"]).max()
        np.testing.assert_allclose(
            derivative / scale, found["library"] / scale, atol=1e-4, err_msg=name
        )
    # In training a call follows another, and takes the memory that this one has freed.
    return _report.in_turns(programs, turns, calls=2)


def measure_forwards(size: int, turns: int) -> dict[str, Any]:
    """A step alone, whole and in tiles, its state in place."""
    phi = networks.lstm_init(jax.random.key(0), features=1, hidden=HIDDEN)
    gradient = jax.random.normal(jax.random.key(1), (size,))
    programs, found = {}, {}
    steps = {"whole": library, "tiles": tiles} | ({"program": program} if kernels.load() else {})
    for name, step in steps.items():
        run = jax.jit(step, donate_argnums=1)
        memory = jax.jit(lambda: networks.lstm_carry((size,), "float32", hidden=HIDDEN))()
        compiled = run.lower(phi, memory, gradient).compile()
        memory, found[name] = compiled(phi, memory, gradient)
        state = {"memory": memory}

        def again(compiled: Any = compiled, state: dict[str, Any] = state) -> Any:
            state["memory"], update = compiled(phi, state["memory"], gradient)
            return state["memory"], update

        programs[name] = again
    for name, update in found.items():
        np.testing.assert_allclose(update, found["whole"], atol=1e-6, err_msg=name)
    return _report.in_turns(programs, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="little of each, and write nothing")
    arguments = parser.parse_args()
    turns = 2 if arguments.quick else arguments.turns
    sizes = {"small": 300} if arguments.quick else SIZES
    content: dict[str, Any] = {
        "command": "python benchmarks/lstm_step.py",
        "turns": turns,
        "segments": {},
        "forwards": {},
    }
    for title, size in sizes.items():
        if size < 100_000:
            content["segments"][title] = measure_segments(size, turns)
        content["forwards"][title] = measure_forwards(size, turns)
        for kind in ("segments", "forwards"):
            _report.print_turns(f"{title}, {kind}", content[kind].get(title, {}))
    if not arguments.quick:
        print(_report.write("lstm_step.json", content))


if __name__ == "__main__":
    main()
