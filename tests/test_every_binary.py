"""Each binary starts, explains itself, and does its work on networks that are as small as can be."""

import json
import re
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from bksdm_jax.base.files import read_json
from bksdm_jax.base.images import save_png
from bksdm_jax.experiments.sweep import read_sweep
from bksdm_jax.reports.curves import read_points
from bksdm_jax.shapes.world import example
from tests import micro, tiny
from tests.binaries import fail, metrics, micro_run, settings, succeed

PROMPTS = """subject_name,class
rex,dog

Object prompts [ 'a {0} {1}'.format(unique_token, class_token) ]
Live prompts [ 'a {0} {1}'.format(unique_token, class_token) ]
"""


def test_prune_prints_the_plan_and_the_cost(micro_teacher: Path, tmp_path: Path) -> None:
    printed = succeed(
        "prune", settings("prune.py", tmp_path / "cut", teacher=micro_teacher, student=tiny.MICRO_STUDENT)
    )
    origins = [line.split() for line in printed.splitlines()]
    assert ["up_blocks.1.resnets.1", "up_blocks.1.resnets.2"] in origins  # the student's and the teacher's
    assert all(part in printed for part in (*tiny.MICRO_STUDENT.split(","), "parameters", "total"))
    assert printed.splitlines()[-1] == str(tmp_path / "cut")
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "cut").unet.config.layers_per_block == [1, 2]


def test_cost_prints_what_is_left(micro_teacher: Path) -> None:
    list_of_blocks = tiny.MICRO_STUDENT.replace(",", "+")
    printed = succeed("cost", settings("cost.py", pipeline=micro_teacher, students=list_of_blocks))
    assert all(part in printed for part in ("text encoder", "U-Net", "decoder", "down_blocks.0.resnets.1"))


@pytest.mark.slow
def test_bench_times_scores() -> None:
    printed = succeed("bench", settings("bench.py:scores", batch_size=1, repeats=1)).splitlines()
    assert "in one pass" in printed[-1]
    assert "torch_fidelity" in fail("bench", settings("bench.py:scores_beside", batch_size=1, repeats=1))


@pytest.mark.slow
def test_bench_times_checkpoints() -> None:
    small = {"widths": "(32,32,32,32)", "repeats": 1, "checkpoint_every": 10, "seconds_per_update": 0.5}
    size, save, share, memory = succeed("bench", settings("bench.py:checkpoints,bk_tiny", **small)).splitlines()
    assert size.startswith("a training state of ")
    total, waits = map(float, re.findall(r"(\d+\.\d+) s", save))
    assert 0 < waits <= total
    assert "every 10 updates of 0.5 s" in share
    assert float(share.split()[-4].rstrip("%")) == pytest.approx(100 * waits / (5 + waits), abs=0.2)
    assert "MiB after two saves" in memory


def test_bench_times_a_unet() -> None:
    small = {"widths": "(32,32,32,32)", "resolution": 64, "steps": 0, "repeats": 1}
    printed = succeed("bench", settings("bench.py:bk_tiny", **small)).splitlines()
    assert "widths 32-32-32-32" in printed[0]
    assert len(printed) == 3
    assert "'unets'" in fail("bench", settings("bench.py", what="unets"))
    assert "rank: 16, but what is update" in fail("bench", settings("bench.py:update,lora"))


