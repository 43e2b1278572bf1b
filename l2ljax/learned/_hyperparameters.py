"""The hyperparameters of a hand-designed method as meta-parameters."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from typing_extensions import TypeAliasType

from l2ljax import _checks, classic
from l2ljax._placeholders import stands_for_params
from l2ljax._programs import in_one_program
from l2ljax.core import (
    Key,
    LearnedOptimizer,
    Params,
    Phi,
    Spec,
    Transformation,
    as_pytree,
    closure,
    is_transformation,
)

Factory = TypeAliasType("Factory", Callable[..., Transformation])

FRACTIONS = ("b1", "b2", "decay", "momentum", "rho")
"""Arguments that lie between zero and one."""


def _is_method(name: str) -> bool:
    """Whether a name of `classic` makes a transformation; others are states, schedules, tools."""
    found = getattr(classic, name)
    has_rate = inspect.isfunction(found) and "learning_rate" in inspect.signature(found).parameters
    return has_rate or name.startswith("scale_by_")


METHODS = tuple(filter(_is_method, classic.__all__))
"""The methods that go by their names."""


class HyperparametersState(NamedTuple):
    """The state of a method whose hyperparameters are meta-parameters.

    Attributes:
        count: updates made so far, i32[].
        inner: the method's state; with values for each leaf every array in it is a tree like the
            params, with what the state of each leaf has there.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # a method of tuples, too
    inner: Any


def hyperparameters(
    factory: str | Factory,
    *,
    horizon: int | None = None,
    like: Params | None = None,
    **values: float,
) -> LearnedOptimizer:
    r"""A hand-designed method that learns its hyperparameters.

    $$\phi = \log\alpha \quad\text{or}\quad \phi = \log\frac{\beta}{1 - \beta}$$

    for what is positive (rates, ε, penalties) and for what lies between zero and one (the arguments
    `b1`, `b2`, `decay`, `momentum` and `rho`): φ may take any real value, and a step along the
    meta-gradient never leaves what makes sense. The rest is `factory` with these values: exact
    meta-gradients by `meta.full` or `meta.forward`, online ones by `meta.hypergradient_descent`.

    Args:
        factory: a function that makes an optax transformation, or the name of one in `classic`.
        horizon: if given, every hyperparameter has a value for each of so many steps, a schedule;
            after them the last one stays.
        like: if given, every hyperparameter has a value for each leaf of params with this
            structure (arrays, or `jax.eval_shape` of them). Each leaf is then optimized alone, so
            a method that looks at all of them together, or at values of the loss, is another one.
        **values: hyperparameters to learn, by the names of `factory`'s arguments, and where they
            begin. Others keep their defaults; what is to be fixed at another value is bound before,
            by `functools.partial`.

    Returns:
        A learned optimizer: `phi` is a dictionary of arrays by name, each `[]`, or `[horizon]`, or
        with `like` a tree of these; `hyperparameter_values(phi)` shows what they stand for.
        `learned.load` rebuilds it if `factory` is one of `classic` and there is no `like`, and
        otherwise gets it as `opt=`.

    Raises:
        ValueError: for no hyperparameter, a value that is not a positive number, or not inside
            (0, 1), an argument that is no number, such as `bias_correction`, a horizon below 1, or
            an unknown name of a method; from `init` of the transformation, for params of another
            structure than `like`.
        TypeError: if `factory` does not take an argument of this name.

    Reference:
        Maclaurin, Duvenaud and Adams (2015), 'Gradient-based hyperparameter optimization through
        reversible learning', section 3: schedules, and a value for each layer.

    >>> import l2ljax as l2l
    >>> opt = hyperparameters(l2l.classic.adam, learning_rate=1e-3, b1=0.9)
    >>> result = l2l.meta.train(opt, l2l.tasks.quadratic(), key=jax.random.key(0), steps=50,
    ...                         batch=8, meta_optimizer=optax.adam(0.1),
    ...                         estimator=l2l.meta.forward(horizon=20))
    >>> bool(hyperparameter_values(result.phi)["learning_rate"] > 0.01)
    True
    """
    name = factory if isinstance(factory, str) else None
    if name is not None:
        _checks.choice("factory", name, METHODS)
        factory = getattr(classic, name)
    elif getattr(classic, getattr(factory, "__name__", ""), None) is factory:
        name = factory.__name__
    if not values:
        raise ValueError("values must name at least one hyperparameter to learn, got none")
    check_values(values)
    if horizon is not None:
        _checks.count("horizon", horizon)
    if not callable(factory):
        raise ValueError(f"factory must be a function or the name of one, got {factory!r}")
    _require_numeric(factory, values, own=name is None)
    first = factory(**values)
    if not is_transformation(first):
        raise ValueError(f"factory must make an optax transformation, got {first!r}")
    arguments = {"factory": name, "horizon": horizon, **{k: float(v) for k, v in values.items()}}
    structure = None if like is None else jax.tree.structure(like)
    return LearnedOptimizer(
        init=closure(
            init_phi,
            values=tuple((k, float(v)) for k, v in values.items()),
            horizon=horizon,
            structure=structure,
        ),
        bind=closure(_bind, factory=factory, horizon=horizon, structure=structure),
        spec=None
        if name is None or like is not None
        else Spec(name="hyperparameters", arguments=arguments),
    )


