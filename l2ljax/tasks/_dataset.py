"""Labelled examples as arrays that travel through compiled programs as arguments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from l2ljax import _checks
from l2ljax._shown import one_line


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


# The fields are not annotated as arrays: tree operations put anything in the place of a leaf.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one part of a data set; a pytree of two arrays.

    Images are kept as the bytes they were published in and become floating-point numbers a batch at
    a time: four times less memory to hold and to gather from, for one multiplication a pixel.

    Attributes:
        inputs: `[n, ...]`; images are `[n, height, width, channels]`.
        labels: `[n]` class numbers, or `[n, ...]` targets.
        maximum: the value in `inputs` that stands for 1.0, such as 255; None leaves `inputs` alone.
        axis: the axis of devices that have a part of the examples each, see `split_over`.
        total: the number of examples on all of them.

    >>> split = Split(np.array([[0, 16], [4, 0], [2, 0]], np.uint8), np.array([1, 0, 1]), 16)
    >>> inputs, labels = split[:2].examples(jnp.array([1, 1, 0]))
    >>> print(inputs[:, 0], labels)
    [0.25 0.25 0.  ] [0 0 1]
    """

    inputs: Any
    labels: Any
    maximum: int | None = _static(None)
    axis: str | None = _static(None)
    total: int | None = _static(None)

    __repr__ = one_line

    def __len__(self) -> int:
        return len(self.inputs) if self.total is None else self.total

    def __getitem__(self, part: slice) -> "Split":
        """The examples in a slice.

        Raises:
            ValueError: if each device has a part of them.
        """
        if self.axis is not None:
            raise ValueError(f"a split must be sliced before it is split over {self.axis!r}")
        return Split(self.inputs[part], self.labels[part], self.maximum)

    def examples(self, indices: Array | None = None) -> tuple[Array, Array]:
        """The inputs as a network takes them, and the labels, of some examples or of all.

        Args:
            indices: `i32[batch]`; None takes every example in order.

        Returns:
            Inputs `[batch, ...]`, `float32` in [0, 1] if `maximum` is set, and labels
            `[batch, ...]`.
        """
        inputs, labels = jnp.asarray(self.inputs), jnp.asarray(self.labels)
        if self.axis is not None:
            inputs, labels = (self._exchanged(a, indices) for a in (inputs, labels))
        elif indices is not None:
            inputs, labels = (a.at[indices].get(mode="clip") for a in (inputs, labels))
        if self.maximum is not None:
            inputs = inputs.astype(jnp.float32) / self.maximum
        return inputs, labels

    def split_over(self, axis: str, devices: int) -> "Split":
        """The same examples for a program in which each device has a part of them.

        Their arrays are numpy's, so that no device has had the whole of one before they are placed.

        Args:
            axis: the name of the axis of devices, along which `jax.shard_map` splits the first axes
                of `inputs` and `labels`. Devices ask each other for the examples of their batches,
                so all must call `examples`, with as many indices.
            devices: how many there are.
        """
        padding = -len(self) % devices

        def padded(array: Any) -> np.ndarray:
            # On the host: the first device may have no room for the whole.
            array = np.asarray(array)
            return np.pad(array, [(0, padding), *[(0, 0)] * (array.ndim - 1)])

        return Split(padded(self.inputs), padded(self.labels), self.maximum, axis, len(self))

    def _exchanged(self, part: Array, indices: Array | None) -> Array:
        """The examples that this device asks for, of which it has a part."""
        assert self.axis is not None
        if indices is None:
            return jax.lax.all_gather(part, self.axis, tiled=True)[: self.total]
        wanted = jax.lax.all_gather(indices, self.axis)
        place = wanted - len(part) * jax.lax.axis_index(self.axis)
        here = (place >= 0) & (place < len(part))
        rows = part[jnp.where(here, place, 0)]
        mask = here.reshape(here.shape + (1,) * (rows.ndim - here.ndim))
        # Of each row one device has what is not zero.
        rows = jnp.where(mask, rows, jnp.zeros((), rows.dtype))
        return jax.lax.psum_scatter(rows, self.axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training, validation and test examples; an immutable pytree of arrays.

    Attributes:
        train: examples to learn from.
        validation: examples to choose with.
        test: examples to report on.
        name: what errors call it.
        classes: number of classes, or None where labels are not classes.

    >>> dataset = Dataset(train=Split(np.eye(3), np.arange(3)), name="corners", classes=3)
    >>> len(dataset.split("train")), dataset.split("train").labels
    (3, array([0, 1, 2]))
    """

    train: Split | Any = None
    validation: Split | Any = None
    test: Split | Any = None
    name: str = _static("data set")
    classes: int | None = _static(None)

    __repr__ = one_line

    def split(self, name: str) -> Split:
        """One part of the data, checked.

        Args:
            name: "train", "validation" or "test".

        Returns:
            The examples.

        Raises:
            ValueError: for a split that is unknown, missing, empty or no `Split` of two arrays of
                numbers, for numbers of inputs and labels that differ, or for labels that are not
                whole numbers below `classes`.
        """
        _checks.choice("split", name, ("train", "validation", "test"))
        split = getattr(self, name)
        where = f"the {name} split of {self.name}"
        if split is None:
            raise ValueError(f"{where} must have examples, got none")
        if not isinstance(split, Split):
            raise ValueError(
                f"{where} must be a Split, Split(inputs, labels), got a {type(split).__name__}"
            )
        for what, part in (("inputs", split.inputs), ("labels", split.labels)):
            dtype = part.dtype if isinstance(part, jax.Array) else np.asarray(part).dtype
            if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)):
                raise ValueError(
                    f"{where} must have {what} that are an array of numbers, "
                    f"got a {type(part).__name__} of {dtype}"
                )
        if len(split.inputs) == 0:
            raise ValueError(f"{where} must have examples, got none")
        if len(split.inputs) != len(split.labels):
            raise ValueError(
                f"{where} must have one label for each input, "
                f"got {len(split.inputs)} inputs and {len(split.labels)} labels"
            )
        if self.classes is not None and not isinstance(split.labels, jax.core.Tracer):
            labels = np.asarray(split.labels)
            if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(
                    f"{where} must have whole-number labels from 0 to {self.classes - 1}, "
                    f"got {labels.dtype} from {labels.min()} to {labels.max()}"
                )
        return split
