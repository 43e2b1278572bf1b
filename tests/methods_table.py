"""The table of methods. A row here gives a method every law in `test_laws.py`.

A row needs a name and a factory without arguments. With `factory` and `hyperparameters` it also
gets the laws of rates, schedules and hypergradients; with `twin`, the comparison with optax.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import optax

from l2ljax import classic, learned


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: shown in the names of tests.
        make: gives the transformation.
        factory: takes `hyperparameters` by keyword, and gives the same transformation.
        hyperparameters: numbers that a derivative may be taken with respect to; the one called
            `learning_rate` may also be a schedule.
        twin: takes a rate, and gives what optax has for the same formula.
        twin_takes_schedules: whether the twin is equal at a rate that changes, too.
        part: takes the hyperparameters but the rate, and gives the direction alone.
        static: arguments that `optax.inject_hyperparams` must leave as they are.
        real: whether complex params are refused.
        whole: whether it must see all params: a line search along some of them knows no value.
        rounding: how far two programs of the same update may differ, as a share of it.
    """

    name: str
    make: Callable[[], optax.GradientTransformation]
    factory: Callable[..., optax.GradientTransformation] | None = None
    hyperparameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    twin: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] | None = None
    twin_takes_schedules: bool = True
    part: Callable[..., optax.GradientTransformation] | None = None
    static: tuple[str, ...] = ()
    real: bool = False
    whole: bool = False
    rounding: float = 1e-5

    def __str__(self) -> str:
        return self.name


def _row(name, factory, *, options=None, part=None, hyperparameters=None, **fields):
    options = options or {}
    factory = functools.partial(factory, **options)
    return Method(
        name,
        functools.partial(factory, **hyperparameters),
        factory,
        hyperparameters,
        part=part and functools.partial(part, **options),
        **fields,
    )


def _learned(name, opt, **fields):
    @functools.cache
    def phi():
        # As values, also for a law that calls `make` while it is traced; and in float32, whichever
        # law comes first.
        with jax.ensure_compile_time_eval(), jax.enable_x64(False):
            return jax.jit(opt.init)(jax.random.key(0))

    return Method(name, lambda: opt.bind(phi()), real=True, **fields)


def matrices(params):
    """Which params have more than one axis: those that usually decay."""
    return jax.tree.map(lambda w: w.ndim > 1, params)


ADAM = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
RMSPROP = {"learning_rate": 0.01, "decay": 0.9, "eps": 1e-8}

FIRST_ORDER = [
    _row(
        "gradient_descent",
        classic.gradient_descent,
        hyperparameters={"learning_rate": 0.1},
        twin=optax.sgd,
    ),
    _row(
        "momentum",
        classic.momentum,
        hyperparameters={"learning_rate": 0.1, "decay": 0.9},
        twin=lambda rate: optax.sgd(rate, momentum=0.9),
        twin_takes_schedules=False,
    ),
    _row(
        "momentum_rate_outside",
        classic.momentum,
        options={"rate_inside": False},
        hyperparameters={"learning_rate": 0.1, "decay": 0.9},
        twin=lambda rate: optax.sgd(rate, momentum=0.9),
        part=lambda rate_inside, **rest: classic.scale_by_momentum(**rest),
    ),
    _row(
        "nesterov",
        classic.nesterov,
        hyperparameters={"learning_rate": 0.1, "decay": 0.9},
        twin=lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
        twin_takes_schedules=False,
        part=classic.scale_by_nesterov,
    ),
    _row(
        "nesterov_rate_outside",
        lambda learning_rate, decay: optax.chain(
            classic.scale_by_nesterov(decay), optax.scale_by_learning_rate(learning_rate)
        ),
        hyperparameters={"learning_rate": 0.1, "decay": 0.9},
        twin=lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    ),
]

