"""Scores from given features against torch-fidelity and pytorch-fid."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from pytorch_fid import fid_score
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from bksdm_jax.metrics.frechet import fit_normal, frechet_distance, frechet_score, make_normal
from bksdm_jax.metrics.inception_score import inception_score
from bksdm_jax.metrics.kernels import kid_score
from bksdm_jax.metrics.manifolds import manifold_scores
from bksdm_jax.metrics.statistics_file import Statistics, read_statistics, write_statistics
from bksdm_jax.metrics.sums import FeatureSums


def features_of(count: int, seed: int, dimensions: int = 2048) -> np.ndarray:
    """Correlated, and none below zero, as the features of the FID Inception are."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, dimensions)) / 8
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 64)) @ mixing + rng.normal(0.02 * seed, 0.3, (count, dimensions))
    return np.abs(rows * 0.5).astype(np.float32)


def sums_of(features: np.ndarray) -> FeatureSums:
    sums = FeatureSums()
    sums.add(features)
    return sums


@pytest.fixture(autouse=True)
def older_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqrtm` as pytorch-fid calls it: SciPy 1.18 no longer has `disp`."""
    root = scipy.linalg.sqrtm
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda matrix, disp=True: root(matrix) if disp else (root(matrix), None))


@pytest.mark.parametrize("dimensions", [2048, 400])
def test_frechet_distance(dimensions: int) -> None:
    ours, theirs = features_of(2500, 1, dimensions), features_of(2500, 2, dimensions)
    value = frechet_distance(sums_of(ours), fit_normal(sums_of(theirs)))
    found = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (ours, theirs)]
    assert value == pytest.approx(fid_statistics_to_metric(*found, False)["frechet_inception_distance"], rel=1e-4)
    if dimensions == 2048:
        return  # two minutes in pytorch-fid
    statistics = [entry[key] for entry in found for key in ("mu", "sigma")]
    assert value == pytest.approx(fid_score.calculate_frechet_distance(*statistics), rel=1e-4)


def test_statistics_files_are_interchangeable(tmp_path: Path) -> None:
    ours, theirs = features_of(400, 1, 64), features_of(400, 2, 64)
    value = frechet_distance(sums_of(ours), fit_normal(sums_of(theirs)))
    sums = sums_of(theirs)
    write_statistics(tmp_path / "ours.npz", Statistics(sums.mean, sums.covariance(), {"images": 400}))
    read = fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 64, "cpu")
    statistics = (ours.mean(axis=0), np.cov(ours, rowvar=False))
    assert fid_score.calculate_frechet_distance(*statistics, *read) == pytest.approx(value, rel=1e-4)
    np.savez_compressed(tmp_path / "theirs.npz", mu=theirs.mean(axis=0), sigma=np.cov(theirs, rowvar=False))
    found = read_statistics(tmp_path / "theirs.npz", 64, {})
    score = frechet_score(sums_of(ours), make_normal(found.mean, found.covariance))
    assert score.value == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("images", [3000, 1003])
def test_inception_score(images: int) -> None:
    logits = np.random.default_rng(0).normal(scale=2, size=(images, 1008)).astype(np.float32)
    score, theirs = inception_score(logits), isc_features_to_metric(torch.from_numpy(logits))
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert score.std == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_kid() -> None:
    ours, theirs = features_of(1300, 1), features_of(1500, 2)
    score = kid_score(ours, theirs)
    wanted = kid_features_to_metric(torch.from_numpy(ours), torch.from_numpy(theirs), verbose=False)
    assert score.value == pytest.approx(wanted["kernel_inception_distance_mean"], abs=1e-6)
    assert score.std == pytest.approx(wanted["kernel_inception_distance_std"], abs=1e-6)


@pytest.mark.parametrize("save_memory", [True, False])
def test_precision_and_recall(save_memory: bool) -> None:
    ours, theirs = features_of(2100, 1, 128), features_of(2300, 2, 128)
    scores = manifold_scores(ours, theirs)
    tensors = (torch.from_numpy(ours), torch.from_numpy(theirs))
    wanted = prc_features_to_metric(*tensors, verbose=False, save_cpu_ram=save_memory)
    assert 0 < wanted["precision"] < 1
    assert 0 < wanted["recall"] < 1
    for name in ("precision", "recall"):
        assert scores[name].value == pytest.approx(wanted[name], rel=1e-4)
