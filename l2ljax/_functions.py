"""When two functions are the same one, made twice.

`optax.adam(1e-3)` makes new functions at every call, and so does a lambda in a loop. To `jax.jit`
each is another one, is compiled, and its program kept. Here functions are compared by what they are
made of: their code, the values in their closures and defaults, and what global names stand for.

That is done only where it cannot be wrong. Constants are compared by value and type; arrays,
classes and modules by identity; tuples, partials and inner functions by their parts. A function
that holds anything else, such as an object that may have changed since, is equal to itself alone.
The libraries below are taken to keep their global names, and the lists and dictionaries in their
closures.
"""

import builtins
import dataclasses
import dis
import enum
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef

_LIBRARIES = frozenset(
    {"chex", "flax", "jax", "jaxlib", "l2ljax", "ml_dtypes", "numpy", "optax", "scipy"}
    | sys.stdlib_module_names
)
_CHECKERS = frozenset({"beartype", "jaxtyping"})
"""Their functions check the arguments of those that they wrap, and do nothing else."""

_CONSTANTS = (type(None), bool, int, str, bytes, type(Ellipsis))
_WITH_EQUALITY = (
    PyTreeDef,
    np.dtype,
    jax.ShapeDtypeStruct,
    jax.sharding.Mesh,
    jax.sharding.PartitionSpec,
    jax.sharding.Sharding,
)
"""Immutable, with an equality of their own."""


_LARGEST = 10_000
"""Parts of a value beyond which it is not taken apart."""


class _UnknownError(Exception):
    """It cannot be told what is equal to this value."""


class _Same:
    """A value by its identity, kept alive so that no other takes its place."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Equal:
    """A value by its own equality, where that does not raise."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Equal) or type(self.value) is not type(other.value):
            return False
        if self.value is other.value:
            return True
        try:
            return hash(self.value) == hash(other.value) and bool(self.value == other.value)
        except Exception:
            return False

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except Exception:
            return id(self.value)


class Static:
    """A static part of a pytree: its hash is computed once, its equality never raises.

    JAX compares any two static parts that stand in one place of two trees: also those of different
    types, of which one raises at the sight of the other.

    Attributes:
        value: what it stands for; it is called in its stead.
        key: equal for equal values.
        lasting: whether `key` is made of code and constants alone, so that a program serves what
            is made later, too. Otherwise its use may end with an object.
    """

    __slots__ = ("__weakref__", "_hash", "key", "lasting", "value")

    def __init__(self, value: Any) -> None:
        reader = _Reader()
        self.value = value
        self.key = reader.setting(value)
        self.lasting = reader.lasting
        self._hash = hash(self.key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Static) and self._hash == other._hash and self.key == other.key

    def __hash__(self) -> int:
        return self._hash

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value,)


_first: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_lasting: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def canonical(function: Callable[..., Any]) -> Callable[..., Any]:
    """The first one in use of the functions that are equal to this one.

    A method, or an object with an equality of its own, comes back as a `Static`.

    >>> def scaled(by):
    ...     return lambda x: by * x
    >>> canonical(scaled(2)) is canonical(scaled(2)), canonical(scaled(2)) is canonical(scaled(2.0))
    (True, False)
    """
    if isinstance(function, types.MethodType) or _may_raise(function):
        return Static(function)
    if not isinstance(function, types.FunctionType | functools.partial):
        return function
    key = _key_of(function)
    if key is None:
        return function
    first = _first.get(key)
    # A dictionary of a library's may have changed since then.
    if first is None or (first is not function and _key_of(first) != key):
        _first[key] = first = function
    return first


def is_lasting(function: Any) -> bool:
    """Whether functions that are equal to this one may be made at any time: see `Static`."""
    if isinstance(function, Static):
        return function.lasting
    try:
        known = _lasting.get(function)
    except TypeError:
        # No weak references, or no hash.
        return Static(function).lasting
    if known is None:
        known = _lasting[function] = Static(function).lasting
    return known


def _may_raise(function: Any) -> bool:
    """Whether it is an object with an equality of its own."""
    kind = type(function)
    known = issubclass(kind, Static) or _package(kind) in {"builtins", "functools", "jax", "jaxlib"}
    return not known and getattr(kind, "__eq__") is not object.__eq__  # noqa: B009


def _key_of(function: Callable[..., Any]) -> Hashable | None:
    reader = _Reader()
    try:
        key = reader.key(function)
    except (_UnknownError, RecursionError):
        _lasting[function] = False
        return None
    _lasting[function] = reader.lasting
    return key


