"""Every public optimizer, and all that is ours, where dtypes and ranks are not promoted.

Traced and not run: both modes raise while a program is traced.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from methods_table import METHODS, VARIANTS

import l2ljax as l2l
from l2ljax import classic, gaussian_process, hyper, learned, meta, tasks

KEY = jax.random.key(0)
SHAPES = {"empty": (0, 3), "scale": (), "vector": (3,), "weight": (2, 3)}


def tree(dtype: str) -> dict[str, jax.Array]:
    return {name: jnp.ones(shape, dtype) for name, shape in SHAPES.items()}


def bound(opt: l2l.core.LearnedOptimizer) -> optax.GradientTransformation:
    with jax.enable_x64(False):
        return opt.bind(opt.init(KEY))


COORDINATES = [name for name in learned.shipped() if not name.startswith(("black", "surrogate"))]
OTHERS = {
    "fixed": lambda: bound(learned.fixed(classic.adam(0.1))),
    "hyperparameters": lambda: bound(
        learned.hyperparameters(classic.adam, learning_rate=1e-3, b1=0.9)
    ),
    "hyperparameters_per_step": lambda: bound(
        learned.hyperparameters(classic.momentum, horizon=3, learning_rate=0.1)
    ),
    "reversible_momentum": lambda: bound(learned.reversible_momentum(horizon=3)),
    "with_snapshots": lambda: classic.with_snapshots(classic.adam(0.1), steps=4, cycles=2),
    "nesterov_then_scale": lambda: optax.chain(classic.scale_by_nesterov(0.9), optax.scale(-0.1)),
    **{name: functools.partial(learned.load, name) for name in COORDINATES},
}
EVERY = {m.name: m.make for m in METHODS if m not in VARIANTS} | OTHERS


def objective(params: dict[str, jax.Array]) -> jax.Array:
    return sum((jnp.sum(w**2) for w in params.values()), jnp.zeros((), params["scale"].dtype))


def one_update(tx: optax.GradientTransformation, params: dict[str, jax.Array]):
    value, grad = jax.value_and_grad(objective)(params)
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    updates, new = tx.update(grad, state, params, value=value, grad=grad, value_fn=objective)
    return updates, state, new


@pytest.mark.parametrize("x64", [False, True], ids=["", "x64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_no_optimizer_promotes_dtypes_or_ranks(name, dtype, x64, strict_promotion):
    tx = EVERY[name]()
    with jax.enable_x64(x64):
        params = tree(dtype)
        updates, state, new = jax.eval_shape(functools.partial(one_update, tx), params)
        assert {n: (u.shape, u.dtype) for n, u in updates.items()} == {
            n: (w.shape, w.dtype) for n, w in params.items()
        }
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )


def test_the_table_has_every_public_optimizer():
    schedules = {"exp_range", "snapshot_cosine", "triangular", "triangular2"}
    others = {"average_predictions", "minimize", "nesterov_iterate", *schedules}
    names = {n for n in classic.__all__ if n[0].islower() and not n.startswith("scale_by_")}
    assert names - others <= set(EVERY)
    alone = {"black_box_lstm", "surrogate_lstm"}  # by their weights, below
    tools = {
        "hyperparameter_values",
        "load",
        "published",
        "read_card",
        "restore",
        "save",
        "shipped",
    }
    names = {n for n in learned.__all__ if n[0].islower()}
    assert names - alone - tools <= set(EVERY)


@pytest.mark.parametrize("estimator", ["full", "truncated", "es", "pes"])
@pytest.mark.parametrize("meta_loss", ["mean", "log_improvement"])
def test_no_estimator_promotes_dtypes_or_ranks(estimator, meta_loss, strict_promotion):
    task, opt = tasks.quadratic(dim=3), learned.lstm(hidden=(2,))
    lengths = {} if estimator == "full" else {"truncation": 2}
    if estimator == "es":
        lengths = {}
    factory = getattr(meta, estimator)(horizon=4, meta_loss=meta_loss, **lengths)
    estimator = factory(opt, task, batch=2)

    def run(phi):
        return estimator.estimate(phi, estimator.init(KEY, phi), KEY)

    jax.eval_shape(run, opt.init(KEY))


def test_no_classifier_promotes_dtypes_or_ranks(strict_promotion):
    images = tasks.digits()
    networks = {
        "mlp": tasks.mlp_classifier(images, hidden=(4,)),
        "convnet": tasks.convnet_classifier(images),
    }
    for task in networks.values():

        def run(key, task=task):
            params = task.init(key, task.sample(key))
            return jax.grad(task.loss)(params, task.sample(key), key)

        jax.eval_shape(run, KEY)


@pytest.mark.parametrize("name", ["black-box-2d", "surrogate-2d"])
def test_no_black_box_optimizer_promotes_dtypes_or_ranks(name, strict_promotion):
    tx, task = learned.load(name), tasks.gp_samples(dim=2)
    jax.eval_shape(lambda key: l2l.evaluate.curves(tx, task, key=key, steps=2, problems=2), KEY)


@pytest.mark.parametrize(
    "acquisition", ["expected_improvement", "lower_confidence_bound", "thompson"]
)
def test_no_bayesian_search_promotes_dtypes_or_ranks(acquisition, strict_promotion):
    def run(points, values):
        gp = gaussian_process.fit(points, values, steps=2)
        return gaussian_process.propose(gp, KEY, acquisition=acquisition, candidates=4)

    jax.eval_shape(run, jnp.ones((3, 2)), jnp.ones(3))


def test_a_bayesian_search_runs_with_all_kinds_of_axes(strict_promotion):
    space = {
        "rate": hyper.log_uniform(1e-3, 1.0),
        "units": hyper.integer(1, 4),
        "kind": hyper.choice("a", "b"),
    }
    found = hyper.search(
        lambda settings, key: jnp.log(settings["rate"]) ** 2,
        space,
        method=hyper.bayesian(initial=2),
        key=KEY,
        trials=4,
    )
    assert len(found.values) == 4