@pytest.mark.slow
@pytest.mark.parametrize("variants", ["finetune,lora", "finetune"])
def test_bench_times_a_finetuning(variants: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bksdm_jax.perf.bench.stable_diffusion", lambda generation: micro.networks())
    small = {"student": micro.ONE_STAGE, "resolution": 16, "repeats": 1}
    head, _, row, trained, memory = succeed("bench", settings(f"bench.py:{variants}", **small)).splitlines()
    assert "of SD v1, batch 1, float32, 16x16 pixels, on cpu" in head
    assert row.startswith("update ")
    what = "numbers of adapters" if "lora" in variants else "weights"
    assert re.fullmatch(rf"[\d,]+ {what} of U-Net and text encoder are trained", trained)
    assert re.search(r"frozen networks [\d.]+, \w+.* [\d.]+, optimiser [\d.]+", memory)


@pytest.mark.slow
def test_plan_of_a_run_on_this_machine(micro_teacher: Path) -> None:
    run = micro_run(micro_teacher, Path("no_data"), Path("no_workdir"))
    printed = succeed("plan", [*run[:-1], "--config.plan.cached=False"])
    assert "2 images per update: 1 micro-batch(es), 2 on each of 1 device(s)" in printed
    assert "16 px from images" in printed


def test_compare_finds_no_difference(pico_teacher: Path, tmp_path: Path) -> None:
    printed = succeed("compare", settings("compare.py", tmp_path / "out", model=pico_teacher, steps=0))
    assert all(network in printed for network in ("text encoder", "U-Net", "VAE decoder", "VAE encoder"))
    assert (tmp_path / "out" / "differences.json").is_file()


@pytest.mark.slow
def test_a_sweep_of_one_run(micro_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    flags = micro_run(micro_teacher, photographs, tmp_path, steps=2)[1:-1]
    shared = tuple(flag.removeprefix("--config.") for flag in flags)
    printed = succeed("sweep", settings("sweep.py", tmp_path / "out", runs="('v1,runlocal',)", settings=shared))
    (row,) = read_sweep(tmp_path / "out" / "sweep.csv")
    assert (row["run"], row["status"], row["updates"]) == ("v1_runlocal", "done", "2")
    assert len(metrics(tmp_path / "out" / "v1_runlocal")) == 2
    assert (tmp_path / "out" / "v1_runlocal" / "model" / "model_index.json").is_file()
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "sweep.csv")


def test_prepare_makes_a_set(photographs: Path, tmp_path: Path) -> None:
    small = {"source": photographs, "resolution": 16, "workers": 1}
    printed = succeed("prepare", settings("prepare.py", tmp_path / "set", **small))
    assert f"{len(tiny.PHOTOGRAPHS)} captions" in printed
    assert (tmp_path / "set" / "dataset_info.json").is_file()


def test_score_of_the_shapes_themselves(tmp_path: Path) -> None:
    rows = ["file_name,text"]
    for index in range(4):
        image, caption = example("heldout", index)
        save_png(tmp_path / f"{index}.png", image)
        rows.append(f'{index}.png,"{caption}"')
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    small = {"images": tmp_path, "reference_count": 4, "scoring_batch_size": 4, "cache": tmp_path / "cache"}
    assert "attribute_accuracy" in succeed("score", settings("score.py:shapes", tmp_path / "out", **small))
    found = read_json(tmp_path / "out" / "scores.json")
    scores = found["scores"]
    assert found["images"] == 4
    assert scores["attribute_accuracy"]["value"] == 1
    assert scores["fd_clip_shapes"]["value"] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_tradeoff_draws_curves(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(example("heldout", index)[1] for index in range(2)))
    small = {"prompts": tmp_path / "prompts.txt", "steps": 1, "batch_size": 2}
    small |= {"metrics": "('attribute_accuracy',)", "over_guidance": "(2.0,3.0)"}
    printed = succeed("tradeoff", settings("tradeoff.py:shapes", tmp_path / "out", **small))
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    points = read_points(tmp_path / "out" / "curves.csv")
    assert [(point.curve, point.x, point.metric) for point in points] == [
        ("shapes_teacher", scale, "attribute_accuracy") for scale in (2.0, 3.0)
    ]


def test_reference_makes_images_and_prompts(photographs: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photographs.glob("*.png"))
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    captions = [{"id": i, "image_id": i, "caption": f"A photograph, {name}"} for i, name in enumerate(names)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    small = {"images": photographs, "captions": tmp_path / "captions.json", "count": 2, "size": 16}
    printed = succeed("reference", settings("reference.py:bk_sdm", tmp_path / "out", **small)).splitlines()
    assert "  2 prompts, not 30,000" in printed
    assert f"--config.reference={tmp_path / 'out' / 'images'}" in printed[-1]
    assert len((tmp_path / "out" / "prompts.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "out" / "images").glob("*.jpg"))) == len(names)
    assert "'mlperf'" in fail("reference", settings("reference.py:mlperf", tmp_path / "other", **small))


@pytest.mark.parametrize("verb", ["demo", "ablation"])
def test_students_beside_each_other_have_settings(verb: str, tmp_path: Path) -> None:
    """Their work is too long for here: `make demo` shows it."""
    assert "images" in fail(verb, settings(f"{verb}.py", tmp_path / "out", images=0))
    assert not (tmp_path / "out" / "config.json").exists()


def test_subjects_need_their_dataset(tmp_path: Path) -> None:
    own = {"dataset": tmp_path, "subject": "rex", "model": "shapes_teacher"}
    assert "prompts_and_classes.txt" in fail("subjects", settings("subjects.py:v1,lora", tmp_path / "out", **own))
    (tmp_path / "prompts_and_classes.txt").write_text(PROMPTS)
    assert "photographs of rex" in fail("subjects", settings("subjects.py:v1", tmp_path / "out", **own))
    assert "no finished subject" in fail("subjects", settings("subjects.py", tmp_path / "out", dataset=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("variants", "made"), [("v1,runlocal", "model"), ("v1,runlocal,lora", "lora.safetensors")])
def test_a_subject_is_made(pico_teacher: Path, photographs: Path, tmp_path: Path, variants: str, made: str) -> None:
    (tmp_path / "prompts_and_classes.txt").write_text(PROMPTS)
    (tmp_path / "rex").mkdir()
    for path in list(photographs.glob("*.png"))[:2]:
        (tmp_path / "rex" / path.name).symlink_to(path)
    own = {"dataset": tmp_path, "subject": "rex", "model": pico_teacher, "prior__model": pico_teacher}
    own |= {"resolution": 16, "steps": 2, "prior__images": 2}
    printed = succeed("subjects", settings(f"subjects.py:{variants}", tmp_path / "out", **own))
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "rex")
    assert (tmp_path / "out" / "rex" / "training" / made).exists()
    assert (tmp_path / "out" / "rex" / "metadata.csv").read_text().splitlines()[1:] == [
        "images/images/000000.png,a sks11df dog,rex"
    ]


def test_the_shapes_teacher_has_settings(tmp_path: Path) -> None:
    assert "clip.steps" in fail("shapes_teacher", settings("shapes_teacher.py", tmp_path / "out", clip__steps=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_shapes_teacher_is_made(tmp_path: Path) -> None:
    phases = {f"{name}__steps": 2 for name in ("vae_crops", "vae", "clip", "unet")}
    phases |= {f"{name}__warmup": 1 for name in ("vae_crops", "vae", "clip", "unet")}
    phases |= {f"{name}__batch_size": 2 for name in ("vae_crops", "vae", "clip", "unet")}
    small = {"dataset": "demo", "vae_images": 8, "clip_groups": 4}
    printed = succeed("shapes_teacher", settings("shapes_teacher.py", tmp_path / "out", **small | phases))
    made = Path(printed.splitlines()[-1])  # the lines before it are of TFDS, when it prepares the dataset
    assert made == tmp_path / "out" / "made"
    images = {"model": made / "teacher", "prompt": "a red circle", "steps": 1}
    assert "1 image" in succeed("sample", settings("sample.py", tmp_path / "images", **images))


def test_a_workdir_is_asked_for() -> None:
    assert "--workdir" in fail("prune", settings("prune.py", teacher="shapes_teacher"))
    assert "gs://b/run" in fail("prune", [*settings("prune.py", teacher="shapes_teacher"), "--workdir=gs://b/run"])
