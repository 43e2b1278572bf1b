"""Celo and other people's weights: against NumPy, and what they ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_celo import celo, celo_adam, sigmoid
from safetensors.numpy import load_file, save_file

from l2ljax import learned, meta, tasks

SHAPES = {"bias": (5,), "cube": (2, 3, 3), "scalar": (), "square": (4, 4), "weight": (4, 5)}
STEPS = 60
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


def random_celo(seed):
    """Arrays of a published file, drawn so that every part of the rule matters."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 4)).astype("f")

    arrays = {f"mlp.w0__{i}": draw(1, rows, 4) / 3 for i, rows in enumerate(GROUPS)}
    arrays |= {"mlp.w1": draw(1, 4, 4), "mlp.w2": 20 * draw(1, 4, 3)}
    arrays |= {"mlp.b0": draw(1, 4), "mlp.b1": draw(1, 4), "mlp.b2": draw(1, 3)}
    for name, rows, columns in [
        ("linear", 18, 64),
        ("linear_1", 18, 64),
        ("linear_2", 18, 64),
        ("rnn.linear", 128, 256),
        ("step_size", 64, 1),
    ]:
        arrays[f"scheduler.{name}.w"] = draw(rows, columns)
        arrays[f"scheduler.{name}.b"] = draw(columns)
    arrays["scheduler.initial_cell"] = draw(1, 64)
    arrays["scheduler.initial_hidden"] = draw(1, 64)
    arrays["scheduler.step_size.b"] += 2
    return arrays


def random_lstm(seed, encoder):
    rng = np.random.default_rng(seed)
    inputs = 20 if encoder else 2
    shapes = {"lstm_1.w_gates": (inputs + 20, 80), "lstm_2.w_gates": (40, 80), "linear.w": (20, 1)}
    shapes |= {"lstm_1.b_gates": (80,), "lstm_2.b_gates": (80,), "linear.b": (1,)}
    if encoder:
        shapes |= {"input_projection.w": (2, 20), "input_projection.b": (20,)}
    return {name: (rng.normal(size=s) / 3).astype("f") for name, s in shapes.items()}


@pytest.fixture(scope="module")
def noisy_bowl():
    """Params, and a function of params and the step to a loss and gradients, in NumPy.

    The loss falls, jumps once beyond the cap on it, and its gradients are larger than the clip once
    and zero for one leaf's part.
    """
    # With these numbers no trend of the loss is the ratio of two roundings, which may be anything.
    rng = np.random.default_rng(3)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    params["bias"] = np.zeros(SHAPES["bias"])
    noise = {name: rng.normal(size=(STEPS, *shape)) for name, shape in SHAPES.items()}

    def loss_and_gradients(params, t):
        loss = sum(np.sum((p - 0.5) ** 2) for p in params.values())
        gradients = {n: 2 * (p - 0.5) + 0.3 * noise[n][t] for n, p in params.items()}
        gradients["weight"] = gradients["weight"] * np.array([[1], [1], [1e4 * (t == 7)], [0]])
        return loss + 1000 * (t == 30) + noise["scalar"][t], gradients

    return params, loss_and_gradients


def run(tx, params, loss_and_gradients, dtype):
    """The same by the transformation."""
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    state, update, found = tx.init(params), jax.jit(tx.update), []
    for t in range(STEPS):
        loss, gradients = loss_and_gradients(jax.tree.map(np.float64, params), t)
        gradients = jax.tree.map(lambda g: jnp.asarray(g, dtype), gradients)
        updates, state = update(gradients, state, params, value=jnp.asarray(loss, dtype))
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def require_equal(path, arrays, bowl, num_steps):
    """In double precision to what XLA makes of a root, in single precision to 1e-5."""
    reference = celo if "mlp.w1" in arrays else celo_adam
    expected = reference(arrays, *bowl, num_steps, STEPS)
    assert max(np.abs(expected[-1][n] - bowl[0][n]).max() for n in SHAPES) > 0.01
    for dtype, tolerance in [("float64", 1e-7), ("float32", 1e-5)]:
        with jax.enable_x64(dtype == "float64"):
            opt, phi = learned.published(path, num_steps=num_steps)
            found = run(opt.bind(phi), *bowl, dtype)
        for ours, theirs in zip(found, expected, strict=True):
            for name in SHAPES:
                np.testing.assert_allclose(ours[name], theirs[name], tolerance, tolerance)


