"""A guard: another optimizer takes over where the loss rises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic, core, evaluate, learned, tasks


def quadratic(w):
    return jnp.sum(w**2) / 2


def noisy(w, t):
    """Minibatches: the minimum is elsewhere at every step."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), w.shape)
    return jnp.sum((w - noise) ** 2) / 2


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def compiled(tx, w, loss, steps):
    def step(carry, t):
        w, state = carry
        value, gradient = jax.value_and_grad(loss)(w, *([t] if loss is noisy else []))
        updates, state = optax.with_extra_args_support(tx).update(gradient, state, w, value=value)
        fallback = state.stay if isinstance(state, learned.GuardedState) else 0
        return (w + updates, state), (value, updates, fallback)

    return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(steps))[1]


def run(tx, loss=quadratic, steps=100, w=(1.0, -2.0)):
    """Losses, updates and lengths of the next turn."""
    return compiled(core.as_pytree(tx), jnp.array(w), loss, steps)


def reference(losses, decay, tolerance, stay):
    """The rule in plain Python: whose turn each step is."""
    m = mu = losses[0]
    d, left, turns = abs(m), 0, []
    for t, f in enumerate(losses):
        before, m = m, decay * m + (1 - decay) * f
        if left == 0 and m > mu + tolerance * d:
            left, stay = stay, 2 * stay
        turns.append(left > 0)
        mu = m if left else min(mu, m)
        d += (1 - decay) / 5 * (abs(f - before) - d) if t else 0
        left = max(left - 1, 0)
    return np.array(turns)


@pytest.mark.parametrize(("decay", "tolerance", "stay"), [(0.95, 1.5, 10), (0.5, 0.2, 3)])
def test_turns_are_those_of_the_rule(decay, tolerance, stay):
    climber, zero = optax.sgd(2.05), optax.set_to_zero()
    tx = learned.guarded(climber, zero, decay=decay, tolerance=tolerance, stay=stay)
    losses, updates, _ = run(tx, steps=150)
    turns = reference(np.asarray(losses, float), decay, tolerance, stay)
    assert turns.any() and not turns.all()
    np.testing.assert_array_equal((updates == 0).all(1), turns)


def test_an_optimizer_that_climbs_ends_near_where_adam_does():
    losses, _, stay = run(learned.guarded(optax.sgd(2.05), classic.adam(0.1)), steps=400)
    climbing, _, _ = run(optax.sgd(2.05), steps=400)
    assert climbing[-1] > 1e15
    assert losses.max() < 50
    assert losses[-100:].min() < 0.01
    assert stay[-1] > 100


def test_one_that_descends_is_left_alone():
    for tx in (optax.sgd(0.1), learned.load("lstm-quadratic")):
        steps = 60
        _, expected, _ = run(tx, steps=steps)
        _, found, stay = run(learned.guarded(tx), steps=steps)
        np.testing.assert_array_equal(stay, 100)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_noise_alone_does_not_call_the_fallback():
    _, _, stay = run(learned.guarded(optax.sgd(0.05)), noisy, steps=2000, w=(3.0,) * 10)
    np.testing.assert_array_equal(stay, 100)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_calls_the_fallback_and_leaves_no_trace(bad):
    tx = learned.guarded(optax.sgd(1.0), optax.sgd(0.5), stay=1)
    w = jnp.ones(2)
    state = tx.init(w)
    update = jax.jit(tx.update)
    found = []
    for value in (1.0, bad, 1.0, 1.0):
        updates, state = update(w, state, w, value=jnp.asarray(value))
        found.append(float(updates[0]))
    assert found == [-1.0, -0.5, -1.0, -1.0]
    np.testing.assert_allclose(state.loss, 1.0)
    assert int(state.stay) == 2


def test_both_see_every_gradient():
    members = {"guarded": classic.adam(0.1), "fallback": classic.momentum(0.1)}
    tx = learned.guarded(members["guarded"], members["fallback"], stay=1)
    w, gradients = jnp.ones(2), jax.random.normal(jax.random.key(0), (4, 2))
    state, alone = tx.init(w), {name: tx.init(w) for name, tx in members.items()}
    for gradient, value in zip(gradients, (1.0, 9.0, 1.0, 9.0), strict=True):
        _, state = tx.update(gradient, state, w, value=value)
        alone = {name: members[name].update(gradient, alone[name], w)[1] for name in members}
    for name, expected in alone.items():
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6),
            getattr(state, name),
            expected,
        )


def test_it_works_inside_the_wrappers_of_optax_and_in_evaluate():
    tx = learned.guarded(learned.load("general", num_steps=20))
    wrapped = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), tx), 2)
    w = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(())}
    state = wrapped.init(w)
    for _ in range(2):
        updates, state = jax.jit(wrapped.update)(w, state, w, value=jnp.ones((), jnp.bfloat16))
    assert {k: u.dtype.name for k, u in updates.items()} == {"a": "bfloat16", "b": "float32"}
    assert float(abs(updates["b"])) > 0
    curves = evaluate.curves(tx, tasks.quadratic(dim=3), key=jax.random.key(0), steps=5, problems=2)
    assert curves.shape == (2, 6) and bool((curves[:, -1] < curves[:, 0]).all())
    assert jax.tree.leaves(tx) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fallback": 0.0}, r"^fallback must be a positive number, got 0\.0"),
        ({"decay": 1.0}, r"^decay must be a number in \[0, 1\), got 1\.0"),
        ({"decay": np.ones(2) / 2}, r"^decay must be a scalar"),
        ({"tolerance": -1}, "^tolerance must be a non-negative number, got -1"),
        ({"stay": 0}, "^stay must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        learned.guarded(optax.sgd(0.1), **arguments)


@pytest.mark.parametrize(
    ("extra", "got"), [({}, "none"), ({"value": np.ones(2)}, r"the shape \(2,\)")]
)
def test_it_says_what_it_needs(extra, got, unchecked):
    tx = learned.guarded(optax.sgd(0.1))
    w = jnp.ones(2)
    with pytest.raises(ValueError, match=rf"guarded needs the loss.*value=loss\), got {got}"):
        tx.update(w, tx.init(w), w, **extra)
