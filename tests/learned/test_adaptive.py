import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import learned
from l2ljax.core import CoordinatewiseTransformation

STEPS = 5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Network:
    """The network of one coordinate in numpy, with the weights of φ."""

    def __init__(self, phi):
        self.phi = jax.tree.map(np.asarray, phi)
        self.layers = [self.phi[name] for name in sorted(self.phi) if name.startswith("lstm")]
        self.carry = [[np.zeros(layer["bias"].size // 4)] * 2 for layer in self.layers]

    def __call__(self, x):
        for layer, carry in zip(self.layers, self.carry, strict=True):
            cell, hidden = carry
            gates = np.concatenate([x, hidden]) @ layer["kernel"] + layer["bias"]
            i, f, g, o = np.split(gates, 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(cell)
            carry[:] = cell, x
        return (x @ self.phi["output_kernel"] + self.phi["output_bias"])[0]


def logarithm_and_sign(g):
    return [np.log(abs(g)) / 10, np.sign(g)] if abs(g) >= np.exp(-10) else [-1, np.exp(10) * g]


def large(phi):
    """Weights with outputs that saturate, which the first ones are too small for."""
    return jax.tree.map(lambda leaf: 3.0 * leaf.astype(jnp.float64), phi)


def gradients():
    return np.random.default_rng(0).normal(size=(STEPS, 2)) * [[1.0, 1e-5]]


@jax.jit
def run(tx, sequence):
    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    return jax.lax.scan(step, tx.init(sequence[0]), sequence)[1]


def by_hand(decays, decay_square, features, network, sequence):
    means, square, steps = np.zeros(len(decays)), 0.0, []
    decays = np.array(decays)
    for t, g in enumerate(sequence, start=1):
        means = decays * means + (1 - decays) * g
        square = decay_square * square + (1 - decay_square) * g**2
        steps.append(network(features(g, means / (1 - decays**t), square / (1 - decay_square**t))))
    return steps


@pytest.mark.parametrize("bounded", [True, False])
def test_adaptive_lstm_is_its_formula(x64, bounded):
    opt = learned.adaptive_lstm(hidden=(3, 2), output_scale=0.2, b1=(0.5, 0.9), bounded=bounded)
    phi = large(opt.init(jax.random.key(0)))

    def features(g, means, square):
        signals = np.array([g, *means])
        return np.concatenate([signals / np.sqrt(square + 1e-16), *_by_feature(signals)])

    def _by_feature(signals):
        return np.transpose([logarithm_and_sign(s) for s in signals])

    squash = np.tanh if bounded else np.asarray
    actual = run(opt.bind(phi), jnp.asarray(gradients()))
    for coordinate in range(2):
        outputs = by_hand((0.5, 0.9), 0.95, features, Network(phi), gradients()[:, coordinate])
        np.testing.assert_allclose(actual[:, coordinate], 0.2 * squash(outputs), rtol=1e-9)


@pytest.mark.parametrize("encoder", [0, 4])
def test_rnnprop_is_its_formula(x64, encoder):
    opt = learned.rnnprop(hidden=(3, 2), encoder=encoder, b1=0.8, b2=0.9)
    phi = large(opt.init(jax.random.key(0)))
    actual = run(opt.bind(phi), jnp.asarray(gradients()))

    def features(g, means, square):
        x = np.array([g, *means]) / np.sqrt(square + 1e-16)
        if encoder:
            x = x @ np.asarray(phi["encoder"]["kernel"]) + np.asarray(phi["encoder"]["bias"])
            x = np.where(x > 0, x, np.expm1(x))
        return x

    for coordinate in range(2):
        network = Network(phi["lstm"] if encoder else phi)
        outputs = by_hand((0.8,), 0.9, features, network, gradients()[:, coordinate])
        np.testing.assert_allclose(actual[:, coordinate], 0.1 * np.tanh(outputs), rtol=1e-9)


def test_rnnprop_does_not_see_the_scale_of_the_loss():
    opt = learned.rnnprop(hidden=(3,))
    tx = opt.bind(jax.tree.map(lambda leaf: 3 * leaf, opt.init(jax.random.key(0))))
    sequence = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, 4)), jnp.float32)
    expected = run(tx, sequence)
    for scale in (1e-5, 1e5):
        np.testing.assert_allclose(run(tx, scale * sequence), expected, rtol=1e-3, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).min() > 1e-5


@pytest.mark.parametrize("factory", [learned.adaptive_lstm, learned.rnnprop])
def test_a_step_is_bounded_whatever_the_gradients(factory):
    opt = factory(hidden=(3,), output_scale=0.5)
    phi = jax.tree.map(lambda leaf: 1e3 * leaf, opt.init(jax.random.key(0)))
    sequence = jnp.asarray([[0.0, 1e-38, 1e15, -1e15, 1.0]] * STEPS)
    updates = run(opt.bind(phi), sequence)
    assert np.all(np.abs(updates) <= 0.5)
    assert np.abs(updates).max() > 0.1


@pytest.mark.parametrize("factory", [learned.adaptive_lstm, learned.rnnprop])
def test_is_coordinatewise_and_saved_with_its_architecture(factory, tmp_path):
    opt = factory(hidden=(3,))
    phi = opt.init(jax.random.key(0))
    assert isinstance(opt.bind(phi), CoordinatewiseTransformation)
    learned.save(tmp_path, opt, phi, {})
    again, loaded, _ = learned.restore(tmp_path)
    assert again.spec == opt.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, phi)


def test_refuses_what_it_cannot_be(unchecked):
    for factory, arguments, message in [
        (learned.adaptive_lstm, {"hidden": ()}, "hidden must have at least one layer"),
        (learned.adaptive_lstm, {"hidden": 20}, "hidden must be a sequence of whole numbers"),
        (learned.rnnprop, {"hidden": 20}, "hidden must be a sequence of whole numbers, got 20"),
        (learned.rnnprop, {"hidden": (20, 0)}, "hidden must be a whole number of at least 1, got"),
        (learned.adaptive_lstm, {"b1": None}, r"b1 must be a sequence of numbers in \[0, 1\)"),
        (learned.adaptive_lstm, {"b1": ()}, "b1 must have at least one decay"),
        (learned.adaptive_lstm, {"b1": (0.5, 1.0)}, r"b1 must be a number in \[0, 1\), got 1.0"),
        (learned.adaptive_lstm, {"p": 90.0}, "p must be below 87"),
        (learned.adaptive_lstm, {"output_scale": 0.0}, "output_scale must be a positive number"),
        (learned.rnnprop, {"encoder": -1}, "encoder must be a whole number of at least 0"),
        (learned.rnnprop, {"b2": -0.1}, "b2 must be a number in"),
        (learned.rnnprop, {"eps": 0.0}, "eps must be a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            factory(**arguments)