@pytest.mark.parametrize(("num_steps", "network"), [(60, True), (40, True), (60, False)])
def test_params_equal_those_of_numpy_after_each_of_sixty_steps(
    num_steps, network, noisy_bowl, tmp_path
):
    arrays = random_celo(num_steps)
    if not network:
        arrays = {name: array for name, array in arrays.items() if "mlp" not in name}
    save_file(arrays, tmp_path / "weights.safetensors")
    require_equal(tmp_path / "weights.safetensors", arrays, noisy_bowl, num_steps)


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_so_they_do_with_the_published_weights(name, noisy_bowl, rivals_dir):
    path = rivals_dir / f"{name}.safetensors"
    require_equal(path, load_file(path), noisy_bowl, STEPS)


def published_lstm(arrays, gradients):
    """The updates of one coordinate by DM's or RNNprop's rule, in NumPy and double precision."""
    w = {name: np.float64(value) for name, value in arrays.items()}
    states = [(np.zeros(20), np.zeros(20)) for _ in range(2)]
    mean = square = 0.0
    updates = []
    for t, g in enumerate(gradients):
        mean, square = 0.95 * mean + 0.05 * g, 0.95 * square + 0.05 * g * g
        if "input_projection.w" in w:
            root = np.sqrt(square / (1 - 0.95 ** (t + 1)))
            x = np.array([mean / (1 - 0.95 ** (t + 1)) / root, g / root])
            x = x @ w["input_projection.w"] + w["input_projection.b"]
            x = np.where(x > 0, x, np.expm1(x))
        elif abs(g) >= np.exp(-5):
            x = np.array([np.log(abs(g)) / 5, np.sign(g)])
        else:
            x = np.array([-1, np.exp(5) * g])
        for layer, (h, c) in enumerate(states):
            gates = np.concatenate([x, h]) @ w[f"lstm_{layer + 1}.w_gates"]
            i, j, f, o = np.split(gates + w[f"lstm_{layer + 1}.b_gates"], 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
            x = sigmoid(o) * np.tanh(c)
            states[layer] = (x, c)
        output = (x @ w["linear.w"] + w["linear.b"])[0]
        updates.append(0.01 * (np.tanh(output) if "input_projection.w" in w else output))
    return np.array(updates)


@pytest.mark.parametrize("encoder", [False, True], ids=["lstm", "rnnprop"])
def test_updates_of_published_lstms_equal_those_of_numpy(encoder, tmp_path):
    arrays = random_lstm(0, encoder)
    save_file(arrays, tmp_path / "rival.safetensors")
    opt, phi = learned.published(tmp_path / "rival.safetensors")
    gradients = np.random.default_rng(1).normal(size=(12, 3)) * np.array([1, 1e-3, 30])
    tx, params = opt.bind(phi), jnp.zeros(3)
    state, update = tx.init(params), jax.jit(tx.update)
    found = []
    for g in jnp.asarray(gradients, jnp.float32):
        updates, state = update(g, state, params)
        found.append(updates)
    expected = np.stack([published_lstm(arrays, column) for column in gradients.T], axis=1)
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-4, atol=1e-7)


def test_each_published_file_is_read(rivals_dir):
    files = sorted(rivals_dir.glob("*.safetensors"))
    names = {file.stem: learned.published(file, num_steps=9)[0].spec["name"] for file in files}
    assert names["celo"] == "celo" and names["celo_adam"] == "celo_adam"
    assert names["l2o_dm"] == "lstm" and names["l2o_rnnprop"] == "rnnprop"


def test_a_file_that_is_no_such_weights_is_refused_by_name(tmp_path):
    path = tmp_path / "rival.safetensors"
    with pytest.raises(FileNotFoundError, match=r"rival\.safetensors does not exist"):
        learned.published(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"rival\.safetensors must be a safetensors file"):
        learned.published(path)
    arrays = random_lstm(0, encoder=False)
    missing = {name: array for name, array in arrays.items() if name != "linear.b"}
    save_file(missing, path)
    with pytest.raises(ValueError, match=r"must hold the array 'linear\.b', got \['linear\.w'"):
        learned.published(path)
    save_file(arrays | {"linear.b": np.zeros(2, np.float32)}, path)
    with pytest.raises(ValueError, match=r"other shapes.*output_bias"):
        learned.published(path)
    save_file(random_celo(0), path)
    with pytest.raises(ValueError, match=r"num_steps must be the steps planned.*got none"):
        learned.published(path)


