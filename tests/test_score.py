"""Scores of folders and of a sampler: what is scored, what is refused, and what is written."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation import scorer as scoring
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.live import SampleAndScoreConfig, sample_and_score
from bksdm_jax.evaluation.protocols import SCORING, departures
from bksdm_jax.evaluation.score import score, score_table
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.metrics.statistics_file import Statistics, write_statistics
from bksdm_jax.pipelines.inception_file import SHA256
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.protocols import PROTOCOLS
from bksdm_jax.sampling.run import sample

ALL = ("fid_clean", "kid_clean", "clip_score", "dino")


class Calls:
    """Stand-ins for networks, which count the images that they see."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def extractor(self, name: str) -> Extractor:
        def program(params: np.ndarray, images: np.ndarray, text: np.ndarray | None) -> dict[str, np.ndarray]:
            self.seen[name] = self.seen.get(name, 0) + len(images)
            pool = (np.asarray(images).reshape(len(images), -1, 3)[:, :7] / np.float32(255)).reshape(len(images), -1)
            found = {"pool": pool, "cls": pool, "image": pool}
            return found if text is None else found | {"clip_cosine": pool.mean(axis=1) + np.asarray(text)}

        facts = {"weights": name, "sha256": name, "resize": "clean", "dtype": "float32", "width": 21}
        return Extractor(
            lambda image: np.asarray(Image.fromarray(image).resize((4, 4))),
            np.float32(0),
            program,
            text=lambda captions: np.array([len(text) for text in captions], np.float32),
            facts=facts,
        )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    for name in scoring.EXTRACTORS:
        monkeypatch.setitem(scoring.EXTRACTORS, name, lambda config, name=name: calls.extractor(name))
    return calls


def write_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (8, 8), suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256 - 40 * seed, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}{suffix}")


def write_captions(folder: Path, count: int, missing: int = -1) -> None:
    rows = [(f"{i:06d}.png", "" if i == missing else f"a thing {i}", "dog" if i % 2 else "cat") for i in range(count)]
    write_table(folder / "metadata.csv", ("file_name", "text", "subject"), rows)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 12)
    write_captions(tmp_path / "images", 12)
    for number, subject in enumerate(("cat", "dog")):
        write_images(tmp_path / "real" / subject, 10, seed=number + 1)
    return tmp_path


def config(place: Path, metrics: Sequence[str] = ALL, **more: object) -> ScoreConfig:
    settings = {"images": str(place / "images"), "reference": str(place / "real"), "cache": str(place / "cache")}
    return ScoreConfig(**(settings | {"metrics": tuple(metrics), "kid_subset_size": 6, "scoring_batch_size": 1} | more))


