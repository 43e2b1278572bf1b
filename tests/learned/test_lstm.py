import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned
from l2ljax.core import CoordinatewiseTransformation, as_pytree
from l2ljax.learned._preprocess import log_sign

HIDDEN = (3, 2)
small = functools.partial(learned.lstm, hidden=HIDDEN)


@functools.cache
def weights(features=2):
    """Meta-parameters of `small`, drawn once."""
    init = small().init if features == 2 else small(preprocess=None).init
    return jax.jit(init)(jax.random.key(0))


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@jax.jit
def two_steps(tx, gradients):
    """The second updates: those that memory has a part in."""
    _, state = tx.update(gradients, tx.init(gradients))
    return tx.update(gradients, state)


def assert_same(actual, expected, rtol=1e-5, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


# Preprocessing.


@pytest.mark.parametrize("p", [10.0, 5.0])
def test_log_sign_is_the_formula_of_appendix_a(p):
    sizes = np.exp([-20.0, -p - 0.1, -p + 0.1, -1.0, 0.0, 3.0, 40.0])
    gradient = np.concatenate([-sizes, [0.0], sizes]).astype(np.float32)
    expected = [
        (np.log(abs(g)) / p, np.sign(g)) if abs(g) >= np.exp(-p) else (-1, np.exp(p) * g)
        for g in gradient.astype(np.float64)
    ]
    actual = log_sign(jnp.asarray(gradient), p=p)
    np.testing.assert_allclose(actual, np.transpose(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [10.0, 5.0])
def test_log_sign_is_continuous_at_its_threshold(p, x64):
    threshold = np.exp(-p) * np.array([1 - 1e-9, 1 + 1e-9])
    below, above = log_sign(jnp.asarray(np.stack([-threshold, threshold])), p=p).T
    np.testing.assert_allclose(below, above, atol=1e-8)


def test_log_sign_has_a_finite_derivative_everywhere():
    @jax.vmap
    def derivative(gradient):
        return jax.jacfwd(functools.partial(log_sign, p=10.0))(gradient)

    at_zero, *others = derivative(jnp.array([0.0, 1e-30, jnp.exp(-10.0), 1.0, -2.0, 1e30]))
    np.testing.assert_allclose(at_zero, [0, np.exp(10)], rtol=1e-6)
    np.testing.assert_allclose(others[2:4], [[0.1, 0], [-0.05, 0]], rtol=1e-6)
    assert np.all(np.isfinite(others))


def test_scale_multiplies_the_gradient_before_the_network():
    gradient = normal(1, 4)
    scaled = small(preprocess="scale", input_scale=3.0).bind(weights(1))
    bare = small(preprocess=None).bind(weights(1))
    assert_same(two_steps(scaled, gradient)[0], two_steps(bare, 3 * gradient)[0])


def test_preprocess_may_be_a_function_to_features_on_a_leading_axis():
    def features(gradient):
        return jnp.stack([jnp.tanh(gradient), jnp.ones_like(gradient), gradient])

    opt = small(preprocess=features)
    phi = jax.eval_shape(opt.init, jax.random.key(0))
    assert phi["lstm_0"]["kernel"].shape == (3 + HIDDEN[0], 4 * HIDDEN[0])

    ours = small(preprocess=functools.partial(log_sign, p=10.0)).bind(weights())
    gradient = normal(1, 4)
    assert_same(two_steps(ours, gradient), two_steps(small().bind(weights()), gradient))


def test_output_scale_multiplies_the_updates():
    gradient = normal(1, 4)
    half, one = (small(output_scale=scale).bind(weights()) for scale in (0.5, 1.0))
    assert_same(two_steps(half, gradient)[0], 0.5 * two_steps(one, gradient)[0])


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preprocess": "logsign"}, "preprocess.*'logsign'.*did you mean 'log_sign'"),
        ({"hidden": ()}, r"hidden.*got \(\)"),
        ({"hidden": (20, -1)}, "hidden.*at least 1, got -1"),
        ({"hidden": (0,)}, "hidden.*at least 1, got 0"),
        ({"output_scale": 0.0}, "output_scale.*positive.*0.0"),
        ({"output_scale": -0.1}, "output_scale.*positive.*-0.1"),
        ({"input_scale": float("inf")}, "input_scale.*positive.*inf"),
        ({"p": -10.0}, "p must be.*positive.*-10"),
        ({"p": float("nan")}, "p must be.*positive.*nan"),
        ({"p": 100.0}, "p must be.*below 87.*100"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        learned.lstm(**arguments)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64], ids=str)
def test_leaves_that_are_not_real_floats_are_refused_with_their_place(dtype):
    tx = small().bind(weights())
    good = {"layer": {"w": jnp.ones(2), "steps": jnp.ones(2)}}
    bad = {"layer": {"w": jnp.ones(2), "steps": jnp.ones(2, dtype)}}
    with pytest.raises(ValueError, match=rf"params.*{jnp.dtype(dtype)}.*\['layer'\]\['steps'\]"):
        tx.init(bad)
    with pytest.raises(ValueError, match=rf"updates.*{jnp.dtype(dtype)}.*\['layer'\]\['steps'\]"):
        tx.update(bad, tx.init(good))


def test_the_spec_rebuilds_an_equal_optimizer_from_json_values():
    opt = learned.lstm(hidden=(3, 2), preprocess="scale", input_scale=2.0)
    again = learned.lstm(**json.loads(json.dumps(opt.spec["arguments"])))
    assert opt.spec == again.spec
    assert jax.tree.structure(opt) == jax.tree.structure(again)


# State and params.


def test_the_state_has_a_column_a_coordinate_and_a_pair_a_layer():
    params = {"b": jnp.ones(2), "empty": jnp.ones((0, 3)), "scale": 1.0, "w": jnp.ones((2, 3))}
    state = small().bind(weights()).init(params)
    assert isinstance(state, learned.LSTMState)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype.name), state)
    assert shapes.layers == tuple(
        (((units, 9), "float32"), ((units, 9), "float32")) for units in HIDDEN
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))


