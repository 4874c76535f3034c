"""Scores of the workdirs of launch.sample: which model's images they are, and whether all are there."""

from pathlib import Path

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.score import score
from tests.test_score import Calls, calls, write_captions, write_images  # noqa: F401


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    workdir = tmp_path / "run"
    for seed, folder in enumerate((workdir, workdir / "beside_1", workdir / "beside_2")):
        write_images(folder / "images", 4, seed)
        write_images(folder / "previews", 4, seed + 3)
        write_table(folder / "metadata.csv", ("file_name", "text"), [(f"images/{i:06d}.png", f"{i}") for i in range(4)])
        write_json(folder / "timing.json", {"seconds_per_image": seed})
    settings = {"model": "/the/first", "beside": ["the/second", "the/third"], "guidance_scale": 7.5, "protocol": ""}
    settings |= {"deep_cache": 3, "vae": "the/vae"}
    write_json(workdir / "config.json", settings)
    return workdir


@pytest.mark.parametrize(
    ("folder", "model", "seconds"),
    [
        ("", "/the/first", 0),
        ("images", "/the/first", 0),
        ("beside_1", "the/second", 1),
        ("beside_2/images", "the/third", 2),
    ],
)
def test_scores_name_the_model_that_made_the_images(
    folder: str,
    model: str,
    seconds: int,
    calls: Calls,  # noqa: F811
    sampled: Path,
    tmp_path: Path,
) -> None:
    found = score(ScoreConfig(images=str(sampled / folder), metrics=("clip_score",)), tmp_path / "out")
    assert found["images"] == 4
    assert (found["model"]["name"], found["model"]["seconds_per_image"]) == (model, seconds)
    assert [found["model"]["settings"][key] for key in ("deep_cache", "vae")] == [3, "the/vae"]


def test_other_images_in_a_workdir_are_of_unknown_settings(calls: Calls, sampled: Path, tmp_path: Path) -> None:  # noqa: F811
    own = ScoreConfig(images=str(sampled / "previews"), metrics=("dino",), reference=str(sampled / "previews"))
    write_captions(sampled / "previews", 4)
    assert score(own, tmp_path / "out")["model"] is None


@pytest.mark.parametrize(
    ("owner", "folder"), [("", ""), ("", "images"), ("beside_1", "beside_1"), ("beside_1", "beside_1/images")]
)
def test_unfinished_samples_are_told(
    owner: str,
    folder: str,
    calls: Calls,  # noqa: F811
    sampled: Path,
    tmp_path: Path,
) -> None:
    (sampled / owner / "metadata.csv").unlink()
    own = ScoreConfig(images=str(sampled / folder), metrics=("dino",), reference=str(sampled / "images"))
    with pytest.raises(InputError, match=r"metadata\.csv.*launch\.sample"):
        score(own, tmp_path / "out")
