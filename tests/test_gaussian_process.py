"""Gaussian processes and acquisition functions, against scikit-learn, scipy and integrals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from l2ljax import gaussian_process as gps

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("x64")

# Eight points of ten places.
POINTS, AT = RNG.uniform(size=(10, 2)), RNG.uniform(size=(5, 2))
VALUES = 40 + 7 * np.sin(5 * POINTS[:, 0]) + 3 * POINTS[:, 1] ** 2
PRESENT = np.arange(10) < 8
KNOWN = gps.Hyperparameters(np.array([0.4, 1.3]), np.array(1.7), np.array(0.02))

condition, fit, posterior = jax.jit(gps.condition), jax.jit(gps.fit), jax.jit(gps.posterior)
propose = jax.jit(gps.propose, static_argnames="acquisition")


def arrays(*values):
    return [jax.tree.map(jnp.asarray, value) for value in values]


@pytest.fixture
def known():
    return condition(*arrays(POINTS, np.where(PRESENT, VALUES, np.nan), KNOWN, PRESENT))


def oracle(noise=0.02, values=VALUES, **settings):
    """scikit-learn's process of the points that are there."""
    kernel = ConstantKernel(1.7, **settings) * Matern([0.4, 1.3], nu=2.5, **settings)
    model = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None, normalize_y=True)
    return model.fit(POINTS[PRESENT], values[PRESENT])


def test_the_posterior_is_that_of_scikit_learn(known):
    mean, std = posterior(known, jnp.asarray(AT))
    expected, deviation = oracle().predict(AT, return_std=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-10)
    np.testing.assert_allclose(std, deviation, rtol=1e-8)
    likelihood = oracle().log_marginal_likelihood_value_
    np.testing.assert_allclose(gps.log_marginal_likelihood(known), likelihood, rtol=1e-10)


def test_the_most_probable_length_scales_are_those_of_scikit_learn():
    lengths = np.exp(RNG.normal(-1, 1, (40, 2)))
    scores = []
    for row in lengths:
        model = GaussianProcessRegressor(
            Matern(row, nu=2.5), alpha=0.01, optimizer=None, normalize_y=True
        )
        model.fit(POINTS[PRESENT], VALUES[PRESENT])
        prior = scipy.stats.norm(np.log(np.sqrt(2) / 2), 1).logpdf(np.log(row)).sum()
        scores.append(model.log_marginal_likelihood_value_ + prior)
    choose = jax.jit(functools.partial(gps.fit_lengths, noise=0.01))
    for order in (np.argsort(scores), np.argsort(scores)[::-1], np.argsort(scores)[:-1]):
        found = choose(*arrays(POINTS, VALUES, lengths[order], PRESENT))
        np.testing.assert_array_equal(found, lengths[order[np.argmax(np.array(scores)[order])]])


def test_samples_have_the_covariance_of_scikit_learn(known):
    drawn = jax.jit(jax.vmap(gps.sample, in_axes=(None, None, 0)))(
        known, jnp.asarray(AT), jax.random.split(jax.random.key(0), 20_000)
    )
    mean, covariance = oracle().predict(AT, return_cov=True)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4 * deviation.max() / 141)
    error = np.cov(drawn.T) - covariance
    assert np.abs(error / np.outer(deviation, deviation)).max() < 4 * np.sqrt(2) / 141


def test_fitted_hyperparameters_are_the_most_probable():
    kernel = ConstantKernel() * Matern([1.0, 1.0], nu=2.5) + WhiteKernel()
    model = GaussianProcessRegressor(kernel, alpha=0, optimizer=None, normalize_y=True)
    model.fit(POINTS[PRESENT], VALUES[PRESENT])
    # In scikit-learn's order: signal, lengths, noise.
    medians = np.log([1, np.sqrt(2) / 2, np.sqrt(2) / 2, 1e-4])

    def surprise(logs):
        prior = np.sum(((logs - medians) / [1, 1, 1, 2]) ** 2) / 2
        return prior - model.log_marginal_likelihood(logs)

    best = scipy.optimize.minimize(surprise, medians, method="Nelder-Mead").fun
    found = fit(*arrays(POINTS, VALUES, PRESENT)).hyperparameters
    assert surprise(np.log([found.signal, *found.lengths, found.noise])) < best + 0.02
    assert surprise(medians) > best + 0.5


