"""The loss of neural art against numpy; feature networks against scipy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from scipy.signal import correlate

from l2ljax.tasks import (
    FeatureMaps,
    neural_art,
    random_features,
    sample_art,
    vgg_features,
)
from l2ljax.tasks import _neural_art as module

KEY = jax.random.key(0)
CROP = 6
SMALL = {"filters": 3, "width": 3, "scales": 2}
TERMS = ("content_weight", "style_weight", "variation_weight")


def _pictures(seed=0):
    """Two contents larger than the crop, as bytes, and a style of another size."""
    random = np.random.RandomState(seed)
    contents = random.randint(0, 256, (2, 9, 8, 3)).astype(np.uint8)
    return contents, random.uniform(size=(5, 7, 3)).astype(np.float32)


def _task(seed=0, features=None, **settings):
    features = random_features(content=0, **SMALL) if features is None else features
    return neural_art(*_pictures(seed), features, **{"crop": CROP, **settings})


@jax.jit
def _start(task, key):
    problem = task.sample(key)
    return problem, task.init(key, problem)


@jax.jit
def _value_and_grad(task, params, problem, key=KEY):
    return jax.value_and_grad(task.loss)(params, problem, key)


def _correlate(x, kernel, around):
    """A convolution of float[height, width, channels] with a margin around, by scipy."""
    margin = kernel.shape[0] // 2
    x = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), around)
    outputs = [correlate(x, kernel[..., i], mode="valid") for i in range(kernel.shape[-1])]
    return np.concatenate(outputs, axis=-1)


def _pool(x, reduce=np.mean):
    """Over squares of 2x2, by loops; an odd last row or column is left out."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    squares = [
        [reduce(x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(0, 1)) for j in range(width)]
        for i in range(height)
    ]
    return np.array(squares)


def _numpy_maps(x, kernels):
    maps, x = [], np.asarray(x, np.float64) - 0.5
    for scale, kernel in enumerate(kernels):
        x = _pool(x) if scale else x
        maps.append(np.maximum(_correlate(x, np.asarray(kernel, np.float64), "edge"), 0))
    return maps


def _numpy_terms(x, content, style, kernels):
    """Content, style and variation from their formulas, the content at the finest scale."""
    maps, of_content, of_style = (_numpy_maps(i, kernels) for i in (x, content, style))
    roots = [np.sqrt(np.mean(layer**2)) for layer in of_style]

    def gram(layer):
        m, n = layer.shape[0] * layer.shape[1], layer.shape[2]
        g = np.zeros((n, n))
        for row in layer.reshape(m, n):
            g += np.outer(row, row)
        return g / m

    difference = (maps[0] - of_content[0]) / roots[0]
    errors = [
        np.sum((gram(f / r) - gram(s / r)) ** 2) / (4 * f.shape[-1] ** 2)
        for f, s, r in zip(maps, of_style, roots, strict=True)
    ]
    variation = sum(np.sum((x[1:, i] - x[:-1, i]) ** 2) for i in range(x.shape[1]))
    variation += sum(np.sum((x[i, 1:] - x[i, :-1]) ** 2) for i in range(x.shape[0]))
    return np.sum(difference**2) / (2 * difference.size), np.mean(errors), variation / x.size


def _part(contents, problem):
    top, left = np.asarray(problem["corner"])
    return contents[int(problem["index"]), top : top + CROP, left : left + CROP] / 255


@pytest.mark.parametrize("weights", [(2, 0, 0), (0, 3, 0), (0, 0, 5), (2, 3, 5)])
def test_each_term_matches_numpy_in_float64(weights):
    contents, style = _pictures()
    task = _task(**dict(zip(TERMS, weights, strict=True)))
    kernels = jax.tree.leaves(random_features(**SMALL))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        problem, params = _start(task, KEY)
        params = params.astype(jnp.float64)
        loss, gradient = _value_and_grad(task, params, problem)
        assert loss.dtype == gradient.dtype == jnp.float64
    terms = _numpy_terms(np.asarray(params), _part(contents, problem), style, kernels)
    # The maps of content and style are floats of 32 bits.
    np.testing.assert_allclose(loss, np.dot(weights, terms), rtol=1e-6)


