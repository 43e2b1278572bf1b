"""The records that everything in l2ljax is made of, and the names of its types.

A *task* is a family of functions to minimise, a *learned optimizer* is a function from
meta-parameters φ to an ordinary optax transformation, an *estimator* estimates the gradient of a
meta-loss with respect to φ. Each is a small immutable record of pure functions.

Every field is a `jax.tree_util.Partial`, so a record is a pytree whose leaves are the arrays that
its functions carry (a data set). It passes through `jax.jit` as an argument: its arrays never
become constants of a compiled program, and two records made by one factory with the same settings
share one compiled program.

A bound transformation passes through `jax.jit`, too, but its φ is a static part of it (see `seal`):
like any optax transformation it may stand where no arrays may, as in a Flax NNX module.
`as_pytree` makes φ leaves again.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.typing
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from typing_extensions import TypeAliasType

from l2ljax import _checks
from l2ljax._closures import as_partial as as_partial
from l2ljax._closures import closure as closure
from l2ljax._functions import Static
from l2ljax._programs import compiled
from l2ljax._shown import brief, one_line
from l2ljax._transformations import CoordinatewiseTransformation as CoordinatewiseTransformation
from l2ljax._transformations import ReplayableTransformation as ReplayableTransformation
from l2ljax._transformations import Transformation as Transformation
from l2ljax._transformations import as_pytree as as_pytree
from l2ljax._transformations import is_transformation as is_transformation
from l2ljax._transformations import require_transformation as require_transformation
from l2ljax._transformations import seal as seal

Key = TypeAliasType("Key", PRNGKeyArray)
"""A PRNG key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

ArrayLike = TypeAliasType("ArrayLike", jax.typing.ArrayLike)
"""An array, or a number that becomes one."""

DTypeLike = TypeAliasType("DTypeLike", jax.typing.DTypeLike)
"""A dtype, or its name."""

Schedule = TypeAliasType("Schedule", optax.Schedule)
"""A function of the count of updates, which starts at 0, such as a learning rate."""

Params = TypeAliasType("Params", PyTree)
"""θ: the parameters of the function that is minimised."""

Phi = TypeAliasType("Phi", PyTree)
"""φ: the meta-parameters, whatever a learned optimizer learns."""

Problem = TypeAliasType("Problem", PyTree)
"""One sampled function of a task."""

Scalar = TypeAliasType("Scalar", Float[Array, ""])
"""A loss."""


@runtime_checkable
class Divisible(Protocol):
    """Examples that the devices of a mesh may share out among them: `tasks.Split` is.

    Attributes:
        axis: the axis of devices over which the first axes of its arrays are split; None: each
            device has all.
    """

    axis: str | None

    def split_over(self, axis: str, devices: int) -> "Divisible":
        """The same examples, their arrays' first axes ready to be split over the devices."""
        ...