def hyperparameter_values(phi: Phi) -> dict[str, Any]:
    r"""The hyperparameters that φ stands for: rates and decays, where φ holds logs and logits.

    $$\alpha = e^\phi \quad\text{or}\quad \beta = \frac{1}{1 + e^{-\phi}}$$

    Args:
        phi: the meta-parameters of `hyperparameters` or `reversible_momentum` (whose decays are
            then rounded to multiples of 2⁻¹⁶); with a learned task, `phi["optimizer"]`.

    Returns:
        The values by name, in the shapes of φ: numbers, `[horizon]`, or trees of these.

    Raises:
        ValueError: if `phi` is not a dictionary of arrays by name, as another optimizer's is not.

    >>> opt = hyperparameters("adam", learning_rate=1e-3, b1=0.9)
    >>> values = hyperparameter_values(opt.init(jax.random.key(0)))
    >>> {name: f"{value:.4g}" for name, value in values.items()}
    {'learning_rate': '0.001', 'b1': '0.9'}
    """
    expected = "a dictionary of hyperparameters by name, as `hyperparameters` draws it"
    if not isinstance(phi, Mapping):
        _checks.refuse("phi", phi, expected)
    if set(phi) == {"optimizer", "task"}:
        raise ValueError(f'phi must be {expected}, got that of a LearnedTask; try phi["optimizer"]')
    # A network's weights would come out as numbers that mean nothing.
    for path, leaf in jax.tree_util.tree_flatten_with_path(phi)[0]:
        if jnp.ndim(leaf) > 1:
            place = jax.tree_util.keystr(path)
            raise ValueError(f"phi must be {expected}, got shape {jnp.shape(leaf)} at {place}")
    return {name: jax.tree.map(functools.partial(_value, name), free) for name, free in phi.items()}


def _value(name: str, free: Float[Array, "*steps"]) -> Float[Array, "*steps"]:
    return jax.nn.sigmoid(free) if name in FRACTIONS else jnp.exp(free)


