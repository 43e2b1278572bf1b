"""Neural art: an image with the content of one picture and the style of another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax.core import ArrayLike, Key, Problem, Scalar, Task, as_partial, closure
from l2ljax.tasks._features import Features, random_features
from l2ljax.tasks._images import as_bytes, check_pixels, crops, resize, sample_images


class _Style(NamedTuple):
    """What the loss has to know of the style image.

    Attributes:
        grams: A^l of each style layer, float[filters, filters].
        style_squares: the mean square of each style layer's maps.
        content_squares: that of each content layer's.
    """

    grams: tuple[Array, ...]
    style_squares: tuple[Array, ...]
    content_squares: tuple[Array, ...]


def neural_art(
    contents: ArrayLike,
    style: ArrayLike,
    features: Features | None = None,
    *,
    content_weight: float = 1.0,
    style_weight: float = 30.0,
    variation_weight: float = 1.0,
    crop: int = 64,
    start: str = "noise",
    noise_std: float = 0.25,
) -> Task:
    r"""Paints the content of one picture in the style of another; θ is the image.

    $$f(\theta) = \alpha L_\mathrm{content} + \beta L_\mathrm{style} + \gamma L_\mathrm{tv}$$

    With $F^l$ the maps of layer l for the image θ, $N_l$ filters at $M_l$ positions, and $P^l$
    those of the content,

    $$L_\mathrm{content} = \frac{1}{|C|} \sum_{l \in C} \frac{1}{2 N_l M_l}
    \sum_{i,j} (F^l_{ij} - P^l_{ij})^2, \qquad
    G^l_{ij} = \frac{1}{M_l} \sum_k F^l_{ik} F^l_{jk}$$

    $$L_\mathrm{style} = \frac{1}{|S|} \sum_{l \in S} \frac{1}{4 N_l^2}
    \sum_{i,j} (G^l_{ij} - A^l_{ij})^2, \qquad
    L_\mathrm{tv} = \frac{1}{3hw} \Big[\sum (\theta_{y+1,x,c} - \theta_{y,x,c})^2
    + \sum (\theta_{y,x+1,c} - \theta_{y,x,c})^2\Big]$$

    where $A^l$ are the $G^l$ of the style image. With both images of one size $L_\mathrm{style}$ is
    that of Gatys et al., with its 1/(4 N² M²); each image has its own M here, so sizes may differ.
    $L_\mathrm{content}$ is theirs over N M, for the same reason. The maps of each layer are divided
    by their root mean square on the style image (Gatys et al. rescaled their network's weights to
    a like effect), so that the weights need not follow the scale of a network. By default the three
    terms are .8, 1 and .02 in the median for parts of one photograph, another part as the content
    and a second photograph as the style, and .7, 13 and .25 for white noise.

    The loss is deterministic: its key is unused. A problem is one part of one content. It holds
    where that part is, and P^l, which no step then has to compute again; pictures, A^l and the
    network are bound in the task.

    Args:
        contents: f32[n, height, width, 3] in [0, 1] or u8; `crops` makes many of a few pictures.
        style: f32[height, width, 3] or u8.
        features: a feature network, a pure function from images f32[batch, height, width, 3] to
            `FeatureMaps`; default: `random_features()`; or `vgg_features(path)`, or your own.
        content_weight: α.
        style_weight: β.
        variation_weight: γ. With the other two weights 0, a task measures one term.
        crop: a larger content is cropped to this height and width at a random place; a smaller
            one is not cropped.
        start: θ₀: "noise" is white noise around grey, N(½, noise_std²); "content" is the content.
        noise_std: of the noise, by default about that of the pixels of photographs.

    Returns:
        A task; `problem` is `{"index": i32[], "corner": i32[2], "content": P^l of each content
        layer}`, `params` is f32[crop, crop, 3], red, green and blue in [0, 1] but not clipped. The
        loss is computed in the dtype of `params`, in `float32` at least.

    Raises:
        ValueError: for images of another shape or dtype, a style of one colour all over, a negative
            weight or deviation, a crop below one, or an unknown start.

    Reference:
        Andrychowicz et al., 2016, section 3.4, with the losses of Gatys, Ecker and Bethge, 'Image
        style transfer using convolutional neural networks', 2016. Both use VGG-19.

    >>> stripes = np.indices((16, 16)).sum(axis=0)[..., None] % 3 / [2, 3, 4]
    >>> task = neural_art(contents=np.zeros((1, 16, 16, 3)), style=stripes)
    >>> key = jax.random.key(0)
    >>> problem = task.sample(key)
    >>> image = task.init(key, problem)
    >>> for step in range(3):
    ...     loss, gradient = jax.value_and_grad(task.loss)(image, problem, key)
    ...     image -= 0.01 * gradient
    ...     print(f"{loss:.1f}")
    18.0
    5.4
    4.7
    """
    contents, style = jnp.asarray(contents), jnp.asarray(style)
    check_pixels("contents", contents, "n, height, width, 3")
    check_pixels("style", style, "height, width, 3")
    _checks.non_negative("content_weight", content_weight)
    _checks.non_negative("style_weight", style_weight)
    _checks.non_negative("variation_weight", variation_weight)
    _checks.count("crop", crop)
    _checks.choice("start", start, ["noise", "content"])
    _checks.non_negative("noise_std", noise_std)
    network = as_partial(random_features() if features is None else features)
    known = _style(network, style)
    _check_contrast(known)
    height, width = (min(crop, side) for side in contents.shape[1:3])
    shape = (height, width, 3)
    if start == "noise":
        init = closure(_init_noise, shape=shape, std=float(noise_std))
    else:
        init = closure(_init_content, contents, shape=shape)
    return Task(
        sample=closure(_sample, contents, network, shape=shape),
        init=init,
        loss=closure(
            _loss,
            network,
            known,
            jnp.array([content_weight, style_weight, variation_weight], float),
        ),
    )


def sample_art(
    part: str = "train", style: str = "flower", size: int = 64, count: int = 1_800, **options: Any
) -> Task:
    """Neural art of scikit-learn's photographs; needs the extra `art`.

    Contents are parts of a photograph of a temple, its left half for training and its right half
    for evaluation. Harder, as in the paper, is a style that meta-training never saw, on images
    twice as large: `sample_art("evaluation", style="waves", size=128)`.

    Args:
        part: "train" or "evaluation".
        style: "flower", a photograph, or "waves", coloured stripes that this function draws.
        size: sides of the contents and the shorter side of the style, in pixels.
        count: number of contents; the paper has 1,800 to train on.
        **options: of `neural_art`.

    Returns:
        A task as `neural_art` makes it.

    Raises:
        ValueError: for an unknown part or style, or sizes below one.
        ImportError: without the extra.

    >>> task = sample_art(size=32, count=10)
    >>> problem = task.sample(jax.random.key(0))
    >>> task.init(jax.random.key(1), problem).shape
    (32, 32, 3)
    """
    contents, picture = sample_pictures(part, style, size, count)
    return neural_art(contents, picture, **{"crop": size, **options})


def sample_pictures(
    part: str = "train", style: str = "flower", size: int = 64, count: int = 1_800
) -> tuple[UInt8[Array, "{count} {size} {size} 3"], UInt8[np.ndarray, "height width 3"]]:
    """The contents and the style of `sample_art`, to look at beside what was painted.

    Args:
        part: as in `sample_art`, and so are the others.
        style: its name.
        size: of the contents, and of the shorter side of the style.
        count: number of contents. Problem i of the task has content `problem["index"]`.

    Returns:
        The contents and the style.

    Raises:
        ValueError: for an unknown part or style, or sizes below one.
        ImportError: without the extra.

    >>> contents, picture = sample_pictures(size=32, count=10)
    >>> contents.shape, picture.shape
    ((10, 32, 32, 3), (32, 48, 3))
    """
    _checks.choice("part", part, ["train", "evaluation"])
    _checks.choice("style", style, ["flower", "waves"])
    photographs = sample_images()
    middle = photographs["china"].shape[1] // 2
    half = slice(middle) if part == "train" else slice(middle, None)
    contents = crops([photographs["china"][:, half]], count, size)
    picture = photographs["flower"] if style == "flower" else _waves()
    return contents, resize(as_bytes("style", picture), size)


def _waves() -> Float[np.ndarray, "256 256 3"]:
    """Bent stripes of different colours, with sharp edges."""
    y, x = np.mgrid[:256, :256] / 256
    phase = 40 * (x + 0.5 * y + 0.08 * np.sin(14 * y) + 0.05 * np.sin(23 * x))
    tint = 9 * (y - 0.4 * x) + np.array([0.0, 2.1, 4.2])[:, None, None]
    bright = 0.5 + 0.4 * np.tanh(3 * np.sin(phase))
    return np.moveaxis(bright * (0.6 + 0.4 * np.sin(tint)), 0, -1)


def _in_unit(pixels: Array) -> Array:
    """Bytes as numbers in [0, 1], others in single precision at least."""
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 255
    return _single_at_least(pixels)


def _single_at_least(values: Array) -> Array:
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


@program()
def _style(features: Partial, style: Array) -> _Style:
    content, maps = features(_in_unit(style)[None])
    squares = tuple(map(_mean_square, maps))
    grams = tuple(_gram(layer, square) for layer, square in zip(maps, squares, strict=True))
    return _Style(grams, squares, tuple(map(_mean_square, content)))


def _mean_square(maps: Array) -> Scalar:
    return jnp.mean(maps**2)


def _check_contrast(style: _Style) -> None:
    """Maps are divided by their size: what only rounding made would become a loss without bound."""
    squares = style.style_squares + style.content_squares
    if any(isinstance(square, jax.core.Tracer) for square in squares):
        return
    if not min(squares) > 1e-8 * max(squares):
        raise ValueError(
            "style must be a picture that every layer of the features responds to, got mean "
            f"squares of maps of {min(squares):.1e} to {max(squares):.1e}"
        )


def _gram(
    maps: Float[Array, "1 rows columns filters"], square: Scalar
) -> Float[Array, "filters filters"]:
    """Correlations of filters, of maps that are divided by the root of `square`."""
    flat = maps.reshape(-1, maps.shape[-1])
    return flat.T @ flat / (len(flat) * square)


def _part(
    contents: Array, problem: Problem, shape: tuple[int, ...]
) -> Float[Array, "height width 3"]:
    start = (problem["index"], *problem["corner"], jnp.zeros_like(problem["index"]))
    return _in_unit(jax.lax.dynamic_slice(contents, start, (1, *shape))[0])


def _sample(contents: Array, features: Partial, key: Key, *, shape: tuple[int, ...]) -> Problem:
    index_key, corner_key = jax.random.split(key)
    n, height, width, _ = contents.shape
    rest = jnp.array([height - shape[0] + 1, width - shape[1] + 1], jnp.int32)
    problem = {
        "index": jax.random.randint(index_key, (), 0, n, jnp.int32),
        "corner": jax.random.randint(corner_key, (2,), 0, rest, jnp.int32),
    }
    return {**problem, "content": features(_part(contents, problem, shape)[None]).content}


def _init_noise(
    key: Key, problem: Problem, *, shape: tuple[int, ...], std: float
) -> Float[Array, "height width 3"]:
    del problem
    return 0.5 + std * jax.random.normal(key, shape)


def _init_content(
    contents: Array, key: Key, problem: Problem, *, shape: tuple[int, ...]
) -> Float[Array, "height width 3"]:
    del key
    return _part(contents, problem, shape)


def _loss(
    features: Partial,
    style: _Style,
    weights: Float[Array, " 3"],
    params: Float[Array, "height width 3"],
    problem: Problem,
    key: Key,
) -> Scalar:
    del key
    image = _single_at_least(params)
    style, weights, content = jax.tree.map(
        lambda leaf: leaf.astype(image.dtype), (style, weights, problem["content"])
    )
    maps = features(image[None])
    terms = (
        _mean(_content_error, maps.content, content, style.content_squares),
        _mean(_style_error, maps.style, style.grams, style.style_squares),
        _variation(image),
    )
    return weights @ jnp.stack(terms)


def _mean(error: Callable[..., Scalar], *layers: tuple[Array, ...]) -> Scalar:
    """The mean of an error over layers."""
    errors = [error(*layer) for layer in zip(*layers, strict=True)]
    return sum(errors[1:], errors[0]) / len(errors)


def _content_error(maps: Array, content: Array, square: Scalar) -> Scalar:
    return jnp.mean((maps - content) ** 2) / (2 * square)


def _style_error(maps: Array, gram: Array, square: Scalar) -> Scalar:
    return jnp.mean((_gram(maps, square) - gram) ** 2) / 4


def _variation(image: Float[Array, "height width 3"]) -> Scalar:
    """Squares of differences between neighbours; a root would be steep where an image is flat."""
    down, right = jnp.diff(image, axis=0), jnp.diff(image, axis=1)
    return (jnp.sum(down**2) + jnp.sum(right**2)) / image.size
