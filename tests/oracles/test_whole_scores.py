"""Scores of two folders of images against torch-fidelity and pytorch-fid, from the files on.

`IMAGES=2100 make oracles` compares as many in each folder, which takes a while; fewer are held to less, since the
distance then has less rank than dimensions.
"""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3

from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.score import score
from tests import scoring

COUNT = int(os.environ.get("IMAGES", "72"))
SUBSET = min(1000, COUNT // 2)
FULL_RANK = COUNT > 2048
RELATIVE = 1e-4 if FULL_RANK else 1e-3
METRICS = ("fid_torch_fidelity", "fid_pytorch_fid", "inception_score", "kid_torch_fidelity", "manifolds_inception")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("sets")
    for name, images in zip(("ours", "real"), scoring.image_sets(COUNT, 96), strict=True):
        (place / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(place / name / f"{number:05d}.png")
    return place / "ours", place / "real"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, scoring.State]:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    return path, scoring.random_inception(path)


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path], written: tuple[Path, scoring.State], tmp_path_factory) -> dict[str, dict]:
    place = tmp_path_factory.mktemp("scores")
    config = ScoreConfig(
        images=str(folders[0]),
        reference=str(folders[1]),
        metrics=METRICS,
        inception=str(written[0]),
        kid_subset_size=SUBSET,
        scoring_batch_size=4,
        intervals=False,
        cache=str(place / "cache"),
    )
    return score(config, place / "out")["scores"]


def test_torch_fidelity(folders: tuple[Path, Path], written: tuple[Path, scoring.State], found: dict) -> None:
    # In float32, rounding moves its KID as much as ours. Its own option "float64" gives float32.
    with mock.patch.object(feature_extractor_inceptionv3, "text_to_dtype", return_value=torch.float64):
        theirs = torch_fidelity.calculate_metrics(
            input1=str(folders[0]),
            input2=str(folders[1]),
            cuda=False,
            batch_size=32,
            fid=True,
            isc=True,
            kid=True,
            prc=True,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(written[0]),
            feature_layer_prc="2048",
            kid_subset_size=SUBSET,
            cache=False,
            verbose=False,
        )
    wanted = {
        "fid_torch_fidelity": "frechet_inception_distance",
        "inception_score": "inception_score_mean",
        "precision_inception": "precision",
        "recall_inception": "recall",
    }
    for ours, name in wanted.items():
        print(f"{ours}: {found[ours]['value']:.8g}, theirs {theirs[name]:.8g}")
    kid, their_kid = found["kid_torch_fidelity"]["value"], theirs["kernel_inception_distance_mean"]
    print(f"kid: {kid:.8g}, theirs {their_kid:.8g}")
    for ours, name in wanted.items():
        assert found[ours]["value"] == pytest.approx(theirs[name], rel=RELATIVE), ours
    # Features in float32 are right to 2e-7 or so, and KID grows with their sixth power.
    assert kid == pytest.approx(their_kid, rel=3e-6, abs=1e-6)


@pytest.mark.skipif(not FULL_RANK, reason="its root of a matrix without full rank is inexact, and slow")
def test_pytorch_fid(folders: tuple[Path, Path], written: tuple[Path, scoring.State], found: dict) -> None:
    with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", return_value=written[1]):
        model = pytorch_fid.inception.InceptionV3().eval()
    moments = [
        pytorch_fid.fid_score.compute_statistics_of_path(str(folder), model, 50, 2048, torch.device("cpu"), 1)
        for folder in folders
    ]
    theirs = pytorch_fid.fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    print(f"fid_pytorch_fid: {found['fid_pytorch_fid']['value']:.8g}, theirs {theirs:.8g}")
    assert found["fid_pytorch_fid"]["value"] == pytest.approx(float(np.real(theirs)), rel=1e-4)
