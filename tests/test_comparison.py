"""The comparison's own work, its expensive parts replaced by quick ones: resuming, refusing, the report's contents."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.images import save_png
from bksdm_jax.experiments import comparison
from bksdm_jax.experiments.comparison import ComparisonConfig, compare_students
from bksdm_jax.experiments.table import EXPERIMENTS
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.shapes.world import ShapesConfig, ShapesWorld, example
from bksdm_jax.tasks.distill.config import LossWeights
from tests import tiny

OTHER = {"teacher": {}, "student": {"cross_attention_dim": 48}}


def demo(config: ComparisonConfig, workdir: Path) -> Path | None:
    return compare_students(config, EXPERIMENTS["demo"], workdir)


class Fakes:
    """Stand-ins that write what the real ones write, and note what they were asked for."""

    def __init__(self) -> None:
        self.trained, self.sampled = [], []
        self.interrupt_at: str | None = None

    def distill(self, config, folder):
        if self.interrupt_at == folder.name:
            return None
        self.trained.append((folder.name, config))
        (folder / "model").mkdir(parents=True)
        terms = ["loss_task", *(["feature/mid_block"] if config.loss.feature else [])]
        rows = [f"{step},{','.join(['0.5'] * len(terms))}" for step in (1, 2)]
        (folder / "metrics.csv").write_text("\n".join([",".join(["step", *terms]), *rows]) + "\n")
        return folder / "model"

    def sample(self, config, folder):
        self.sampled.append((folder.name, config))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with Path(config.prompts).open(newline="") as file:
            prompts = list(csv.DictReader(file))
        table = ["file_name,text"]
        for index, prompt in enumerate(prompts):
            picture, text = example("heldout", int(prompt["file_name"].split("/")[1]))
            save_png(folder / "images" / f"{index:06d}.png", picture if text == prompt["text"] else 0 * picture)
            table.append(f"images/{index:06d}.png,{prompt['text']}")
        (folder / "metadata.csv").write_text("\n".join(table) + "\n")
        calls = {"teacher": [0.25, 0.25, 9.0], "untrained": [], "no_kd": [1.0], "kd": [2.0, 3.0, 4.0]}[folder.name]
        write_json(
            folder / "timing.json", {"batch_size": 4, "seconds_per_image": 0.1, "seconds_per_image_by_call": calls}
        )


@pytest.fixture
def fakes(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    few = ShapesConfig(name="few", train=4, heldout=6)

    def build(place, name):
        builder = ShapesWorld(data_dir=folder, config=few, file_format="array_record")
        builder.download_and_prepare()
        return folder / "shapes_world" / "few" / "1.0.0"

    fakes = Fakes()
    teacher = folder / "teacher"
    scores = {"value": 0.5, "low": 0.4, "high": 0.6}

    def score(config, place):
        groups = {name: scores | {"chance": 0.3, "facts": 9} for name in ("all", "shape")}
        place.mkdir(parents=True)
        accuracy = groups["all"] | {"unreadable": 0.0, "groups": groups}
        found = {"attribute_accuracy": accuracy, "clip_score_shapes": scores, "fd_clip_shapes": scores}
        write_json(place / "scores.json", {"scores": found, "images": 6, "reference": {"images": 10}})

    monkeypatch.setattr(comparison, "build", build)
    networks = {name: unet_from_diffusers(tiny.MICRO | more) for name, more in OTHER.items()}

    def find_model(name):
        network = networks["teacher" if name in (comparison.TEACHER, teacher) else "student"]
        return SimpleNamespace(path=teacher, architectures=SimpleNamespace(denoiser=network))

    monkeypatch.setattr(comparison, "find_model", find_model)
    monkeypatch.setattr(comparison, "prune", lambda config, place: place.mkdir(parents=True))
    monkeypatch.setattr(comparison, "score", score)
    monkeypatch.setattr(comparison, "pretrained_identity", lambda: "0" * 64)
    student = unet_from_diffusers(tiny.MICRO)
    monkeypatch.setattr(comparison, "plan_student", lambda *args: SimpleNamespace(student=student))
    monkeypatch.setattr(comparison, "require_sampler", lambda *args: None)
    monkeypatch.setattr(ShapesWorld, "builder_configs", {"demo": few})
    for name in ("distill", "sample"):
        monkeypatch.setattr(comparison, name, getattr(fakes, name))
    return fakes


def test_rows_differ_in_what_they_say_and_nothing_else(fakes, tmp_path) -> None:
    config = ComparisonConfig(images=6, steps=70)
    page = demo(config, tmp_path / "demo")
    assert page == tmp_path / "demo" / "report.html"
    (first, without), (second, distilled) = fakes.trained
    assert (first, second) == ("no_kd", "kd")
    assert without.loss == LossWeights(1, 0, 0)
    assert distilled.loss == LossWeights(1, 1, 1)
    different = {name for name, value in vars(without).items() if value != getattr(distilled, name)}
    assert different == {"loss"}
    samplings = [dict(vars(config), model="") for _, config in fakes.sampled]
    assert all(sampling == samplings[0] for sampling in samplings)
    assert [name for name, _ in fakes.sampled] == ["teacher", "untrained", "no_kd", "kd"]
    report = read_json(tmp_path / "demo" / "report.json")
    assert [row["label"] for row in report["rows"]] == [row.label for row in EXPERIMENTS["demo"].rows]
    assert all(row["unet_parameters"] > 0 for row in report["rows"])
    # The students have one U-Net, so one speed: the median of all their calls.
    assert [row["seconds_per_image"] for row in report["rows"]] == [0.25, 2.5, 2.5, 2.5]
    assert all(row["scores"]["clip_score_shapes"]["value"] == 0.5 for row in report["rows"])


def test_an_interrupted_demo_continues_and_a_finished_one_trains_nothing(fakes, tmp_path) -> None:
    config, folder = ComparisonConfig(images=6, steps=70), tmp_path / "demo"
    fakes.interrupt_at = "kd"
    assert demo(config, folder) is None
    assert not (folder / "report.html").exists()
    fakes.interrupt_at = None
    assert demo(config, folder) is not None
    assert [name for name, _ in fakes.trained] == ["no_kd", "kd"]
    before = (folder / "report.json").read_bytes()
    assert demo(config, folder) is not None
    assert len(fakes.trained) == 2
    assert (folder / "report.json").read_bytes() == before


def test_other_settings_need_another_folder(fakes, tmp_path) -> None:
    demo(ComparisonConfig(images=6), tmp_path / "demo")
    with pytest.raises(InputError, match=r"steps is 300 .* 301"):
        demo(ComparisonConfig(images=6, steps=301), tmp_path / "demo")
    with pytest.raises(InputError, match="images is 7"):
        demo(ComparisonConfig(images=7), tmp_path / "other")


def test_a_full_disk_is_told_before_anything_is_written(fakes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=90 * 2**20))
    with pytest.raises(InputError, match=r"90 MiB free on its disk, 1.. MiB needed"):
        demo(ComparisonConfig(images=6), tmp_path / "runs" / "demo")
    assert not (tmp_path / "runs").exists()


def test_the_ablation_has_the_papers_six_rows() -> None:
    rows = EXPERIMENTS["ablation"].rows
    trained = {(row.init, row.loss.output, row.loss.feature) for row in rows if row.loss}
    assert trained == {(init, *terms) for init in ("random", "teacher") for terms in ((0, 0), (1, 0), (1, 1))}
    assert len({row.name for row in rows}) == len(rows) == 7
