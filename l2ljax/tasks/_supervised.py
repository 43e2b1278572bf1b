"""Fitting any model to labelled examples."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from l2ljax import _checks
from l2ljax.core import Key, Params, Problem, Scalar, Task, as_partial, closure
from l2ljax.tasks._dataset import Dataset, Split


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]
) -> Float[Array, " batch"]:
    r"""The negative log-likelihood of each label.

    $$\log \sum_j e^{z_j} - z_y$$

    Args:
        logits: z, in any floating-point precision; half precisions are summed in `float32`.
        labels: class numbers y from 0 on, of any integer dtype.

    Returns:
        One value in nats for each example, finite for logits up to half the largest number; NaN
        for a label that has no logit.

    Raises:
        ValueError: for logits of another shape than `[n, classes]`, and for labels that are not
            integers of the shape `[n]`: one-hot ones, for example.

    >>> print(cross_entropy(jnp.array([[0.0, 1e30], [0.0, 0.0]]), jnp.array([1, 0])))
    [0.        0.6931472]
    """
    _require_classes(logits, labels)
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    # Narrower integers could not count all classes.
    labels, classes = jnp.asarray(labels, jnp.int32), logits.shape[-1]
    # A mask and not an index: the gradient of an index is a scatter, slow on every device.
    chosen = labels[:, None] == jnp.arange(classes, dtype=jnp.int32)[None]
    values = jnp.sum(jnp.where(chosen, -jax.nn.log_softmax(logits), 0), axis=-1)
    # The mask of a label without a logit is empty, and its sum would be a perfect zero.
    return jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)


def _require_arrays(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, jax.Array | np.ndarray):
            raise ValueError(f"{name} must be an array, got {type(value)}")


def _require_classes(logits: Any, labels: Any) -> None:
    _require_arrays(logits=logits, labels=labels)
    shape = logits.shape
    if len(shape) != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            "logits must be floating-point numbers of the shape (n, classes), "
            f"got {logits.dtype} of the shape {shape}"
        )
    if labels.shape != shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers of the shape {shape[:1]}, one class number for each row of "
            f"the logits {shape}, got {labels.dtype} of the shape {labels.shape}; "
            "of one-hot labels take argmax(axis=1)"
        )


def squared_error(
    outputs: Float[Array, "batch *shape"], labels: Float[Array, "batch *shape"]
) -> Float[Array, " batch"]:
    r"""The squared distance of each output to its target, $\lVert z - y \rVert^2$.

    Args:
        outputs: z.
        labels: targets y of the same shape.

    Returns:
        One value for each example.

    Raises:
        ValueError: for shapes that differ: `[n, 1]` and `[n]` would broadcast to all pairs.

    >>> print(squared_error(jnp.array([[3.0, 4.0], [1.0, 1.0]]), jnp.ones((2, 2))))
    [13.  0.]
    """
    _require_arrays(outputs=outputs, labels=labels)
    if outputs.shape != labels.shape:
        raise ValueError(
            "outputs and labels must have the same shape, "
            f"got outputs {outputs.shape} and labels {labels.shape}"
        )
    distances = (outputs - labels.astype(outputs.dtype)) ** 2
    return jnp.sum(distances, axis=tuple(range(1, outputs.ndim)))


_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}


def supervised(
    init: Callable[[Key, Array], Params],
    apply: Callable[[Params, Array], Any],
    loss: str | Callable[[Any, Array], Array],
    dataset: Dataset,
    batch_size: int | None = 128,
    split: str = "train",
) -> Task:
    r"""Fits any model to labelled examples.

    $$f(\theta) = \frac{1}{|B|} \sum_{i \in B} \ell(\mathrm{apply}(\theta, x_i), y_i)$$

    with a minibatch $B$ drawn from the loss's key, uniformly and with replacement. The family is
    one problem, `()`, with many θ₀. The data are leaves of the task and so arguments of compiled
    programs; the functions are static, so a model that is made again compiles again.

    Args:
        init: `init(key, inputs) -> params`; `inputs` are zeros in the shape and dtype of a batch of
            one example.
        apply: `apply(params, inputs) -> outputs`, a function of nothing else: dropout has to be
            off, and batch normalization has to use the statistics of the batch at all times.
        loss: `loss(outputs, labels)`, one value an example or a scalar, of which the mean is taken;
            or a name, "cross_entropy" or "squared_error".
        dataset: the examples.
        batch_size: examples in a minibatch; None takes all of the split, and makes the loss
            deterministic.
        split: "train", "validation" or "test".

    Returns:
        A task; `problem` is `()`, `params` is what `init` returns.

    Raises:
        ValueError: for an unknown loss, a batch size below one, a split without examples, a model
            with collections beside "params" that change as it is applied ("batch_stats") or with
            random numbers of its own (dropout); for outputs and labels that the loss does not
            take, among them class numbers without an output of the model.

    With Flax:

    >>> import flax.linen as nn
    >>> from l2ljax.tasks import digits
    >>> model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    >>> task = supervised(model.init, model.apply, "cross_entropy", digits())

    With plain functions, here linear regression:

    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> line = Dataset(train=Split(x, x @ jnp.array([1.0, -1.0])))
    >>> task = supervised(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w,
    ...                   "squared_error", line, batch_size=None)
    >>> params = task.init(jax.random.key(0), ())
    >>> for step in range(3):
    ...     loss, grad = jax.value_and_grad(task.loss)(params, (), jax.random.key(step))
    ...     params -= 0.02 * grad
    ...     print(f"{loss:.3f}")
    1.000
    0.337
    0.285
    """
    if isinstance(loss, str):
        _checks.choice("loss", loss, _LOSSES)
        loss = _LOSSES[loss]
    for name, function in [("init", init), ("apply", apply), ("loss", loss)]:
        if not callable(function):
            expected = f"a function or one of {[*_LOSSES]}" if name == "loss" else "a function"
            raise ValueError(f"{name} must be {expected}, got {function!r}")
    if batch_size is not None:
        _checks.count("batch_size", batch_size)
    require_dataset(dataset)
    part = dataset.split(split)
    data = jax.tree.map(jnp.asarray, part)
    example, _ = jax.eval_shape(data[:1].examples)
    # Zeros, and not the examples: `init` would carry the data a second time.
    draw = closure(_init, as_partial(init), shape=example.shape, dtype=example.dtype)
    with _no_rngs():
        params = jax.eval_shape(lambda: draw(jax.random.key(0), ()))
    _refuse_mutable(params)
    apply, loss = as_partial(apply), as_partial(loss)
    if not isinstance(part.labels, jax.core.Tracer):
        _try(data, apply, loss, params, part.labels, batch_size)
    return Task(
        sample=closure(_sample),
        init=draw,
        loss=closure(_loss, data, apply, loss, batch_size=batch_size),
    )


def _try(
    data: Split,
    apply: Partial,
    loss: Partial,
    params: Params,
    labels: Any,
    batch_size: int | None,
) -> None:
    """Traces the loss once, so that what does not fit together is found before long work."""
    # Here and not below, where a trace would make tracers of them.
    numbers = np.asarray(labels)

    def checked(outputs: Any, batch: Array) -> Array:
        values = loss(outputs, batch)
        if loss.func is cross_entropy:
            low, high, classes = numbers.min(), numbers.max(), outputs.shape[-1]
            if low < 0 or high >= classes:
                raise ValueError(
                    f"dataset must have labels from 0 to {classes - 1}, one for each of the "
                    f"{classes} outputs of the model, got {low} to {high}"
                )
        return values

    with _no_rngs():
        key = jax.random.key(0)
        jax.eval_shape(
            lambda p: _loss(data, apply, as_partial(checked), p, (), key, batch_size=batch_size),
            params,
        )


@contextlib.contextmanager
def _no_rngs() -> Iterator[None]:
    """Says of Flax's error, by its name since Flax is not imported here, what to do about it."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "InvalidRngError":
            raise
        raise ValueError(
            "the model must need no random numbers as it is applied: a task's loss passes no "
            f"rngs, so dropout has to be off (deterministic=True), got {error}"
        ) from error


