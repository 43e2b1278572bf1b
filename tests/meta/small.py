"""What tests of estimators share: two meta-parameters, a small task, a mesh, compiled functions.

Records are pytrees, so that one compiled function serves all estimators of equal settings.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from l2ljax.core import LearnedOptimizer, LearnedTask, Task
from l2ljax.tasks import quadratic

KEY = jax.random.key(0)
PHI = jnp.array([0.02, 0.5])

OPT = LearnedOptimizer(init=lambda key: PHI, bind=lambda phi: optax.sgd(phi[0], momentum=phi[1]))
TASK = quadratic(2)


def ridge():
    """A weight pulled to 2 by the data and to 0 by a penalty, and wanted at 0.5."""
    return LearnedTask(
        lambda key: jnp.zeros(()),
        lambda psi: Task(
            lambda key: (),
            lambda key, problem: jnp.zeros(()),
            loss=lambda w, problem, key: (w - 2) ** 2 + jnp.exp(psi) * w**2,
            objective=lambda w, problem, key: (w - 0.5) ** 2,
        ),
    )


@jax.jit
def start(estimator, phi=PHI):
    return estimator.init(KEY, phi)


@jax.jit
def estimate(estimator, phi, state, key):
    return estimator.estimate(phi, state, key)


def mesh_of(devices, axes=("problems",), shape=None, kind=AxisType.Explicit):
    """The first devices as a mesh."""
    shape = shape or (devices,)
    return jax.make_mesh(
        shape, axes, devices=jax.devices()[:devices], axis_types=(kind,) * len(shape)
    )


def slopes(estimator, phi, state, key, width=1e-6):
    """The derivative of the meta-loss by central differences, along every coordinate."""

    def loss(phi):
        return estimate(estimator, phi, state, key)[0].loss

    widths = width * np.eye(phi.size)
    return np.array([loss(phi + w) - loss(phi - w) for w in widths]) / (2 * width)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, strict=True)
