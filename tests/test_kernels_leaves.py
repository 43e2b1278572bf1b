"""Joining and splitting many leaves by the CPU's program against XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import kernels
from l2ljax.kernels import _build, _leaves

SHAPES = ((2, 3), (), (0, 4), (5,), (1, 1, 2))


pytestmark = pytest.mark.usefixtures("program")


def leaves(dtype=jnp.float32, *batch):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(*batch, *shape)), dtype) for shape in SHAPES]


def split(flat):
    return kernels.cpu_split(flat, SHAPES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_leaves_are_joined_and_come_back(dtype):
    (expected,) = _leaves.joined(*leaves(dtype))
    run = jax.jit(kernels.cpu_join)
    assert f"@{_build.JOIN}(" in run.lower(leaves(dtype)).as_text()
    flat = run(leaves(dtype))
    np.testing.assert_array_equal(flat, expected)
    assert f"@{_build.SPLIT}(" in jax.jit(split).lower(flat).as_text()
    jax.tree.map(np.testing.assert_array_equal, jax.jit(split)(flat), leaves(dtype))


def test_they_have_derivatives_and_are_mapped():
    def function(leaves, join, split):
        return [jnp.sin(leaf) for leaf in split(jnp.cos(join(leaves)) * 2)]

    ours = functools.partial(function, join=kernels.cpu_join, split=split)
    plain = functools.partial(
        function,
        join=lambda leaves: _leaves.joined(*leaves)[0],
        split=functools.partial(_leaves.split, shapes=SHAPES),
    )
    many = leaves(jnp.float32, 3)
    for of in (
        lambda f: jax.jvp(f, (leaves(),), (leaves(),)),
        lambda f: jax.vjp(f, leaves())[1](leaves()),
        lambda f: jax.vmap(f)(many),
        lambda f: jax.jvp(lambda x: jax.vjp(f, x)[1](leaves()), (leaves(),), (leaves(),)),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
            jax.jit(of, static_argnums=0)(ours),
            jax.jit(of, static_argnums=0)(plain),
        )


def test_exported_programs_hold_what_xla_does():
    exported = jax.export.export(jax.jit(kernels.cpu_join), platforms=["cpu", "tpu"])(leaves())
    assert f"@{_build.JOIN}(" not in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(leaves()), kernels.cpu_join(leaves()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="leaves must have one dtype"):
        kernels.cpu_join([jnp.ones(2), jnp.ones(2, jnp.bfloat16)])
    with pytest.raises(ValueError, match="shapes must be those of 3 numbers"):
        kernels.cpu_split(jnp.ones(3), ((2,), (2,)))
