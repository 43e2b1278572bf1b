"""Primitives that are defined by functions, and computed by a CPU's program where it serves."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from l2ljax.kernels import _build

Definition = Callable[..., list[Array]]
"""`definition(*arrays, **params)`, the results of a primitive."""


def cpu_has_whole(tree: PyTree) -> bool:
    """Whether the CPU's program may be given these arrays.

    It may if it was built and a CPU is the default device, for arrays that XLA does not split: in a
    process with one device, or inside `jax.shard_map` over all axes of its mesh and without checks
    of what varies. Elsewhere a trace does not tell where its arrays will be, and XLA would gather
    them.

    Args:
        tree: arrays, also traced ones.

    Returns:
        True or False.
    """
    if jax.default_backend() != "cpu":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    whole = jax.device_count() == 1 or (
        mesh.manual_axes and set(mesh.manual_axes) == set(mesh.axis_names)
    )
    return bool(whole) and not any(map(_varies, jax.tree.leaves(tree))) and _build.load()


def _varies(leaf: Array) -> bool:
    """Whether a type says along which axes of a mesh it varies."""
    kind: Any = jax.typeof(leaf)
    # One or the other, by the version of JAX.
    manual = getattr(kind, "manual_axis_type", None)
    return bool(getattr(kind, "vma", ()) if manual is None else manual.varying)


def defined(
    name: str, definition: Definition, shapes: Callable[..., list[Any]], static: Sequence[str]
) -> Primitive:
    """A primitive that is its definition on all platforms, mapped and differentiated.

    Args:
        name: of the primitive.
        definition: what it computes.
        shapes: `shapes(*types, **params)`, the types of its results.
        static: names of its parameters, whose values are hashable.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    run = jax.jit(primitive.bind, static_argnames=static)

    def compute(*arrays: Any, **params: Any) -> list[Array]:
        # Outside `jit` a primitive is a program of its own, also where `jit` is turned off.
        with jax.disable_jit(False):
            return run(*arrays, **params)

    def differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(functools.partial(definition, **params), tuple(primals), tangents)

    primitive.def_impl(compute)
    primitive.def_abstract_eval(shapes)
    mlir.register_lowering(primitive, mlir.lower_fun(definition, multiple_results=True))
    ad.primitive_jvps[primitive] = differentiate
    batching.primitive_batchers[primitive] = functools.partial(map_definition, definition)
    return primitive


def map_definition(definition: Definition, arrays: Any, axes: Any, **params: Any) -> Any:
    """The definition mapped over axes, as a primitive's rule for `jax.vmap`."""
    found = jax.vmap(functools.partial(definition, **params), axes)(*arrays)
    return found, [0] * len(found)


def compiled(
    primitive: Primitive,
    target: str,
    definition: Definition,
    *,
    aliases: Callable[[int], dict[int, int]] = lambda count: {},
    attributes: Callable[..., dict[str, Any]] = lambda **params: {},
) -> None:
    """Lets a CPU compute a primitive by a call of the program.

    Args:
        primitive: what `defined` made.
        target: the name of the call.
        definition: what is lowered where no call may be: for export, or where nothing was built.
        aliases: by the number of arguments, which of them give their place to which result.
        attributes: by the primitive's parameters, what the call is given besides.
    """
    otherwise = mlir.lower_fun(definition, multiple_results=True)

    def lower(context: Any, *arrays: Any, **params: Any) -> Any:
        parameters = context.module_context.lowering_parameters
        if getattr(parameters, "for_export", False) or not _build.load():
            return otherwise(context, *arrays, **params)
        call = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases(len(arrays)))
        return call(context, *arrays, **attributes(**params))

    mlir.register_lowering(primitive, lower, platform="cpu")