@pytest.mark.parametrize("factory", [learned.celo, learned.celo_adam])
def test_what_celo_needs_is_asked_for_by_name(factory, unchecked):
    for steps in (0, -1, 2.5):
        with pytest.raises(ValueError, match=r"num_steps must be a whole number of at least 1"):
            factory(steps)
    opt = factory(10)
    tx, params = opt.bind(opt.init(jax.random.key(0))), jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs the loss.*value=loss"):
        tx.update(params, tx.init(params), params)
    if factory is learned.celo:
        with pytest.raises(ValueError, match="celo needs params"):
            tx.update(params, tx.init(params), value=1.0)


@pytest.mark.parametrize("factory", [learned.celo, learned.celo_adam])
def test_an_update_may_be_told_another_number_of_steps(factory):
    phi = factory(1).init(jax.random.key(0))
    params = jnp.ones(2)

    @jax.jit
    def moved(num_steps):
        tx, state = factory(7).bind(phi), factory(7).bind(phi).init(params)
        for value in (3.0, 2.0, 2.5, 1.0):
            updates, state = tx.update(params, state, params, value=value, num_steps=num_steps)
        return updates, state

    tx = factory(50).bind(phi)
    state, update = tx.init(params), jax.jit(tx.update)
    for value in (3.0, 2.0, 2.5, 1.0):
        updates, state = update(params, state, params, value=value)
    told, told_state = moved(50)
    np.testing.assert_allclose(told, updates, rtol=1e-4)
    np.testing.assert_allclose(told_state.schedule.means, state.schedule.means, rtol=1e-5)
    assert np.any(moved(5)[1].schedule.means != told_state.schedule.means)


@pytest.mark.parametrize("factory", [learned.celo, learned.celo_adam])
def test_a_run_may_be_longer_than_announced_and_a_loss_that_is_nan_shows(factory):
    opt = factory(2)
    tx, params = opt.bind(opt.init(jax.random.key(0))), jnp.ones(2)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(8):
        updates, state = update(params, state, params, value=1.0)
        assert np.all(np.isfinite(updates)) and np.all(updates < 0) == np.all(updates[0] < 0)
    updates, _ = update(params, state, params, value=jnp.nan)
    assert np.all(np.isnan(updates))


def test_celo_is_meta_trained_saved_and_loaded_like_others(tmp_path):
    opt, task = learned.celo(num_steps=4), tasks.quadratic(2)
    result = meta.train(
        opt,
        task,
        key=jax.random.key(0),
        steps=2,
        batch=2,
        estimator=meta.pes(horizon=4, truncation=2),
    )
    before, after = result.history["loss"][0], result.phi
    assert np.isfinite(before)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    learned.save(tmp_path / "celo", opt, after, {})
    again, phi, _ = learned.restore(tmp_path / "celo", num_steps=9)
    assert again.spec["arguments"] == {"num_steps": 9}
    jax.tree.map(np.testing.assert_array_equal, phi, after)
    # What is announced goes to the scheduler, and makes no ramp beside it.
    params = jnp.ones(2)
    moved = [
        tx.update(params, tx.init(params), params, value=1.0)[0]
        for tx in (again.bind(phi), learned.load(tmp_path / "celo", num_steps=9))
    ]
    np.testing.assert_array_equal(*moved)
    assert not isinstance(
        learned.load(tmp_path / "celo", num_steps=9).init(params), learned.ScaledState
    )


def test_the_meta_gradient_reaches_all_weights():
    opt, task = learned.celo(num_steps=6), tasks.quadratic(2)
    estimator = meta.truncated(horizon=6, truncation=6)(opt, task)
    phi = opt.init(jax.random.key(0))
    state = estimator.init(jax.random.key(1), phi)
    estimate, _ = jax.jit(estimator.estimate)(phi, state, jax.random.key(2))
    for path, leaf in jax.tree_util.tree_flatten_with_path(estimate.grad)[0]:
        assert np.any(leaf != 0) and np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
