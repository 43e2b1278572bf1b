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
    """

    name: str
    make: Callable[[], optax.GradientTransformation]
    factory: Callable[..., optax.GradientTransformation] | None = None
    hyperparameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    twin: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] | None = None
    twin_takes_schedules: bool = True

    def __str__(self) -> str:
        return self.name


def _row(name, factory, *, options=None, twin=None, twin_takes_schedules=True, **hyperparameters):
    factory = functools.partial(factory, **(options or {}))
    make = functools.partial(factory, **hyperparameters)
    return Method(name, make, factory, hyperparameters, twin, twin_takes_schedules)


def _learned(name, opt):
    @functools.cache
    def phi():
        # As values, also for a law that calls `make` while it is traced.
        with jax.ensure_compile_time_eval():
            return jax.jit(opt.init)(jax.random.key(0))

    return Method(name, lambda: opt.bind(phi()))


METHODS = [
    _row(
        "gradient_descent",
        classic.gradient_descent,
        learning_rate=0.1,
        twin=optax.sgd,
    ),
    _row(
        "momentum",
        classic.momentum,
        learning_rate=0.1,
        decay=0.9,
        twin=lambda rate: optax.sgd(rate, momentum=0.9),
        twin_takes_schedules=False,
    ),
    _row(
        "nesterov",
        classic.nesterov,
        learning_rate=0.1,
        decay=0.9,
        twin=lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
        twin_takes_schedules=False,
    ),
    _row(
        "rmsprop",
        classic.rmsprop,
        learning_rate=0.01,
        decay=0.9,
        eps=1e-8,
        twin=lambda rate: optax.rmsprop(rate, decay=0.9, eps=1e-8, eps_in_sqrt=True),
    ),
    _row(
        "rmsprop_eps_outside",
        classic.rmsprop,
        options={"eps_in_sqrt": False},
        learning_rate=0.01,
        decay=0.99,
        eps=1e-8,
        twin=lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    ),
    _row(
        "adam",
        classic.adam,
        learning_rate=0.01,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        twin=optax.adam,
    ),
    _row(
        "adam_eps_inside",
        classic.adam,
        options={"eps_in_sqrt": True},
        learning_rate=0.01,
        b1=0.8,
        b2=0.99,
        eps=1e-6,
        twin=lambda rate: optax.adam(rate, b1=0.8, b2=0.99, eps=0.0, eps_root=1e-6),
    ),
    _row(
        "adam_biased_eps_inside",
        classic.adam,
        options={"bias_correction": False, "eps_in_sqrt": True},
        learning_rate=0.01,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
    ),
    _row(
        "adam_corrected_rate",
        classic.adam,
        options={"bias_correction": "rate"},
        learning_rate=0.01,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
    ),
    _learned("lstm", learned.lstm(hidden=(4, 3))),
    _learned("lstm_on_bare_gradients", learned.lstm(hidden=(4,), preprocess=None)),
]
