import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import l2ljax
from l2ljax.core import (
    Estimate,
    Estimator,
    LearnedOptimizer,
    Spec,
    Task,
    as_partial,
    as_pytree,
    closure,
    seal,
)


def _power(scale: jax.Array, x: jax.Array, *, exponent: int = 1, shift: float = 0.0) -> jax.Array:
    return scale * x**exponent + shift


def _traced_calls(*functions: Any) -> int:
    """How often a compiled program is traced that takes each of the functions in turn."""
    traces = 0

    @jax.jit
    def call(function: Any, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return function(x)

    for function in functions:
        call(function, jnp.ones(2))
    return traces


def test_closures_with_equal_settings_share_a_program() -> None:
    first = closure(_power, jnp.array(2.0), exponent=3, shift=1.0)
    second = closure(_power, jnp.array(5.0), shift=1.0, exponent=3)
    assert _traced_calls(first, second) == 1
    assert second(jnp.array(2.0)) == 41


def test_closures_with_other_settings_have_another_program() -> None:
    scale = jnp.array(2.0)
    assert (
        _traced_calls(closure(_power, scale, exponent=3), closure(_power, scale, exponent=2)) == 2
    )


def test_a_closure_without_settings_carries_the_bare_function() -> None:
    assert closure(_power, 2.0).func is _power


def test_as_partial_keeps_a_partial_and_wraps_the_rest() -> None:
    partial = Partial(_power, jnp.array(2.0))
    assert as_partial(partial) is partial
    assert isinstance(as_partial(_power), Partial)
    assert as_partial(_power).func is _power


def _quadratic(**overrides: Any) -> Task:
    functions: dict[str, Any] = {
        "sample": lambda key: jax.random.normal(key, (3,)),
        "init": lambda key, problem: jnp.zeros_like(problem),
        "loss": lambda params, problem, key: jnp.sum((params - problem) ** 2),
    }
    return Task(**(functions | overrides))


def test_the_objective_of_a_task_is_its_loss_by_default() -> None:
    task = _quadratic()
    assert task.objective is task.loss


def test_the_objective_is_still_the_loss_inside_jit_and_vmap() -> None:
    seen = []

    @jax.jit
    def run(task: Task) -> jax.Array:
        seen.append(task.objective is task.loss)
        return jnp.zeros(())

    run(_quadratic())
    jax.vmap(run, axis_size=2, in_axes=None)(_quadratic())
    assert seen and all(seen)


def test_a_task_carries_the_arrays_of_its_loss_once() -> None:
    data = jnp.arange(4.0)
    task = _quadratic(loss=Partial(lambda data, params, problem, key: jnp.sum(data), data))
    assert len(jax.tree.leaves(task)) == 1


def test_another_objective_survives_the_way_through_jit() -> None:
    task = _quadratic(objective=lambda params, problem, key: jnp.array(7.0))
    value = jax.jit(lambda t: t.objective(jnp.zeros(3), jnp.zeros(3), jax.random.key(0)))(task)
    assert value == 7


def test_what_a_loss_or_an_objective_returns_is_named_if_it_is_no_scalar() -> None:
    def with_aux(params: Any, problem: Any, key: Any) -> Any:
        return jnp.sum(params), {"accuracy": 1.0}

    key, start = jax.random.key(0), jnp.zeros(3)
    for name in ("loss", "objective"):
        task = _quadratic(**{name: with_aux})
        message = f"^the task's {name} must return a scalar, got a tuple of 2; .*value, aux"
        with pytest.raises(ValueError, match=message):
            getattr(task, name)(start, start, key)
        with pytest.raises(ValueError, match=message):
            l2ljax.evaluate.curves(optax.sgd(0.1), task, key=key, steps=2, problems=2)
        opt = l2ljax.learned.hyperparameters(l2ljax.classic.momentum, learning_rate=0.1)
        with pytest.raises(ValueError, match=message):
            l2ljax.meta.train(opt, task, key=key, steps=1)
    for value, found in ((jnp.ones(2), r"shape \(2,\)"), (None, "None")):
        task = _quadratic(loss=lambda params, problem, key, value=value: value)
        with pytest.raises(ValueError, match=f"the task's loss must return a scalar, got {found}"):
            task.loss(start, start, key)


def test_records_are_immutable() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        _quadratic().loss = max  # type: ignore[misc]


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_typed_and_raw_keys_draw_the_same(make_key: Any) -> None:
    @jax.jit
    def loss(task: Task, key: jax.Array) -> jax.Array:
        problem = task.sample(key)
        return task.loss(task.init(key, problem), problem, key)

    expected = jnp.sum(jax.random.normal(jax.random.key(3), (3,)) ** 2)
    np.testing.assert_allclose(loss(_quadratic(), make_key(3)), expected, rtol=1e-6)


def test_a_batch_of_problems_is_sample_under_vmap() -> None:
    task, keys = _quadratic(), jax.random.split(jax.random.key(0), 4)
    problems = jax.vmap(task.sample)(keys)
    np.testing.assert_array_equal(problems[2], task.sample(keys[2]))


def _sgd_with_learned_rate(rate: float = 0.1) -> LearnedOptimizer:
    return LearnedOptimizer(
        init=Partial(lambda rate, key: rate, jnp.array(rate)),
        bind=lambda phi: optax.sgd(phi),
        spec=Spec(name="sgd", arguments={"rate": rate}),
    )


def test_a_learned_optimizer_passes_through_jit() -> None:
    opt = jax.jit(lambda opt: opt)(_sgd_with_learned_rate())
    assert opt.spec == {"name": "sgd", "arguments": {"rate": 0.1}}
    tx = opt.bind(opt.init(jax.random.key(0)))
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-6)


