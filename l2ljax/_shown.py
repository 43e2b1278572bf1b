"""How records and functions are shown: one line, with shapes in the place of arrays."""

import dataclasses
import functools
import html
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

_LINE = 200
"""Characters of the fields of a record, which are cut until they fit."""

_LIMITS = (80, 56, 40, 28, 20)
"""Characters of a field."""

_BOUND = 80
"""Characters of what is bound to a function."""


def one_line(record: Any) -> str:
    """A `__repr__` for records: their fields without those that are None, each cut to its share.

    Args:
        record: a dataclass or a NamedTuple.

    >>> from typing import NamedTuple
    >>> class Found(NamedTuple):
    ...     at: dict
    ...     losses: np.ndarray
    ...     note: str | None = None
    ...     def __repr__(self):
    ...         return one_line(self)
    >>> Found({"w": np.ones((2, 3))}, np.ones(100))
    Found(at={'w': float64[2,3]}, losses=float64[100])
    """
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record)]
    else:
        names = list(record._fields)
    values = {name: getattr(record, name) for name in names}
    # An objective that is the loss need not be shown again.
    shown = {id(value): name for name, value in reversed(values.items())}
    values = {
        name: value
        for name, value in values.items()
        if value is not None and (shown[id(value)] == name or not callable(value))
    }
    fields = ""
    for limit in _LIMITS:
        fields = ", ".join(f"{name}={brief(value, limit)}" for name, value in values.items())
        if len(fields) <= _LINE:
            break
    return f"{type(record).__name__}({fields})"


def brief(value: Any, limit: int = 60) -> str:
    """A value in at most `limit` characters.

    >>> brief({"kernel": np.ones((20, 80)), "bias": np.ones(80)}, 40)
    '<2 arrays, 1,680 numbers>'
    >>> brief(functools.partial(np.sum, axis=0))
    'numpy.sum(axis=0)'
    """
    text = " ".join(_text(value).split())
    if len(text) > limit and isinstance(value, dict | list | tuple):
        text = _summary(value) or text
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """The beginning of a text that is too long.

    >>> cut("a long text", 8)
    'a lon...'
    """
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def call(function: Any, *arguments: Any, **settings: Any) -> str:
    """A function with what is bound to it: `learned.lstm.update(<8 arrays, 5,380 numbers>)`."""
    shown = [brief(value, 40) for value in arguments]
    shown += [f"{name}={brief(value, 24)}" for name, value in settings.items() if value is not None]
    return f"{_name(function)}({cut(', '.join(shown), _BOUND)})" if shown else _name(function)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for notebooks; what stands first in a row is its name.

    Args:
        header: of each column; none: without a header.
        rows: cells as plain text, in which lines may be broken.

    >>> html_table(["", "loss"], [["a<b", "1"]])
    '<table><tr><th></th><th>loss</th></tr><tr><th>a&lt;b</th><td>1</td></tr></table>'
    """

    def cell(kind: str, text: str) -> str:
        escaped = html.escape(text)
        style = ' style="text-align: left; white-space: pre-wrap"' if "\n" in text else ""
        return f"<{kind}{style}>{escaped}</{kind}>"

    lines = ["".join(cell("th", text) for text in header)] if header else []
    lines += [
        cell("th", name) + "".join(cell("td", text) for text in cells) for name, *cells in rows
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _text(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return _array(value)
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, np.generic):
        return str(value)
    if isinstance(value, functools.partial):
        own = type(value).__repr__ is not functools.partial.__repr__
        return repr(value) if own else call(value.func, *value.args, **value.keywords)
    if isinstance(value, dict) and type(value).__repr__ is dict.__repr__:
        return f"{{{', '.join(f'{name!r}: {_text(item)}' for name, item in value.items())}}}"
    if type(value) in (list, tuple):
        items = ", ".join(map(_text, value))
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    written = getattr(type(value).__repr__, "__module__", "") or ""
    if not written.startswith("l2ljax.") and (found := _summary(value)):
        # Its own representation would hold all numbers.
        return f"{type(value).__name__}({found})"
    return repr(value)


def _array(value: Any) -> str:
    if value.shape == () and isinstance(value.dtype, np.dtype) and _is_at_hand(value):
        return f"{np.asarray(value).item():.6g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _is_at_hand(value: Any) -> bool:
    """Whether its numbers are known to this process."""
    if not isinstance(value, jax.Array):
        return isinstance(value, np.ndarray)
    traced = isinstance(value, jax.core.Tracer)
    return not traced and value.is_fully_addressable and not value.is_deleted()


def _summary(tree: Any) -> str:
    """How many arrays a tree has and how large they are; nothing if it has none."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    if not leaves or leaves[0] is tree:
        return ""
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"<{len(leaves)} array{'s' * (len(leaves) > 1)}, {numbers:,} numbers>"


def _name(function: Any) -> str:
    """Where a function is, and its name; of this package without the underscores."""
    if not hasattr(function, "__qualname__"):
        return _text(function)
    module, name = function.__module__ or "", function.__qualname__.replace("<locals>.", "")
    if module.startswith("l2ljax."):
        parts = [part.lstrip("_") for part in module.split(".")[1:]]
        name = name.lstrip("_")
        return ".".join(parts if parts[-1] == name else [*parts, name])
    return name if module in ("", "__main__", "builtins") else f"{module}.{name}"
