"""Every public optimizer, for tests of what all of them promise whatever their formula.

`methods_table.py` has the rows of laws about formulas; here stands each name once, and each kind of
state and of inner loop that it may have.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2ljax import classic, learned

PARAMS = {"b": jnp.array([1.0, -2.0, 3.0]), "w": jnp.array([[0.5, -0.5, 2.0], [1.0, 0.1, -1.0]])}
POINT = jnp.array([0.5, -0.25])


def loss(params: Any) -> jax.Array:
    """A function with a Hessian that is positive and not diagonal."""
    leaves = jnp.concatenate([jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(params)])
    return jnp.sum(leaves**2) + jnp.sum(leaves) ** 2 / 4 + jnp.sum(leaves**4) / 20


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One row.

    Attributes:
        name: shown in the names of tests.
        make: gives the transformation.
        params: what it can optimize.
        reads_params: whether its update needs params.
        knows_shapes: whether its state has the shapes of params, and not only their number.
    """

    name: str
    make: Callable[[], optax.GradientTransformation]
    params: Any = dataclasses.field(default_factory=lambda: PARAMS)
    reads_params: bool = False
    knows_shapes: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def gradients(self) -> Any:
        """Of `loss` at `params`."""
        return jax.grad(loss)(self.params)

    def update(self, tx: Any, gradients: Any, state: Any, params: Any = None) -> Any:
        """One update; extra arguments are those of `loss` at the params, or at the row's own."""
        if not isinstance(tx, optax.GradientTransformationExtraArgs):
            return tx.update(gradients, state, params)
        at = self.params if params is None else params
        extra = {"value": loss(at), "grad": jax.grad(loss)(at), "value_fn": loss}
        return tx.update(gradients, state, params, **extra)


def _bound(opt: Any) -> Callable[[], optax.GradientTransformation]:
    @functools.cache
    def phi() -> Any:
        # As values, also for a test that calls `make` while it traces.
        with jax.ensure_compile_time_eval(), jax.enable_x64(False):
            return jax.jit(opt.init)(jax.random.key(0))

    return lambda: opt.bind(phi())


_FIRST_ORDER = ("momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "amsgrad")

CLASSIC = [
    *(Optimizer(name, functools.partial(getattr(classic, name), 0.1)) for name in _FIRST_ORDER),
    *(Optimizer(name, getattr(classic, name)) for name in map("scale_by_{}".format, _FIRST_ORDER)),
    Optimizer(
        "gradient_descent",
        functools.partial(classic.gradient_descent, 0.1),
        knows_shapes=False,
    ),
    *(
        Optimizer(name, functools.partial(getattr(classic, name), 0.1), reads_params=True)
        for name in ("adamw", "adam_l2")
    ),
    *(
        Optimizer(name, getattr(classic, name), reads_params=True)
        for method in ("newton", "saddle_free_newton", "bfgs", "lbfgs")
        for name in (method, f"scale_by_{method}")
    ),
    Optimizer(
        "gradient_descent with a line search",
        functools.partial(classic.gradient_descent, 1.0, line_search="backtracking"),
        reads_params=True,
    ),
    Optimizer(
        "newton by conjugate gradients",
        functools.partial(classic.newton, solver="cg", line_search="strong_wolfe"),
        reads_params=True,
    ),
    Optimizer(
        "saddle_free_newton by lanczos",
        functools.partial(classic.saddle_free_newton, solver="lanczos", lanczos_iterations=3),
        reads_params=True,
    ),
    Optimizer(
        "with_snapshots",
        lambda: classic.with_snapshots(optax.sgd(0.1), steps=4, cycles=2),
        reads_params=True,
    ),
]

LEARNED = [
    Optimizer("lstm", _bound(learned.lstm(hidden=(3,))), knows_shapes=False),
    Optimizer("lstm in leaves", _bound(learned.lstm(hidden=(3,), layout="leaves"))),
    Optimizer("adaptive_lstm", _bound(learned.adaptive_lstm(hidden=(3,))), knows_shapes=False),
    Optimizer(
        "adaptive_lstm in leaves", _bound(learned.adaptive_lstm(hidden=(3,), layout="leaves"))
    ),
    Optimizer("rnnprop", _bound(learned.rnnprop(hidden=(3,), encoder=2)), knows_shapes=False),
    Optimizer("mlp", _bound(learned.mlp()), reads_params=True),
    Optimizer("mlp in leaves", _bound(learned.mlp(layout="leaves")), reads_params=True),
    Optimizer("hyperparameters", _bound(learned.hyperparameters("adam", learning_rate=0.1))),
    Optimizer(
        "hyperparameters of leaves",
        _bound(learned.hyperparameters("adam", learning_rate=0.1, like=PARAMS)),
    ),
    Optimizer(
        "hyperparameters of lbfgs",
        _bound(learned.hyperparameters("lbfgs", learning_rate=0.1)),
        reads_params=True,
    ),
    Optimizer("tensorwise", _bound(learned.tensorwise(3)), reads_params=True),
    Optimizer(
        "tensorwise in leaves",
        _bound(learned.tensorwise(3, layout="leaves")),
        reads_params=True,
    ),
    Optimizer("celo", _bound(learned.celo(num_steps=9)), reads_params=True),
    Optimizer("celo_adam", _bound(learned.celo_adam(num_steps=9))),
    Optimizer(
        "lstm that waits in leaves",
        _bound(learned.lstm(hidden=(3,), wait_for_gradient=True, layout="leaves")),
    ),
    Optimizer("reversible_momentum", _bound(learned.reversible_momentum(horizon=2))),
    Optimizer(
        "scaled",
        lambda: learned.scaled(classic.adam(0.1), num_steps=3, weight_decay=0.1),
        reads_params=True,
    ),
    Optimizer("guarded", lambda: learned.guarded(classic.adam(0.1))),
    Optimizer("fixed", _bound(learned.fixed(classic.adam(0.1)))),
    Optimizer(
        "partition",
        _bound(
            learned.partition(
                {"one": learned.lstm(hidden=(3,)), "other": learned.rnnprop(hidden=(2,))},
                {"w": "one", "*": "other"},
            )
        ),
        knows_shapes=False,
    ),
    Optimizer(
        "scaled weights that ship", lambda: learned.load("general", scale=0.5), knows_shapes=False
    ),
    *(
        Optimizer(factory.__name__, _bound(factory(2)), POINT, reads_params=True)
        for factory in (learned.black_box_lstm, learned.surrogate_lstm)
    ),
]

OPTIMIZERS = [*CLASSIC, *LEARNED]
