"""Resizers against PyTorch, Pillow and independent formulas, on photographs of all kinds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.crops import short_side_crop, squash
from bksdm_jax.metrics.resize import clean, half_pixel_bilinear, tf1_bilinear
from tests.scoring import rgb_photographs

CASES = rgb_photographs()


@pytest.mark.parametrize("name", CASES)
def test_half_pixel_bilinear_is_pytorchs(name: str) -> None:
    x = CASES[name].astype(np.float32)[None] / 255
    for size in (299, 64):
        y = F.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), (size, size), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(half_pixel_bilinear(x, size), y.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_tf1_bilinear_samples_at_whole_steps(name: str) -> None:
    """Against NumPy's interpolation in float64."""
    image = CASES[name].astype(np.float64)
    size = 299

    def along_first(values: np.ndarray) -> np.ndarray:
        at, flat = np.arange(size) * len(values) / size, values.reshape(len(values), -1)
        columns = [np.interp(at, np.arange(len(values)), column) for column in flat.T]
        return np.stack(columns, axis=-1).reshape(size, *values.shape[1:])

    expected = along_first(along_first(image).swapaxes(0, 1)).swapaxes(0, 1)
    found = tf1_bilinear(image.astype(np.float32)[None], size)[0]
    np.testing.assert_allclose(found / 255, expected / 255, atol=1e-4, rtol=0)  # positions are float32, as in the tool


@pytest.mark.parametrize("name", CASES)
def test_clean_is_pillows_bicubic_in_float(name: str) -> None:
    image = CASES[name]
    found = clean(image, 128)
    assert (found.dtype, found.shape) == (np.float32, (128, 128, 3))
    assert found.min() >= 0
    assert found.max() <= 255
    expected = np.stack([bicubic(image[..., i], 128) for i in range(3)], axis=-1).clip(0, 255)
    np.testing.assert_allclose(found, expected, atol=255 * 1e-5, rtol=0)
    assert np.abs(found - squash(image, 128)).mean() < 0.5, "rounded and clipped between both axes"


def test_an_image_of_the_right_size_is_unchanged() -> None:
    image = CASES["astronaut"][:64, :64]
    for found in (clean(image, 64), squash(image, 64), short_side_crop(image, 64, 64)):
        np.testing.assert_array_equal(found, image)
    for resize in (half_pixel_bilinear, tf1_bilinear):
        np.testing.assert_array_equal(resize(image.astype(np.float32)[None], 64)[0], image)


def test_the_centre_is_cut_out() -> None:
    image = CASES["coffee"]  # 400 x 600
    whole = np.asarray(Image.fromarray(image).resize((384, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(short_side_crop(image, 256, 224), whole[16:240, 80:304])
    with pytest.raises(InputError, match="1000000 x 1 pixels"):
        short_side_crop(np.zeros((1, 1_000_000, 3), np.uint8), 224, 224)


def bicubic(channel: np.ndarray, size: int) -> np.ndarray:
    """Antialiased with the cubic kernel of a = -0.5, [H, W] -> [size, size]; an independent formula in float64."""

    def weights(length: int) -> np.ndarray:
        scale = length / size
        stretch, centres = max(scale, 1), (np.arange(size) + 0.5) * scale
        x = np.abs((np.arange(length) + 0.5 - centres[:, None]) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
        return kernel / kernel.sum(axis=1, keepdims=True)

    return weights(channel.shape[0]) @ channel.astype(np.float64) @ weights(channel.shape[1]).T
