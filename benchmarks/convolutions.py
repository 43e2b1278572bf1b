"""How derivatives of convolutional networks are computed, beside other ways of computing them.

    python benchmarks/convolutions.py

The network for CIFAR-10 without normalization, 128 images of 32x32: three steps of gradient
descent, alone and for two problems by `vmap`, and three along Hessian-vector products by reverse
mode twice, which is what an exact meta-gradient needs. All ways compute the same numbers, which is
checked, and run in turns in one process; figures are medians of the ratios of neighbouring turns to
the library's own way, with a 95 % interval of the median (bootstrap).

library: XLA's convolutions in layouts that a CPU is fast at, products of patches for second
derivatives. Flax: `nn.Conv` and `nn.max_pool`. patches: one product with all patches, throughout.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import _report
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import networks

CHANNELS, KERNEL, HIDDEN, CLASSES = (16, 16, 16), 5, 32, 10
STEPS = 3
SHAPE: dict[str, Any] = {
    "channels": CHANNELS,
    "kernel": KERNEL,
    "hidden": (HIDDEN,),
    "outputs": CLASSES,
    "activation": "relu",
    "batch_norm": False,
}
Apply = Callable[[Any, jax.Array], jax.Array]


def by_layers(convolve: Callable[[Any, jax.Array], jax.Array], pool: Any) -> Apply:
    """The network with another convolution, of `{"kernel", "bias"}`, and another pooling."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for layer in range(len(CHANNELS)):
            x = pool(nn.relu(convolve(params[f"Conv_{layer}"], x)))
        x = x.reshape(len(x), -1)
        for layer in ("Dense_0", "Dense_1"):
            x = x @ params[layer]["kernel"] + params[layer]["bias"]
            x = nn.relu(x) if layer == "Dense_0" else x
        return x

    return apply


def by_flax(params: Any, x: jax.Array) -> jax.Array:
    return nn.Conv(len(params["bias"]), (KERNEL, KERNEL)).apply({"params": params}, x)  # type: ignore[return-value]


def by_patches(params: Any, x: jax.Array) -> jax.Array:
    return networks.convolve_patches(x, params["kernel"]) + params["bias"]


def halves(x: jax.Array) -> jax.Array:
    """2x2 max-pooling without a window."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


WAYS: dict[str, Apply] = {
    "library": functools.partial(networks.convnet_apply, **SHAPE),
    "Flax": by_layers(by_flax, functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))),
    "patches": by_layers(by_patches, halves),
}


def descend(apply: Apply, images: jax.Array, params: Any, *, second: bool) -> Any:
    """Three steps along the gradient or, `second`, along the Hessian times the params."""
    labels = jnp.arange(len(images)) % CLASSES

    def loss(params: Any) -> jax.Array:
        return -jax.nn.log_softmax(apply(params, images))[jnp.arange(len(images)), labels].mean()

    def direction(params: Any) -> Any:
        if second:
            return jax.vjp(jax.grad(loss), params)[1](params)[0]
        return jax.grad(loss)(params)

    def step(params: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda leaf, d: leaf - 0.01 * d, params, direction(params)), None

    return jax.lax.scan(step, params, None, length=STEPS)[0]


def measure(
    batch: int, size: int, turns: int, *, second: bool = False, problems: int = 1
) -> dict[str, Any]:
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    params = networks.convnet_init(jax.random.key(1), images, **SHAPE)
    if problems > 1:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * problems), params)
    programs, found = {}, {}
    for name, apply in WAYS.items():
        run = functools.partial(descend, apply, second=second)
        run = jax.vmap(run, in_axes=(None, 0)) if problems > 1 else run
        compiled = jax.jit(run).lower(images, params).compile()
        found[name] = compiled(images, params)
        programs[name] = functools.partial(compiled, images, params)
    for name, reached in found.items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name),
            reached,
            found["library"],
        )
    return _report.in_turns(programs, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="little of each, and write nothing")
    arguments = parser.parse_args()
    turns, batch, size = (2, 8, 8) if arguments.quick else (arguments.turns, 128, 32)
    content: dict[str, Any] = {"command": "python benchmarks/convolutions.py", "turns": turns}
    cases: dict[str, Any] = {
        "gradients": {},
        "gradients of two problems": {"problems": 2},
        "Hessian-vector products": {"second": True},
    }
    for title, case in cases.items():
        content[title] = measure(batch, size, turns, **case)
        _report.print_turns(title, content[title])
    if not arguments.quick:
        print(_report.write("convolutions.json", content))


if __name__ == "__main__":
    main()
