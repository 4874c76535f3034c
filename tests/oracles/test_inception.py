"""Features of the FID Inception against pytorch-fid's and torch-fidelity's networks, with the same random weights."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import pytorch_fid.inception
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bksdm_jax.metrics.frechet import fit_normal, frechet_distance
from bksdm_jax.metrics.inception import inception_extractor
from bksdm_jax.metrics.sums import FeatureSums
from bksdm_jax.pipelines.inception_file import LoadedInception, load_inception
from tests import scoring

Written = tuple[Path, scoring.State]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, scoring.random_inception(path)


@pytest.fixture(scope="module")
def loaded(written: Written) -> LoadedInception:
    return load_inception(str(written[0]))


@pytest.fixture(params=[(96, 96), (320, 210)], ids=lambda size: f"{size[0]}x{size[1]}")
def images(request: pytest.FixtureRequest) -> np.ndarray:
    """Smaller and larger than the network's input."""
    height, width = request.param
    return scoring.image_sets(2, max(height, width), seed=1)[0][:, :height, :width]


def require_close(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4 * float(values.abs().max()), rtol=0)


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def test_torch_fidelity(written: Written, loaded: LoadedInception, images: np.ndarray) -> None:
    features = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception", features, feature_extractor_weights_path=str(written[0]))
    pool, logits = theirs(channels_first(images))
    found = inception_extractor(loaded, "torch_fidelity")(images, batch_size=1)
    assert found["pool"].std(axis=0).mean() > 0.1 * found["pool"].mean(), "the features collapse"
    require_close(found, {"pool": pool, "logits": logits})


def test_pytorch_fid(written: Written, loaded: LoadedInception, images: np.ndarray) -> None:
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", return_value=written[1]):
        theirs = pytorch_fid.inception.InceptionV3().eval()
    (pool,) = theirs(channels_first(images) / 255)
    found = inception_extractor(loaded, "pytorch_fid")(images, batch_size=1)
    require_close(found, {"pool": pool[..., 0, 0]})


def test_bfloat16_moves_the_distance_little(loaded: LoadedInception) -> None:
    """By 2% with these weights, most of it from the rounding of kernels; PyTorch's own bfloat16 moves it by 4%."""

    def distance(dtype: str) -> float:
        extractor, sums = inception_extractor(loaded, "pytorch_fid", dtype), [FeatureSums(), FeatureSums()]
        for own, pictures in zip(sums, scoring.image_sets(32, 96), strict=True):
            own.add(extractor(pictures, batch_size=8)["pool"])
        return frechet_distance(sums[0], fit_normal(sums[1]))

    exact, rounded = distance("float32"), distance("bfloat16")
    print(f"Frechet distance {exact:.5f} in float32, {rounded:.5f} in bfloat16")
    assert rounded == pytest.approx(exact, rel=0.05)
