"""Steps of the LSTM whose derivative is one call of the CPU's program, with and without notes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from l2ljax import kernels
from l2ljax.kernels import _build, _cpu
from l2ljax.networks import lstm_carry
from tests.lstm_cases import PROGRAM_SIZES, arguments_of, assert_close, like, network

HIDDEN = (20, 20)

pytestmark = pytest.mark.usefixtures("program")


@functools.cache
def sequence(hidden):
    return functools.partial(kernels.cpu_lstm_sequence, network(hidden))


@pytest.mark.parametrize("case", PROGRAM_SIZES)
def test_a_sequence_is_its_steps_one_after_another(case):
    hidden, features, shape = PROGRAM_SIZES[case]
    arguments = arguments_of(hidden, features, shape, steps=(3,))

    def steps(phi, carries, xs):
        return jax.lax.scan(functools.partial(network(hidden), phi), carries, xs)

    expected, pull = jax.vjp(jax.jit(steps), *arguments)
    found, pull_sequence = jax.vjp(jax.jit(sequence(hidden)), *arguments)
    assert_close(found, expected)
    gradients = like(expected)
    assert_close(pull_sequence(gradients), pull(gradients))


def noted(hidden, phi, carries, xs):
    """What `sequence` returns and its derivative, which reads what the steps noted."""

    def step(state, x):
        carries, y, notes = kernels.cpu_lstm_noting(network(hidden), phi, state[0], x, state[1])
        return (carries, notes), y

    (notes,) = kernels.cpu_notes([carries], len(xs))
    (new, notes), ys = jax.lax.scan(step, (carries, notes), xs)
    pull = jax.vjp(lambda *arguments: sequence(hidden)(*arguments, notes), phi, carries, xs)[1]
    return (new, ys), pull


@functools.cache
def pulled_back(hidden):
    """Values of all steps, and gradients by the arguments, from notes."""

    @jax.jit
    def run(arguments, gradients):
        values, pull = noted(hidden, *arguments)
        return values, pull(gradients)

    return run


@pytest.mark.parametrize("case", PROGRAM_SIZES)
def test_notes_of_the_steps_stand_for_computing_them_again(case):
    hidden, features, shape = PROGRAM_SIZES[case]
    arguments = arguments_of(hidden, features, shape, steps=(3,))
    expected, pull = jax.vjp(sequence(hidden), *arguments)
    gradients = like(expected)
    found = pulled_back(hidden)(arguments, gradients)
    assert_close(found, (expected, pull(gradients)))


def test_notes_are_what_is_read_and_too_many_are_not_taken(monkeypatch):
    arguments = arguments_of((4,), 2, (8,), steps=(5,))
    (notes,) = kernels.cpu_notes([arguments[1]], 5)
    zeros = notes._replace(kept=jnp.zeros_like(notes.kept))

    def gradient(*notes):
        return jax.grad(lambda phi: jnp.sum(sequence((4,))(phi, *arguments[1:], *notes)[1]))

    closed = gradient(zeros)(arguments[0])
    # All gates shut: nothing reaches their weights.
    assert not np.any(closed["lstm_0"]["kernel"])
    assert np.any(gradient()(arguments[0])["lstm_0"]["kernel"])
    monkeypatch.setattr(_cpu, "_MOST_BYTES", notes.kept.nbytes - 1)
    assert kernels.cpu_notes([arguments[1]], 5) is None
    monkeypatch.setattr(_cpu, "_MOST_BYTES", notes.kept.nbytes)
    assert kernels.cpu_notes([arguments[1]], 5) is not None
    assert kernels.cpu_notes([arguments[1]] * 2, 5) is None


def test_a_gibibyte_is_the_most_that_is_noted():
    def room(coordinates):
        carries = jax.eval_shape(lambda: lstm_carry((coordinates,), "float32", hidden=HIDDEN))
        return jax.eval_shape(lambda carries: kernels.cpu_notes([carries], 20), carries)

    # The MLP of MNIST: 800 bytes a coordinate and step, of whole tiles.
    assert room(15_910)[0].kept.shape == (20 * 200 * 15_936,)
    # 2^30 bytes are 67,108.9 coordinates.
    assert room(67_104) is not None
    assert room(67_105) is None


def test_notes_that_have_no_room_are_refused():
    phi, carries, xs = arguments_of((4,), 2, (40,), steps=(2,))
    (notes,) = kernels.cpu_notes([carries], 1)
    *_, notes = kernels.cpu_lstm_noting(network((4,)), phi, carries, xs[0], notes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no room"):
        jax.block_until_ready(kernels.cpu_lstm_noting(network((4,)), phi, carries, xs[1], notes))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no room"):
        jax.block_until_ready(
            jax.grad(lambda phi: jnp.sum(sequence((4,))(phi, carries, xs, notes)[1]))(phi)
        )


def test_notes_of_the_network_itself_are_never_taken_for_those_of_the_program():
    hidden = (4,)
    arguments = arguments_of(hidden, 2, (8,), steps=(3,))
    expected, pull = jax.vjp(sequence(hidden), *arguments)
    gradients = like(expected)

    def run(*arguments):
        values, pull = noted(hidden, *arguments)
        return values, pull(gradients)

    exported = jax.export.export(jax.jit(run), platforms=["cpu", "cuda", "tpu"])(*arguments)
    assert "@l2ljax_" not in exported.mlir_module()
    assert_close(exported.call(*arguments), (expected, pull(gradients)))
    # Mapped over anything, both ways are the network's.
    for axes in [(0, None, None), (None, 0, None), (None, None, 0)]:
        many = [
            argument if axis is None else jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        found = jax.jit(jax.vmap(run, axes))(*many)
        assert_close(jax.tree.map(lambda leaf: leaf[1], found), (expected, pull(gradients)))


def test_notes_are_written_in_place():
    arguments = arguments_of(HIDDEN, 1, (3200,), steps=(5,))
    (notes,) = kernels.cpu_notes([arguments[1]], 5)
    gradients = like(jax.eval_shape(sequence(HIDDEN), *arguments))
    compiled = pulled_back(HIDDEN).lower(arguments, gradients).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * notes.kept.nbytes


def test_the_gradient_of_a_sequence_is_one_call():
    arguments = arguments_of(HIDDEN, 2, (8,), steps=(5,))
    text = jax.jit(jax.grad(lambda *a: sequence(HIDDEN)(*a)[1].sum())).lower(*arguments).as_text()
    assert text.count(f"@{_build.SEQUENCE_BACKWARD}") == 1
    assert _build.FORWARD not in text and "dot_general" not in text and "while" not in text


def test_arguments_that_do_not_belong_together_are_refused():
    phi, carries, _ = arguments_of((4,), 2, (8,))
    with pytest.raises((TypeError, ValueError, ScopeParamShapeError)):
        jax.grad(lambda phi: jnp.sum(sequence((4,))(phi, carries, jnp.ones((3, 2, 9)))[1]))(phi)
