"""Metaparameters of tasks: every estimator against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from l2ljax import learned, meta, tasks
from l2ljax.core import LearnedTask, Task
from l2ljax.meta import _perturbations
from tests.meta.small import KEY, estimate, start

CURVATURES = np.array([0.7, 1.5])
RATE, DECAY, PENALTY, SCALE, HORIZON = 0.4, 0.75, 0.1, 1.3, 6

BOWL = Task(
    sample=lambda key: (),
    init=lambda key, problem: jnp.array([1.0, -2.0]),
    loss=lambda params, problem, key: (0.7 * params[0] ** 2 + 1.5 * params[1] ** 2) / 2,
)
MOMENTUM = learned.reversible_momentum(horizon=1, learning_rate=RATE, decay=DECAY)
LAST = meta.final_weights(HORIZON) / HORIZON


def penalised_bowl():
    task = tasks.learned_init_scale(tasks.learned_init(BOWL), SCALE)
    return tasks.learned_l2(task, PENALTY)


def first(opt, task):
    return {"optimizer": opt.init(KEY), "task": task.init(KEY)}


def result(factory, opt, task, phi=None, batch=1):
    phi = first(opt, task) if phi is None else phi
    estimator = factory(opt, task, batch)
    return estimate(estimator, phi, start(estimator, phi), KEY)[0]


def assert_trees_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def known():
    """The gradient of Σ a θ_T² / 2: the run of each coordinate is a power of a 2x2 matrix."""
    slopes = {"rate": 0.0, "decay": 0.0, "penalty": 0.0, "init": np.zeros(2)}
    for i, (a, begin) in enumerate(zip(CURVATURES, [1.0, -2.0], strict=True)):
        c = a + 2 * PENALTY
        # (θ, v) after a step, and what a change of the rate, the decay and the curvature does.
        step = np.array([[1 - RATE * (1 - DECAY) * c, RATE * DECAY], [-(1 - DECAY) * c, DECAY]])
        changes = {
            "rate": [[-(1 - DECAY) * c, DECAY], [0, 0]],
            "decay": [[RATE * c, RATE], [c, 1]],
            "penalty": [[-2 * RATE * (1 - DECAY), 0], [-2 * (1 - DECAY), 0]],
        }
        power = [np.linalg.matrix_power(step, n) for n in range(HORIZON + 1)]
        at_start = np.array([SCALE * begin, 0.0])
        slope = a * (power[HORIZON] @ at_start)[0]
        slopes["init"][i] = slope * power[HORIZON][0, 0]
        for name, change in changes.items():
            moved = sum(power[HORIZON - 1 - n] @ change @ power[n] for n in range(HORIZON))
            slopes[name] += slope * (moved @ at_start)[0]
    return {
        "optimizer": {
            "decay": slopes["decay"] * DECAY * (1 - DECAY),
            "learning_rate": slopes["rate"] * RATE,
        },
        "task": {
            "init": slopes["init"] * SCALE,
            "init_scale": slopes["init"] @ [SCALE, -2 * SCALE],
            "l2": slopes["penalty"] * PENALTY,
        },
    }


EXACT = {
    "full": meta.full(horizon=HORIZON, step_weights=LAST),
    "forward": meta.forward(horizon=HORIZON, step_weights=LAST),
    "reversible": meta.reversible(horizon=HORIZON, step_weights=LAST),
    "truncated": meta.truncated(
        horizon=HORIZON, truncation=HORIZON, step_weights=LAST, second_derivatives=True
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EXACT)
def test_on_a_quadratic_the_exact_ones_agree_with_the_closed_form(name):
    found, expected = result(EXACT[name], MOMENTUM, penalised_bowl()), known()
    np.testing.assert_allclose(ravel_pytree(found.grad)[0], ravel_pytree(expected)[0], rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_evolution_strategies_see_the_slopes_along_their_noise():
    # φ stays: its decay is rounded, which differences see.
    opt, task = learned.fixed(MOMENTUM.bind(MOMENTUM.init(KEY))), penalised_bowl()
    settings = {"horizon": HORIZON, "std": 1e-4, "pairs": 3, "step_weights": LAST}
    found = result(meta.es(**settings), opt, task)
    noise = _perturbations.draw(KEY, first(opt, task), 3)
    rows = np.hstack([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(noise)])
    slopes, grad = ravel_pytree(known()["task"])[0], ravel_pytree(found.grad)[0]
    np.testing.assert_allclose(grad, (rows @ slopes) @ rows / 3, rtol=1e-5)
    # Persistent ones, of one segment, are the same: each run from its own θ₀.
    whole = result(meta.pes(truncation=HORIZON, **settings), opt, task)
    assert_trees_close(whole.grad, found.grad, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_persistent_strategies_credit_an_initial_point_with_later_segments():
    task, opt = tasks.learned_init(BOWL), learned.fixed(optax.sgd(0.1))
    estimator = meta.pes(horizon=4, truncation=2, std=1e-3)(opt, task, 1)
    phi = first(opt, task)

    def episode(key):
        once, state = estimator.estimate(phi, estimator.init(key, phi), key)
        again, _ = estimator.estimate(phi, state, jax.random.fold_in(key, 1))
        return once.grad["task"]["init"] + again.grad["task"]["init"]

    sums = np.asarray(jax.jit(lambda keys: jax.lax.map(episode, keys))(jax.random.split(KEY, 4000)))
    factors = (1 - 0.1 * CURVATURES) ** 2
    exact = CURVATURES * [1.0, -2.0] * (factors + factors**2 + factors**3 + factors**4)
    errors = sums.std(axis=0) / np.sqrt(len(sums))
    assert np.all(errors < 0.06 * np.abs(exact))
    assert np.all(np.abs(sums.mean(axis=0) - exact) < 4 * errors)


def classification():
    """Three features, two classes, minibatches; penalties, scales and the data are learned."""
    random = np.random.default_rng(0)

    def part(count):
        return tasks.Split(random.normal(size=(count, 3)), np.arange(count) % 2)

    data = tasks.Dataset(train=part(5), validation=part(4), classes=2)
    train, held_out = (
        tasks.supervised(
            lambda key, x: {"w": jax.random.normal(key, (3, 2)), "b": jnp.ones(2)},
            lambda params, x: x @ params["w"] + params["b"],
            "cross_entropy",
            data,
            batch_size=3,
            split=split,
        )
        for split in ("train", "validation")
    )
    task = tasks.learned_l2(tasks.learned_data(train, held_out), 0.1, per="coordinate")
    return tasks.learned_init_scale(task, 0.7)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_penalties_scales_and_data_have_the_slopes_of_finite_differences():
    task, settings = classification(), {"horizon": 5, "meta_loss": "log_improvement"}
    phi = first(MOMENTUM, task)
    assert {name: len(jax.tree.leaves(psi)) for name, psi in phi["task"].items()} == {
        "data": 1,
        "init_scale": 2,
        "l2": 2,
    }
    found = result(meta.full(**settings), MOMENTUM, task, phi, batch=2)
    backwards = result(meta.reversible(**settings), MOMENTUM, task, phi, batch=2)
    assert_trees_close(backwards.grad, found.grad, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(backwards.loss, found.loss, rtol=1e-10)
    np.testing.assert_allclose(backwards.aux["losses"], found.aux["losses"], rtol=1e-10)
    assert not any(backwards.aux[flag] for flag in ("overflow", "irreversible", "exhausted"))

    estimator = meta.full(**settings)(MOMENTUM, task, 2)
    state = start(estimator, phi)
    for name, psi in phi["task"].items():
        flat, tree = ravel_pytree(psi)
        slopes, _ = ravel_pytree(found.grad["task"][name])
        for place in range(0, flat.size, max(1, flat.size // 3)):
            ends = []
            for width in (1e-5, -1e-5):
                moved = {**phi["task"], name: tree(flat.at[place].add(width))}
                ends.append(estimate(estimator, {**phi, "task": moved}, state, KEY)[0].loss)
            difference = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(slopes[place], difference, rtol=1e-6, atol=1e-9)


def test_training_learns_where_to_begin_for_several_tasks_at_once():
    opt = learned.fixed(optax.sgd(0.1))
    other = Task(BOWL.sample, BOWL.init, lambda params, *rest: jnp.sum((params - 1.0) ** 2))
    both = [tasks.learned_init(BOWL), tasks.learned_init(other)]
    score = meta.validation(opt, both[0], key=KEY, horizon=3, problems=2, window=1)
    trained = meta.train(
        opt,
        both,
        key=KEY,
        steps=60,
        chunk=30,
        meta_optimizer=optax.adam(0.1),
        estimator=meta.full(horizon=3),
        validate=score,
        validate_every=30,
    )
    assert trained.phi["optimizer"] == ()
    # Between the minima of the two, 0 and 1.
    place = trained.last_phi["task"]["init"]
    assert np.all((place > 0.1) & (place < 0.9))
    assert trained.history["validation"][-1] == score(trained.last_phi)


def test_what_an_estimator_would_do_wrongly_is_refused():
    task, opt = tasks.learned_init(BOWL), learned.fixed(optax.sgd(0.1))
    for factory in (
        meta.truncated(),
        meta.full(second_derivatives=False),
        meta.forward(second_derivatives=False),
    ):
        with pytest.raises(ValueError, match="second_derivatives must be True for a LearnedTask"):
            factory(opt, task)
    with pytest.raises(ValueError, match="second_derivatives must be True for a LearnedTask"):
        meta.reversible(second_derivatives=False)(MOMENTUM, task)
    with pytest.raises(TypeError, match="imitation needs a Task"):
        meta.imitation(optax.sgd(0.1))(opt, task)
    with pytest.raises(ValueError, match="must all be learned ones, or none, got 1"):
        meta.mixture(meta.full())(opt, [task, BOWL])
    with pytest.raises(ValueError, match='phi must be {"optimizer": ..., "task": ...}'):
        estimator = meta.full()(opt, task)
        estimator.init(KEY, ())


def test_one_step_of_hypergradient_descent_is_exact():
    task, opt = tasks.learned_l2(BOWL, PENALTY), learned.fixed(optax.sgd(RATE))
    found = result(meta.hypergradient_descent(horizon=3), opt, task)
    params = np.array([1.0, -2.0])
    after = params - RATE * (CURVATURES + 2 * PENALTY) * params
    slope = CURVATURES * after @ (-RATE * 2 * PENALTY * params)
    np.testing.assert_allclose(found.grad["task"]["l2"], slope, rtol=1e-5)


def test_a_problem_may_depend_on_psi():
    # θ is drawn towards ψ, which the sampled problem carries.
    wandering = LearnedTask(
        init=lambda key: jnp.array(0.5),
        bind=lambda psi: Task(
            sample=lambda key: {"centre": 2 * psi},
            init=lambda key, problem: jnp.zeros(2),
            loss=lambda params, problem, key: jnp.sum((params - problem["centre"]) ** 2) / 2,
        ),
    )
    grads = [
        result(factory(horizon=4), MOMENTUM, wandering).grad["task"]
        for factory in (meta.full, meta.reversible)
    ]
    np.testing.assert_allclose(*grads, rtol=1e-5)
    assert grads[0] > 1