def test_bfloat16_params_have_a_float32_state_and_bfloat16_updates():
    gradient = normal(1, 4, dtype=jnp.bfloat16)
    tx = small().bind(weights())
    updates, state = two_steps(tx, gradient)
    assert updates.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    expected, _ = two_steps(tx, gradient.astype(jnp.float32))
    np.testing.assert_array_equal(updates, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("wide", ["params", "phi"])
def test_float64_params_or_weights_have_a_float64_state(wide, x64):
    phi, gradient = weights(), normal(1, 4, dtype=np.float32)
    if wide == "phi":
        phi = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), phi)
    else:
        gradient = gradient.astype(jnp.float64)
    updates, state = jax.eval_shape(two_steps, small().bind(phi), gradient)
    assert updates.dtype == gradient.dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float64")}


def test_updates_do_not_depend_on_how_coordinates_are_grouped():
    flat = normal(1, 6)
    nested = {"a": [flat[0], flat[1:1]], "b": (flat[1:5].reshape(2, 2), {"c": flat[5:]})}
    tx = small().bind(weights())
    (expected, flat_state), (updates, state) = two_steps(tx, flat), two_steps(tx, nested)
    parts = [jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)]
    assert_same(jnp.concatenate(parts), expected)
    assert_same(state, flat_state)


def test_permuted_coordinates_have_permuted_updates():
    gradient, order = normal(1, 6), np.array([3, 0, 5, 1, 4, 2])
    tx = small().bind(weights())
    assert_same(two_steps(tx, gradient[order])[0], two_steps(tx, gradient)[0][order])


def test_params_stacked_on_a_new_axis_have_the_updates_of_vmap():
    tx = small().bind(weights())
    assert isinstance(tx, CoordinatewiseTransformation)
    problems = {"b": normal(1, 4, 2), "empty": normal(2, 4, 0), "w": normal(3, 4, 2, 3)}
    stacked, _ = two_steps(tx, problems)
    mapped, _ = jax.vmap(two_steps, in_axes=(None, 0))(tx, problems)
    assert_same(stacked, mapped)


# Compiled programs.


