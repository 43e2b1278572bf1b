"""Hyperparameters of hand-designed methods as meta-parameters."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic, learned, meta, tasks
from l2ljax.learned import hyperparameters

KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
GRADIENTS = {"w": jnp.arange(6.0).reshape(3, 2) - 2, "b": jnp.array([1.0, -3.0])}


def run(tx, steps=4):
    """The params after each step, with gradients that change."""
    params, state, path = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for step in range(steps):
        gradients = jax.tree.map(lambda g, step=step: g + step, GRADIENTS)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def assert_same_path(found, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


METHODS = {
    "gradient_descent": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.1, "decay": 0.8},
    "rmsprop": {"learning_rate": 0.01, "decay": 0.7, "eps": 1e-3},
    "adam": {"learning_rate": 0.03, "b1": 0.5, "b2": 0.9, "eps": 1e-4},
    "adamw": {"learning_rate": 0.03, "weight_decay": 0.2},
    "adadelta": {"learning_rate": 0.5, "decay": 0.9, "rho": 0.8},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_first_phi_is_the_method_itself(name):
    values = METHODS[name]
    opt = hyperparameters(name, **values)
    assert_same_path(run(opt.bind(opt.init(KEY))), run(getattr(classic, name)(**values)))


def test_phi_holds_logarithms_and_logits():
    phi = hyperparameters(classic.adam, learning_rate=1e-3, b1=0.9).init(KEY)
    np.testing.assert_allclose(phi["learning_rate"], np.log(1e-3), rtol=1e-6)
    np.testing.assert_allclose(phi["b1"], np.log(9), rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"horizon": 3}, {"like": PARAMS}, {"like": PARAMS, "horizon": 3}], ids=str
)
def test_values_are_what_phi_began_with(options):
    began = METHODS["adam"]
    phi = hyperparameters("adam", **began, **options).init(KEY)
    values = learned.hyperparameter_values(phi)
    assert jax.tree.structure(values) == jax.tree.structure(phi)
    for name, tree in values.items():
        for leaf in jax.tree.leaves(tree):
            assert leaf.shape == ((3,) if "horizon" in options else ())
            np.testing.assert_allclose(leaf, began[name], rtol=1e-5)


def test_values_of_reversible_momentum_are_its_rates_and_decays():
    phi = learned.reversible_momentum(horizon=3, learning_rate=0.2, decay=0.75).init(KEY)
    values = learned.hyperparameter_values(phi)
    np.testing.assert_allclose(values["learning_rate"], np.full(3, 0.2), rtol=1e-6)
    np.testing.assert_allclose(values["decay"], np.full(3, 0.75), rtol=1e-6)


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (jnp.zeros(2), r"phi must be a dictionary of hyperparameters by name, .* got Array"),
        ({"optimizer": {}, "task": {}}, 'got that of a LearnedTask; try phi."optimizer".'),
        (learned.lstm(hidden=(2,)).init(KEY), r"got shape \(4, 8\) at \['lstm_0'\]\['kernel'\]"),
    ],
)
def test_values_of_another_phi_are_refused(phi, message):
    with pytest.raises(ValueError, match=message):
        learned.hyperparameter_values(phi)


def test_a_value_for_each_step_is_a_schedule_that_ends_with_its_last():
    opt = hyperparameters(classic.gradient_descent, learning_rate=0.1, horizon=3)
    rates = jnp.array([0.1, 0.3, 0.05])
    found = run(opt.bind({"learning_rate": jnp.log(rates)}), steps=5)
    schedule = lambda count: rates[jnp.minimum(count, 2)]  # noqa: E731
    assert_same_path(found, run(classic.gradient_descent(schedule), steps=5))


def test_a_value_for_each_leaf_optimizes_each_leaf_alone():
    opt = hyperparameters("momentum", learning_rate=0.1, decay=0.5, like=PARAMS)
    phi = opt.init(KEY)
    phi["learning_rate"] = {"w": jnp.log(0.2), "b": jnp.log(0.01)}
    found = run(opt.bind(phi))
    alone = {
        "w": run(classic.momentum(0.2, decay=0.5)),
        "b": run(classic.momentum(0.01, decay=0.5)),
    }
    assert_same_path(found, [{n: alone[n][t][n] for n in PARAMS} for t in range(4)])


def test_steps_and_leaves_together():
    opt = hyperparameters("adam", learning_rate=0.1, horizon=2, like=jax.eval_shape(lambda: PARAMS))
    phi = opt.init(KEY)
    assert jax.tree.map(jnp.shape, phi) == {"learning_rate": {"w": (2,), "b": (2,)}}
    assert_same_path(run(opt.bind(phi)), run(classic.adam(0.1)))


def test_its_meta_gradient_is_that_of_finite_differences(x64):
    opt = hyperparameters(classic.momentum, learning_rate=0.01, decay=0.7, horizon=5)
    estimator = meta.full(horizon=5)(opt, tasks.quadratic(3), batch=2)
    phi = opt.init(KEY)
    estimate = jax.jit(lambda phi: estimator.estimate(phi, estimator.init(KEY, phi), KEY)[0])
    flat, tree = jax.flatten_util.ravel_pytree(phi)
    slopes = [
        (estimate(tree(flat + step)).loss - estimate(tree(flat - step)).loss) / 2e-5
        for step in 1e-5 * np.eye(flat.size)
    ]
    found = jax.flatten_util.ravel_pytree(estimate(phi).grad)[0]
    np.testing.assert_allclose(found, np.array(slopes), rtol=1e-5, atol=1e-5 * np.abs(slopes).max())


def test_meta_training_finds_a_better_rate():
    opt = hyperparameters(classic.adam, learning_rate=1e-3)
    history = meta.train(
        opt,
        tasks.quadratic(),
        key=KEY,
        steps=60,
        batch=16,
        meta_optimizer=optax.adam(0.1),
        estimator=meta.forward(horizon=20),
    ).history
    assert history["loss"][-5:].mean() < 0.7 * history["loss"][:5].mean()


def test_methods_that_ask_for_values_get_them():
    opt = hyperparameters(
        lambda learning_rate: optax.chain(
            optax.sgd(learning_rate), optax.scale_by_backtracking_linesearch(5)
        ),
        learning_rate=0.5,
    )
    losses, _ = meta.unroll(
        opt.bind(opt.init(KEY)), tasks.quadratic(3), tasks.quadratic(3).sample(KEY), KEY, horizon=5
    )
    assert np.all(np.diff(losses) <= 0)


def test_it_is_saved_by_the_name_of_its_method(tmp_path):
    opt = hyperparameters(classic.adam, learning_rate=1e-3, b1=0.9, horizon=2)
    phi = jax.tree.map(lambda leaf: leaf + 0.5, opt.init(KEY))
    learned.save(tmp_path, opt, phi, {})
    again, weights, _ = learned.restore(tmp_path)
    assert again.spec == opt.spec == json.loads(json.dumps(opt.spec))
    assert_same_path(run(again.bind(weights)), run(opt.bind(phi)))
    for place, own in {
        "factory": hyperparameters(functools.partial(classic.adam, b1=0.5), learning_rate=0.1),
        "like": hyperparameters("adam", learning_rate=0.1, like=PARAMS),
    }.items():
        phi = jax.tree.map(lambda leaf: leaf - 0.5, own.init(KEY))
        learned.save(tmp_path / place, own, phi, {})
        assert_same_path(run(learned.load(tmp_path / place, opt=own)), run(own.bind(phi)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: hyperparameters("adam"), ValueError, "values must name at least one"),
        (lambda: hyperparameters("adm", learning_rate=0.1), ValueError, "factory must be one of"),
        (
            lambda: hyperparameters("AdamState", count=1.0),
            ValueError,
            r"factory must be one of \['adadelta', [^A-Z]*\], got 'AdamState'",
        ),
        (
            lambda: hyperparameters("adam", learning_rate=0.1, bias_correction=1),
            ValueError,
            "values must be of numeric hyperparameters, got 'bias_correction', by default True",
        ),
        (
            lambda: hyperparameters("adamw", learning_rate=0.1, mask=1.0),
            ValueError,
            "got 'mask', by default None; bind it before by functools.partial",
        ),
        (
            lambda: hyperparameters(optax.adam, learning_rate=0.1, nesterov=1.0),
            ValueError,
            "got 'nesterov', by default False",
        ),
        (
            lambda: hyperparameters("newton", damping=0.1, solver=1.0),
            ValueError,
            "got 'solver', by default 'exact'",
        ),
        (
            lambda: hyperparameters(classic.adam, learning_rate=[0.1, 0.2]),
            ValueError,
            r"learning_rate must be one finite number, got \[0.1, 0.2\]",
        ),
        (
            lambda: hyperparameters(classic.adam, learning_rate=optax.constant_schedule(0.1)),
            ValueError,
            "learning_rate must be one finite number, got <function",
        ),
        (lambda: hyperparameters("adam", learning_rate=0.0), ValueError, "learning_rate must be a"),
        (lambda: hyperparameters("adam", b1=1.0), ValueError, r"b1 must lie inside \(0, 1\)"),
        (lambda: hyperparameters("adam", rate=0.1), TypeError, "rate"),
        (
            lambda: hyperparameters("adam", learning_rate=0.1, horizon=0),
            ValueError,
            "horizon must be",
        ),
        (
            lambda: hyperparameters(lambda learning_rate: None, learning_rate=0.1),
            ValueError,
            "factory must make an optax transformation, got None",
        ),
    ],
    ids=[
        *("none", "method", "state", "switch", "mask", "optax", "solver", "array", "schedule"),
        *("rate", "decay", "name", "horizon", "function"),
    ],
)
def test_what_cannot_be_learned_is_refused(make, error, message, unchecked):
    with pytest.raises(error, match=message):
        make()


def test_a_number_that_is_left_out_by_default_can_be_learned():
    values = {"learning_rate": 0.01, "momentum": 0.5}
    opt = hyperparameters("rmsprop", **values)
    assert_same_path(run(opt.bind(opt.init(KEY))), run(classic.rmsprop(**values)))

    def make(rate=None):
        return optax.sgd(rate)

    assert hyperparameters(make, rate=0.1).init(KEY).keys() == {"rate"}


def test_params_of_another_structure_are_refused():
    opt = hyperparameters("adam", learning_rate=0.1, like=PARAMS)
    with pytest.raises(ValueError, match="params must have the structure of like"):
        opt.bind(opt.init(KEY)).init({"w": jnp.ones(2)})
