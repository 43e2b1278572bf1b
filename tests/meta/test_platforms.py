"""Programs for machines that are not here: lowered for TPU, CUDA and CPU, which needs none."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from l2ljax import learned, meta, tasks
from l2ljax.core import as_pytree
from l2ljax.meta import _train
from tests.meta.small import mesh_of

PLATFORMS = ("cpu", "cuda", "tpu")
KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}

OPTIMIZERS = {
    "lstm": learned.lstm((2, 2), averaging=1),
    "adaptive_lstm": learned.adaptive_lstm((2,)),
    "rnnprop": learned.rnnprop((2,)),
    "mlp": learned.mlp(),
    "partition": learned.partition(
        {"a": learned.lstm((2,)), "b": learned.mlp()}, {"*bias": "a", "*": "b"}
    ),
}


def lowered(function, *arguments):
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return exported


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_lowered_for_every_platform(name):
    opt = OPTIMIZERS[name]
    tx = opt.bind(opt.init(KEY))
    state = tx.init(PARAMS)
    exported = lowered(tx.update, PARAMS, state, PARAMS)
    here, _ = exported.call(PARAMS, state, PARAMS)
    there, _ = tx.update(PARAMS, state, PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-4), here, there))


@pytest.mark.parametrize(
    "estimator",
    [
        meta.truncated(horizon=4, truncation=2),
        meta.full(horizon=5),
        meta.pes(horizon=4, truncation=2),
        meta.es(horizon=2, pairs=2),
        meta.forward(horizon=2),
    ],
    ids=["truncated", "full", "pes", "es", "forward"],
)
def test_meta_training_is_lowered_for_every_platform(estimator):
    opt, task = OPTIMIZERS["lstm"], tasks.quadratic(2)
    step, state = meta.make_step(opt, task, key=KEY, batch=2, estimator=estimator)
    lowered(lambda state, key: step(state, key), state, KEY)
    # What `train` runs.
    chunk = _train._jitted_chunk.trace(
        estimator(opt, task, 2),
        as_pytree(optax.adam(1e-3)),
        state,
        KEY,
        jnp.int32(3),
        capacity=5,
    )
    for platform in PLATFORMS:
        assert chunk.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("batch", "estimator"),
    [(8, meta.truncated(horizon=4, truncation=2)), (1, meta.es(horizon=2, pairs=8))],
    ids=["problems", "perturbations"],
)
def test_meta_training_of_eight_devices_is_lowered_for_every_platform(batch, estimator):
    mesh = mesh_of(8)
    step, state = meta.make_step(
        OPTIMIZERS["lstm"], tasks.quadratic(2), key=KEY, batch=batch, estimator=estimator, mesh=mesh
    )
    assert lowered(lambda state, key: step(state, key), state, KEY).nr_devices == 8
