"""What tells two computations apart: the program and all arrays in it."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def fingerprint(function: Callable[..., Any], *arguments: Any) -> str:
    """A digest of what a function computes of arguments: its program, its constants, their leaves.

    Another rate, other weights, other data or another formula have another one; a function that is
    defined anew with the same meaning has the same. So have two processes, with one version of JAX.

    Args:
        function: a function that `jax.jit` could compile.
        *arguments: pytrees of arrays.

    >>> once = fingerprint(lambda x: 2 * x, 1.0)
    >>> once == fingerprint(lambda y: 2 * y, 1.0), once == fingerprint(lambda x: 3 * x, 1.0)
    (True, False)
    """
    closed = jax.make_jaxpr(function)(*arguments)
    digest = hashlib.sha256(_ADDRESS.sub("", str(closed)).encode())
    for array in (*_constants(closed), *jax.tree.leaves(arguments)):
        if jax.numpy.issubdtype(jax.dtypes.result_type(array), jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        value = np.asarray(array)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _constants(jaxpr: Any) -> Iterator[Any]:
    """All constants of a program and of those in it, which its text may show in part only."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                    yield from _constants(part)