def test_an_estimator_passes_through_jit() -> None:
    estimator = Estimator(
        init=lambda key, phi: 0,
        estimate=Partial(
            lambda scale, phi, state, key: (
                Estimate(scale * phi**2, 2 * scale * phi, {}),
                state + 1,
            ),
            jnp.array(3.0),
        ),
    )
    estimate, state = jax.jit(lambda e, phi: e.estimate(phi, 0, jax.random.key(0)))(
        estimator, jnp.array(2.0)
    )
    assert (estimate.loss, estimate.grad, state) == (12, 12, 1)


def test_a_field_that_is_no_pytree_of_functions_is_refused() -> None:
    with pytest.raises(TypeError, match="sample"):
        _quadratic(sample=3)


def test_equal_specs_have_equal_hashes_whatever_their_order() -> None:
    one = Spec(name="lstm", arguments={"hidden": [20, 20], "preprocess": None})
    other = Spec(arguments={"preprocess": None, "hidden": [20, 20]}, name="lstm")
    assert one == other
    assert hash(one) == hash(other)
    assert hash(one) != hash(Spec(name="lstm", arguments={}))
    assert json.loads(json.dumps(one)) == one


def test_optimizers_with_equal_specs_share_a_program() -> None:
    def _init(key: jax.Array) -> jax.Array:
        return jnp.zeros(())

    def record(rate: float) -> LearnedOptimizer:
        return LearnedOptimizer(_init, optax.sgd, Spec(name="sgd", arguments={"rate": rate}))

    treedefs = [jax.tree.structure(record(rate)) for rate in (0.1, 0.1, 0.2)]
    assert treedefs[0] == treedefs[1]
    assert treedefs[0] != treedefs[2]


@jax.jit
def _two_steps(tx: optax.GradientTransformation, params: jax.Array) -> jax.Array:
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.1), optax.adam(0.1), optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))],
    ids=["sgd", "adam", "chain"],
)
def test_any_optax_transformation_becomes_an_argument_of_jit(
    tx: optax.GradientTransformation,
) -> None:
    params = jnp.array([1.0, -2.0])
    with pytest.raises(TypeError, match="not marked as static|not a valid JAX type"):
        _two_steps(tx, params)
    expected = _two_steps.__wrapped__(tx, params)
    np.testing.assert_allclose(_two_steps(as_pytree(tx), params), expected, rtol=1e-6)


