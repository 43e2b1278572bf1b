"""`learned.tensorwise`, its orthogonalized directions, and what it does at the ends of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned
from l2ljax.learned._orthogonal import orthogonalize
from tests.learned.tensorwise_numpy import Tensorwise

SHAPES = {"bias": (4,), "kernel": (3, 3, 2, 4), "scalar": (), "table": (7, 5), "wide": (2, 6)}


def drawn_phi(opt):
    """φ away from where it begins, so that all of it has an effect."""
    leaves, structure = jax.tree.flatten(opt.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, moved)


def drawn(key, scale=1.0):
    keys = jax.random.split(key, len(SHAPES))
    named = zip(keys, SHAPES.items(), strict=True)
    return {name: scale * jax.random.normal(key, shape) for key, (name, shape) in named}


@pytest.mark.parametrize(
    ("units", "num_steps", "layout"), [(5, None, "flat"), (0, 8, "flat"), (5, 8, "leaves")]
)
def test_updates_equal_those_of_the_rule_in_numpy(units, num_steps, layout, x64):
    opt = learned.tensorwise(units, num_steps=num_steps, block=3, layout=layout)
    phi = jax.tree.map(lambda x: x.astype(jnp.float64), drawn_phi(opt))
    tx = opt.bind(phi)
    params = drawn(jax.random.key(2))
    state, update = tx.init(params), jax.jit(tx.update)
    order = sorted(SHAPES)
    own = [np.asarray(params[name]) for name in order]
    reference = Tensorwise(jax.tree.map(np.asarray, phi), own, num_steps, block=3)
    for step in range(10):
        # A spike in the fifth step, and one unit that never has a gradient.
        gradients = drawn(jax.random.key(10 + step), scale=100.0 if step == 4 else 1.0)
        gradients["table"] = gradients["table"].at[2].set(0.0)
        updates, state = update(gradients, state, params)
        expected = reference.update([np.asarray(gradients[name]) for name in order], own)
        for name, right in zip(order, expected, strict=True):
            np.testing.assert_allclose(updates[name], right, rtol=1e-8, atol=1e-12, err_msg=name)
        params = optax.apply_updates(params, updates)
        own = [p + u for p, u in zip(own, expected, strict=True)]
    assert not updates["table"][2].any()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (3, 2, 8)])
def test_orthogonalized_matrices_keep_singular_vectors_and_even_values_out(shape, x64):
    leaf = jax.random.normal(jax.random.key(0), shape)
    (found,) = orthogonalize([leaf], block=128)
    u, _, vt = np.linalg.svd(np.reshape(leaf, (-1, shape[-1])), full_matrices=False)
    long = max(np.prod(shape[:-1]), shape[-1])
    values = u.T @ np.reshape(found, (-1, shape[-1])) @ vt.T / np.sqrt(long)
    np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-10)
    assert 0.8 < np.diag(values).min() <= np.diag(values).max() < 1.2


def test_blocks_are_matrices_of_their_own(x64):
    leaf = jax.random.normal(jax.random.key(0), (6, 8))
    (whole,) = orthogonalize([leaf], block=3)
    halves = orthogonalize([leaf[:3], leaf[3:]], block=3)
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-12)


def test_the_number_of_steps_may_come_with_each_update():
    params = drawn(jax.random.key(0))
    phi = drawn_phi(learned.tensorwise(3))
    told, asked = learned.tensorwise(3, num_steps=6).bind(phi), learned.tensorwise(3).bind(phi)
    own, state = told.init(params), asked.init(params)
    for step in range(3):
        gradients = drawn(jax.random.key(step))
        expected, own = told.update(gradients, own, params)
        found, state = asked.update(gradients, state, params, num_steps=jnp.asarray(6))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_after_the_last_step_the_rate_stays():
    opt = learned.tensorwise(3, num_steps=5)
    tx = opt.bind(opt.init(jax.random.key(0)))
    params, gradient = jnp.ones((4,)), jnp.ones((4,))
    state, lengths = tx.init(params), []
    for _ in range(12):
        updates, state = tx.update(gradient, state, params)
        lengths.append(float(jnp.linalg.norm(updates)))
    assert lengths[4] < 0.5 * lengths[0]
    np.testing.assert_allclose(lengths[5:], lengths[4], rtol=0.05)


def test_one_spike_is_forgotten():
    opt = learned.tensorwise(3)
    tx = opt.bind(opt.init(jax.random.key(0)))

    @jax.jit
    def run(spike):
        def step(carry, t):
            params, state = carry
            gradient = params + jnp.where(t == 20, spike, 0)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), jnp.abs(params).max()

        params = jnp.linspace(0.5, 1.0, 4)
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(200))[1]

    sizes = run(1e6)
    assert sizes.max() <= 1.1
    assert sizes[-1] < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": -1}, "units"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"block": 0}, "block"),
        ({"layout": "rows"}, "layout"),
    ],
)
def test_bad_settings_are_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        learned.tensorwise(**arguments)


def test_params_are_needed():
    opt = learned.tensorwise()
    tx = opt.bind(opt.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="tensorwise needs params"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


def test_a_model_of_many_leaves_equals_its_leaves_alone_where_the_controller_is_fixed():
    # Tensors meet in the controller only, and at first that is constant in what they share.
    opt = learned.tensorwise(3)
    tx = opt.bind(opt.init(jax.random.key(0)))
    shapes = [(4, 3), (5,), (), (2, 2, 3)] * 6
    params = [jnp.full(shape, 0.5) for shape in shapes]
    gradients = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    for own, param, gradient in zip(updates[:4], params, gradients, strict=False):
        alone, _ = tx.update(gradient, tx.init(param), param)
        np.testing.assert_allclose(own, alone, rtol=1e-4)