ADAPTIVE = [
    _row(
        "adagrad",
        classic.adagrad,
        hyperparameters={"learning_rate": 0.1, "eps": 1e-6},
        twin=lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-6),
        part=classic.scale_by_adagrad,
    ),
    _row(
        "adagrad_from_a_tenth",
        classic.adagrad,
        hyperparameters={"learning_rate": 0.1, "eps": 1e-7, "initial_accumulator_value": 0.1},
        twin=optax.adagrad,
        part=classic.scale_by_adagrad,
    ),
    _row(
        "adagrad_eps_outside",
        classic.adagrad,
        options={"eps_in_sqrt": False},
        hyperparameters={"learning_rate": 0.1, "eps": 1e-6},
        part=classic.scale_by_adagrad,
    ),
    _row(
        "rmsprop",
        classic.rmsprop,
        hyperparameters=RMSPROP,
        twin=lambda rate: optax.rmsprop(rate, decay=0.9, eps=1e-8, eps_in_sqrt=True),
        part=classic.scale_by_rmsprop,
    ),
    _row(
        "rmsprop_eps_outside",
        classic.rmsprop,
        options={"eps_in_sqrt": False},
        hyperparameters={**RMSPROP, "decay": 0.99},
        twin=lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False),
        part=classic.scale_by_rmsprop,
    ),
    _row(
        "rmsprop_centered",
        classic.rmsprop,
        options={"centered": True},
        hyperparameters={**RMSPROP, "eps": 1e-4},
        twin=lambda rate: optax.rmsprop(rate, eps=1e-4, centered=True),
        part=classic.scale_by_rmsprop,
    ),
    _row(
        "rmsprop_with_momentum",
        classic.rmsprop,
        options={"eps_in_sqrt": False},
        hyperparameters={**RMSPROP, "momentum": 0.8},
        twin=lambda rate: optax.rmsprop(rate, decay=0.9, eps_in_sqrt=False, momentum=0.8),
    ),
    _row(
        "rmsprop_centered_with_momentum_and_rate_outside",
        classic.rmsprop,
        options={"eps_in_sqrt": False, "centered": True, "rate_inside": False},
        hyperparameters={**RMSPROP, "eps": 1e-2, "momentum": 0.8},
        twin=lambda rate: optax.rmsprop(
            rate, eps=1e-2, eps_in_sqrt=False, centered=True, momentum=0.8
        ),
        twin_takes_schedules=False,
    ),
    _row(
        "adadelta",
        classic.adadelta,
        hyperparameters={"learning_rate": 1.0, "decay": 0.9, "rho": 0.9, "eps": 1e-6},
        twin=lambda rate: optax.adadelta(rate, rho=0.9, eps=1e-6),
        part=classic.scale_by_adadelta,
    ),
    _row("adam", classic.adam, hyperparameters=ADAM, twin=optax.adam, part=classic.scale_by_adam),
    _row(
        "adam_eps_inside",
        classic.adam,
        options={"eps_in_sqrt": True},
        hyperparameters={"learning_rate": 0.01, "b1": 0.8, "b2": 0.99, "eps": 1e-6},
        twin=lambda rate: optax.adam(rate, b1=0.8, b2=0.99, eps=0.0, eps_root=1e-6),
        part=classic.scale_by_adam,
    ),
    _row(
        "adam_biased_eps_inside",
        classic.adam,
        options={"bias_correction": False, "eps_in_sqrt": True},
        hyperparameters=ADAM,
        part=classic.scale_by_adam,
    ),
    _row(
        "adam_corrected_rate",
        classic.adam,
        options={"bias_correction": "rate"},
        hyperparameters=ADAM,
        part=classic.scale_by_adam,
    ),
    _row(
        "adamw",
        classic.adamw,
        hyperparameters={**ADAM, "weight_decay": 0.03},
        twin=lambda rate: optax.adamw(rate, weight_decay=0.03),
    ),
    _row(
        "adamw_decay_alone",
        classic.adamw,
        options={"decay_by_rate": False, "mask": matrices},
        hyperparameters={**ADAM, "weight_decay": 0.03},
        static=("mask",),
    ),
    _row(
        "adam_l2",
        classic.adam_l2,
        hyperparameters={**ADAM, "penalty": 0.03},
        twin=lambda rate: optax.chain(optax.add_decayed_weights(0.06), optax.adam(rate)),
    ),
    _row(
        "amsgrad",
        classic.amsgrad,
        hyperparameters=ADAM,
        part=classic.scale_by_amsgrad,
    ),
    _row(
        "amsgrad_corrected_before_max",
        classic.amsgrad,
        options={"bias_correction": "before_max"},
        hyperparameters=ADAM,
        twin=optax.amsgrad,
        part=classic.scale_by_amsgrad,
    ),
    _row(
        "amsgrad_corrected_after_max",
        classic.amsgrad,
        options={"bias_correction": "after_max"},
        hyperparameters=ADAM,
        part=classic.scale_by_amsgrad,
    ),
]

