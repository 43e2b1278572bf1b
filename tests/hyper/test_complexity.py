"""Complexity control against integrals and the known posterior of a normal model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from l2ljax import hyper
from l2ljax.core import Task

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
SHARPNESS, WANTED = 2.0, jnp.array([[0.4, -0.7]])

# Per example, so N of them weigh N times as much.
TASK = Task(
    sample=lambda key: (),
    init=lambda key, problem: jnp.ones((1, 2)),
    loss=lambda w, problem, key: 0.5 * SHARPNESS * jnp.sum((w - WANTED) ** 2),
)
NOTHING = Task(TASK.sample, TASK.init, lambda w, problem, key: jnp.zeros(()))


@pytest.mark.parametrize(("kind", "lam"), [("var", 3.0), ("rep", 3.0), ("var", 1.0)])
def test_the_penalty_is_the_integral_of_the_divergence(kind, lam):
    learned = hyper.complexity_control(NOTHING, 7, kind, prior_std=0.8)
    mean, log_std = np.array([[0.3, -1.2]]), np.array([[-0.5, 0.2]])
    penalty = learned.bind(jnp.log(lam)).loss(
        hyper.WeightPosterior(jnp.asarray(mean), jnp.asarray(log_std)), (), KEY
    )
    weight, prior = (lam / 7, 0.8) if kind == "var" else (1 / 7, 0.8 / np.sqrt(lam))
    divergence = 0.0
    for m, s in zip(mean.ravel(), np.exp(log_std).ravel(), strict=True):
        q, p = scipy.stats.norm(m, s), scipy.stats.norm(0, prior)
        divergence += scipy.integrate.quad(
            lambda w, q=q, p=p: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)), m - 9 * s, m + 9 * s
        )[0]
    np.testing.assert_allclose(penalty, weight * divergence, rtol=1e-5)


def test_the_known_posterior_is_where_the_gradient_vanishes():
    examples, lam, prior = 20, 4.0, 0.5
    precision = examples * SHARPNESS / lam + 1 / prior**2
    mean = examples * SHARPNESS / lam * WANTED / precision
    exact = hyper.WeightPosterior(mean, jnp.full_like(mean, -0.5 * np.log(precision)))
    task = hyper.complexity_control(TASK, examples, "var", prior_std=prior).bind(jnp.log(lam))
    gradients = jax.vmap(jax.grad(task.loss), in_axes=(None, None, 0))
    keys = jax.random.split(KEY, 4000)
    for at, vanishes in [
        (exact, True),
        (exact._replace(mean=1.2 * mean), False),
        (exact._replace(log_std=exact.log_std + 0.2), False),
    ]:
        rows = np.concatenate(jax.tree.leaves(gradients(at, (), keys)), axis=1).reshape(4000, 4)
        errors = rows.std(axis=0) / np.sqrt(4000)
        assert (np.abs(rows.mean(axis=0) / errors).max() < 4) == vanishes


def test_both_variational_losses_are_one_at_one():
    params = hyper.WeightPosterior(WANTED, WANTED - 1)
    values = [
        hyper.complexity_control(TASK, 9, kind).bind(jnp.zeros(())).loss(params, (), KEY)
        for kind in ("var", "rep")
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_a_posterior_begins_at_the_weights_and_is_measured_there():
    learned = hyper.complexity_control(TASK, 9, "rep", log_std=-2.0)
    task = learned.bind(learned.init(KEY))
    params = task.init(KEY, ())
    np.testing.assert_array_equal(params.mean, 1)
    np.testing.assert_array_equal(params.log_std, -2)
    assert task.objective(params, (), KEY) == TASK.loss(params.mean, (), KEY)
    base = hyper.complexity_control(TASK, 9, "base").bind(jnp.log(3.0))
    weights = base.init(KEY, ())
    np.testing.assert_allclose(
        base.loss(weights, (), KEY), TASK.loss(weights, (), KEY) + 3 / 9 * 2, rtol=1e-6
    )
    assert base.objective(weights, (), KEY) == TASK.loss(weights, (), KEY)


def test_pruning_takes_the_least_of_each_layer():
    mean = {"bias": np.ones(3), "a": RANDOM.normal(size=(4, 5)), "b": RANDOM.normal(size=(2, 5))}
    log_std = jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape), mean)
    prune = jax.jit(hyper.prune)
    for params, importance in [
        (mean, jax.tree.map(np.square, mean)),
        (
            hyper.WeightPosterior(mean, log_std),
            jax.tree.map(lambda m, s: m**2 / np.exp(2 * s), mean, log_std),
        ),
    ]:
        for fraction in (0.0, 0.3, 0.7, 1.0):
            left = prune(params, fraction)
            np.testing.assert_array_equal(left["bias"], 1)
            for name in ("a", "b"):
                gone = round(fraction * mean[name].size)
                worst = np.argsort(importance[name].ravel())[:gone]
                expected = mean[name].ravel().copy()
                expected[worst] = 0
                np.testing.assert_allclose(left[name].ravel(), expected, rtol=1e-6)


def test_bad_regularizers_are_refused_by_name():
    for make, name in [
        (lambda: hyper.complexity_control(TASK, 0), "examples"),
        (lambda: hyper.complexity_control(TASK, 9, "bas"), "kind"),
        (lambda: hyper.complexity_control(TASK, 9, prior_std=0.0), "prior_std"),
        (lambda: hyper.complexity_control(TASK, 9, log_std=np.nan), "log_std"),
        (lambda: hyper.prune(jnp.ones((2, 2)), 1.5), "fraction"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            make()