def test_all_metrics_come_from_one_pass(calls: Calls, folders: Path) -> None:
    found = score(config(folders), folders / "out")
    assert found == read_json(folders / "out" / "scores.json")
    assert list(found["scores"]) == list(ALL)
    assert found["images"] == 12
    assert found["reference"]["images"] == 20
    assert found["extractors"]["dino"]["sha256"] == "dino"
    assert found["versions"]["pillow"]
    assert calls.seen["clip"] == 16  # in two calls of eight devices
    assert set(found["scores"]["dino"]["groups"]) == {"cat", "dog"}
    for entry in found["scores"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["interval"]
    assert "fid_clean" in score_table(found)


def test_a_reference_is_computed_once(calls: Calls, folders: Path) -> None:
    first = score(config(folders, ["fid_clean"]), folders / "a")
    seen = calls.seen["inception_clean"]
    again = score(config(folders, ["fid_clean"]), folders / "b")
    assert again == first
    assert calls.seen["inception_clean"] - seen == 16  # the images alone
    seen = calls.seen["inception_clean"]
    score(config(folders, ["fid_clean", "kid_clean"]), folders / "two")
    assert calls.seen["inception_clean"] - seen == 16 + 24  # the features that KID needs of each image
    seen = calls.seen["inception_clean"]
    score(config(folders, ["kid_clean"]), folders / "one")
    assert calls.seen["inception_clean"] - seen == 16
    write_images(folders / "real" / "cat", 1, seed=3)
    other = score(config(folders, ["fid_clean"]), folders / "c")
    assert other["reference"]["sha256"] != first["reference"]["sha256"]


def test_without_intervals_sums_are_enough(calls: Calls, folders: Path) -> None:
    whole = score(config(folders, ["fid_clean"]), folders / "a")["scores"]["fid_clean"]
    summed = score(config(folders, ["fid_clean"], intervals=False), folders / "b")["scores"]["fid_clean"]
    assert summed["value"] == pytest.approx(whole["value"], rel=1e-9)
    assert summed["low"] is None
    assert not list((folders / "b").rglob("rows.bin"))


def test_statistics_of_a_file_are_a_reference(calls: Calls, folders: Path) -> None:
    paths = sorted((folders / "real").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path).resize((4, 4))) for path in paths])
    pool = (pixels.reshape(len(pixels), -1, 3)[:, :7] / np.float32(255)).reshape(len(pixels), -1)
    facts = {"extractor": "inception_clean", "resize": "clean", "images": 20}
    statistics = Statistics(pool.mean(0, np.float64), np.cov(pool.astype(np.float64), rowvar=False), facts)
    write_statistics(folders / "real.npz", statistics)
    own = config(folders, ["fid_clean"])
    wanted = score(own, folders / "a")["scores"]["fid_clean"]["value"]
    from_file = score(config(folders, ["fid_clean"], reference=str(folders / "real.npz")), folders / "b")
    assert from_file["scores"]["fid_clean"]["value"] == pytest.approx(wanted, rel=1e-6)
    assert from_file["reference"]["images"] == 20
    with pytest.raises(InputError, match=r"kid_clean"):
        score(config(folders, ["kid_clean"], reference=str(folders / "real.npz")), folders / "c")
    write_statistics(folders / "other.npz", Statistics(statistics.mean, statistics.covariance, facts | {"resize": "x"}))
    with pytest.raises(InputError, match=r"other\.npz.*resize"):
        score(config(folders, ["fid_clean"], reference=str(folders / "other.npz")), folders / "d")


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("one image", r"images: .*1 image"),
        ("sizes", r"2 sizes.*9 x 8"),
        ("caption", r"000003\.png"),
        ("no table", r"metadata\.csv"),
        ("unreadable", r"1 unreadable.*000002\.png"),
        ("no reference", r"reference"),
        ("no folder", r"nowhere"),
        ("metric", r"fid_claen.*fid_clean"),
        ("no metric", r"metrics: none"),
        ("subject", r"dog"),
    ],
)
def test_bad_input_is_one_line(mistake: str, named: str, calls: Calls, folders: Path) -> None:
    more: dict[str, object] = {}
    images = folders / "images"
    if mistake == "one image":
        for path in sorted(images.glob("*.png"))[1:]:
            path.unlink()
        write_captions(images, 1)
    elif mistake == "sizes":
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(images / "000004.png")
    elif mistake == "caption":
        write_captions(images, 12, missing=3)
    elif mistake == "no table":
        (images / "metadata.csv").unlink()
    elif mistake == "unreadable":
        (images / "000002.png").write_text("text")
    elif mistake == "subject":
        for path in (folders / "real" / "dog").iterdir():
            path.unlink()
    more |= {"no reference": {"reference": ""}, "no folder": {"images": "nowhere"}}.get(mistake, {})
    metrics = {"metric": ["fid_claen"], "no metric": []}.get(mistake, ALL)
    with pytest.raises(InputError, match=named) as error:
        score(config(folders, metrics, **more), folders / "out")
    assert "\n" not in str(error.value)
    assert not (folders / "out" / "scores.json").exists()


def test_unreadable_images_may_be_left_out(calls: Calls, folders: Path) -> None:
    path = folders / "images" / "000002.png"
    path.write_bytes(path.read_bytes()[:60])  # its header is whole
    with pytest.raises(InputError, match=r"1 unreadable.*000002\.png"):
        score(config(folders), folders / "a")
    found = score(config(folders, most_unreadable=1), folders / "b")
    assert (found["images"], found["unreadable"]) == (11, 1)


def test_both_tables_have_the_protocols() -> None:
    assert set(SCORING) == set(PROTOCOLS)


