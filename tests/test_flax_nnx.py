"""In Flax NNX an optimizer takes any transformation of the library, as it takes those of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from l2ljax import classic, learned
from tests.public_optimizers import OPTIMIZERS

# Its name in the oldest flax that is allowed is `pure`.
as_pure = getattr(nnx, "as_pure", None) or nnx.pure
INPUTS = jnp.array([[1.0, -2.0]])


def loss(model):
    return jnp.sum(model(INPUTS) ** 2)


def make_model():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def step(model, optimizer):
    value, gradients = nnx.value_and_grad(loss)(model)
    extra = {}
    if isinstance(optimizer.tx, optax.GradientTransformationExtraArgs):
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        extra = {
            "value": value,
            "grad": as_pure(nnx.state(gradients)),
            "value_fn": lambda params: loss(nnx.merge(graph, params, rest)),
        }
    optimizer.update(model, gradients, **extra)


# Those of leaves, and of one array, know the params that they are for.
ANY_PARAMS = [
    row for row in OPTIMIZERS if isinstance(row.params, dict) and "of leaves" not in row.name
]


def shapes(*modules):
    return jax.tree.map(jnp.shape, as_pure(nnx.state(modules)))


@pytest.mark.parametrize("row", ANY_PARAMS, ids=str)
def test_an_nnx_optimizer_takes_it_without_a_chain(row):
    model, after = make_model(), []
    optimizer = nnx.Optimizer(model, row.make(), wrt=nnx.Param)

    def traced(model, optimizer):
        step(model, optimizer)
        after.append(shapes(model, optimizer))

    nnx.eval_shape(traced, model, optimizer)
    assert after == [shapes(model, optimizer)]


def test_rates_that_are_arrays_are_no_data_of_the_optimizer():
    rate = jnp.asarray(0.1)
    for tx in (classic.adam(rate), classic.lbfgs(rate), classic.gradient_descent(rate)):
        nnx.Optimizer(make_model(), tx, wrt=nnx.Param)


@pytest.mark.parametrize("make", [nnx.Optimizer, nnx.ModelAndOptimizer])
def test_the_general_optimizer_trains_a_model_as_it_does_by_hand(make):
    tx, model = learned.load("general"), make_model()
    graph, start = nnx.split(model)
    params, state = nnx.to_pure_dict(start), tx.init(nnx.to_pure_dict(start))
    optimizer = make(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        gradients = nnx.grad(loss)(model)
        optimizer.update(*([] if make is nnx.ModelAndOptimizer else [model]), gradients)

    @jax.jit
    def train_by_hand(params, state):
        gradients = jax.grad(lambda p: loss(nnx.merge(graph, nnx.State(p))))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        train(model, optimizer)
        params, state = train_by_hand(params, state)
    found = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, params)
    assert loss(model) < loss(make_model())