class _ScalarValued(Static):
    """A function with one scalar value, and what errors call that."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function, name = self.value
        return _checks.scalar_value(name, function(*args, **kwargs))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.value[0])


def _scalar_valued(name: str, function: Any) -> Any:
    """The function with a check of what it returns; what is no function is left as it is."""
    if not isinstance(function, Partial) or isinstance(function.func, _ScalarValued):
        return function
    return Partial(_ScalarValued((function.func, name)), *function.args, **function.keywords)


def _wrap_callables(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if callable(value):
            object.__setattr__(record, name, as_partial(value))


@dataclasses.dataclass(frozen=True)
class Task:
    """A family of functions to minimise.

    Attributes:
        sample: `sample(key) -> problem`, draws one function. A data set never sits in `problem`,
            where `jax.vmap` would copy it: it is bound in the functions (see `closure`).
        init: `init(key, problem) -> params`, draws θ₀.
        loss: `loss(params, problem, key) -> scalar`, what an optimizer minimises; `key` draws the
            minibatch.
        objective: `objective(params, problem, key) -> scalar`, what the meta-loss and evaluation
            measure. By default it *is* `loss`.

    A family of one fixed function, in three lines:

    >>> import jax.numpy as jnp
    >>> task = Task(sample=lambda key: (), init=lambda key, problem: jnp.ones(3),
    ...             loss=lambda params, problem, key: jnp.sum(params**2))
    >>> float(task.objective(jnp.ones(3), (), jax.random.key(0)))
    3.0
    """

    sample: Callable[[Key], Problem]
    init: Callable[[Key, Problem], Params]
    loss: Callable[[Params, Problem, Key], Scalar]
    objective: Callable[[Params, Problem, Key], Scalar] = None  # type: ignore[assignment]

    __repr__ = one_line

    def __post_init__(self) -> None:
        _wrap_callables(self, "sample", "init", "loss", "objective")
        same = self.objective is None or self.objective is self.loss
        loss = _scalar_valued("the task's loss", self.loss)
        objective = loss if same else _scalar_valued("the task's objective", self.objective)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "objective", objective)


def _flatten_task(task: Task) -> tuple[tuple[Any, ...], None]:
    objective = None if task.objective is task.loss else task.objective
    return (task.sample, task.init, task.loss, objective), None


# Not `register_dataclass`: an objective that is the loss must stay the same object on the other
# side of `jit`, and must not carry the data set a second time.
jax.tree_util.register_pytree_node(
    Task, _flatten_task, lambda _, fields: Task(*(field for field in fields if field is not None))
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedTask:
    """A function from metaparameters ψ to a task: penalties, initial scales, data.

    Meta-training takes one where it takes a task, and trains both: φ is then
    `{"optimizer": φ of the learned optimizer, "task": ψ}`. The meta-loss measures the objective of
    the bound task. `tasks.learned_l2` and its like make such tasks.

    Attributes:
        init: `init(key) -> psi`, draws the first ψ.
        bind: `bind(psi) -> Task`; `jax.grad` through `bind` is a hypergradient.

    An L2 penalty that can be learned; the objective stays without it:

    >>> import jax.numpy as jnp
    >>> def penalised(psi):
    ...     def objective(params, problem, key):
    ...         return jnp.sum((params - 1.0) ** 2)
    ...     def loss(params, problem, key):
    ...         return objective(params, problem, key) + jnp.exp(psi) * jnp.sum(params**2)
    ...     return Task(lambda key: (), lambda key, problem: jnp.zeros(2), loss, objective)
    >>> learned = LearnedTask(init=lambda key: jnp.zeros(()), bind=penalised)
    >>> task = learned.bind(learned.init(jax.random.key(0)))
    >>> float(task.loss(jnp.ones(2), (), None)), float(task.objective(jnp.ones(2), (), None))
    (2.0, 0.0)
    """

    init: Callable[[Key], PyTree]
    bind: Callable[[PyTree], Task]

    __repr__ = one_line

    def __post_init__(self) -> None:
        _wrap_callables(self, "init", "bind")


class Spec(dict[str, Any]):
    """What rebuilds a learned optimizer: `{"name": ..., "arguments": {...}}` of plain JSON values.

    Hashable by its canonical text, so that it may be a static part of a pytree. Treat it as
    immutable.
    """

    @functools.cached_property
    def _text(self) -> str:
        return _canonical_text(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return False
        return self._text == (other._text if isinstance(other, Spec) else _canonical_text(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self._text)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self["arguments"].items())
        return f"{self['name']}({arguments})"


def _canonical_text(value: dict[str, Any]) -> str:
    # What is no JSON value is equal to itself alone.
    return json.dumps(value, sort_keys=True, default=lambda own: f"{type(own)} at {id(own)}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedOptimizer:
    """A function from meta-parameters φ to an optax transformation.

    Attributes:
        init: `init(key) -> phi`, draws the first φ.
        bind: `bind(phi) -> optax.GradientTransformation`. The result is an ordinary
            transformation, and sealed (see `seal`); `jax.grad` through `bind` is meta-training.
        spec: what rebuilds the optimizer from a card, or None for one that `learned.load` gets as
            `opt=`.

    Gradient descent with a learned rate:

    >>> import jax.numpy as jnp
    >>> opt = LearnedOptimizer(init=lambda key: jnp.zeros(()),
    ...                        bind=lambda phi: optax.sgd(jnp.exp(phi)))
    >>> tx = opt.bind(opt.init(jax.random.key(0)))
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [-1. -1.]
    """

    init: Callable[[Key], Phi]
    bind: Callable[[Phi], optax.GradientTransformation]
    spec: Spec | None = dataclasses.field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        """By what rebuilds it, or by its functions."""
        if self.spec is None:
            return one_line(self)
        return f"{type(self).__name__}({brief(self.spec, 140)})"

    def __post_init__(self) -> None:
        _wrap_callables(self, "init", "bind")
        bind = self.bind
        if isinstance(bind, Partial) and bind.func is not _bind_sealed:
            object.__setattr__(self, "bind", closure(_bind_sealed, bind))


def _bind_sealed(bind: Partial, phi: Phi) -> Any:
    tx = bind(phi)
    return seal(tx) if isinstance(tx, optax.GradientTransformation) else tx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReversibleOptimizer(LearnedOptimizer):
    r"""A learned optimizer by momentum, whose steps `meta.reversible` can undo.

    Attributes:
        init: as in `LearnedOptimizer`.
        bind: its transformation moves by $v_{t+1} = \gamma_t v_t - (1 - \gamma_t) \nabla_t$ and
            $\theta_{t+1} = \theta_t + \alpha_t v_{t+1}$, with $v_0 = 0$.
        coefficients: `coefficients(phi, params, times) -> (rates, decays)`, trees like params
            with α and γ at these steps in every leaf; decays are multiples of 2⁻¹⁶, at most 1.
        spec: as in `LearnedOptimizer`.
        DECAY_UNITS: 2¹⁶.
    """

    DECAY_UNITS: ClassVar[int] = 2**16

    coefficients: Callable[[Phi, Params, Array], tuple[Params, Params]] = None  # type: ignore

    __repr__ = LearnedOptimizer.__repr__

    def __post_init__(self) -> None:
        super().__post_init__()
        _wrap_callables(self, "coefficients")


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        loss: the meta-loss of this call, a scalar.
        grad: its gradient with respect to φ, a tree like φ.
        aux: a dictionary of arrays, the estimator's own measurements.
    """

    loss: Scalar
    grad: Phi
    aux: dict[str, Any]

    def __repr__(self) -> str:
        return one_line(self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimate of the gradient of a meta-loss.

    Attributes:
        init: `init(key, phi) -> state`.
        estimate: `estimate(phi, state, key) -> (Estimate, state)`; `key` starts the episodes that
            begin in this call, so two estimators see the same problems with one key.
    """

    init: Callable[[Key, Phi], Any]
    estimate: Callable[[Phi, Any, Key], tuple[Estimate, Any]]

    __repr__ = one_line

    def __post_init__(self) -> None:
        _wrap_callables(self, "init", "estimate")
        for name in ("init", "estimate"):
            function = getattr(self, name)
            if isinstance(function, Partial) and function.func is not compiled:
                object.__setattr__(self, name, closure(compiled, function))