def test_the_gradient_equals_finite_differences(x64):
    task = _task()
    problem, params = _start(task, KEY)
    _, gradient = _value_and_grad(task, params, problem)
    random = np.random.RandomState(0)
    for _ in range(4):
        step = 1e-6 * random.standard_normal(params.shape)
        above, _ = _value_and_grad(task, params + step, problem)
        below, _ = _value_and_grad(task, params - step, problem)
        np.testing.assert_allclose(2 * np.sum(gradient * step), above - below, rtol=1e-6)


def test_the_content_itself_has_no_content_loss_and_a_style_image_no_style_loss():
    contents, style = _pictures()
    content_only = _task(start="content", style_weight=0, variation_weight=0)
    problem, params = _start(content_only, KEY)
    np.testing.assert_allclose(params, _part(contents, problem), rtol=1e-6)
    np.testing.assert_allclose(_value_and_grad(content_only, params, problem)[0], 0, atol=1e-12)
    style_only = neural_art(
        contents[:, :5, :7], style, random_features(**SMALL), content_weight=0, variation_weight=0
    )
    problem, params = _start(style_only, KEY)
    assert params.shape == style.shape
    loss, gradient = _value_and_grad(style_only, jnp.asarray(style), problem)
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_loss_does_not_depend_on_its_key():
    task = _task()
    problem, params = _start(task, KEY)
    losses = {
        float(_value_and_grad(task, params, problem, jax.random.key(seed))[0]) for seed in range(3)
    }
    assert len(losses) == 1


def test_the_loss_of_scaled_maps_is_the_same():
    # Weights of torchvision and of Caffe differ by a factor, and so do their maps.
    features = random_features(**SMALL)
    tripled = _Tripled(features)
    problem, params = _start(_task(features=features), KEY)
    other, _ = _start(_task(features=tripled), KEY)
    np.testing.assert_allclose(other["content"][0], 3 * problem["content"][0], rtol=1e-6)
    expected, _ = _value_and_grad(_task(features=features), params, problem)
    loss, _ = _value_and_grad(_task(features=tripled), params, other)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


class _Tripled:
    """A feature network of a user's own: any function."""

    def __init__(self, features):
        self.features = features

    def __call__(self, images):
        return FeatureMaps(*jax.tree.map(lambda maps: 3 * maps, tuple(self.features(images))))


def test_a_batch_of_problems_computes_each_alone():
    task, keys = _task(), jax.random.split(KEY, 3)
    problems, params = jax.jit(jax.vmap(_start, (None, 0)))(task, keys)
    batched = jax.jit(jax.vmap(_value_and_grad, (None, 0, 0)))(task, params, problems)
    for i, key in enumerate(keys):
        problem, start = _start(task, key)
        loss, gradient = _value_and_grad(task, start, problem)
        np.testing.assert_allclose(batched[0][i], loss, rtol=1e-5)
        np.testing.assert_allclose(batched[1][i], gradient, rtol=1e-4, atol=1e-6)


def test_problems_are_all_parts_of_all_contents_and_hold_no_picture():
    contents, _ = _pictures()
    task = _task()
    problems = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 2000))
    assert set(problems) == {"index", "corner", "content"}
    assert [maps.shape for maps in problems["content"]] == [(2000, 1, CROP, CROP, 3)]
    places = np.column_stack([problems["index"], problems["corner"]])
    # Two contents of 9x8 pixels have 4 times 3 parts of 6x6 each.
    found, counts = np.unique(places, axis=0, return_counts=True)
    assert found.max(axis=0).tolist() == [1, 3, 2] and found.min() == 0 and len(found) == 24
    np.testing.assert_allclose(counts / 2000, 1 / 24, atol=0.02)
    kernels = jax.tree.leaves(random_features(**SMALL))
    problem = jax.tree.map(lambda leaf: leaf[7], problems)
    expected = _numpy_maps(_part(contents, problem), kernels)[0]
    np.testing.assert_allclose(problem["content"][0][0], expected, atol=1e-5)


