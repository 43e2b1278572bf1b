"""The LSTM as a program of the CPU against the network that defines it.

Tests have eight devices, where `lstm_apply` leaves the program alone: it is called here itself, and
chosen in processes with one device.
"""

import functools
import inspect
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from jax.sharding import AxisType, PartitionSpec

from l2ljax import kernels, learned, meta, tasks
from l2ljax.kernels import _build
from tests.lstm_cases import PROGRAM_SIZES, arguments_of, assert_close, like, network

HIDDEN = (20, 20)

pytestmark = pytest.mark.usefixtures("program")


@functools.cache
def fused(hidden):
    """The program; one function a network, as `lstm_apply` has it, so that programs are shared."""
    return functools.partial(kernels.cpu_lstm, network(hidden))


@pytest.mark.parametrize("case", PROGRAM_SIZES)
def test_values_and_gradients_are_those_of_the_network(case):
    hidden, features, shape = PROGRAM_SIZES[case]
    arguments = arguments_of(hidden, features, shape)
    expected, pull = jax.vjp(network(hidden), *arguments)
    found, pull_fused = jax.vjp(fused(hidden), *arguments)
    assert_close(found, expected)
    gradients = like(expected)
    assert_close(pull_fused(gradients), pull(gradients))


def test_the_program_is_what_runs():
    lowered = jax.jit(jax.grad(lambda *a: fused(HIDDEN)(*a)[1].sum())).lower(
        *arguments_of(HIDDEN, 2, (8,))
    )
    text = lowered.as_text()
    # The values of the step are not needed for its gradient.
    assert _build.BACKWARD in text and _build.FORWARD not in text and "dot_general" not in text
    assert _build.FORWARD in jax.jit(fused(HIDDEN)).lower(*arguments_of(HIDDEN, 2, (8,))).as_text()


def test_arguments_that_do_not_belong_together_are_refused():
    phi, carries, x = arguments_of((4,), 2, (8,))
    for wrong in (
        (phi, carries, jnp.ones((2, 5000))),  # more coordinates than the state has
        (arguments_of((20,), 2, (8,))[0], carries, x),  # weights of more units
        (phi, carries, x[:1]),  # fewer features
        (phi, jax.tree.map(lambda leaf: leaf[:2], carries), x),
        (phi, ((carries[0][0][:1], carries[0][1]),), x),  # a cell that would be broadcast
        (phi, carries, x.astype(jnp.bfloat16)),
    ):
        with pytest.raises((TypeError, ValueError, ScopeParamShapeError)):
            fused((4,))(*wrong)


def test_it_runs_where_jit_is_turned_off():
    arguments = arguments_of((3,), 2, (8,))
    with jax.disable_jit():
        assert_close(fused((3,))(*arguments), network((3,))(*arguments))


@pytest.mark.parametrize("spec", [(None, "x"), (None, "x", None), (None, None, "x")])
def test_results_are_split_as_those_of_the_network_are(spec):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    phi, carries, x = arguments_of((3,), 2, (4, 6)[: len(spec) - 1])
    split = jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
    carries, x = jax.device_put((carries, x), split)
    expected = jax.eval_shape(jax.jit(network((3,))), phi, carries, x)
    found = jax.eval_shape(jax.jit(fused((3,))), phi, carries, x)
    assert str(jax.tree.map(jax.typeof, found)) == str(jax.tree.map(jax.typeof, expected))


def test_gradients_of_many_equal_coordinates_do_not_stand_still():
    size = 2**20
    phi, carries, x = arguments_of((2,), 1, (1,))
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(fused((2,))(*a)[1])))
    one = gradient(phi, carries, x)
    many = gradient(phi, *jax.tree.map(lambda leaf: jnp.tile(leaf, size), (carries, x)))
    assert_close(many, jax.tree.map(lambda leaf: size * leaf, one), 1e-5)


def test_coordinates_that_do_not_exist_add_nothing_to_gradients():
    phi, carries, x = arguments_of((4,), 2, (33,))
    phi["lstm_0"]["kernel"] = phi["lstm_0"]["kernel"].at[0, 0].set(jnp.inf)
    apart = jax.grad(lambda *a: jnp.sum(network((4,))(*a)[1]))(phi, carries, x)
    found = jax.grad(lambda *a: jnp.sum(fused((4,))(*a)[1]))(phi, carries, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jnp.isfinite(a), jnp.isfinite(b)), found, apart
    )


def test_small_and_large_numbers_keep_their_digits():
    phi, carries, x = arguments_of((3,), 2, (64,))
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
    phi, carries, x = arguments_of(HIDDEN, 2, (100,))
    carries = ((carries[0][0].at[3, 40].set(bad), carries[0][1]), carries[1])
    x = x.at[1, 77].set(bad)
    expected, found = network(HIDDEN)(phi, carries, x), fused(HIDDEN)(phi, carries, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        others = np.delete(np.asarray(a), [40, 77], axis=-1)
        np.testing.assert_allclose(others, np.delete(np.asarray(b), [40, 77], axis=-1), atol=3e-6)


def test_along_a_direction_and_to_second_order_it_is_the_network():
    arguments = arguments_of((3, 3), 1, (5,))
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
    phi, carries, x = arguments_of((3,), 2, (4, 6))
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
    arguments = arguments_of(HIDDEN, 2, (500,))
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
    arguments = arguments_of((4,), 2, (30_000,))
    run = jax.jit(jax.grad(lambda phi, *rest: jnp.sum(fused((4,))(phi, *rest)[1] ** 2)))
    first = run(*arguments)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, run(*arguments), first)


def test_exported_programs_and_those_of_other_platforms_hold_the_network():
    arguments = arguments_of((3,), 2, (8,))
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
        assert (_build.SEQUENCE_BACKWARD in text) is (choice is None)
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


THREADS = """
import functools, threading, jax, jax.numpy as jnp
from l2ljax import kernels
from l2ljax.networks import lstm_apply
from tests.lstm_cases import arguments_of, assert_close, like
arguments = arguments_of((4,), 2, (30_000,))
long = arguments_of((4,), 2, (30_000,), steps=(2,))
network = functools.partial(lstm_apply, hidden=(4,), fused=False)

def steps(phi, carries, xs):
    return jax.lax.scan(functools.partial(network, phi), carries, xs)

def gradients(function, arguments):
    values, pull = jax.vjp(function, *arguments)
    return values, pull(like(values))

pairs = [
    (network, functools.partial(kernels.cpu_lstm, network), arguments),
    (steps, functools.partial(kernels.cpu_lstm_sequence, network), long),
]
failed = []

def compare(function, expected, arguments):
    try:
        for _ in range(5):
            assert_close(function(arguments), expected, 1e-5)
    except AssertionError as error:
        failed.append(error)

for slow, quick, arguments in pairs:
    expected = gradients(slow, arguments)
    function = jax.jit(functools.partial(gradients, quick))
    threads = [
        threading.Thread(target=compare, args=(function, expected, arguments)) for _ in range(3)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
assert not failed, failed[0]
"""


@pytest.mark.slow
def test_threads_that_share_the_work_and_callers_that_share_the_threads_do_it_all():
    # With eight devices each has one thread of the pool, and none to help it.
    subprocess.run(
        [sys.executable, "-c", THREADS],
        check=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_fused_is_a_choice_of_three_also_where_annotations_are_not_checked():
    with pytest.raises(ValueError, match="fused must be one of"):
        inspect.unwrap(learned.lstm)((2,), fused="cpu")
