"""The FID Inception: features against PyTorch's, files that are read, and files that are refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.inception import RESIZES, inception_extractor
from bksdm_jax.metrics.resize import clean
from bksdm_jax.pipelines.inception_file import URL, LoadedInception, load_inception
from tests import scoring
from tests.arrays import require_equal


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, scoring.State]:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, scoring.random_inception(path)


@pytest.fixture(scope="module")
def loaded(written: tuple[Path, scoring.State]) -> LoadedInception:
    return load_inception(str(written[0]))


def pixels(images: np.ndarray, resize: str) -> torch.Tensor:
    """PyTorch's own resize; what is left of the others' is their normalisation."""
    if resize == "clean":
        return torch.from_numpy((np.stack([clean(image, 299) for image in images]) - 128) / 128).permute(0, 3, 1, 2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1


@pytest.mark.parametrize("resize", ["pytorch_fid", pytest.param("clean", marks=pytest.mark.slow)])
def test_features_are_pytorchs(written: tuple[Path, scoring.State], loaded: LoadedInception, resize: str) -> None:
    images = scoring.image_sets(2, 96, seed=1)[0]
    found = inception_extractor(loaded, resize)(images, batch_size=1)
    expected = scoring.torch_inception(written[1], pixels(images, resize))
    assert found["pool"].std(axis=0).mean() > 0.1 * found["pool"].mean(), "the features collapse"
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4 * float(values.abs().max()), rtol=0)


def test_an_extractor_says_what_it_is(written: tuple[Path, scoring.State], loaded: LoadedInception) -> None:
    digest = hashlib.sha256(written[0].read_bytes()).hexdigest()
    for resize in RESIZES:
        extractor = inception_extractor(loaded, resize, "bfloat16")
        assert extractor.facts == {
            "weights": str(written[0]),
            "sha256": digest,
            "resize": resize,
            "dtype": "bfloat16",
            "width": 2048,
        }
    with pytest.raises(InputError, match=r"resize.*'cleen'.*clean"):
        inception_extractor(loaded, "cleen")
    with pytest.raises(InputError, match=r"dtype.*'float15'"):
        inception_extractor(loaded, "clean", "float15")


def test_all_kinds_of_files_are_read(
    written: tuple[Path, scoring.State], loaded: LoadedInception, tmp_path: Path
) -> None:
    state = written[1]
    kernel = loaded.params["Mixed_6b"]["branch7x7_2"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["Mixed_6b.branch7x7_2.conv.weight"].permute(2, 3, 1, 0))
    norm = loaded.params["Conv2d_1a_3x3"]["bn"]
    for ours, theirs in {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}.items():
        np.testing.assert_array_equal(norm[ours], state[f"Conv2d_1a_3x3.bn.{theirs}"])
    save_file(state, tmp_path / "twin.safetensors")
    older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "weights-inception.pth", _use_new_zipfile_serialization=False)
    for name in ("twin.safetensors", "weights-inception.pth"):
        require_equal(load_inception(str(tmp_path / name)).params, loaded.params)


def test_other_networks_and_damaged_files_are_refused(written: tuple[Path, scoring.State], tmp_path: Path) -> None:
    state, path = written[1], tmp_path / "other.pth"

    def refused(*words: str) -> None:
        with pytest.raises(InputError) as error:
            load_inception(str(path))
        assert "\n" not in str(error.value)
        for word in (str(path), *words):
            assert word in str(error.value)

    imagenet = state | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
    torch.save(imagenet, path)
    refused("fc.weight", "(1000, 2048)", "(1008, 2048)", "AuxLogits.fc.bias", URL)
    torch.save({name: tensor for name, tensor in state.items() if name != "Mixed_7c.branch_pool.bn.bias"}, path)
    refused("missing", "Mixed_7c.branch_pool.bn.bias", URL)
    torch.save(state | {"fc.bias": torch.zeros(1, 1008)}, path)
    refused("fc.bias", URL)
    path.write_bytes(written[0].read_bytes()[: 2**20])
    refused()
    path.write_text("<html>")
    refused()
    path.unlink()
    refused("inception", URL)
    path = tmp_path
    refused()


def test_no_file_says_where_to_get_it() -> None:
    with pytest.raises(InputError, match=f"^inception: .*{URL}"):
        load_inception("")
