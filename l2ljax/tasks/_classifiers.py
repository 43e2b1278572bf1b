"""Training networks to classify: multilayer perceptrons and convolutional networks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from l2ljax import _checks, networks
from l2ljax.core import Params, Task, closure
from l2ljax.tasks._dataset import Dataset
from l2ljax.tasks._supervised import cross_entropy, require_dataset, supervised


def mlp_classifier(
    dataset: Dataset,
    hidden: Sequence[int] = (20,),
    activation: str = "sigmoid",
    batch_size: int | None = 128,
    split: str = "train",
    init_std: float | None = None,
) -> Task:
    r"""Trains a multilayer perceptron to classify by cross-entropy.

    $$f(\theta) = -\frac{1}{|B|} \sum_{i \in B} \log p_\theta(y_i \mid x_i)$$

    Args:
        dataset: examples with class numbers as labels.
        hidden: units of each hidden layer; `()` is logistic regression.
        activation: "sigmoid", "tanh", "relu" or "elu".
        batch_size: examples in a minibatch, drawn with replacement; None takes all of the split,
            and makes the loss deterministic.
        split: "train", "validation" or "test".
        init_std: None draws weights from N(0, 1/fan-in) and sets biases to zero; a number draws
            both from N(0, init_std²).

    Returns:
        A task; `problem` is `()`, `params` is `{"Dense_0": {"kernel": f32[in, h0],
        "bias": f32[h0]}, ...}`. The loss is computed in the dtype of `params`, in `float32` at
        least from the logits on.

    Raises:
        ValueError: for a data set without classes, sizes below one, an unknown activation or split,
            or a negative `init_std`.

    Reference:
        Andrychowicz et al., 2016, section 3.2: MNIST, 20 sigmoid units; the authors' code has
        `init_std=0.01`.

    >>> import jax
    >>> from l2ljax.tasks import digits
    >>> task = mlp_classifier(digits())
    >>> params = task.init(jax.random.key(0), ())
    >>> loss, grad = jax.value_and_grad(task.loss)(params, (), jax.random.key(1))
    >>> sum(leaf.size for leaf in jax.tree.leaves(grad)), 2 < loss < 3
    (1510, Array(True, dtype=bool))
    """
    if init_std is not None:
        _checks.non_negative("init_std", init_std)
        init_std = float(init_std)
    return _classifier(
        networks.mlp_init,
        networks.mlp_apply,
        dataset,
        batch_size,
        split,
        drawing={"init_std": init_std},
        hidden=_checks.counts("hidden", hidden),
        activation=activation,
    )


def convnet_classifier(
    dataset: Dataset,
    channels: Sequence[int] = (16, 16, 16),
    kernel: int = 5,
    hidden: Sequence[int] = (32,),
    activation: str = "relu",
    batch_norm: bool = True,
    batch_size: int | None = 128,
    split: str = "train",
) -> Task:
    r"""Trains a convolutional network to classify by cross-entropy.

    $$f(\theta) = -\frac{1}{|B|} \sum_{i \in B} \log p_\theta(y_i \mid x_B)_i$$

    Convolutions that keep height and width, each with batch normalization, the activation and 2x2
    max-pooling; then fully connected layers. Batch normalization has the statistics of the
    minibatch B at all times, so the loss is a pure function.

    Args:
        dataset: images `[n, height, width, colors]` with class numbers as labels.
        channels: of each convolution; their number is that of halvings by max-pooling.
        kernel: height and width of the kernels.
        hidden: units of each fully connected hidden layer.
        activation: "sigmoid", "tanh", "relu" or "elu".
        batch_norm: whether all hidden layers have batch normalization.
        batch_size: examples in a minibatch, drawn with replacement; None takes all of the split,
            and makes the loss deterministic.
        split: "train", "validation" or "test".

    Returns:
        A task; `problem` is `()`, `params` is `{"Conv_0": {"kernel": f32[k, k, colors, c0]},
        "ConvNorm_0": {"scale": f32[c0], "bias": f32[c0]}, ..., "Dense_0": {...},
        "DenseNorm_0": {...}, ...}`, see `networks.convnet_init`: the pattern "Conv*" is all of the
        convolutional part. Kernels are N(0, 1/fan-in), biases zero. The loss is computed in the
        dtype of `params`, batch statistics and all from the logits on in `float32` at least.

    Raises:
        ValueError: for a data set without classes or of other inputs than images, sizes below one,
            more layers than the images can be halved, an unknown activation or split.

    Reference:
        Andrychowicz et al., 2016, section 3.3: CIFAR-10, three convolutions with max-pooling, 32
        fully connected units, ReLU, batch normalization. The paper does not give the numbers of
        channels and the sizes of kernels.

    >>> import jax
    >>> from l2ljax.tasks import digits
    >>> task = convnet_classifier(digits(), channels=(4, 4), kernel=3, hidden=(8,), batch_size=32)
    >>> params = task.init(jax.random.key(0), ())
    >>> sorted(params)
    ['ConvNorm_0', 'ConvNorm_1', 'Conv_0', 'Conv_1', 'DenseNorm_0', 'Dense_0', 'Dense_1']
    >>> loss = jax.jit(task.loss)(params, (), jax.random.key(1))
    >>> bool(1 < loss < 5)
    True
    """
    require_dataset(dataset)
    shape = jnp.shape(dataset.split(split).inputs)
    if len(shape) != 4:
        raise ValueError(
            f"dataset must have images [n, height, width, colors], got inputs of shape {shape}"
        )
    _checks.count("kernel", kernel)
    return _classifier(
        networks.convnet_init,
        networks.convnet_apply,
        dataset,
        batch_size,
        split,
        channels=_checks.counts("channels", channels),
        kernel=int(kernel),
        hidden=_checks.counts("hidden", hidden),
        activation=activation,
        batch_norm=bool(batch_norm),
    )


def _classifier(
    init: Callable[..., Params],
    apply: Callable[..., Array],
    dataset: Dataset,
    batch_size: int | None,
    split: str,
    *,
    drawing: dict[str, Any] | None = None,
    **architecture: Any,
) -> Task:
    """A network of `networks.py` by its architecture; `drawing` are arguments of `init` alone."""
    require_dataset(dataset)
    if dataset.classes is None:
        raise ValueError(f"dataset must have a number of classes, got None for {dataset.name}")
    _checks.choice("activation", architecture["activation"], networks.ACTIVATIONS)
    architecture["outputs"] = dataset.classes
    return supervised(
        closure(init, **architecture, **(drawing or {})),
        closure(_apply, network=apply, **architecture),
        cross_entropy,
        dataset,
        batch_size=batch_size,
        split=split,
    )


def _apply(
    params: Params, inputs: Array, *, network: Callable[..., Array], **architecture: Any
) -> Array:
    """In the dtype of the params; data are float32."""
    dtype = params["Dense_0"]["kernel"].dtype
    return network(params, inputs.astype(dtype), **architecture)
