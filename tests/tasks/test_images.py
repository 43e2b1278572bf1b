"""Photographs as arrays."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from l2ljax.tasks import crops, image, sample_images


def test_an_image_is_read_upright_in_three_colours(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    np.testing.assert_allclose(image(tmp_path / "plain.png"), pixels / 255, rtol=1e-6)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    upright = np.rot90(pixels, -1) / 255
    np.testing.assert_allclose(image(str(tmp_path / "turned.png")), upright, rtol=1e-6)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    grey = np.repeat(pixels[..., :1], 3, axis=-1) / 255
    np.testing.assert_allclose(image(tmp_path / "grey.png"), grey, rtol=1e-6)
    clear = np.concatenate([pixels, np.full((4, 6, 1), 9, np.uint8)], axis=-1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_allclose(image(tmp_path / "clear.png"), pixels / 255, rtol=1e-6)


def test_an_image_is_scaled_to_its_shorter_side_or_to_a_size(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 80).round().astype(np.uint8)[None], 40, axis=0)
    Image.fromarray(np.stack(3 * [ramp], axis=-1)).save(tmp_path / "ramp.png")
    scaled = image(tmp_path / "ramp.png", size=10)
    assert scaled.shape == (10, 20, 3)
    means = ramp[0].reshape(20, 4).mean(axis=1) / 255
    np.testing.assert_allclose(scaled[3, :, 1], means, atol=0.01)
    assert image(tmp_path / "ramp.png", size=(7, 5)).shape == (7, 5, 3)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, got 0"):
        image(tmp_path / "ramp.png", size=0)


def test_files_that_are_no_pictures_of_eight_bits_are_named(tmp_path):
    Image.fromarray(np.ones((2, 2), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"8 bits a colour, got mode 'I;16' in .*deep\.png"):
        image(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(OSError, match=r"text\.png"):
        image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        image("nowhere")


def test_crops_are_squares_from_details_to_the_whole_at_random_places():
    y, x = np.mgrid[:100, :200] / 200
    parts = np.asarray(crops([np.stack([y, x, 0 * x], axis=-1)], 300, size=10)) / 255
    assert parts.shape == (300, 10, 10, 3)
    # Red is the row and green the column: how they change across a part tells its side.
    heights, widths = (
        200 * 10 / 9 * np.abs(parts[:, -1, -1, i] - parts[:, 0, 0, i]) for i in (0, 1)
    )
    np.testing.assert_allclose(heights, widths, atol=4)
    assert 6 < heights.min() < 15 and 85 < heights.max() < 105
    # Uniform in the logarithm: half of the sides below the geometric mean of 10 and 100.
    np.testing.assert_allclose(np.mean(heights < np.sqrt(1000)), 0.5, atol=0.1)
    centres = 200 * parts.mean(axis=(1, 2))
    small = heights < 20
    assert np.ptp(centres[small, 0]) > 60 and np.ptp(centres[small, 1]) > 140


def test_crops_come_from_all_images_and_enlarge_small_ones():
    black, white = np.zeros((30, 20, 3)), np.full((5, 8, 3), 255, np.uint8)
    parts = np.asarray(crops([black, white], 40, size=10))
    means = parts.mean(axis=(1, 2, 3))
    assert set(means.tolist()) == {0, 255} and 0.2 < np.mean(means == 0) < 0.8


def test_crops_of_one_seed_are_the_same():
    noise = np.random.RandomState(0).uniform(size=(20, 20, 3))
    first, again, other = (np.asarray(crops([noise], 2, 10, seed=seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_sample_images_are_the_two_photographs():
    photographs = sample_images()
    assert list(photographs) == ["china", "flower"]
    for photograph in photographs.values():
        assert photograph.shape == (427, 640, 3) and photograph.dtype == jnp.float32
        assert 0 <= photograph.min() < 0.1 < 0.9 < photograph.max() <= 1


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'l2ljax\[art\]'"):
        sample_images()
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in (sample_images, lambda: image("a.png"), lambda: crops([np.ones((2, 2, 3))], 1)):
        with pytest.raises(ImportError, match=r"Pillow: pip install 'l2ljax\[art\]'"):
            call()


@pytest.mark.parametrize(
    ("pictures", "settings", "message"),
    [
        ([], {}, "images must have at least one image, got none"),
        ([np.ones((4, 3))], {}, r"images must have shape \(height, width, 3\), .* \(4, 3\)"),
        ([np.ones((4, 4, 3), np.uint16)], {}, r"images must .* or uint8, got uint16"),
        ([np.ones((4, 4, 3))], {"count": 0}, "count must be a whole number of at least 1, got 0"),
        ([np.ones((4, 4, 3))], {"size": 0}, "size must be a whole number of at least 1, got 0"),
    ],
)
def test_crops_name_a_bad_argument(pictures, settings, message):
    with pytest.raises(ValueError, match=message):
        crops(pictures, **{"count": 1, **settings})
