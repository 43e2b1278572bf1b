"""Different learned optimizers for different parts of the params."""

import fnmatch
import glob
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from l2ljax import _checks, _masks
from l2ljax._placeholders import stands_for_params
from l2ljax.core import (
    CoordinatewiseTransformation,
    Key,
    LearnedOptimizer,
    Params,
    Phi,
    Spec,
    as_pytree,
    closure,
)

Group: TypeAlias = dict[str, Any]
"""The leaves of one label, by their paths joined with '/'."""


class PartitionState(NamedTuple):
    """The members' states.

    Attributes:
        members: by label; each is the state of that optimizer for the leaves of its label.
    """

    members: dict[str, Any]


def partition(
    optimizers: Mapping[str, LearnedOptimizer],
    labels: PyTree | Callable[[Params], PyTree],
) -> LearnedOptimizer:
    r"""Each part of the params has its own learned optimizer, with meta-parameters of its own.

    $$u_i = u^{(\ell_i)}(\nabla_i; \phi_{\ell_i})$$

    for a leaf i with the label ℓ_i. All leaves of a label are updated by one call of its optimizer,
    which gets them as a dictionary by path.

    Args:
        optimizers: a learned optimizer for each label; one whose label no leaf has stands idle.
        labels: which label a leaf has, one of

            - a dictionary of patterns, `{"Conv*": "conv", "*": "rest"}`, for the leaf's path, its
              keys joined with '/'. In a pattern '*' is any text, '/' too, '?' any character and
              `[ab]` one of some; the first that matches the path, or the beginning of it up to a
              '/', gives the label.
            - a tree of labels like the params, in which a label may stand for a whole subtree. It
              becomes patterns; so a flat dictionary of labels may be called either.
            - a function from params to such a tree; a module of labels that can be called is a
              tree, since its leaves are no functions. Such a partition is loaded by `opt=`. The
              function may read shapes, so a batch of problems is not taken for one bigger problem,
              and meta-training is slower than with patterns.

    Returns:
        A learned optimizer whose φ is `{label: φ of its optimizer}`. The bound transformation's
        state is `PartitionState`. It is coordinate-wise if all members' are (and `labels` is no
        function), and takes extra arguments if a member does; they are passed on to that member as
        they are, not cut to its part.

    Raises:
        ValueError: for no optimizers, one that is no learned optimizer, or a label without
            optimizer; from `init` and `update`, for a leaf without label or with one that has no
            optimizer, and for two leaves with one path.

    Reference:
        Andrychowicz et al. (2016), section 3.3: one LSTM for the convolutional layers, another for
        the fully connected ones.

    >>> import jax.numpy as jnp
    >>> from l2ljax.learned import lstm
    >>> opt = partition({"conv": lstm(), "rest": lstm(hidden=(4,))}, {"Conv*": "conv", "*": "rest"})
    >>> phi = opt.init(jax.random.key(0))
    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 1, 2))}, "Dense_0": {"bias": jnp.ones(2)}}
    >>> state = opt.bind(phi).init(params)
    >>> {label: member.layers[0][0].shape for label, member in state.members.items()}
    {'conv': (20, 18), 'rest': (4, 2)}
    """
    if not optimizers:
        raise ValueError("optimizers must have at least one optimizer, got none")
    members = dict(optimizers)
    for name, opt in members.items():
        if not isinstance(opt, LearnedOptimizer):
            raise ValueError(
                f"optimizers[{name!r}] must be a learned optimizer, got {opt!r}; learned.fixed(tx) "
                "makes one of a transformation"
            )
    rule = _rule(labels, members)
    spec = None
    if all(opt.spec is not None for opt in members.values()):
        spec = Spec(
            name="partition",
            arguments={
                "optimizers": {name: opt.spec for name, opt in members.items()},
                "labels": rule if callable(rule) else dict(rule),
            },
        )
    return LearnedOptimizer(
        init=closure(_init_phi, members), bind=closure(_bind, members, rule=rule), spec=spec
    )


_Patterns: TypeAlias = tuple[tuple[str, str], ...]
_Rule: TypeAlias = _Patterns | Callable[[Params], PyTree]


def _rule(labels: PyTree | Callable[[Params], PyTree], names: Collection[str]) -> _Rule:
    if _masks.is_function(labels):
        return labels
    if isinstance(labels, Mapping) and all(
        isinstance(text, str) for item in labels.items() for text in item
    ):
        for pattern, label in labels.items():
            _checks.choice(f"the label of {pattern!r}", label, names)
        return tuple(labels.items())
    return _patterns(labels, names)


