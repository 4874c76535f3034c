"""Resizers against torch-fidelity's and torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from bksdm_jax.metrics.crops import short_side_crop
from bksdm_jax.metrics.resize import tf1_bilinear
from tests.scoring import rgb_photographs

CASES = rgb_photographs()


@pytest.mark.parametrize("name", CASES)
def test_torch_fidelitys_bilinear(name: str) -> None:
    x = torch.from_numpy(CASES[name].astype(np.float32))[None]
    for size in (299, 64):
        expected = interpolate_bilinear_2d_like_tensorflow1x(x.permute(0, 3, 1, 2), (size, size), align_corners=False)
        found = tf1_bilinear(x.numpy(), size) / 255
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1) / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_torchvisions_short_side_and_crop(name: str) -> None:
    image = CASES[name]
    for short, crop in ((224, 224), (256, 224), (336, 336), (65, 64)):
        theirs = Compose([Resize(short, InterpolationMode.BICUBIC), CenterCrop(crop)])
        for pixels in (image, image[: 3 * len(image) // 4 + 1], image[:, :227]):
            expected = np.asarray(theirs(Image.fromarray(pixels)))
            np.testing.assert_array_equal(short_side_crop(pixels, short, crop), expected)


def test_open_clips_transform() -> None:
    from open_clip.transform import image_transform

    theirs = image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    for image in CASES.values():
        expected = theirs(Image.fromarray(image)).permute(1, 2, 0)
        np.testing.assert_allclose(short_side_crop(image, 224, 224) / np.float32(255), expected, atol=1e-7)