def test_departures_from_a_protocol_are_named() -> None:
    facts = {
        "reference": {"images": 40_504, "size": [256, 256], "prompts": {"texts_sha256": "a", "seed": None}},
        "extractors": {
            "clip": {"architecture": "ViT-g-14", "dtype": "float32", "weights": "/x/CLIP-ViT-g-14-laion2B-s34B-b88K"},
            "inception_pytorch_fid": {"sha256": SHA256},
        },
    }
    made = dict(PROTOCOLS["bk_sdm"].settings)
    metrics = SCORING["bk_sdm"].metrics
    right = ("bk_sdm", 30_000, (256, 256), made, facts, metrics)
    assert departures(*right, "a") == []
    assert departures(*right, "b") == ["prompts other than those of the reference's prompts.csv"]
    assert departures(*right, None) == ["the images' prompts are unknown"]
    for key, value in {"eta": 1.0, "vae": "x", "clip_skip": 1, "embeddings": ["x"], "latents": "x.npy"}.items():
        (step,) = departures("bk_sdm", 30_000, (256, 256), made | {key: value}, facts, metrics, "a")
        assert key in step
    for name, key, value in (
        ("clip", "weights", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
        ("inception_pytorch_fid", "sha256", "0" * 64),
    ):
        others = facts["extractors"] | {name: facts["extractors"][name] | {key: value}}
        (step,) = departures("bk_sdm", 30_000, (256, 256), made, facts | {"extractors": others}, metrics, "a")
        assert value[:8] in step
    facts["extractors"]["clip"] = {"architecture": "ViT-L-14", "dtype": "bfloat16", "weights": "x"}
    facts["reference"] = {"images": 500, "size": None, "prompts": {"texts_sha256": "a", "seed": 3}}
    found = departures("bk_sdm", 300, (512, 512), made | {"steps": 10}, facts, (*metrics, "cmmd"), "a")
    words = ("300 images", "512 x 512", "steps 10", "500", "several sizes", "ViT-L-14", "bfloat16", "cmmd", "seed 3")
    for word in words:
        assert any(word in step for step in found), word
    facts["reference"]["prompts"] = None
    found = departures("bk_sdm", 30_000, (256, 256), None, facts, metrics, "a")
    for word in ("made is unknown", "prompts may not", "several sizes"):
        assert any(word in step for step in found), word


def test_images_are_scored_without_files(calls: Calls, pico_teacher: Path, tmp_path: Path) -> None:
    """The same scores as from files, and a stopped run continues."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a photo of {i}\n" for i in range(20)))
    settings = {
        "model": str(pico_teacher),
        "prompts": str(prompts),
        "steps": 2,
        "sampler": "ddim",
        "batch_size": 1,
        "format": "jpeg",
        "guidance_scale": 1.0,
    }
    sample(SampleConfig(**settings), tmp_path / "files")
    own = {"metrics": ("clip_score",), "scoring_batch_size": 1}
    from_files = score(ScoreConfig(images=str(tmp_path / "files"), **own), tmp_path / "scores")
    live = SampleAndScoreConfig(**settings, score=MetricsConfig(**own))
    found = sample_and_score(live, tmp_path / "live")
    assert found["scores"] == from_files["scores"]
    assert not list((tmp_path / "live").rglob("*.jpg"))
    assert from_files["model"]["settings"] == found["model"]["settings"]
    assert found["model"]["unet_parameters"] > 0
    progress = next((tmp_path / "live").rglob("progress.json"))
    assert json.loads(progress.read_text())["done"] == 20
    seen = calls.seen["clip"]
    assert sample_and_score(live, tmp_path / "live")["scores"] == found["scores"]
    assert calls.seen["clip"] == seen


def test_a_foreign_workdir_is_refused(calls: Calls, folders: Path) -> None:
    write_json(folders / "out.json", {})
    (folders / "out").mkdir()
    (folders / "out" / "mine.txt").write_text("text")
    with pytest.raises(InputError, match="out"):
        score(config(folders), folders / "out")
    score(config(folders), folders / "again")
    with pytest.raises(InputError, match="kid_subset_size"):
        score(config(folders, kid_subset_size=5), folders / "again")
