"""Least squares by full, single-example and minibatch gradients; when and why it stops."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from l2ljax.classic import StopReason, minimize
from l2ljax.classic._minimize import _minimize

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(24, 3)).astype(np.float32)
TARGETS = (INPUTS @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=24)).astype(np.float32)
DATA = {"x": INPUTS, "y": TARGETS}
SOLUTION = np.linalg.lstsq(INPUTS.astype(np.float64), TARGETS.astype(np.float64))[0]
BEST = 0.5 * np.mean((INPUTS @ SOLUTION - TARGETS) ** 2)
START = jnp.zeros(3)
KEY = jax.random.key(0)

DESCENT = classic.gradient_descent(0.3)
DECAYING = classic.gradient_descent(lambda t: 2.0 / (20.0 + t))


def squares(w, batch):
    return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)


def bowl(w, batch):
    assert batch == ()
    return 0.5 * jnp.sum(w**2)


def reason(found):
    return StopReason(int(found.reason))


def test_full_gradients_find_the_least_squares_solution():
    found = minimize(DESCENT, squares, START, DATA, steps=500, tolerance=1e-6)
    assert reason(found) is StopReason.CONVERGED
    assert 10 < found.steps < 500
    np.testing.assert_allclose(found.params, SOLUTION, atol=1e-5)
    np.testing.assert_allclose(found.value, BEST, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_drawn_gradients_with_a_falling_rate_come_close(batch_size):
    found = minimize(
        DECAYING, squares, START, DATA, key=KEY, batch_size=batch_size, steps=20_000, tolerance=0.0
    )
    assert (reason(found), found.steps) == (StopReason.STEP_LIMIT, 20_000)
    np.testing.assert_allclose(found.params, SOLUTION, atol=0.03)
    # The value is that of all examples, and not of the last few.
    np.testing.assert_allclose(found.value, squares(found.params, DATA), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_updates_are_those_of_a_plain_loop(batch_size):
    tx = classic.momentum(0.05)
    w, state = START, tx.init(START)
    for t in range(7):
        batch = DATA
        if batch_size is not None:
            drawn = jax.random.randint(jax.random.fold_in(KEY, t), (batch_size,), 0, 24)
            batch = jax.tree.map(lambda leaf, drawn=drawn: leaf[np.asarray(drawn)], DATA)
        updates, state = tx.update(jax.grad(squares)(w, batch), state, w)
        w = optax.apply_updates(w, updates)
    settings = {"key": KEY, "batch_size": batch_size, "steps": 7, "tolerance": 0.0}
    found = minimize(tx, squares, START, DATA, **settings)
    np.testing.assert_allclose(found.params, w, rtol=1e-5)
    np.testing.assert_allclose(found.value, squares(w, DATA), rtol=1e-5)


def test_the_rule_is_that_of_the_distance_between_iterates():
    # w_t = 0.5^t: the update to w_t is 0.5^t long.
    start, tx = jnp.ones(()), optax.sgd(0.5)
    found = minimize(tx, bowl, start, steps=50, tolerance=0.5**6 + 1e-6)
    assert (reason(found), found.steps, found.params) == (StopReason.CONVERGED, 6, 0.5**6)
    # Shorter, and not as short.
    assert minimize(tx, bowl, start, steps=50, tolerance=0.5**6).steps == 7
    # Over all leaves together: the distance of four is twice that of one.
    four = minimize(tx, bowl, jnp.ones(4), steps=50, tolerance=0.5**6 + 1e-6)
    assert four.steps == 7


def test_patience_counts_updates_in_a_row():
    start, tx = jnp.ones(()), optax.sgd(0.5)
    found = minimize(tx, bowl, start, steps=50, tolerance=0.5**6 + 1e-6, patience=3)
    assert (reason(found), found.steps) == (StopReason.CONVERGED, 8)
    # Every second update is short, so two in a row never are.
    stutter = optax.sgd(lambda t: jnp.where(t % 2 == 0, 1e-9, 0.01))
    settings = {"steps": 20, "tolerance": 1e-6}
    assert minimize(stutter, bowl, start, **settings).steps == 1
    patient = minimize(stutter, bowl, start, **settings, patience=2)
    assert (reason(patient), patient.steps) == (StopReason.STEP_LIMIT, 20)


def parabola(w, batch):
    return jnp.sum((w - 3.0) ** 2)


@pytest.mark.parametrize(
    "tx",
    [
        # Every second update is zero, or the first two.
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        classic.gradient_descent(optax.linear_schedule(0.0, 0.1, 5, transition_begin=1)),
    ],
    ids=["accumulation", "warm-up"],
)
def test_an_update_of_zero_where_the_gradient_is_not_says_nothing_of_convergence(tx):
    start = jnp.array(10.0)
    found = minimize(tx, parabola, start, steps=300, tolerance=1e-6)
    assert reason(found) is StopReason.CONVERGED and 20 < found.steps < 300
    np.testing.assert_allclose(found.params, 3, atol=1e-5)
    # Two short updates are enough, with or without one of zero between them.
    hasty = minimize(tx, parabola, start, steps=300, tolerance=100.0, patience=2)
    assert (reason(hasty), hasty.steps) == (StopReason.CONVERGED, 4)


def test_without_any_update_a_run_ends_at_the_limit():
    found = minimize(optax.sgd(0.0), parabola, jnp.array(10.0), steps=9, tolerance=1e-6)
    assert (reason(found), found.steps, found.params) == (StopReason.STEP_LIMIT, 9, 10)


def test_an_update_of_zero_at_a_stationary_point_is_convergence():
    found = minimize(optax.sgd(0.1), parabola, jnp.array(3.0), steps=9, tolerance=1e-6)
    assert (reason(found), found.steps) == (StopReason.CONVERGED, 1)


def kink(w, batch):
    """Its minimum is at (3, 3), at the bottom of a crease."""
    return 100 * jnp.abs(w[0] - w[1]) + jnp.sum((w - jnp.array([5.0, 1.0])) ** 2)


def steep(w, batch):
    return 1e20 * (w - 3) ** 2


def offset(w, batch):
    """Float32 has no numbers between 1e9 and 1e9 + 64."""
    return 1e9 + (w - 3) ** 2


def optax_descent(rate):
    search = optax.scale_by_backtracking_linesearch(30, store_grad=True)
    return optax.chain(optax.sgd(rate), search)


@pytest.mark.parametrize(
    ("tx", "loss", "start"),
    [
        (classic.lbfgs(), kink, [0.0, 0.5]),
        (classic.bfgs(), kink, [0.0, 0.5]),
        (optax.lbfgs(), kink, [0.0, 0.5]),
        (classic.gradient_descent(0.1, "strong_wolfe"), steep, 10.0),
        (classic.gradient_descent(0.1, "backtracking"), steep, 10.0),
        (classic.gradient_descent(0.1, "backtracking"), offset, 10.0),
        (classic.lbfgs(line_search="backtracking"), offset, 10.0),
        (optax_descent(0.1), offset, 10.0),
    ],
)
def test_a_line_search_that_fails_is_a_reason_of_its_own(tx, loss, start):
    start = jnp.array(start)
    found = minimize(tx, loss, start, steps=100, tolerance=1e-6)
    assert reason(found) is StopReason.LINE_SEARCH_FAILED and 1 <= found.steps < 100
    assert np.max(np.abs(jax.grad(loss)(found.params, ()))) > 1
    np.testing.assert_allclose(found.value, loss(found.params, ()), rtol=1e-7)
    # A search that found nothing has not moved, least of all up.
    assert found.value <= loss(start, ())
    # A search that makes its way is none that failed, whatever it ends with.
    assert (found.steps == 1) == bool(np.all(found.params == start))


def test_searches_have_to_fail_as_often_in_a_row_as_patience_says():
    tx, start = classic.gradient_descent(0.1, "backtracking"), jnp.array(10.0)
    found = minimize(tx, steep, start, steps=100, tolerance=1e-6, patience=3)
    assert (reason(found), found.steps) == (StopReason.LINE_SEARCH_FAILED, 3)
    # On a loss of this scale both searches find the minimum.
    for search in ("strong_wolfe", "backtracking"):
        tx = classic.gradient_descent(1e-20, search)
        found = minimize(tx, steep, start, steps=100, tolerance=1e-6)
        assert (reason(found), found.params) == (StopReason.CONVERGED, 3)


def test_a_failed_search_on_drawn_examples_is_followed_by_one_on_others():
    def loss(w, batch):
        return jnp.mean(batch) * (w - 3) ** 2

    tx, data = classic.gradient_descent(0.1, "backtracking"), jnp.array([1.0, 1e20])
    settings = {"key": KEY, "batch_size": 1, "steps": 200, "tolerance": 1e-2}
    found = minimize(tx, loss, jnp.array(10.0), data, **settings, patience=5)
    assert reason(found) is StopReason.CONVERGED
    np.testing.assert_allclose(found.params, 3, atol=0.01)
    hasty = minimize(tx, loss, jnp.array(10.0), data, **settings)
    assert reason(hasty) is StopReason.LINE_SEARCH_FAILED


def test_a_stochastic_run_stops_by_chance_unless_it_is_patient():
    settings = {"key": KEY, "batch_size": 1, "steps": 2000, "tolerance": 1e-3}
    hasty = minimize(DESCENT, squares, START, DATA, **settings)
    assert reason(hasty) is StopReason.CONVERGED and hasty.value > 1.2 * BEST
    patient = minimize(DESCENT, squares, START, DATA, **settings, patience=10)
    assert (reason(patient), patient.steps) == (StopReason.STEP_LIMIT, 2000)


def test_the_limit_ends_a_run_and_so_does_a_tolerance_of_zero_never():
    found = minimize(optax.sgd(0.0), bowl, jnp.ones(2), steps=5, tolerance=0.0)
    assert (reason(found), found.steps, found.value) == (StopReason.STEP_LIMIT, 5, 1.0)
    both = minimize(optax.sgd(0.01), bowl, jnp.ones(2), steps=5, tolerance=0.1, patience=5)
    assert (reason(both), both.steps) == (StopReason.CONVERGED, 5)


def test_a_diverging_run_ends_at_once_with_its_last_finite_params():
    # w_t = (-1e5)^t, and w² overflows float32 beyond 1e19: the fourth update is undone.
    found = minimize(optax.sgd(1e5 + 1), bowl, jnp.ones(()), steps=10**9, tolerance=1.0)
    assert (reason(found), found.steps) == (StopReason.NOT_FINITE, 3)
    np.testing.assert_allclose([found.params, found.value], [-1e15, 0.5e30], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_gradient_that_is_not_finite_ends_a_run(batch_size):
    def root(w, batch):
        return jnp.mean(jnp.sqrt(w)) + 0 * jnp.sum(batch)

    settings = {"key": KEY, "batch_size": batch_size, "steps": 9, "tolerance": 1.0}
    found = minimize(optax.sgd(0.1), root, jnp.zeros(1), jnp.ones(3), **settings)
    assert (reason(found), found.steps) == (StopReason.NOT_FINITE, 0)
    np.testing.assert_array_equal(found.params, 0)


@pytest.mark.parametrize("start", [np.nan, 1e30])
def test_a_start_that_is_not_finite_or_has_no_finite_loss_is_given_back(start):
    found = minimize(optax.sgd(0.1), bowl, jnp.asarray(start), steps=9, tolerance=1.0)
    assert (reason(found), found.steps) == (StopReason.NOT_FINITE, 0)
    np.testing.assert_array_equal(found.params, jnp.asarray(start))


def counted(loss):
    """The loss, and a list of which one entry is added for each evaluation at run time."""
    calls = []

    def watched(w, batch):
        jax.debug.callback(lambda: calls.append(1))
        return loss(w, batch)

    return watched, calls


def test_a_line_search_gets_what_it_asks_for_and_its_value_and_gradient_are_used_again():
    start, settings = jnp.array([3.0, -2.0, 1.0]), {"steps": 4, "tolerance": 0.0}
    spent = {}
    for keeps in (True, False):
        tx = optax.chain(
            optax.sgd(0.5), optax.scale_by_backtracking_linesearch(9, store_grad=keeps)
        )
        loss, calls = counted(bowl)
        found = minimize(tx, loss, start, **settings)
        jax.effects_barrier()
        spent[keeps] = len(calls)
        np.testing.assert_allclose(found.params, start * 0.5**4, rtol=1e-6)
    assert spent[False] == spent[True] + settings["steps"]


def test_a_line_search_on_minibatches_sees_one_batch_an_update():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(9, store_grad=True))
    w, state = START, tx.init(START)
    for t in range(6):
        drawn = jax.random.randint(jax.random.fold_in(KEY, t), (4,), 0, 24)
        batch = jax.tree.map(lambda leaf, drawn=drawn: leaf[np.asarray(drawn)], DATA)
        loss = functools.partial(squares, batch=batch)
        value, grad = jax.value_and_grad(loss)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        w = optax.apply_updates(w, updates)
    settings = {"key": KEY, "batch_size": 4, "steps": 6, "tolerance": 0.0}
    found = minimize(tx, squares, START, DATA, **settings)
    np.testing.assert_allclose(found.params, w, rtol=1e-4)


@pytest.mark.parametrize("name", ["lbfgs", "bfgs"])
def test_quasi_newton_methods_need_few_steps(name):
    tx = getattr(classic, name)()
    found = minimize(tx, squares, START, DATA, steps=50, tolerance=1e-5)
    assert reason(found) is StopReason.CONVERGED and found.steps < 12
    np.testing.assert_allclose(found.params, SOLUTION, atol=1e-4)


def test_params_named_like_the_fields_of_a_line_search_are_not_taken_for_them():
    start = {"value": jnp.ones(()), "grad": jnp.ones(())}

    def loss(w, batch):
        return w["value"] ** 2 + w["grad"] ** 2

    found = minimize(classic.momentum(0.1, decay=0.5), loss, start, steps=200, tolerance=1e-6)
    np.testing.assert_allclose(list(found.params.values()), 0, atol=1e-4)


def test_data_are_arguments_of_one_program_that_other_settings_share():
    settings = {"key": KEY, "batch_size": 2, "steps": 9, "tolerance": 0.1, "patience": 1}
    programs = _minimize.count()
    minimize(DESCENT, squares, START, DATA, **settings)
    others = {"key": jax.random.key(1), "steps": 7, "tolerance": 0.2, "patience": 2}
    doubled = jax.tree.map(lambda leaf: 2 * leaf, DATA)
    found = minimize(DESCENT, squares, START + 1, doubled, **settings | others)
    assert _minimize.count() == programs + 1
    assert found.steps <= 7


def test_runs_mapped_over_keys_and_starts_are_those_of_each_alone():
    keys, starts = jax.random.split(KEY, 3), jnp.stack([START, START + 1, START - 5])

    def run(key, start):
        settings = {"key": key, "batch_size": 4, "steps": 60, "tolerance": 0.1, "patience": 2}
        return minimize(DESCENT, squares, start, DATA, **settings)

    together = jax.vmap(run)(keys, starts)
    assert together.reason.shape == (3,) and len(set(together.steps.tolist())) > 1
    for i, (key, start) in enumerate(zip(keys, starts, strict=True)):
        alone = run(key, start)
        assert (alone.steps, alone.reason) == (together.steps[i], together.reason[i])
        np.testing.assert_allclose(together.params[i], alone.params, rtol=1e-5)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_params_keep_their_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), DATA)
        start, tolerance = START.astype(dtype), 1e-12 if dtype == "float64" else 0.02
        found = minimize(DESCENT, squares, start, data, steps=500, tolerance=tolerance)
        assert found.params.dtype == found.value.dtype == dtype
        assert reason(found) is StopReason.CONVERGED
        atol = 1e-11 if dtype == "float64" else 0.15
        np.testing.assert_allclose(np.asarray(found.params, np.float64), SOLUTION, atol=atol)


class Memory(NamedTuple):
    value: jax.Array
    grad: jax.Array


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_in_the_state_are_read_if_they_have_the_dtypes_of_the_loss(dtype):
    memory = Memory(jnp.zeros((), jnp.float32), jnp.zeros(2, jnp.float32))
    tx = optax.GradientTransformation(lambda w: memory, lambda g, state, w: (-g, state))
    found = minimize(tx, lambda w, _: jnp.sum(w), jnp.ones(2, dtype), steps=3, tolerance=0.0)
    # The zero gradient that is remembered takes no further step.
    assert found.value == (0 if dtype == "float32" else -4)


def test_an_empty_tree_stands_still():
    def constant(w, batch):
        return jnp.float32(3)

    found = minimize(DESCENT, constant, {}, steps=9, tolerance=1e-6, patience=2)
    assert (reason(found), found.steps, found.value, found.params) == (0, 2, 3, {})
    assert minimize(DESCENT, constant, {}, steps=9, tolerance=0.0).steps == 9


def test_raw_keys_are_taken_too():
    settings = {"batch_size": 2, "steps": 3, "tolerance": 0.0}
    typed = minimize(DESCENT, squares, START, DATA, key=KEY, **settings)
    raw = minimize(DESCENT, squares, START, DATA, key=jax.random.PRNGKey(0), **settings)
    np.testing.assert_array_equal(typed.params, raw.params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": jnp.arange(3)}, "params must have real floating-point leaves, got int32"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"tolerance": -1.0}, "tolerance must be a non-negative number, got -1.0"),
        ({"tolerance": np.nan}, "tolerance must be a non-negative number, got nan"),
        ({"tolerance": np.ones(2)}, "tolerance must be a scalar"),
        ({"data": {"x": INPUTS, "y": TARGETS[:5]}}, r"data must .* got \[\(5,\), \(24,\)\]"),
        ({"data": {"x": INPUTS[:0]}}, r"data must have leaves with one leading axis of examples"),
        ({"data": 1.0}, "data must have leaves with one leading axis of examples"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 25}, "batch_size must be at most the number of examples in data, 24, got"),
        ({"batch_size": 1, "data": ()}, "batch_size must be at most the number of .* 0, got 1"),
        ({"batch_size": 1, "key": None}, "key must be given with batch_size=1, got None"),
        ({"loss": lambda w, batch: w}, r"loss must return a scalar, got shape \(3,\)"),
        ({"loss": lambda w, batch: (w[0], {})}, r"loss must return a scalar, got a tuple of 2; of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"loss": squares, "params": START, "data": DATA, "key": KEY}
    with pytest.raises(ValueError, match=message):
        minimize(DESCENT, **good | {"steps": 3, "tolerance": 0.1} | arguments)
