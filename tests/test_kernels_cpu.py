"""The LSTM as a program of the CPU against the network that defines it.

Tests have eight devices, where `lstm_apply` leaves the program alone: it is called here itself, and
chosen in processes with one device.
"""

import functools
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from l2ljax import kernels, learned, meta, tasks
from l2ljax.kernels import _build
from l2ljax.networks import lstm_apply, lstm_init

HIDDEN = (20, 20)
SIZES = {
    "the paper's": ((20, 20), 2, (150,)),
    "whole tiles": ((20, 20), 1, (64,)),
    "one layer": ((20,), 9, (64,)),
    "three layers of other sizes": ((3, 17, 8), 1, (70,)),
    "one coordinate": ((4, 4), 3, ()),
    "coordinates on two axes": ((5,), 2, (7, 11)),
    "nine layers": ((2,) * 9, 1, (33,)),
    "many coordinates": ((4,), 2, (20_000,)),
}


@pytest.fixture(scope="module", autouse=True)
def built():
    if not any(map(shutil.which, _build._COMPILERS)):
        pytest.skip("there is no GCC")
    if platform.machine() != "x86_64":
        pytest.skip("the program is for x86-64")
    if not kernels.load():
        kernels.build()


def network(hidden):
    return functools.partial(lstm_apply, hidden=hidden, fused=False)


@functools.cache
def fused(hidden):
    """The program; one function a network, as `lstm_apply` has it, so that programs are shared."""
    return functools.partial(kernels.cpu_lstm, network(hidden))


def inputs(hidden, features, shape, scale=1.0):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    phi = lstm_init(jax.random.key(0), features=features, hidden=hidden)
    phi = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), phi)
    carries = tuple((normal(units, *shape), normal(units, *shape)) for units in hidden)
    return phi, carries, normal(features, *shape)


def like(tree, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), tree)


def assert_close(found, expected, tolerance=3e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1e-30))


@pytest.mark.parametrize("case", SIZES)
def test_values_and_gradients_are_those_of_the_network(case):
    hidden, features, shape = SIZES[case]
    arguments = inputs(hidden, features, shape)
    expected, pull = jax.vjp(network(hidden), *arguments)
    found, pull_fused = jax.vjp(fused(hidden), *arguments)
    assert_close(found, expected)
    gradients = like(expected)
    assert_close(pull_fused(gradients), pull(gradients))


def test_the_program_is_what_runs():
    lowered = jax.jit(jax.grad(lambda *a: fused(HIDDEN)(*a)[1].sum())).lower(
        *inputs(HIDDEN, 2, (8,))
    )
    text = lowered.as_text()
    # The values of the step are not needed for its gradient.
    assert _build.BACKWARD in text and _build.FORWARD not in text and "dot_general" not in text
    assert _build.FORWARD in jax.jit(fused(HIDDEN)).lower(*inputs(HIDDEN, 2, (8,))).as_text()


def test_small_and_large_numbers_keep_their_digits():
    phi, carries, x = inputs((3,), 2, (64,))
    phi = {**phi, "lstm_0": {**phi["lstm_0"], "bias": jnp.zeros(12)}}
    for scale in (1e-30, 1e-9, 1e-3, 1e3):
        small = jax.tree.map(lambda leaf, scale=scale: scale * leaf, (carries, x))
        expected = network((3,))(phi, *small)
        found = fused((3,))(phi, *small)
        # Each number by itself: tanh of a small one is as exact as the number. σ of a large one may
        # be no further from zero than exp(-60).
        least = 1e-37 if scale < 1 else 1e-20
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=least)