NEWTON = {"learning_rate": 0.5, "damping": 0.1}
QUASI_NEWTON = {"learning_rate": 0.1, "min_cosine": 1e-8}

SECOND_ORDER = [
    _row(
        "gradient_descent_with_backtracking",
        functools.partial(classic.gradient_descent, 1.0, line_search="backtracking"),
        hyperparameters={},
        real=True,
        whole=True,
    ),
    _row(
        "newton",
        classic.newton,
        hyperparameters=NEWTON,
        part=classic.scale_by_newton,
        static=("cg_iterations",),
        real=True,
    ),
    _row(
        "newton_by_conjugate_gradients",
        classic.newton,
        options={"solver": "cg", "cg_tolerance": 1e-9},
        hyperparameters=NEWTON,
        part=classic.scale_by_newton,
        static=("cg_iterations", "cg_tolerance"),
        real=True,
    ),
    _row(
        "bfgs",
        classic.bfgs,
        hyperparameters={},
        static=("learning_rate", "min_cosine"),
        real=True,
        whole=True,
    ),
    _row(
        "bfgs_without_line_search",
        classic.bfgs,
        options={"line_search": None},
        hyperparameters=QUASI_NEWTON,
        part=lambda line_search, **rest: classic.scale_by_bfgs(**rest),
        real=True,
    ),
    _row(
        "lbfgs",
        classic.lbfgs,
        hyperparameters={},
        static=("learning_rate", "min_cosine", "memory_size"),
        real=True,
        whole=True,
    ),
    _row(
        "lbfgs_without_line_search",
        classic.lbfgs,
        options={"line_search": None, "memory_size": 2},
        hyperparameters=QUASI_NEWTON,
        part=lambda line_search, **rest: classic.scale_by_lbfgs(**rest),
        static=("memory_size",),
        real=True,
    ),
    _row(
        "saddle_free_newton",
        classic.saddle_free_newton,
        hyperparameters=NEWTON,
        part=classic.scale_by_saddle_free_newton,
        static=("lanczos_iterations",),
        real=True,
    ),
    _row(
        "saddle_free_newton_by_lanczos",
        classic.saddle_free_newton,
        options={"solver": "lanczos", "lanczos_iterations": 3},
        hyperparameters=NEWTON,
        part=classic.scale_by_saddle_free_newton,
        static=("lanczos_iterations",),
        real=True,
    ),
]

LEARNED = [
    _learned("lstm", learned.lstm(hidden=(4, 3))),
    _learned("adaptive_lstm", learned.adaptive_lstm(hidden=(4,), b1=(0.5, 0.9))),
    _learned("rnnprop", learned.rnnprop(hidden=(4,), encoder=3)),
    _learned("lstm_on_bare_gradients", learned.lstm(hidden=(4,), preprocess=None)),
    _learned("lstm_with_averaging", learned.lstm(hidden=(4,), averaging=2)),
    _learned("mlp", learned.mlp()),
    Method(
        "scaled",
        lambda: learned.scaled(
            classic.adam(0.1), num_steps=3, scale=0.5, weight_decay=0.01, mask=matrices
        ),
        real=True,
    ),
    # Evening out singular values makes the rounding errors of small ones large.
    _learned("tensorwise", learned.tensorwise(3), rounding=1e-3),
    # Some of the scheduler's 64 cells are near zero, sums of many numbers that are not.
    _learned("celo", learned.celo(num_steps=4), rounding=1e-3),
    _learned("celo_adam", learned.celo_adam(num_steps=4), rounding=1e-3),
    Method(
        "guarded",
        lambda: learned.guarded(learned.scaled(classic.momentum(0.1), scale=0.5), 0.01),
        real=True,
    ),
    _learned(
        "partition",
        learned.partition(
            {"matrices": learned.lstm(hidden=(4,)), "rest": learned.lstm(hidden=(3,))},
            {"weight": "matrices", "*": "rest"},
        ),
    ),
]

METHODS = [*FIRST_ORDER, *ADAPTIVE, *SECOND_ORDER, *LEARNED]

_FIRST = {method.factory.func: method for method in reversed([*FIRST_ORDER, *ADAPTIVE])}
VARIANTS = [m for m in (*FIRST_ORDER, *ADAPTIVE) if m is not _FIRST[m.factory.func]]
"""Rows of a factory that has a row before: another formula, in the same transformation."""