class _Reader:
    """Takes a value apart.

    Attributes:
        lasting: as in `Static`, of all that was read.
    """

    def __init__(self) -> None:
        self.lasting = True
        self._open: set[int] = set()
        self._left = _LARGEST
        # Whether what is read belongs to a library.
        self._trusted = True

    def setting(self, value: Any) -> Hashable:
        """The key of any value."""
        if type(value) is tuple:
            return tuple(self.setting(part) for part in value)
        try:
            return self.key(value)
        except (_UnknownError, RecursionError):
            self.lasting = False
            return _Equal(value)

    def key(self, value: Any) -> Hashable:
        """The key of a value of which only equal ones have it.

        Raises:
            _UnknownError: for other values.
        """
        kind = type(value)
        self._left -= 1
        if not self._left:
            raise _UnknownError
        if kind in _CONSTANTS:
            return kind, value
        if kind is float or kind is complex:
            # By its bits: NaN is NaN, and 0 is not -0.
            return kind, np.asarray(value).tobytes()
        if isinstance(value, np.generic):
            return value.dtype, value.tobytes()
        if isinstance(value, Static):
            self.lasting &= value.lasting
            return value
        if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
            self.lasting = False
            return _Same(value)
        if isinstance(value, _WITH_EQUALITY):
            return _Equal(value)
        if id(value) in self._open:
            raise _UnknownError
        self._open.add(id(value))
        key = self._parts(value)
        self._open.remove(id(value))
        return key

    def _parts(self, value: Any) -> Hashable:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            items = tuple(value.keywords.items())
            return _Same(kind), self.key(value.func), self.key(value.args), self.key(items)
        if isinstance(value, tuple):
            return _Same(kind), *map(self.key, value)
        if self._trusted and kind is list:
            return _Same(kind), *map(self.key, value)
        if self._trusted and kind is dict:
            return _Same(kind), *map(self.key, value.items())
        if isinstance(value, types.MethodType):
            return self._method(value)
        if isinstance(value, enum.Enum):
            return _Same(value)
        if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return self._dataclass(kind, value)
        if _stands(value):
            return _Same(value)
        raise _UnknownError

    def _dataclass(self, kind: Any, value: Any) -> Hashable:
        trusted, self._trusted = self._trusted, _package(kind) in _LIBRARIES
        fields = (field.name for field in dataclasses.fields(kind))
        key = _Same(kind), *(self.key(getattr(value, name)) for name in fields)
        self._trusted = trusted
        return key

    def _function(self, function: types.FunctionType) -> Hashable:
        module = function.__globals__.get("__name__", "").split(".")[0]
        if hasattr(function, "__wrapped__") and (module in _CHECKERS or _is_generated(function)):
            return self.key(function.__wrapped__)
        library = module in _LIBRARIES
        if library and function.__closure__ is None and "<locals>" not in function.__qualname__:
            return _Same(function)
        trusted, self._trusted = self._trusted, library
        key = (
            # One factory's functions share their code. A cell that is run again compiles it anew.
            _Same(function.__code__)
            if library
            else (function.__code__, _Same(function.__globals__), self._globals(function)),
            self._cells(function),
            self.key(function.__defaults__),
            self.key(tuple((function.__kwdefaults__ or {}).items())),
            self.key(tuple(function.__dict__.items())),
        )
        self._trusted = trusted
        return key

    def _method(self, method: types.MethodType) -> Hashable:
        """A method of an optimizer of optax's that is an object, which nothing ever changes."""
        owner = method.__self__
        if not type(owner).__module__.startswith("optax."):
            raise _UnknownError
        return _Same(type(owner)), method.__name__, self.key(vars(owner))

    def _cells(self, function: types.FunctionType) -> Hashable:
        try:
            return tuple(self.key(cell.cell_contents) for cell in function.__closure__ or ())
        except ValueError as empty:
            raise _UnknownError from empty

    def _globals(self, function: types.FunctionType) -> Hashable:
        names, known = _names(function.__code__), function.__globals__
        if names is None:
            raise _UnknownError
        return tuple(
            self.key(known[name]) if name in known else _Same(getattr(builtins, name, None))
            for name in names
        )


def _stands(value: Any) -> bool:
    """Whether a library has this module, class or function for good."""
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0] in _LIBRARIES
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    # What `jax.jit` and the like make of functions has their names, and so have ufuncs.
    kept = isinstance(value, type) or _package(type(value)) in {"jax", "jaxlib", "numpy"}
    name = getattr(value, "__qualname__", getattr(value, "__name__", "<locals>"))
    return kept and callable(value) and _package(value) in _LIBRARIES and "<locals>" not in name


def _package(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.split(".")[0]


def _is_generated(function: types.FunctionType) -> bool:
    return function.__code__.co_filename.startswith("<@beartype")


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...] | None:
    """All names in a code that may be global; None if running it may change or import any."""
    found = set(code.co_names)
    for instruction in dis.get_instructions(code):
        changes = instruction.opname in {"STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"}
        own = instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars
        if changes or own:
            return None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            if inner is None:
                return None
            found.update(inner)
    return tuple(sorted(found))
