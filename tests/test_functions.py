"""Functions made twice are one function where that is certain, and only there."""

import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from l2ljax import classic, core, learned, meta, tasks
from l2ljax._functions import Static, canonical, is_lasting
from l2ljax._programs import MOST_KEPT, program

ARRAY = jnp.ones(3)
OBJECT = object()
SCALE = 2.0


def scaled(by, x):
    return by * x


def same(make, *others):
    """Whether what is made twice shares a program, as an argument of `jax.jit`."""
    first, second = (core.as_partial(one()) for one in (make, *(others or (make,))))
    return jax.tree.structure(first) == jax.tree.structure(second)


def updates(make):
    return lambda: make().update


MADE_TWICE = {
    "optax": lambda: optax.adam(1e-3),
    "a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "optax's schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 100)),
    "a lambda as a schedule": lambda: optax.sgd(lambda count: SCALE / (1 + count)),
    "a mask": lambda: optax.adamw(0.1, mask=lambda p: jax.tree.map(lambda w: w.ndim > 1, p)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "partition": lambda: optax.partition({"a": optax.sgd(0.1)}, {"x": "a"}),
    "masked": lambda: optax.masked(optax.adam(0.1), {"x": True}),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "steps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "nan": lambda: optax.scale(float("nan")),
    "the same array": lambda: optax.scale(ARRAY),
    "adam": lambda: classic.adam(1e-3),
    "adam with a mask": lambda: classic.adamw(0.1, mask=lambda p: jax.tree.map(jnp.ndim, p)),
    "lbfgs": classic.lbfgs,
    "newton": lambda: classic.newton(solver="cg"),
    "snapshots": lambda: classic.with_snapshots(classic.adam(0.1), steps=4, cycles=2),
}


@pytest.mark.parametrize("name", MADE_TWICE)
def test_transformations_made_twice_are_one(name):
    make = MADE_TWICE[name]
    assert same(updates(make))
    assert same(lambda: make().init)


def test_what_a_function_holds_makes_it_another_one():
    rates = (1e-3, 1e-2, 1, 1.0, True, 0.0, -0.0, np.float32(1), jnp.array(1.0), jnp.array(1.0))
    for first, second in itertools.combinations(rates, 2):
        functions = (updates(lambda rate=rate: optax.scale(rate)) for rate in (first, second))
        assert not same(*functions), (first, second)
    assert not same(updates(lambda: classic.adam(0.1)), updates(lambda: classic.adam(0.1, b1=0.8)))
    assert not same(updates(lambda: classic.adam(0.1)), updates(lambda: classic.amsgrad(0.1)))


def cell(text, **names):
    """A function from the text of a notebook's cell, which is run again with other values."""
    names = {"jax": jax, "jnp": jnp, "np": np, **names}

    def run(**changed):
        names.update(changed)
        exec(text, names)
        return names["f"]

    return run


def test_a_cell_that_is_run_again_makes_the_same_function():
    run = cell("def g(x):\n  return 2 * x\nf = lambda x: jnp.sum(g(x))")
    assert same(run)
    run = cell("f = lambda x: A * x", A=3.0)
    assert same(run)


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("f = lambda x: A * x", {"A": 1.0}, {"A": 2.0}),
        ("f = lambda x: A * x", {"A": 1}, {"A": 1.0}),
        ("f = lambda x: A * x", {"A": np.ones(2)}, {"A": np.zeros(2)}),
        ("def g(x):\n  return A * x\nf = lambda x: g(x)", {"A": 1.0}, {"A": 2.0}),
        ("f = lambda x: (lambda y: A * y)(x)", {"A": 1.0}, {"A": 2.0}),
        ("f = lambda x, a=A: a * x", {"A": 1.0}, {"A": 2.0}),
        ("f = lambda x, *, a=A: a * x", {"A": 1.0}, {"A": 2.0}),
        ("f = eval(A)", {"A": "lambda x: x"}, {"A": "lambda x: -x"}),
        ("f = lambda x: A(x)", {"A": jnp.sin}, {"A": jnp.cos}),
        ("def f(x):\n  return x\nf.mark = A", {"A": 1}, {"A": 2}),
    ],
)
def test_a_cell_that_is_run_again_with_another_value_makes_another_one(text, before, after):
    run = cell(text)
    assert not same(lambda: run(**before), lambda: run(**after))


