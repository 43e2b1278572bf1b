import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import _checks


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (_checks.positive, 1e-3),
        (_checks.positive, np.array([1, 2])),
        (_checks.positive, jnp.ones(2, jnp.bfloat16)),
        (_checks.non_negative, 0),
        (_checks.finite, -3.0),
        (_checks.fraction, 0.0),
        (_checks.fraction, [0.9, 0.999]),
    ],
)
def test_good_numbers_pass(check: Any, good: Any) -> None:
    check("rate", good)


@pytest.mark.parametrize(
    ("check", "bad", "expected"),
    [
        (_checks.positive, 0.0, "a positive number, got 0.0"),
        (_checks.positive, float("inf"), "a positive number, got inf"),
        (_checks.positive, float("nan"), "a positive number, got nan"),
        (_checks.positive, [0.1, -0.1], r"a positive number, got \[0.1, -0.1\]"),
        (_checks.positive, "fast", "a positive number, got 'fast'"),
        (_checks.positive, True, "a positive number, got True"),
        (_checks.positive, None, "a positive number, got None"),
        (_checks.non_negative, -1, "a non-negative number, got -1"),
        (_checks.finite, float("nan"), "a finite number, got nan"),
        (_checks.fraction, 1.0, r"a number in \[0, 1\), got 1.0"),
        (_checks.fraction, jnp.array(-0.5), r"a number in \[0, 1\), got Array\(-0.5"),
    ],
)
def test_bad_numbers_are_named_with_what_was_expected(check: Any, bad: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^rate must be {expected}"):
        check("rate", bad)


def test_traced_values_and_schedules_pass() -> None:
    def double(rate: jax.Array) -> jax.Array:
        _checks.positive("rate", rate)
        return 2 * rate

    assert jax.jit(double)(-1.0) == -2
    assert jax.grad(double)(-1.0) == 2
    np.testing.assert_array_equal(jax.vmap(double)(jnp.array([-1.0, 0.0])), [-2, 0])
    _checks.positive("rate", optax.constant_schedule(-1.0))


def test_a_count_is_a_whole_number_that_is_large_enough() -> None:
    _checks.count("steps", 1)
    _checks.count("steps", np.int64(3))
    _checks.count("steps", 0, least=0)
    for bad in (0, -1, 1.0, True, "3", None):
        with pytest.raises(ValueError, match="^steps must be a whole number of at least 1, got"):
            _checks.count("steps", bad)


def test_a_choice_outside_the_options_proposes_the_nearest() -> None:
    _checks.choice("activation", "relu", ("relu", "tanh"))
    with pytest.raises(ValueError, match=r"^activation must be one of .*; did you mean 'relu'\?$"):
        _checks.choice("activation", "rellu", ("relu", "tanh"))
    with pytest.raises(ValueError, match=r"got 'xyz'$"):
        _checks.choice("activation", "xyz", ("relu", "tanh"))


def test_a_choice_tells_truth_values_from_numbers() -> None:
    _checks.choice("bias_correction", True, (True, False, "rate"))
    _checks.choice("content", np.int64(1), range(3))
    for number in (1, 1.0, 0, np.True_):
        with pytest.raises(ValueError, match=f"got {number!r}"):
            _checks.choice("bias_correction", number, (True, False, "rate"))
    with pytest.raises(ValueError, match="got True"):
        _checks.choice("content", True, range(3))


def test_a_key_is_one_key_typed_or_raw() -> None:
    for good in (jax.random.key(0), jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        _checks.key("key", good)
    jax.eval_shape(lambda key: _checks.key("key", key), jax.random.key(0))
    jax.vmap(lambda key: _checks.key("key", key))(jax.random.split(jax.random.key(0)))
    for bad in (0, None, jnp.zeros(2), jnp.zeros((), jnp.uint32), jax.random.key(0)[None]):
        with pytest.raises(ValueError, match=r"^key must be a PRNG key such as .*, got "):
            _checks.key("key", bad)


def test_a_key_of_another_implementation_is_taken_typed_and_refused_raw() -> None:
    """Nothing says of which implementation a raw key is, so JAX takes it for the default one."""
    _checks.key("key", jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match=r"^key must be a PRNG key .*, got .*uint32.*jax.random"):
        _checks.key("key", jax.random.PRNGKey(0, impl="rbg"))
    with jax.default_prng_impl("rbg"):
        _checks.key("key", jax.random.PRNGKey(0))


def test_counts_are_a_sequence_of_counts() -> None:
    assert _checks.counts("hidden", [np.int64(3), 4]) == (3, 4)
    assert _checks.counts("hidden", ()) == ()
    with pytest.raises(ValueError, match="^hidden must be a sequence of whole numbers, got 20$"):
        _checks.counts("hidden", 20)
    with pytest.raises(ValueError, match="^hidden must be a whole number of at least 1, got 0$"):
        _checks.counts("hidden", [3, 0])


@pytest.mark.parametrize("leaf", [max, "w", "float32", float, None.__class__, object()])
def test_leaves_that_are_no_arrays_are_named_by_their_path(leaf: Any) -> None:
    message = re.escape(f"params must have floating-point leaves, got {leaf!r} at ['a'];")
    with pytest.raises(ValueError, match=message):
        _checks.inexact_leaves("params", {"a": leaf, "b": jnp.ones(1)})


def test_a_number_is_one_concrete_number() -> None:
    _checks.number("low", np.float32(-2))
    _checks.probability("confidence", 0.95)
    for bad in ([0, 1], np.ones(1), max):
        with pytest.raises(ValueError, match="^low must be one finite number, got"):
            _checks.number("low", bad)
    for bad in (np.nan, "x", None):
        with pytest.raises(ValueError, match="^low must be a finite number, got"):
            _checks.number("low", bad)
    for bad in (0, 1, -0.5, 95, np.nan, "x", None, max, [0.5]):
        message = re.escape(f"share must be a number between 0 and 1, got {bad!r}")
        with pytest.raises(ValueError, match=message):
            _checks.probability("share", bad)