def test_its_exponentials_are_exact_to_the_last_bits():
    """In float64, of one unit whose gates get x one at a time: c and h."""
    x = np.concatenate([np.linspace(-12, 12, 20_001), np.logspace(-20, 1, 2_001)])
    x = x.astype(np.float32)
    cell = np.float32(0.3)
    for gate in (0, 1, 3):
        kernel, bias = np.zeros((2, 4), np.float32), np.zeros(4, np.float32)
        kernel[0, gate], bias[2] = 1, 0.7
        phi = {
            "lstm_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
            "output_kernel": jnp.ones((1, 1)),
            "output_bias": jnp.zeros(1),
        }
        carries = ((jnp.full((1, x.size), cell), jnp.zeros((1, x.size))),)
        (((new, hidden),), _) = fused((1,))(phi, carries, jnp.asarray(x)[None])
        z = kernel[0][:, None].astype(float) * x.astype(float) + bias[:, None].astype(float)
        i, f, o = 1 / (1 + np.exp(-z[[0, 1, 3]]))
        expected = f * float(cell) + i * np.tanh(z[2])
        for found, exact in ((new[0], expected), (hidden[0], o * np.tanh(expected))):
            np.testing.assert_allclose(found, exact, rtol=6 * 2.0**-24)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_stays_with_its_coordinate(bad):
    phi, carries, x = inputs(HIDDEN, 2, (100,))
    carries = ((carries[0][0].at[3, 40].set(bad), carries[0][1]), carries[1])
    x = x.at[1, 77].set(bad)
    expected, found = network(HIDDEN)(phi, carries, x), fused(HIDDEN)(phi, carries, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        others = np.delete(np.asarray(a), [40, 77], axis=-1)
        np.testing.assert_allclose(others, np.delete(np.asarray(b), [40, 77], axis=-1), atol=3e-6)


def test_along_a_direction_and_to_second_order_it_is_the_network():
    arguments = inputs((3, 3), 1, (5,))
    direction = like(arguments)
    expected = jax.jvp(network((3, 3)), arguments, direction)
    assert_close(jax.jvp(fused((3, 3)), arguments, direction), expected)

    def curvature(apply):
        def slope(arguments):
            return jax.grad(lambda a: jnp.sum(jnp.sin(apply(*a)[1])))(arguments)

        return jax.jvp(slope, (arguments,), (direction,))[1]

    assert_close(curvature(fused((3, 3))), curvature(network((3, 3))), 1e-5)

    def twice(apply):
        def slope(x):
            return jax.grad(lambda x: jnp.sum(jnp.sin(apply(*arguments[:2], x)[1])))(x)

        return jax.jacrev(slope)(arguments[2])

    assert_close(twice(fused((3, 3))), twice(network((3, 3))), 1e-5)


def test_mapped_over_coordinates_it_is_one_program_and_over_weights_the_network():
    phi, carries, x = inputs((3,), 2, (4, 6))
    apply = fused((3,))
    expected = network((3,))(phi, carries, x)
    mapped = jax.vmap(apply, (None, 1, 1), (((1, 1),), 0))
    assert_close(mapped(phi, carries, x), expected)
    assert "dot_general" not in jax.jit(mapped).lower(phi, carries, x).as_text()

    def loss(apply, phi):
        return jnp.sum(
            jax.vmap(apply, (None, 1, None), (((1, 1),), 0))(phi, carries, x[:, 0])[1] ** 2
        )

    assert_close(
        jax.grad(functools.partial(loss, apply))(phi),
        jax.grad(functools.partial(loss, network((3,))))(phi),
    )
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), phi)
    over_weights = jax.vmap(apply, (0, None, None))(many, carries, x)
    assert_close(over_weights, jax.vmap(network((3,)), (0, None, None))(many, carries, x))


def test_what_it_reads_stays_and_it_may_be_written_over():
    arguments = inputs(HIDDEN, 2, (500,))
    before = jax.tree.map(np.array, arguments)
    expected = network(HIDDEN)(*arguments)

    @functools.partial(jax.jit, donate_argnums=1)
    def donated(phi, carries, x):
        return fused(HIDDEN)(phi, carries, x)

    for _ in range(2):
        assert_close(jax.jit(fused(HIDDEN))(*arguments), expected)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, arguments), before)
    assert_close(donated(*arguments), expected)


def test_the_same_gradient_comes_out_each_time():
    arguments = inputs((4,), 2, (30_000,))
    run = jax.jit(jax.grad(lambda phi, *rest: jnp.sum(fused((4,))(phi, *rest)[1] ** 2)))
    first = run(*arguments)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, run(*arguments), first)


def test_exported_programs_and_those_of_other_platforms_hold_the_network():
    arguments = inputs((3,), 2, (8,))
    exported = jax.export.export(jax.jit(fused((3,))), platforms=["cpu", "cuda", "tpu"])(*arguments)
    assert _build.FORWARD not in exported.mlir_module()
    assert_close(exported.call(*arguments), network((3,))(*arguments))