def _require_numeric(factory: Factory, values: Mapping[str, float], own: bool) -> None:
    """Refuses arguments that choose something, which a learned number would do at random.

    Their defaults tell: a truth, a name or a function; None, too, but for a number of a method of
    `classic` that is left out by default, and in a user's own function.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return
    for argument in values:
        # Without a default it may be anything, for example a rate.
        default = parameters[argument].default if argument in parameters else 0.0
        if default is inspect.Parameter.empty:
            continue
        left_out = default is None and not own and argument not in FRACTIONS
        if left_out or isinstance(default, bool | str) or callable(default):
            raise ValueError(
                f"values must be of numeric hyperparameters, got {argument!r}, by default "
                f"{default!r}; bind it before by functools.partial"
            )


def check_values(values: Mapping[str, float]) -> None:
    """Requires positive numbers, below one where that is what they are."""
    for argument, value in values.items():
        _checks.positive(argument, value)
        _checks.number(argument, value)
        if argument in FRACTIONS and not value < 1:
            raise ValueError(f"{argument} must lie inside (0, 1), got {value!r}")


def init_phi(
    key: Key, *, values: tuple[tuple[str, float], ...], horizon: int | None, structure: Any
) -> Phi:
    """Logs and logits of values by name: a number, one for each step, or a tree of these."""
    del key
    shape = () if horizon is None else (horizon,)

    def start(name: str, value: float) -> Any:
        free = np.log(value / (1 - value)) if name in FRACTIONS else np.log(value)
        if structure is None:
            return jnp.full(shape, free)
        leaves = [jnp.full(shape, free) for _ in range(structure.num_leaves)]
        return jax.tree.unflatten(structure, leaves)

    return {name: start(name, value) for name, value in values}


def _bind(
    phi: Phi, *, factory: Factory, horizon: int | None, structure: Any
) -> optax.GradientTransformationExtraArgs:
    settings = {"factory": factory, "horizon": horizon, "structure": structure}
    return optax.GradientTransformationExtraArgs(
        init=closure(_init, phi, **settings), update=closure(_update, phi, **settings)
    )


def _at(
    phi: Phi, count: Int[Array, ""], *, factory: Factory, horizon: int | None, structure: Any
) -> list[optax.GradientTransformationExtraArgs]:
    """The method with its values at a step: one for all leaves, or one for each."""

    def value(name: str, free: Float[Array, "..."]) -> Float[Array, ""]:
        if horizon is not None:
            free = free[jnp.minimum(count, horizon - 1)]
        return _value(name, free)

    columns = {name: jax.tree.leaves(tree) for name, tree in phi.items()}
    number = 1 if structure is None else structure.num_leaves
    return [
        optax.with_extra_args_support(
            as_pytree(factory(**{name: value(name, column[i]) for name, column in columns.items()}))
        )
        for i in range(number)
    ]


def _init(phi: Phi, params: Params, **settings: Any) -> HyperparametersState:
    count = jnp.zeros((), jnp.int32)
    methods = _at(phi, count, **settings)
    structure = settings["structure"]
    if structure is None or (stands_for_params(params) and methods):
        return HyperparametersState(count, methods[0].init(params))
    leaves = _leaves("params", params, structure)
    states = [tx.init(leaf) for tx, leaf in zip(methods, leaves, strict=True)]
    return HyperparametersState(count, _join(states, structure))


def _leaves(name: str, tree: Params, structure: Any) -> list[Any]:
    leaves, present = jax.tree.flatten(tree)
    if present != structure:
        raise ValueError(f"{name} must have the structure of like, {structure}, got {present}")
    return leaves


def _update(
    phi: Phi,
    updates: Params,
    state: HyperparametersState,
    params: Params | None = None,
    **rest: Any,
) -> tuple[Params, HyperparametersState]:
    settings = {name: rest.pop(name) for name in ("factory", "horizon", "structure")}
    _checks.state(state, HyperparametersState)
    updates, params = _checks.gradients(updates, params)
    # Methods made of φ are others after each step, φ is an argument of one program.
    return in_one_program(functools.partial(_move, **settings))(
        updates, (phi, state), params, **rest
    )


def _move(
    updates: Params,
    known: tuple[Phi, HyperparametersState],
    params: Params | None,
    *,
    factory: Factory,
    horizon: int | None,
    structure: Any,
    **extra: Any,
) -> tuple[Params, HyperparametersState]:
    phi, state = known
    methods = _at(phi, state.count, factory=factory, horizon=horizon, structure=structure)
    count = optax.safe_increment(state.count)
    if structure is None:
        updates, inner = methods[0].update(updates, state.inner, params, **extra)
        return updates, HyperparametersState(count, inner)
    leaves = _leaves("updates", updates, structure)
    others = [None] * len(leaves) if params is None else jax.tree.leaves(params)
    moved = [
        tx.update(leaf, inner, param)
        for tx, leaf, inner, param in zip(
            methods, leaves, _split(state.inner, structure), others, strict=True
        )
    ]
    new, states = zip(*moved, strict=True) if moved else ((), ())
    inner = _join(states, structure)
    return jax.tree.unflatten(structure, new), HyperparametersState(count, inner)


def _join(states: Sequence[Any], structure: Any) -> Any:
    """The states of the leaves as one, in which each array is a tree of these."""
    return jax.tree.map(lambda *arrays: structure.unflatten(arrays), *states) if states else ()


def _split(joined: Any, structure: Any) -> list[Any]:
    """The states of the leaves that `_join` has joined."""
    outer: Any
    trees, outer = jax.tree.flatten(joined, is_leaf=lambda x: jax.tree.structure(x) == structure)
    rows = zip(*map(jax.tree.leaves, trees), strict=True) if trees else [()] * structure.num_leaves
    return [outer.unflatten(row) for row in rows]