def require_dataset(dataset: Any) -> None:
    """Refuses what is no data set, such as one split of it or a pair of arrays."""
    if not isinstance(dataset, Dataset):
        shown = "a Split" if isinstance(dataset, Split) else repr(type(dataset))
        raise ValueError(
            f"dataset must be a tasks.Dataset, got {shown}: one of inputs x and labels y is "
            "Dataset(train=Split(x, y))"
        )


def _refuse_mutable(params: Params) -> None:
    """Flax keeps what a model changes as it is applied beside "params", under names of its own."""
    if isinstance(params, Mapping) and "params" in params:
        collections = sorted(set(params) - {"params"})
        if collections:
            raise ValueError(
                f"the model must have no collections but 'params', got {collections}: a task's "
                "loss is a pure function of its params and can't update them; for batch "
                "normalization, normalize by the statistics of each batch"
            )


def _sample(key: Key) -> Problem:
    del key
    return ()


def _init(
    init: Partial, key: Key, problem: Problem, *, shape: tuple[int, ...], dtype: jnp.dtype
) -> Params:
    del problem
    return init(key, jnp.zeros(shape, dtype))


def _loss(
    data: Split,
    apply: Partial,
    loss: Partial,
    params: Params,
    problem: Problem,
    key: Key,
    *,
    batch_size: int | None,
) -> Scalar:
    del problem
    indices = None
    if batch_size is not None:
        indices = jax.random.randint(key, (batch_size,), 0, len(data))
    inputs, labels = data.examples(indices)
    values = loss(apply(params, inputs), labels)
    if isinstance(values, tuple):
        _checks.scalar_value("loss", values)
    if jnp.shape(values) not in ((), inputs.shape[:1]):
        raise ValueError(
            f"loss must return a scalar or one value for each of {len(inputs)} examples, "
            f"got shape {jnp.shape(values)}"
        )
    return jnp.mean(values)
