"""Every method under `optax.inject_hyperparams`: it works, or names what has to be static."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic
from tests.public_optimizers import PARAMS, loss

METHODS = {
    name: functools.partial(method, **needed)
    for name in classic.__all__
    if inspect.isfunction(method := getattr(classic, name))
    for parameters in [inspect.signature(method).parameters]
    if name.startswith("scale_by_") or "learning_rate" in parameters
    for needed in [
        {
            p.name: 0.1
            for p in parameters.values()
            if p.default is p.empty and p.name == "learning_rate"
        }
    ]
}

# What decides shapes or the length of a loop.
WHOLE = {
    "lbfgs": "memory_size",
    "newton": "cg_iterations",
    "saddle_free_newton": "lanczos_iterations",
}


def first_updates(tx):
    tx = optax.with_extra_args_support(tx)
    value, gradients = jax.value_and_grad(loss)(PARAMS)
    extra = {"value": value, "grad": gradients, "value_fn": loss}
    return tx.update(gradients, tx.init(PARAMS), PARAMS, **extra)[0]


@pytest.mark.parametrize("name", METHODS)
def test_with_its_defaults_it_computes_the_same_or_says_what_is_static(name, unchecked):
    factory, static = METHODS[name], WHOLE.get(name.removeprefix("scale_by_"), ())
    if static:
        with pytest.raises(
            ValueError, match=rf"^{static} must be a whole number.*static_args='{static}'"
        ):
            optax.inject_hyperparams(factory)().init(PARAMS)
    found = first_updates(optax.inject_hyperparams(factory, static_args=static)())
    expected = first_updates(factory())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def matrices(params):
    return jax.tree.map(lambda w: jnp.ndim(w) > 1, params)


def all_but_biases(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "b" not in str(path), params)


@pytest.mark.parametrize("factory", [classic.adamw, classic.adam_l2])
@pytest.mark.parametrize("mask", [matrices, all_but_biases])
def test_a_mask_that_is_called_as_a_schedule_is_refused_with_the_way_out(factory, mask, unchecked):
    with pytest.raises(ValueError, match=r"^mask must be .*static_args='mask'"):
        optax.inject_hyperparams(factory)(0.1, mask=mask).init(PARAMS)
    found = first_updates(optax.inject_hyperparams(factory, static_args="mask")(0.1, mask=mask))
    expected = first_updates(factory(0.1, mask=mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"mask": {"b": False, "w": True}},
        {"accumulator_dtype": "bfloat16"},
        {"bias_correction": "rate", "eps_in_sqrt": True},
        {"weight_decay": optax.linear_schedule(0.5, 0.0, 4)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_are_no_numbers_stay_what_they_are(options):
    found = first_updates(optax.inject_hyperparams(classic.adamw)(0.1, **options))
    expected = first_updates(classic.adamw(0.1, **options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_dtype_that_is_called_as_a_schedule_is_refused_with_the_way_out(unchecked):
    arguments = {"learning_rate": 0.1, "accumulator_dtype": jnp.bfloat16}
    with pytest.raises(ValueError, match=r"^accumulator_dtype must be .*static_args='accum"):
        optax.inject_hyperparams(classic.adam)(**arguments).init(PARAMS)
    factory = optax.inject_hyperparams(classic.adam, static_args="accumulator_dtype")
    assert factory(**arguments).init(PARAMS).inner_state.mean["b"].dtype == jnp.bfloat16