def _patterns(labels: PyTree, names: Collection[str]) -> _Patterns:
    """A tree of labels as patterns: of its places, each for all that is below."""
    patterns = []
    for place, label in _leaves(labels):
        # An array is not to be compared with names.
        shown = label if isinstance(label, str) else repr(label)
        _checks.choice(f"the label of {_text(place)!r}", shown, names)
        patterns.append((glob.escape(_text(place)) if place else "*", label))
    return tuple(patterns)


def _find(patterns: _Patterns, path: KeyPath) -> str | None:
    """The label of a leaf, from the first pattern that fits its path or a beginning of it."""
    begins = [_text(path[:end]) for end in range(1, len(path) + 1)] or [""]
    for pattern, label in patterns:
        if any(fnmatch.fnmatchcase(begin, pattern) for begin in begins):
            return label
    return None


def _text(path: KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(tree: PyTree) -> list[tuple[KeyPath, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _owners(tree: PyTree, rule: _Rule, names: Collection[str]) -> dict[str, str]:
    """The label of each leaf by its path."""
    patterns = _patterns(rule(tree), names) if callable(rule) else rule
    owners: dict[str, str] = {}
    for path, _ in _leaves(tree):
        text, label = _text(path), _find(patterns, path)
        if label is None:
            raise ValueError(f"labels must have a label for each leaf, got none for {text!r}")
        if text in owners:
            raise ValueError(f"params must have leaves of different paths, got two of {text!r}")
        owners[text] = label
    return owners


def _split(tree: PyTree, owners: dict[str, str], names: Collection[str]) -> dict[str, Group]:
    leaves = {_text(path): leaf for path, leaf in _leaves(tree)}
    groups: dict[str, Group] = {name: {} for name in names}
    for path, label in owners.items():
        groups[label][path] = leaves[path]
    return groups


def _init_phi(members: dict[str, LearnedOptimizer], key: Key) -> Phi:
    # Sorted, as a pytree has them after `jit`.
    names = sorted(members)
    _checks.key("key", key)
    keys = jax.random.split(key, len(names))
    return {name: members[name].init(key) for name, key in zip(names, keys, strict=True)}


def _bind(
    members: dict[str, LearnedOptimizer], phi: Phi, *, rule: _Rule
) -> optax.GradientTransformation:
    bound = {name: as_pytree(opt.bind(phi[name])) for name, opt in members.items()}
    kinds = [type(tx) for tx in bound.values()]
    kind = optax.GradientTransformation
    if any(issubclass(k, optax.GradientTransformationExtraArgs) for k in kinds):
        kind = optax.GradientTransformationExtraArgs
    # A function may read shapes, which a batch of problems changes.
    elif not callable(rule) and all(issubclass(k, CoordinatewiseTransformation) for k in kinds):
        kind = CoordinatewiseTransformation
    return kind(init=closure(_init, bound, rule=rule), update=closure(_update, bound, rule=rule))


def _init(
    members: dict[str, optax.GradientTransformation], params: Params, *, rule: _Rule
) -> PartitionState:
    if stands_for_params(params):
        parts = dict.fromkeys(members, params)
    else:
        parts = _split(params, _owners(params, rule, members), members)
    return PartitionState({name: tx.init(parts[name]) for name, tx in members.items()})


def _update(
    members: dict[str, optax.GradientTransformation],
    updates: Params,
    state: PartitionState,
    params: Params | None = None,
    *,
    rule: _Rule,
    **extra_args: Any,
) -> tuple[Params, PartitionState]:
    _checks.state(state, PartitionState)
    updates, params = _checks.gradients(updates, params)
    owners = _owners(updates, rule, members)
    gradients = _split(updates, owners, members)
    parts = dict.fromkeys(members) if params is None else _split(params, owners, members)
    leaves: Group = {}
    states = {}
    for name, tx in members.items():
        takes_extra = isinstance(tx, optax.GradientTransformationExtraArgs)
        part, states[name] = tx.update(
            gradients[name], state.members[name], parts[name], **(extra_args if takes_extra else {})
        )
        leaves |= part
    updates = jax.tree_util.tree_map_with_path(lambda path, _: leaves[_text(path)], updates)
    return updates, PartitionState(states)
