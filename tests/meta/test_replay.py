"""Meta-gradients by replaying the optimizer against backpropagation through the loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from l2ljax import learned, meta, tasks
from l2ljax.core import ReplayableTransformation, Task
from l2ljax.kernels import _build, _cpu
from l2ljax.learned import _coordinates
from l2ljax.meta._episodes import begin_episodes
from l2ljax.meta._replay import advance_replaying, replays
from l2ljax.meta._unroll import advance, update_rule

STEPS = 6


def parabola():
    """Minibatches, and an objective that is another function."""

    def loss(params, problem, key):
        return jnp.sum((params["w"] - problem + 0.1 * jax.random.normal(key, (3,))) ** 2)

    return Task(
        lambda key: jax.random.normal(key, (3,)),
        lambda key, problem: {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())},
        loss,
        lambda params, problem, key: jnp.sum(jnp.abs(params["w"])) + params["b"] ** 2,
    )


@pytest.mark.parametrize("task", [tasks.quadratic(3), parabola()], ids=["quadratic", "objective"])
def test_it_is_backpropagation_through_the_loop(task):
    with jax.enable_x64(True):
        opt = learned.lstm((4, 3), fused=False)
        wide = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float64))
        phi = wide(opt.init(jax.random.key(0)))
        episode = begin_episodes(task, jax.random.key(1), 5)
        params = wide(episode.params)
        state = jax.tree.map(lambda leaf: leaf + 0.1, opt.bind(phi).init(params))
        weights = jnp.arange(1.0, STEPS + 2)[:, None] * jnp.arange(1.0, 6)

        def loss(phi, params, state, replay):
            tx = opt.bind(phi)
            begin = (task, episode._replace(params=params), state, jnp.asarray(2, jnp.int32))
            if replay:
                results = advance_replaying(ReplayableTransformation(*tx), *begin, steps=STEPS)
            else:
                results = advance(
                    update_rule(tx, task, batched=True),
                    *begin,
                    steps=STEPS,
                    second_derivatives=False,
                    batched=True,
                )
            losses, params, state = results
            rest = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((params, state)))
            return jnp.sum(weights * losses) + rest, results

        both = [
            jax.jit(jax.value_and_grad(functools.partial(loss, replay=replay), (0, 1, 2), True))
            for replay in (True, False)
        ]
        (found, expected) = (function(phi, params, state) for function in both)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected
        )


def test_it_serves_updates_that_are_added_as_they_are():
    tx = ReplayableTransformation(*optax.sgd(0.1))
    assert replays(tx, {"w": jnp.zeros(3)})
    assert not replays(tx, {"w": jnp.zeros(3, jnp.bfloat16)})
    assert not replays(optax.sgd(0.1), {"w": jnp.zeros(3)})


@pytest.fixture
def mesh(program):
    return jax.make_mesh((2,), ("problems",), axis_types=(AxisType.Auto,))


def lowered(estimator, mesh, hidden=(4, 4), **options):
    opt = learned.lstm(hidden, **options)
    step, state = meta.make_step(
        opt,
        tasks.quadratic(3),
        key=jax.random.key(0),
        batch=16,
        mesh=mesh,
        estimator=estimator,
    )
    return jax.jit(functools.partial(step)).lower(state, jax.random.key(1))


def test_estimators_that_hold_gradients_constant_use_it(mesh):
    for estimator, used in [
        (meta.truncated(horizon=4, truncation=4), True),
        (meta.truncated(horizon=4, truncation=4, second_derivatives=True), False),
        (meta.full(horizon=4), False),
        (meta.es(horizon=4), False),
    ]:
        assert (_build.SEQUENCE_BACKWARD in lowered(estimator, mesh).as_text()) is used


def test_it_keeps_no_state_of_a_step_but_notes_where_there_is_room(mesh, monkeypatch):
    def growth(**options):
        def memory(truncation):
            estimator = meta.truncated(horizon=truncation, truncation=truncation)
            compiled = lowered(estimator, mesh, (20, 20), **options).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        return memory(210) - memory(10)

    # Steps, coordinates of a device, numbers, bytes; notes are of whole tiles.
    states, notes = 200 * 24 * 80 * 4, 200 * 32 * 200 * 4
    assert growth(fused=False) > states
    assert notes <= growth() < notes + states / 4
    monkeypatch.setattr(_cpu, "_MOST_BYTES", 0)
    jax.clear_caches()
    assert growth() < states / 4


@pytest.mark.parametrize("name", ["lstm", "adaptive_lstm", "rnnprop"])
def test_notes_change_no_meta_gradient(name, mesh, monkeypatch):
    # A flat batch and large leaves.
    monkeypatch.setitem(_coordinates.LAYOUTS, "auto", 20)
    make = getattr(learned, name)

    def phi_after(room):
        monkeypatch.setattr(_cpu, "_MOST_BYTES", room)
        jax.clear_caches()
        step, state = meta.make_step(
            make((4, 3)),
            parabola(),
            key=jax.random.key(0),
            batch=16,
            mesh=mesh,
            meta_optimizer=optax.sgd(1.0),
            estimator=meta.truncated(horizon=4, truncation=4),
        )
        text = jax.jit(functools.partial(step)).lower(state, jax.random.key(1)).as_text()
        for key in jax.random.split(jax.random.key(1), 2):
            state, _ = step(state, key)
        return state.phi, _build.NOTES in text

    noted, with_notes = phi_after(2**25)
    again, without = phi_after(0)
    assert with_notes and not without
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), noted, again)