def test_it_serves_where_arrays_are_whole_and_single():
    single = jnp.zeros(3)
    assert not kernels.cpu_serves(single)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def seen(x, check):
        found = []
        jax.eval_shape(
            jax.shard_map(
                lambda x: found.append(kernels.cpu_serves(x)) or x,
                mesh=mesh,
                in_specs=PartitionSpec("d"),
                out_specs=PartitionSpec("d"),
                check_vma=check,
            ),
            x,
        )
        return found[-1]

    assert seen(jnp.zeros(4), False)
    assert not seen(jnp.zeros(4), True)
    assert not seen(jnp.zeros(4, jnp.bfloat16), False)


def test_meta_gradients_on_a_mesh_are_the_same_with_and_without():
    mesh = jax.make_mesh((2,), ("problems",), axis_types=(AxisType.Auto,))
    found = {}
    for choice in (None, False):
        opt = learned.lstm((4, 4), fused=choice)
        step, state = meta.make_step(
            opt,
            tasks.quadratic(3),
            key=jax.random.key(0),
            batch=4,
            mesh=mesh,
            estimator=meta.truncated(horizon=4, truncation=4),
        )
        keys = jax.random.split(jax.random.key(1), 2)
        text = jax.jit(functools.partial(step)).lower(state, keys[0]).as_text()
        assert (_build.BACKWARD in text) is (choice is None)
        for key in keys:
            state, metrics = step(state, key)
        found[choice] = metrics
    assert_close(found[None], found[False], 1e-5)


CHOICE = """
import json, jax, jax.numpy as jnp, optax
import l2ljax as l2l
from l2ljax import kernels
params = {"a": jnp.linspace(-1, 1, 50_000), "b": jnp.ones((3, 4)), "none": jnp.zeros(0)}
found = {}
for choice in (None, False):
    opt = l2l.learned.lstm(fused=choice)
    tx = optax.chain(optax.clip(0.5), opt.bind(opt.init(jax.random.key(0))))
    state = jax.jit(tx.init)(params)
    step = jax.jit(tx.update)
    found[str(choice)] = "l2ljax_lstm_forward" in step.lower(params, state).as_text()
    for _ in range(3):
        updates, state = step(params, state)
    found[f"sum {choice}"] = [float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(updates)]
bf16 = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
opt = l2l.learned.lstm(state_dtype=jnp.bfloat16)
tx = opt.bind(opt.init(jax.random.key(0)))
updates, state = jax.jit(tx.update)(bf16, tx.init(bf16))
found["dtypes"] = [updates["a"].dtype.name, state.layers[0][0].dtype.name]
with jax.enable_x64(True):
    phi = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), opt.init(jax.random.key(0)))
    tx = l2l.learned.lstm().bind(phi)
    wide = {"a": jnp.ones(3, jnp.float64)}
    text = jax.jit(tx.update).lower(wide, tx.init(wide)).as_text()
    found["float64"] = "l2ljax_lstm_forward" in text
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_process_with_one_device_chooses_it():
    done = subprocess.run(
        [sys.executable, "-c", CHOICE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["None"] and not found["False"] and not found["float64"]
    np.testing.assert_allclose(found["sum None"], found["sum False"], rtol=1e-4)
    assert found["dtypes"] == ["bfloat16", "bfloat16"]


def test_what_cannot_be_built_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "_FOLDER", tmp_path / "built")
    with pytest.raises(FileNotFoundError, match="compiler must be .* found no 'no-such-compiler'"):
        kernels.build("no-such-compiler")
    with pytest.raises(OSError, match="false finds neither here"):
        kernels.build("false")
    monkeypatch.setattr(_build, "_machine", lambda compiler: [])
    with pytest.raises(OSError, match="false failed"):
        kernels.build("false")
    assert not list((tmp_path / "built").glob("*"))


@pytest.mark.parametrize("part", ["lstm.cc", "threads.h", "vectors.h"])
def test_a_build_is_named_after_what_it_was_made_from(part, tmp_path, monkeypatch):
    path = _build._path()
    (old,) = (file for file in _build._SOURCES if file.name == part)
    changed = tmp_path / part
    changed.write_text(old.read_text() + "\n")
    sources = [changed if file == old else file for file in _build._SOURCES]
    monkeypatch.setattr(_build, "_SOURCES", sources)
    assert _build._path() != path and _build._path().parent == path.parent


def test_fused_is_a_choice_of_three_also_where_annotations_are_not_checked():
    with pytest.raises(ValueError, match="fused must be one of"):
        inspect.unwrap(learned.lstm)((2,), fused="cpu")
