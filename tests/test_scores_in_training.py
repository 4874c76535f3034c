"""Scores during training: of the moving average, without a trace in the student, and refused before they fail."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.evaluation import scorer
from bksdm_jax.metrics import table
from bksdm_jax.metrics.bootstrap import Score
from bksdm_jax.metrics.store import Need
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.inputs import open_inputs
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig, ScoringConfig
from bksdm_jax.training.scoring import scoring
from bksdm_jax.training.sharding import make_mesh
from tests import tiny

PROMPTS = ("a photo of a red cat", "the blue cup", "a rocket of space")
NEED = Need("brightness", "mean", kept=True)


class Brightness:
    """Stands in for a network: an image's mean in thousandths, and its caption's length."""

    def __init__(self) -> None:
        self.facts = {"weights": "none", "resize": "none"}
        self.seen: list[list[np.ndarray]] = []

    def __call__(self, images: Sequence[np.ndarray], captions: Sequence[str] | None, batch_size: int) -> dict[str, Any]:
        self.seen.append(list(images))
        if captions is None or "unreadable" in " ".join(captions):
            raise InputError("captions: unreadable")
        return {
            "mean": np.array([image.mean() / 1000 + len(text) for image, text in zip(images, captions, strict=True)])
        }


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> list[Brightness]:
    """A metric `brightness` and its extractors, in the order of their loading."""
    loaded: list[Brightness] = []

    def load(config: object) -> Brightness:
        loaded.append(Brightness())
        return loaded[-1]

    def scores(evidence: table.Evidence) -> dict[str, Score]:
        value = float(evidence.images[NEED].mean())
        return {"brightness": Score(value, value - 1, value + 1, "none"), "count": Score(3.0, None, None)}

    monkeypatch.setitem(table.METRICS, "brightness", table.Metric(scores, NEED, captions=True))
    monkeypatch.setitem(scorer.EXTRACTORS, "brightness", load)
    return loaded


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def config(teacher: Path, data: Path, prompts: Path | str = "", **more: Any) -> DistillConfig:
    fixed = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32", "steps": 4, "log_every": 1}
    fixed |= {"sheets": SampleGridConfig(steps=0), "checkpoint_every": 0}
    fixed["optimizer"] = OptimizerConfig(learning_rate=1e-2)
    fixed["scoring"] = ScoringConfig(every=2, prompts=str(prompts), steps=2)
    return DistillConfig(str(teacher), tiny.PICO_STUDENT, str(data), **fixed | more)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(model: Path) -> list[np.ndarray]:
    return jax.tree.leaves(load_pipeline(model).denoiser.params)


@pytest.mark.slow
def test_scores_leave_no_trace_in_the_student_and_each_row_once(
    pico_teacher: Path,
    photographs: Path,
    prompts: Path,
    tmp_path: Path,
    brightness: list[Brightness],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "devices", lambda devices=jax.devices: devices()[:1])
    without = distill(config(pico_teacher, photographs), tmp_path / "without")
    scored, run = config(pico_teacher, photographs, prompts, evaluators=("brightness",)), tmp_path / "with"
    distill(dataclasses.replace(scored, steps=2), run)
    with (run / "scores.csv").open("a") as file:
        file.write("4,99,98,100,3\n")  # of updates that a kill took back
    found = distill(scored, run)
    for ours, theirs in zip(weights(found), weights(without), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not (tmp_path / "without/scores.csv").exists()
    table = rows(run / "scores.csv")
    assert [row["step"] for row in table] == ["2", "4"]
    assert list(table[0]) == ["step", "brightness", "brightness/low", "brightness/high", "count"]
    assert all(float(row["brightness"]) < 98 for row in table)
    assert float(table[0]["brightness/high"]) == pytest.approx(float(table[0]["brightness"]) + 1)
    assert list((run / "tensorboard/scores").iterdir())
    assert "brightness" in (run / "scores.svg").read_text()
    assert [len(extractor.seen) for extractor in brightness] == [1 + 1, 1 + 1]  # grey images, then those of one score
    assert not np.array_equal(brightness[0].seen[1], brightness[1].seen[1])


@pytest.mark.slow
def test_images_are_the_moving_averages(pico_teacher: Path, brightness: list[Brightness]) -> None:
    """The same on a mesh of two devices as the package's own way to sample gives."""
    pipeline = load_pipeline(pico_teacher)
    networks, mesh = pipeline.architectures, make_mesh(1, jax.devices()[:2])
    sampler = SamplerConfig(steps=2, resolution=16, seed=3)
    settings = ScoringConfig(batch_size=1)
    with jax.set_mesh(mesh):
        evaluator = scoring(
            settings, ("brightness",), pipeline.caption_inputs, PROMPTS, sampler, networks, np.float32, mesh
        )
        params = {name: network.params for name, network in pipeline.networks.items()}
        raw = jax.tree.map(lambda leaf: 2 * leaf, params["unet"])
        evaluator.run(1, SimpleNamespace(average=params["unet"], params=raw), {**params, "teacher": raw})
    from bksdm_jax.api import generate

    expected = generate(pipeline, list(PROMPTS), steps=2, seed=3, sampler="pndm")
    made = np.stack(brightness[0].seen[1])
    assert np.abs(made.astype(int) - expected.arrays.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"evaluators": ("clip_scor",)}, ("evaluators", "'clip_scor'", "'clip_score'")),
        ({"evaluators": ("brightness", "brightness")}, ("brightness",)),
        ({"evaluators": ("dino",)}, ("evaluators", "dino", "subjects")),
        ({"evaluators": ("fid_clean",)}, ("scoring.reference", "fid_clean")),
        ({"evaluators": ("brightness",), "scoring": ScoringConfig()}, ("scoring.prompts",)),
        ({"evaluators": ("brightness",), "scoring": ScoringConfig(prompts="/no/such.txt")}, ("/no/such.txt",)),
        ({"evaluators": ("brightness",), "scoring": ScoringConfig(images=1)}, ("scoring.images",)),
        ({"evaluators": ("brightness",), "scoring": ScoringConfig(prompts="p", sampler="magic")}, ("'magic'",)),
    ],
)
def test_what_cannot_be_scored_is_told_first(
    pico_teacher: Path, photographs: Path, prompts: Path, change: dict[str, Any], named: tuple[str, ...]
) -> None:
    if change.get("scoring") and change["scoring"].prompts == "p":
        change["scoring"] = dataclasses.replace(change["scoring"], prompts=str(prompts))
    with pytest.raises(InputError) as error:
        open_inputs(config(pico_teacher, photographs, prompts, **change))
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in named), error.value


def test_prompts_that_a_metric_cannot_read_are_told_before_an_update(
    pico_teacher: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "devices", lambda devices=jax.devices: devices()[:1])
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: None)  # an update would fail otherwise
    (tmp_path / "prompts.txt").write_text("fine\nunreadable\n")
    run = config(pico_teacher, photographs, tmp_path / "prompts.txt", evaluators=("brightness",))
    with pytest.raises(InputError, match="unreadable"):
        distill(run, tmp_path / "run")
    assert not (tmp_path / "run/metrics.csv").exists()