def test_noise_is_grey_on_average_and_has_the_documented_deviation():
    contents = np.zeros((1, 64, 64, 3), np.uint8)
    for std in (0.25, 0.1):
        task = neural_art(contents, _pictures()[1], random_features(**SMALL), noise_std=std)
        params = jax.jit(task.init)(KEY, ())
        assert params.shape == (64, 64, 3) and params.dtype == jnp.float32
        np.testing.assert_allclose(np.mean(params), 0.5, atol=0.01)
        np.testing.assert_allclose(np.std(params), std, rtol=0.02)


def test_bfloat16_params_have_a_loss_of_float32(strict_promotion):
    task = _task()
    problem, params = _start(task, KEY)
    exact, _ = _value_and_grad(task, params, problem)
    loss, gradient = _value_and_grad(task, params.astype(jnp.bfloat16), problem)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(loss, exact, rtol=0.02)


def test_adam_lowers_the_default_loss():
    random = np.random.RandomState(0)
    smooth = random.uniform(size=(2, 5, 5, 3)).repeat(4, axis=1).repeat(4, axis=2)
    task = neural_art(smooth, random.uniform(size=(16, 16, 3)), crop=16)
    tx = optax.adam(0.05)

    @jax.jit
    def run(task):
        problem, params = _start(task, KEY)

        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(task.loss)(params, problem, KEY)
            updates, state = tx.update(gradient, state)
            return (params + updates, state), loss

        return jax.lax.scan(step, (params, tx.init(params)), None, length=40)[1]

    losses = np.asarray(run(task))
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.3 * losses[0]


def test_pictures_and_filters_are_arguments_and_equal_settings_share_a_program():
    traces = []

    @jax.jit
    def run(task):
        traces.append(None)
        problem, params = _start(task, KEY)
        return task.loss(params, problem, KEY)

    losses = {float(run(_task(seed))) for seed in (0, 1)}
    losses.add(float(run(_task(features=random_features(seed=1, content=0, **SMALL)))))
    assert len(losses) == 3 and len(traces) == 1
    text = run.lower(_task()).as_text()
    assert max(map(len, re.findall(r"dense<[^>]*>", text)), default=0) < 200


# Feature networks.


def test_random_filters_are_numpys_and_all_but_the_coarsest_see_contrast_alone():
    expected = np.random.RandomState(4).standard_normal((3, 5, 5, 3, 2)) / np.sqrt(75)
    filters = jax.tree.leaves(random_features(4, filters=2, scales=3))
    assert [kernel.dtype for kernel in filters] == 3 * [jnp.float32]
    np.testing.assert_allclose(filters[2], expected[2], rtol=1e-6)
    centered = expected - expected.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(filters[:2], centered[:2], atol=1e-6)
    # The numbers themselves, on every version of numpy.
    np.testing.assert_allclose(expected[2, 0, 0, :, 0], [0.137931, -0.009323, 0.070302], atol=1e-6)


@pytest.mark.parametrize("width", [2, 3])
def test_random_features_match_scipy(width):
    features = random_features(filters=2, width=width, scales=2, content=1)
    kernels = jax.tree.leaves(features)
    x = np.random.RandomState(0).uniform(size=(2, 5, 6, 3))
    maps = jax.jit(features)(jnp.asarray(x, jnp.float32))
    assert [m.shape for m in maps.style] == [(2, 5, 6, 2), (2, 2, 3, 2)]
    np.testing.assert_array_equal(maps.content[0], maps.style[1])
    if width == 2:
        # An even filter has its centre above and left of the middle.
        kernels = [np.pad(k, ((1, 0), (1, 0), (0, 0), (0, 0))) for k in kernels]
    for i in range(2):
        for actual, expected in zip(maps.style, _numpy_maps(x[i], kernels), strict=True):
            np.testing.assert_allclose(actual[i], expected, atol=1e-5)


CHANNELS = {"conv1_1": (3, 64), "conv1_2": (64, 64), "conv2_1": (64, 128)}