def test_as_pytree_keeps_the_kind_of_a_transformation() -> None:
    plain = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (u, s))
    assert type(as_pytree(plain)) is optax.GradientTransformation
    assert type(as_pytree(optax.adam(0.1))) is optax.GradientTransformationExtraArgs


def test_as_pytree_hands_extra_arguments_on() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
        return value * updates, state

    tx = as_pytree(optax.GradientTransformationExtraArgs(lambda params: (), update))
    scaled, _ = jax.jit(lambda tx, value: tx.update(jnp.ones(2), (), None, value=value))(tx, 3.0)
    np.testing.assert_array_equal(scaled, [3, 3])


def _no_state(params: Any) -> tuple[()]:
    return ()


def _rate_update(rate: Any, updates: Any, state: Any, params: Any = None) -> Any:
    return -rate * updates, state


def test_arrays_of_a_bound_transformation_are_leaves() -> None:
    def tx(rate: float) -> optax.GradientTransformation:
        update = Partial(_rate_update, jnp.array(rate))
        return as_pytree(optax.GradientTransformation(Partial(_no_state), update))

    assert jax.tree.leaves(tx(0.5)) == [0.5]
    assert jax.tree.structure(tx(0.5)) == jax.tree.structure(tx(0.1))
    assert jax.grad(lambda tx: tx.update(1.0, ())[0])(tx(0.5)).update.args == (-1,)


def _bound(rate: Any) -> optax.GradientTransformation:
    fields = Partial(_no_state), Partial(_rate_update, rate)
    opt = LearnedOptimizer(lambda key: key, lambda phi: optax.GradientTransformation(*fields))
    return opt.bind(rate)


def test_a_bound_transformation_holds_its_arrays_as_one_of_optax_does() -> None:
    tx = _bound(jnp.array(0.5))
    assert jax.tree.leaves(tx) == []
    assert tx.update(1.0, ())[0] == -0.5


def test_bound_transformations_of_equal_arrays_share_a_program_and_of_others_do_not() -> None:
    one, same, other = (_bound(jnp.array(rate)) for rate in (0.5, 0.5, 0.25))
    assert jax.tree.structure(one) == jax.tree.structure(same) != jax.tree.structure(other)
    assert _traced_calls(*(Partial(tx.update.func, state=()) for tx in (one, same, one))) == 1
    assert jax.jit(lambda tx: tx.update(1.0, ())[0])(other) == -0.25


def test_as_pytree_makes_the_arrays_of_a_bound_transformation_arguments() -> None:
    one, other = (as_pytree(_bound(jnp.array(rate))) for rate in (0.5, 0.25))
    assert jax.tree.leaves(one) == [0.5]
    traces = []

    @jax.jit
    def update(tx: optax.GradientTransformation) -> Any:
        traces.append(tx)
        return tx.update(1.0, ())[0]

    assert (update(one), update(other), len(traces)) == (-0.5, -0.25, 1)


def test_arrays_that_are_traced_stay_leaves() -> None:
    @jax.grad
    def derivative(rate: jax.Array) -> jax.Array:
        tx = _bound(rate)
        assert len(jax.tree.leaves(tx)) == 1
        return jax.jit(lambda tx: tx.update(1.0, ())[0])(tx)

    assert derivative(0.5) == -1


@pytest.mark.parametrize("leaf", [jax.random.key(0), np.float32(2.0), jnp.array(3, jnp.bfloat16)])
def test_whatever_array_is_sealed_has_an_equality_and_a_hash(leaf: Any) -> None:
    def sealed() -> Any:
        fields = Partial(_no_state, leaf), Partial(_no_state)
        return seal(optax.GradientTransformation(*fields)).init.func

    one, same = sealed(), sealed()
    assert one == same and hash(one) == hash(same) and one != max
    gone = jnp.ones(1)
    other = seal(optax.GradientTransformation(Partial(_no_state, gone), Partial(_no_state)))
    gone.delete()
    assert one != other.init.func