def test_what_is_not_there_changes_nothing():
    gp = fit(*arrays(POINTS, VALUES, PRESENT))
    other = fit(*arrays(POINTS * PRESENT[:, None], np.where(PRESENT, VALUES, np.nan), PRESENT))
    for ours, theirs in zip(posterior(gp, AT), posterior(other, AT), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_duplicates_equal_values_and_no_points_leave_it_finite():
    for points, values, present in [
        (np.full((10, 2), 0.5), VALUES, PRESENT),
        (POINTS, np.ones(10), PRESENT),
        (POINTS, np.full(10, np.nan), PRESENT),
        (POINTS, VALUES, np.zeros(10, bool)),
    ]:
        gp = fit(*arrays(points, values, present))
        mean, std = posterior(gp, AT)
        assert np.isfinite(mean).all() and (np.asarray(std) > 0).all()
        unit = propose(gp, jax.random.key(0))
        assert np.isfinite(unit).all() and (np.asarray(unit) >= 0).all()


def test_values_that_are_not_finite_are_the_worst_finite_one():
    broken = np.where(np.arange(10) == 3, np.inf, np.where(np.arange(10) == 5, np.nan, VALUES))
    repaired = np.where(np.isfinite(broken), broken, broken[[0, 1, 2, 4, 6, 7]].max())
    found, expected = (posterior(fit(*arrays(POINTS, v, PRESENT)), AT) for v in (broken, repaired))
    np.testing.assert_array_equal(found, expected)


MEAN, STD, BEST = np.array([-1.0, 0.3, 0.3, 2.0]), np.array([0.5, 1.5, 0.01, 1.0]), 0.25


def test_expected_improvement_is_an_integral():
    for margin in (0.0, 0.2):
        expected = [
            scipy.integrate.quad(
                lambda z, m=m, s=s, margin=margin: (
                    max(BEST - margin - m - s * z, 0) * scipy.stats.norm.pdf(z)
                ),
                -12,
                (BEST - margin - m) / s,
            )[0]
            for m, s in zip(MEAN, STD, strict=True)
        ]
        found = gps.expected_improvement(*arrays(MEAN, STD, np.array(BEST)), margin)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


def test_probability_of_improvement_is_an_integral():
    expected = [
        scipy.integrate.quad(scipy.stats.norm(m, s).pdf, m - 12 * s, BEST - 0.2)[0]
        if BEST - 0.2 > m - 12 * s
        else 0
        for m, s in zip(MEAN, STD, strict=True)
    ]
    found = gps.probability_of_improvement(*arrays(MEAN, STD, np.array(BEST)), 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


def test_acquisitions_of_certain_values_are_their_limits():
    @jax.jit
    def limits(mean, std, best):
        improve = gps.expected_improvement
        chance = gps.probability_of_improvement(mean, std, best)
        slope = jax.grad(lambda mean: improve(mean, std, best).sum())(mean)
        return improve(mean, std, best), chance, gps.lower_confidence_bound(mean, std), slope

    mean = np.array([-1.0, 1.0, 40.0])
    for std in (np.zeros(3), np.full(3, 1e-200)):
        found = limits(mean, std, 0.5)
        expected = [[1.5, 0, 0], [1, 0, 0], mean, [-1, 0, 0]]
        for value, limit in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, limit)
    assert (np.asarray(limits(mean, np.ones(3), 0.5)[0]) >= 0).all()


@pytest.mark.parametrize("acquisition", ["expected_improvement", "lower_confidence_bound"])
def test_proposals_are_better_than_any_point_of_a_fine_lattice(acquisition):
    gp = fit(*arrays(POINTS, VALUES, PRESENT))
    found = propose(gp, jax.random.key(0), acquisition=acquisition)
    lattice = np.stack(np.meshgrid(*[np.linspace(0, 1, 50)] * 2), axis=-1).reshape(-1, 2)
    mean, std = map(np.asarray, posterior(gp, np.vstack([found, lattice, POINTS[PRESENT]])))
    z = (mean[2501:].min() - mean) / std
    promise = {
        "expected_improvement": std * (z * scipy.stats.norm.cdf(z) + scipy.stats.norm.pdf(z)),
        "lower_confidence_bound": std * (z + 2),
    }[acquisition]
    assert promise[0] > promise[1:2501].max() - 0.001 * np.ptp(promise)


def test_thompson_proposes_where_one_drawn_function_is_least():
    gp = fit(*arrays(POINTS, VALUES, PRESENT))
    keys = jax.random.split(jax.random.key(0), 20)
    draw = jax.vmap(lambda key: gps.propose(gp, key, acquisition="thompson", candidates=64))
    units = jax.jit(draw)(keys)
    assert len(np.unique(units, axis=0)) > 5
    assert float(posterior(gp, units)[0].mean()) < np.median(VALUES[PRESENT])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"acquisition": "expected"}, "acquisition must be one of .* got 'expected'"),
        ({"margin": -1.0}, "margin must be a non-negative number, got -1.0"),
        ({"kappa": np.nan}, "kappa must be a non-negative number"),
        ({"candidates": 0}, "candidates must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_of_a_proposal_are_named(arguments, message):
    gp = gps.condition(*arrays(POINTS, VALUES, KNOWN))
    with pytest.raises(ValueError, match=message):
        gps.propose(gp, jax.random.key(0), **arguments)