class Settings:
    rate = 1.0


@dataclasses.dataclass(frozen=True)
class Model:
    rates: object

    def __call__(self, x):
        return self.rates[0] * x


def test_a_frozen_dataclass_is_its_fields_unless_they_may_change():
    assert same(lambda: Model((1.0, 2.0)))
    assert not same(lambda: Model((1.0,)), lambda: Model((1,)))
    # Equal by its own equality, but only the objects say whether a list has changed.
    assert not is_lasting(Model([1.0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (lambda settings: lambda x: settings["rate"] * x)({"rate": 1.0}),
        lambda: (lambda log: lambda x: log.append(x) or x)([]),
        lambda: (lambda settings: lambda x: settings.rate * x)(Settings()),
        lambda: (lambda settings: lambda x: settings.rate * x)(Settings),
        lambda: lambda x: Settings.rate * x,
        lambda: (lambda calls: lambda x: next(calls) * x)(iter(range(3))),
        lambda: (lambda calls: lambda x: calls() * x)(iter(range(3)).__next__),
        lambda: counting(),
        lambda: importing(),
    ],
)
def test_what_may_have_changed_since_is_compared_by_identity(make):
    assert not same(make)
    function = make()
    assert same(lambda: function)
    assert not is_lasting(function)


def counting():
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return count * x

    return function


def importing():
    def function(x):
        import math

        return math.pi * x

    return function


def test_a_dictionary_that_changes_after_a_transformation_is_made_of_it():
    mask = {"x": True}
    first = optax.masked(optax.sgd(0.1), mask).update
    assert canonical(first) is canonical(optax.masked(optax.sgd(0.1), {"x": True}).update)
    mask["x"] = False
    second = optax.masked(optax.sgd(0.1), {"x": True}).update
    assert canonical(second) is not canonical(first)


def test_arrays_and_objects_last_as_long_as_they_do():
    assert is_lasting(optax.adam(0.1).update)
    assert is_lasting(classic.lbfgs().update)
    assert not is_lasting(optax.scale(ARRAY).update)
    assert not is_lasting(lambda x: OBJECT)


def test_traced_values_are_never_kept():
    def rate(value):
        function = optax.scale(value).update
        return jnp.float32(canonical(function) is function and not is_lasting(function))

    assert jax.jit(rate)(1.0) == 1


def test_a_recursive_function_is_itself():
    def make():
        def fall(n):
            return n if n < 1 else fall(n - 1)

        return fall

    assert not same(make)


class Raising:
    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __hash__(self):
        return 0

    def __call__(self, x):
        return x


class Arrays:
    def __eq__(self, other):
        return np.array([True, False])

    def __hash__(self):
        return 0

    def __call__(self, x):
        return x


STATIC = [
    None,
    jax.tree.structure([1]),
    jax.tree.structure({"a": 1}),
    1,
    True,
    1.0,
    float("nan"),
    np.ones(2),
    np.zeros(2),
    Raising(),
    Raising(),
    Arrays(),
    [np.ones(2)],
    {"a": np.ones(2)},
    "text",
    optax.adam,
    jnp.float32,
    core.Spec(a=1),
    core.Spec(a=np.ones(2)),
]


@jax.jit
def through(tree, x):
    return x


def test_static_parts_of_any_kind_stand_beside_each_other():
    closures = [core.closure(scaled, x=value, by=value) for value in STATIC]
    for (i, first), (j, second) in itertools.product(enumerate(closures), repeat=2):
        assert (jax.tree.structure(first) == jax.tree.structure(second)) == (i == j)
        assert (Static(STATIC[i]) == Static(STATIC[j])) == (i == j)
    for closure in closures:
        through(closure, 1.0)


def records():
    like = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    opts = [
        learned.lstm((2,)),
        learned.rnnprop((2,)),
        learned.mlp(),
        learned.reversible_momentum(horizon=2),
        learned.reversible_momentum(horizon=2, like=like),
        learned.reversible_momentum(horizon=2, like=[1.0]),
        learned.hyperparameters("adam", learning_rate=0.1),
        learned.hyperparameters("adam", learning_rate=0.1, like=like),
        learned.hyperparameters(optax.adam, learning_rate=0.1),
        learned.partition({"all": learned.lstm((2,))}, {"*": "all"}),
        learned.partition({"all": learned.lstm((2,))}, lambda params: "all"),
        learned.fixed(optax.MultiSteps(optax.sgd(0.1), 2)),
        learned.black_box_lstm(dim=1, hidden=2),
        learned.surrogate_lstm(dim=1, hidden=2),
        core.LearnedOptimizer(Raising(), Arrays()),
        core.LearnedOptimizer(Arrays(), Raising(), core.Spec(a=float("nan"))),
    ]
    plain = tasks.quadratic(2)
    found = [
        plain,
        tasks.augment(plain, loss=1.0),
        tasks.learned_l2(plain, 0.1),
        tasks.learned_init(plain),
        tasks.warm_start(plain, optax.sgd(0.1), steps=2),
        tasks.gp_samples(dim=1),
        core.Task(Raising(), Arrays(), Raising()),
        core.Task(Arrays(), Raising(), Arrays()),
    ]
    for factory in (
        meta.truncated(horizon=2, truncation=1),
        meta.truncated(horizon=[2, 4], truncation=1),
        meta.full(horizon=2),
        meta.es(horizon=2, truncation=1),
        meta.pes(horizon=2, truncation=1),
        meta.forward(horizon=2),
        meta.imitation(optax.sgd(0.1), horizon=2, truncation=1),
        meta.imitation(classic.adam(0.1), horizon=2, truncation=1),
        meta.hypergradient_descent(horizon=2),
    ):
        found += [factory(opts[0], plain, 1)]
    found += [meta.reversible(horizon=2)(opt, plain, 1) for opt in opts[3:6]]
    methods = [make() for make in MADE_TWICE.values()]
    bound = [opt.bind(opt.init(jax.random.key(0))) for opt in opts[:-2]]
    return [*opts, *found, *map(core.as_pytree, [*methods, *bound]), *bound]


def test_all_pairs_of_what_public_factories_make_can_be_compared():
    trees = [jax.tree.structure(record) for record in records()]
    assert len({*map(hash, trees)}) > 1
    for first, second in itertools.product(trees, repeat=2):
        assert (first == second) is (second == first)
        assert (first != second) is not (first == second)


def test_a_method_of_another_type_is_a_part_of_a_pytree():
    assert same(lambda: optax.MultiSteps(optax.sgd(0.1), 2).update)
    assert not same(
        lambda: optax.MultiSteps(optax.sgd(0.1), 2).update,
        lambda: optax.MultiSteps(optax.sgd(0.1), 3).update,
    )


def test_a_closure_can_be_copied():
    tx = core.closure(scaled, x=2.0)
    for copied in (copy.copy(tx), copy.deepcopy(tx)):
        assert copied(3.0) == 6
        assert jax.tree.structure(copied) == jax.tree.structure(tx)


def test_programs_of_functions_that_cannot_be_told_are_released():
    @program()
    def run(function, x):
        return function(x)

    for i in range(MOST_KEPT + 3):
        values = [float(i)]
        assert run(Partial(lambda x: values[0] * x), 2.0) == 2 * i  # noqa: B023
    assert run.count() == MOST_KEPT
    function = Partial(optax.scale(2.0).update)
    run(Partial(lambda f, x: f(x, None)[0], function), 2.0)
    assert run.count() == MOST_KEPT + 1
