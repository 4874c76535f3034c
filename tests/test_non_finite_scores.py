"""Scores, features and statistics that aren't finite are errors, and aren't written."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.evaluation import scorer as scoring
from bksdm_jax.evaluation.score import score
from bksdm_jax.metrics.bootstrap import Score
from bksdm_jax.metrics.statistics_file import Statistics, write_statistics
from bksdm_jax.metrics.store import FeatureStore
from bksdm_jax.metrics.table import METRICS
from tests.test_score import calls, config, folders  # noqa: F401


def test_a_score_is_not_written(calls: Any, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    own, whole = config(folders, ["kid_clean", "clip_score"]), METRICS["clip_score"]
    for changed, fact in (
        (Score(np.nan, None, None), "clip_score: value is nan"),
        (Score(1.0, 0.5, np.inf), "clip_score: high is inf"),
    ):
        metric = dataclasses.replace(whole, scores=lambda _, changed=changed: {"clip_score": changed})
        monkeypatch.setitem(scoring.METRICS, "clip_score", metric)
        with pytest.raises(InputError, match=fact):
            score(own, folders / "out")
        assert not (folders / "out" / "scores.json").exists()
    monkeypatch.setitem(scoring.METRICS, "clip_score", whole)
    rows = next((folders / "out" / "features").rglob("rows.bin"))
    rows.write_bytes(rows.read_bytes()[:-4] + np.float32(np.inf).tobytes())
    with pytest.raises(InputError, match=rf"{rows.parent}: 1 of .*delete"):
        score(own, folders / "out")


@pytest.mark.parametrize("kept", [True, False])
def test_features_and_statistics_on_disk_are_checked(tmp_path: Path, kept: bool) -> None:
    store = FeatureStore(tmp_path / "store", kept, {})
    store.add(np.float32([[1, 2], [3, np.nan]]))
    store.commit()
    for again in (store, FeatureStore(tmp_path / "store", kept, {})):
        with pytest.raises(InputError, match=r"store: .*delete"):
            again.read()
    for name, statistics in (
        ("mu", Statistics(np.array([0, np.inf]), np.eye(2), {})),
        ("sigma", Statistics(np.zeros(2), np.eye(2) * np.nan, {})),
    ):
        with pytest.raises(InputError, match=rf"a\.npz: .*{name}"):
            write_statistics(tmp_path / "a.npz", statistics)
    assert not (tmp_path / "a.npz").exists()
    assert read_json(tmp_path / "store" / "progress.json")["done"] == 2
