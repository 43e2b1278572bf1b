"""One meta-gradient from many devices: problems, or perturbations, are split over a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from l2ljax import _checks
from l2ljax.core import (
    Divisible,
    Estimate,
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Task,
    closure,
)
from l2ljax.meta._perturbations import pairs_of
from l2ljax.meta._segments import EstimatorFactory, make_estimator

DATA = ("replicated", "sharded")
"""Where a data set may be: on each device, or a part of it on each."""


def over_devices(
    factory: EstimatorFactory,
    opt: LearnedOptimizer,
    task: Task | LearnedTask | Sequence[Task | LearnedTask],
    batch: int,
    mesh: Mesh,
    data: str,
) -> Estimator:
    """An estimator of which every device along the mesh's first axis has a part.

    That is a part of the batch. Devices see neighbouring problems: with one key, problem i of the
    batch is the same whatever the mesh. Each computes the gradient of its own problems, and the
    mean over devices is all that they exchange. The estimator's state has a leading axis of
    devices.

    Where the batch cannot be shared evenly, but perturbations of φ can, each device has the whole
    batch and neighbouring pairs of these; so they, too, are the same whatever the mesh.

    Args:
        factory: makes the estimator of one device; it must take `axis`.
        opt: the learned optimizer.
        task: what it is trained on, as `factory` takes it.
        batch: problems of all devices together.
        mesh: of any axes; over those after the first everything is repeated.
        data: of `DATA`, see `meta.train`.

    Raises:
        ValueError: for a batch, and pairs, that the devices cannot share evenly, or a factory
            without `axis`.
    """
    _checks.count("batch", batch)
    axis = mesh.axis_names[0]
    devices = mesh.shape[axis]
    factory, batch = _part(factory, batch, axis, devices)
    if data == "sharded":
        task = _of_data(lambda node: node.split_over(axis, devices), lambda leaf: leaf, task)
    member = make_estimator(factory, opt, task, batch, axis)
    mesh = plain(mesh)
    return Estimator(
        init=closure(_init, member, mesh=mesh), estimate=closure(_estimate, member, mesh=mesh)
    )


def _part(
    factory: EstimatorFactory, batch: int, axis: str, devices: int
) -> tuple[EstimatorFactory, int]:
    """What makes the estimator of one device, and the number of its problems."""
    if batch % devices == 0:
        return factory, batch // devices
    pairs = pairs_of([factory])
    if pairs and not any(number % devices for number in pairs):
        return factory.by_pairs, batch  # type: ignore[attr-defined]
    found = f"pairs={', '.join(map(str, pairs))}" if pairs else "an estimator that has none"
    raise ValueError(
        f"batch must be a multiple of the {devices} devices on the mesh's first axis {axis!r}, or "
        f"else the pairs of meta.es and meta.pes, got {batch} and {found}"
    )


def plain(mesh: Mesh) -> Mesh:
    """The same devices and axes without explicit shardings in types: all is said here."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def on(mesh: Mesh | None, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Calls a function of what `replicate` placed, whatever `jax.set_mesh` says around."""
    if mesh is None:
        return function(*arguments, **settings)
    with jax.sharding.use_abstract_mesh(plain(mesh).abstract_mesh):
        return function(*arguments, **settings)


def handed_out(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """What `on` returned, with the axis types that a `jax.set_mesh` around demands."""
    around = jax.sharding.get_abstract_mesh()
    if mesh is None or around.axis_names != mesh.axis_names:
        return tree
    typed = Mesh(mesh.devices, mesh.axis_names, axis_types=around.axis_types)
    return jax.tree.map(lambda leaf: _of_mesh(leaf, typed), tree)


def _of_mesh(leaf: Any, mesh: Mesh) -> Any:
    """An array on all devices of a mesh, its parts where they are, with the mesh's axis types."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf.sharding, NamedSharding):
        return leaf
    here = leaf.sharding
    if here.mesh == mesh:
        return leaf
    if here.is_fully_replicated:
        return _put(leaf, NamedSharding(mesh, PartitionSpec()))
    # In parts along other axes: the program that takes it will move them.
    same = here.mesh.axis_names == mesh.axis_names
    return _put(leaf, NamedSharding(mesh, here.spec)) if same else leaf


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # A typed key cannot be put on devices of other processes, its numbers can.
        words = jax.device_put(jax.random.key_data(leaf), sharding)
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays on every device of the mesh, and the parts of shared examples each on its own.

    Those that are there already stay as they are.
    """
    mesh = plain(mesh)
    present = set(mesh.devices.flat)
    # A data set that is in several places of the tree is one array on the devices, too.
    known: dict[int, Any] = {}

    def put(leaf: Any, sharding: NamedSharding) -> Any:
        if id(leaf) not in known:
            known[id(leaf)] = moved(leaf, sharding)
        return known[id(leaf)]

    def moved(leaf: Any, sharding: NamedSharding) -> Any:
        if isinstance(leaf, jax.core.Tracer):
            # The program around has placed it.
            return leaf
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == present and len(present) > 1:
            return _of_mesh(leaf, mesh)
        return _put(leaf, sharding)

    def place(node: Any) -> Any:
        sharding = NamedSharding(mesh, _spec(node))
        return jax.tree.map(lambda leaf: put(leaf, sharding), node)

    return _of_data(place, place, tree)


def _of_data(data: Callable[[Any], Any], other: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """A tree with one function of its examples, and another of its other leaves."""
    return jax.tree.map(
        lambda node: data(node) if isinstance(node, Divisible) else other(node),
        tree,
        is_leaf=lambda node: isinstance(node, Divisible),
    )


def _spec(node: Any) -> PartitionSpec:
    """How a leaf, or examples, are split over the mesh."""
    axis = node.axis if isinstance(node, Divisible) else None
    return PartitionSpec() if axis is None else PartitionSpec(axis)


def _init(member: Estimator, key: Key, phi: Phi, *, mesh: Mesh) -> Any:
    def of_device(member: Estimator, key: Key, phi: Phi) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], member.init(key, phi))

    axis = PartitionSpec(mesh.axis_names[0])
    # Devices are not checked to agree on what is declared equal: the estimator sees to that.
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(_of_data(_spec, _spec, member), PartitionSpec(), PartitionSpec()),
        out_specs=axis,
        check_vma=False,
    )(member, key, phi)


def _estimate(
    member: Estimator, phi: Phi, state: Any, key: Key, *, mesh: Mesh
) -> tuple[Estimate, Any]:
    def of_device(member: Estimator, phi: Phi, state: Any, key: Key) -> tuple[Estimate, Any]:
        state = jax.tree.map(lambda leaf: leaf[0], state)
        found, state = member.estimate(phi, state, key)
        return found, jax.tree.map(lambda leaf: leaf[None], state)

    axis, everywhere = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(_of_data(_spec, _spec, member), everywhere, axis, everywhere),
        out_specs=(everywhere, axis),
        check_vma=False,
    )(member, phi, state, key)