def test_optimizers_with_equal_settings_share_a_program_and_phi_is_an_argument():
    traces = []

    @jax.jit
    def updates(opt, phi, gradient):
        traces.append(opt.spec["arguments"]["p"])
        tx = opt.bind(phi)
        return tx.update(gradient, tx.init(gradient))[0]

    gradient = normal(1, 4)
    first = updates(small(), weights(), gradient)
    second = updates(small(), jax.tree.map(lambda leaf: 2 * leaf, weights()), gradient)
    assert traces == [10.0]
    assert np.all(first != second)
    updates(small(p=5.0), weights(), gradient)
    assert traces == [10.0, 5.0]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_bound_transformation_is_an_argument_of_jit_without_retracing(factor):
    """As it is with equal weights, as a pytree with any."""
    traces = []

    @jax.jit
    def updates(tx, gradient):
        traces.append(type(tx))
        return tx.update(gradient, tx.init(gradient))[0]

    gradient = normal(1, 4)
    prepare = as_pytree if factor > 1 else lambda tx: tx
    first = updates(prepare(small().bind(weights())), gradient)
    others = jax.tree.map(lambda leaf: factor * leaf, weights())
    second = updates(prepare(small().bind(others)), gradient)
    assert traces == [CoordinatewiseTransformation]
    assert np.all((first != second) == (factor > 1))


def test_in_a_chain_it_optimizes_under_jit_and_scan():
    tx = optax.chain(optax.clip_by_global_norm(1.0), small().bind(weights()), optax.scale(0.5))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.sign, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=3)[0]

    params = {"w": normal(1, 2, 2), "b": normal(2, 2, dtype=jnp.bfloat16)}
    after, state = run(params)
    assert {name: leaf.dtype for name, leaf in after.items()} == {
        name: leaf.dtype for name, leaf in params.items()
    }
    assert all(np.all(a != b) for a, b in zip(after.values(), params.values(), strict=True))
    assert isinstance(state[1], learned.LSTMState)


# Gradients of every size.


@pytest.mark.parametrize("preprocess", ["log_sign", None])
def test_huge_and_tiny_gradients_have_finite_updates_and_meta_gradients(preprocess):
    opt = small(preprocess=preprocess)
    gradient = jnp.array([1e30, -1e30, 1e-30, -1e-30, 1e-45, 0.0])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(phi):
        updates, state = two_steps(opt.bind(phi), gradient)
        return updates.sum(), (updates, state)

    for leaf in jax.tree.leaves(loss(weights(2 if preprocess else 1))):
        assert np.all(np.isfinite(leaf))


def test_a_nan_stays_in_its_coordinate():
    gradient = normal(1, 4)
    tx = small().bind(weights())
    expected, expected_state = two_steps(tx, gradient)
    updates, state = two_steps(tx, gradient.at[1].set(jnp.nan))
    good = np.array([0, 2, 3])
    assert np.isnan(updates[1])
    assert all(np.all(np.isnan(leaf[:, 1])) for leaf in jax.tree.leaves(state))
    assert_same(updates[good], expected[good])
    without = [jax.tree.map(lambda leaf: leaf[:, good], s) for s in (state, expected_state)]
    assert_same(*without)


@pytest.mark.parametrize("make", [learned.lstm, learned.adaptive_lstm])
def test_a_state_in_half_precision_takes_half_the_bytes_and_changes_little(make):
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    plain, half = make((4,)), make((4,), state_dtype=jnp.bfloat16)
    rebuilt = make(**json.loads(json.dumps(half.spec["arguments"])))
    assert rebuilt.spec == half.spec != plain.spec
    phi = plain.init(jax.random.key(0))
    updates = []
    for opt, dtype in ((plain, jnp.float32), (half, jnp.bfloat16), (rebuilt, jnp.bfloat16)):
        tx = opt.bind(phi)
        update, state = jax.jit(tx.update), tx.init(params)
        for step in range(3):
            gradients = jax.tree.map(lambda leaf, step=step: leaf + step, params)
            found, state = update(gradients, state)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.layers)} == {jnp.dtype(dtype)}
        updates.append(found["w"])
    assert updates[0].dtype == updates[1].dtype == jnp.float32
    np.testing.assert_array_equal(updates[1], updates[2])
    assert not np.array_equal(updates[0], updates[1])
    np.testing.assert_allclose(updates[1], updates[0], rtol=0.05, atol=1e-4)


def test_a_state_that_cannot_hold_fractions_is_refused():
    for dtype in (jnp.int32, "words"):
        with pytest.raises(ValueError, match="state_dtype must be a floating-point dtype"):
            learned.lstm(state_dtype=dtype)