def _vgg(seed=0):
    """Random kernels `[3, 3, in, out]` and biases of the first three layers."""
    random = np.random.RandomState(seed)
    return {
        layer: (
            (random.standard_normal((3, 3, i, o)) / np.sqrt(9 * i)).astype(np.float32),
            random.standard_normal(o).astype(np.float32),
        )
        for layer, (i, o) in CHANNELS.items()
    }


def _write(folder, naming, weights):
    """A file in either naming; the one of torchvision also has a classifier."""
    if naming == "torchvision":
        arrays = {"classifier.0.weight": np.ones((2, 2), np.float32)}
        for index, (kernel, bias) in zip((0, 2, 5), weights.values(), strict=False):
            arrays[f"features.{index}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            arrays[f"features.{index}.bias"] = bias
        save_file(arrays, folder / "vgg19.safetensors")
        return folder / "vgg19.safetensors"
    arrays = {f"{layer}_W": kernel for layer, (kernel, _) in weights.items()}
    arrays |= {f"{layer}_b": bias for layer, (_, bias) in weights.items()}
    np.savez(folder / "vgg19.npz", **arrays)
    return folder / "vgg19.npz"


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("naming", ["torchvision", "caffe"])
def test_vgg_features_match_scipy(tmp_path, naming, pooling):
    weights = _vgg()
    path = _write(tmp_path, naming, weights)
    features = vgg_features(
        str(path), content=("conv1_2",), style=("conv2_1", "conv1_1"), pooling=pooling
    )
    x = np.random.RandomState(1).uniform(size=(4, 5, 3))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        maps = jax.jit(features)(jnp.asarray(x)[None])
    if naming == "torchvision":
        h = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    else:
        h = 255 * x - [123.68, 116.779, 103.939]
    expected = {}
    for layer, (kernel, bias) in weights.items():
        if layer == "conv2_1":
            h = _pool(h, np.mean if pooling == "average" else np.max)
        h = np.maximum(_correlate(h, kernel.astype(np.float64), "constant") + bias, 0)
        expected[layer] = h
    # The means and deviations of pixels are floats of 32 bits.
    compare = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(maps.content[0][0], expected["conv1_2"], **compare)
    np.testing.assert_allclose(maps.style[0][0], expected["conv2_1"], **compare)
    np.testing.assert_allclose(maps.style[1][0], expected["conv1_1"], **compare)
    assert (len(maps.content), len(maps.style)) == (1, 2)


def test_vgg_layers_have_the_names_and_shapes_of_torchvision_and_caffe():
    from l2ljax.tasks._features import _NAMINGS, _VGG19

    torchvision, caffe = _NAMINGS
    numbers = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert [layer.number for layer in _VGG19.values()] == numbers
    assert list(_VGG19)[:5] == ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"]
    assert list(_VGG19)[-1] == "conv5_4" and len(_VGG19) == 16
    shapes = {"features.5.weight": (128, 64, 3, 3), "features.5.bias": (128,)}
    assert torchvision.arrays("conv2_1") == shapes
    assert caffe.arrays("conv4_1") == {"conv4_1_W": (3, 3, 256, 512), "conv4_1_b": (512,)}


def test_only_the_layers_up_to_the_deepest_are_read_and_a_style_task_takes_them(tmp_path):
    path = _write(tmp_path, "caffe", dict(list(_vgg().items())[:2]))
    features = vgg_features(path, content=["conv1_2"], style=["conv1_1"])
    task = neural_art(*_pictures(), features, crop=4)
    problem, params = _start(task, KEY)
    assert problem["content"][0].shape == (1, 4, 4, 64)
    assert np.isfinite(_value_and_grad(task, params, problem)[0])
    message = r"npz must hold the weights of VGG-19 under .* conv1_1_W; conv2_1_W is missing"
    with pytest.raises(ValueError, match=message):
        vgg_features(path, content=["conv1_2"], style=["conv2_1"])


def test_vgg_files_of_another_kind_are_named(tmp_path):
    layers = {"content": ["conv1_1"], "style": ["conv1_1"]}
    with pytest.raises(FileNotFoundError, match=r"\.safetensors or \.npz file .* got 'nowhere'"):
        vgg_features("nowhere", **layers)
    for name in ("vgg19.pth", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz, got .*vgg19\.pth"):
        vgg_features(tmp_path / "vgg19.pth", **layers)
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} must be a whole \.\w+ file"):
            vgg_features(tmp_path / name, **layers)
    wrong = {"conv1_1": (np.ones((3, 3, 4, 64), np.float32), np.ones(64, np.float32))}
    path = _write(tmp_path, "torchvision", wrong)
    message = r"features\.0\.weight of shape \(64, 3, 3, 3\), got \(64, 4, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        vgg_features(path, **layers)
    for settings, message in (
        ({"content": []}, "content must have at least one layer, got none"),
        ({"style": ["conv1_3"]}, "style must be one of .* got 'conv1_3'"),
        ({"pooling": "mean"}, "pooling must be one of .* got 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            vgg_features(path, **{**layers, **settings})


# Photographs.


def test_sample_art_trains_on_one_half_and_is_evaluated_on_the_other(monkeypatch):
    halves = np.full((40, 60, 3), 0.2)
    halves[:, 30:] = 0.8
    flower = np.random.RandomState(0).uniform(size=(30, 40, 3))
    monkeypatch.setattr(module, "sample_images", lambda: {"china": halves, "flower": flower})
    for part, level in (("train", 51), ("evaluation", 204)):
        task = sample_art(part, size=16, count=5, features=random_features(**SMALL))
        (contents,) = {a.tobytes() for a in jax.tree.leaves(task) if a.dtype == jnp.uint8}
        assert contents == bytes([level]) * (5 * 16 * 16 * 3)
    same = [
        sample_art(count=2, style=s, features=random_features(**SMALL)) for s in ("flower", "waves")
    ]
    grams = [
        np.concatenate([np.ravel(a) for a in jax.tree.leaves(t) if a.shape == (3, 3)]) for t in same
    ]
    assert not np.allclose(*grams)


def test_the_default_weights_make_content_and_style_comparable_on_photographs():
    def terms(weights):
        """At the contents of other problems, the median over four."""
        settings = dict(zip(TERMS, weights, strict=True))
        task = sample_art(count=20, start="content", **settings)
        problems, params = jax.jit(jax.vmap(_start, (None, 0)))(task, jax.random.split(KEY, 4))
        return np.median(losses(task, jnp.roll(params, 1, axis=0), problems))

    losses = jax.jit(jax.vmap(lambda t, x, p: t.loss(x, p, KEY), (None, 0, 0)))
    content, style, variation = map(terms, [(1, 0, 0), (0, 30, 0), (0, 0, 1)])
    assert 0.2 < content / style < 5
    assert 0.002 < variation / style < 0.1


PIXELS = np.ones((4, 4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neural_art(PIXELS, PIXELS), r"contents must have shape \(n, height, width, 3\)"),
        (lambda: neural_art(PIXELS[None], PIXELS[None]), r"style must .* \(1, 4, 4, 3\)"),
        (lambda: neural_art(PIXELS[None], PIXELS[..., :1]), r"style must have .* \(4, 4, 1\)"),
        (lambda: neural_art(PIXELS[None].astype(int), PIXELS), r"contents must .* got int32"),
        (lambda: neural_art(PIXELS[None], PIXELS, random_features(**SMALL)), "style .* responds"),
        (lambda: neural_art(PIXELS[None], 0 * PIXELS + np.nan, random_features(**SMALL)), "of nan"),
        (lambda: _task(content_weight=-1), "content_weight must be a non-negative number, got -1"),
        (lambda: _task(crop=0), "crop must be a whole number of at least 1, got 0"),
        (lambda: _task(start="white"), "start must be one of .* got 'white'"),
        (lambda: _task(noise_std=-0.1), "noise_std must be a non-negative number, got -0.1"),
        (lambda: _task(features=random_features(scales=4)), "halved once more, got maps of 1x1"),
        (lambda: random_features(content=4), r"content must be one of .* got 4"),
        (lambda: random_features(scales=0), "scales must be a whole number of at least 1, got 0"),
        (lambda: sample_art("test"), "part must be one of .* got 'test'"),
        (lambda: sample_art(style="wave"), "style must be one of .* did you mean 'waves'"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
