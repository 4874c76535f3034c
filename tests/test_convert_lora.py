"""A teacher's LoRA for a student: its updates are those of the teacher's blocks that the student has."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.formats import names
from bksdm_jax.formats.lora_file import read_lora_file
from bksdm_jax.formats.original_names import original_name, unet_modules
from bksdm_jax.pipelines.config import LoraOptions
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.lora import open_loras
from bksdm_jax.pruning.convert_lora import convert_lora, moved_table
from bksdm_jax.pruning.lora_config import ConvertLoraConfig
from bksdm_jax.pruning.prune import PruneConfig, prune
from tests import loras, surgery, tiny
from tests.binaries import settings, succeed

STUDENTS = ("bk_base", "bk_small", "bk_tiny", "no_mid")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_torch_pipeline(tmp_path_factory.mktemp("convert") / "teacher", vae=tiny.MICRO_VAE)


@pytest.fixture(scope="module")
def pytorch(teacher: Path) -> StableDiffusionPipeline:
    return loras.load(teacher)


@pytest.fixture(scope="module")
def students(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    for name in STUDENTS:
        prune(PruneConfig(str(teacher), name), folder / name)
    return {name: folder / name for name in STUDENTS}


@pytest.fixture(scope="module")
def found(pytorch: StableDiffusionPipeline) -> loras.Pairs:
    return loras.pairs(pytorch, loras.LAYERS + loras.CONVOLUTIONS, 0)


def fused(pytorch: StableDiffusionPipeline, found: loras.Pairs) -> torch.nn.Module:
    """The teacher's U-Net with the updates, computed here."""
    unet = copy.deepcopy(pytorch.unet)
    with torch.no_grad():
        for name, (down, up) in found["unet"].items():
            weight = unet.get_submodule(name).weight
            weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return unet


def updates(path: Path, student: Path) -> dict[str, np.ndarray]:
    """PyTorch name of a weight of the student's U-Net -> its update by a file."""
    (lora,) = open_loras(LoraOptions(lora=(str(path),)), find_model(student).architectures)
    return {names.torch_name(key): names.to_torch(key, one.update()) for key, one in lora.adapters["unet"].items()}


def convert(lora: Path, student: Path, workdir: Path, **settings: Any) -> tuple[Path, Any]:
    return convert_lora(ConvertLoraConfig(lora=str(lora), model=str(student), **settings), workdir)


@pytest.mark.parametrize("student", STUDENTS)
def test_updates_are_the_teachers(
    student: str, pytorch: Any, found: loras.Pairs, students: dict[str, Path], tmp_path: Path
) -> None:
    """Blocks are taken out of PyTorch's U-Net by hand, once with the updates and once without."""
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(found, alpha=1.0))
    made, moved = convert(path, students[student], tmp_path / "out", save_dtype="float32")
    ranks = {name: down.shape[0] for name, (down, _) in found["unet"].items()}
    scaled = {"unet": {name: (down, up / ranks[name]) for name, (down, up) in found["unet"].items()}}
    after = surgery.operate(fused(pytorch, scaled), **surgery.PAPER[student]).state_dict()
    before = surgery.operate(pytorch.unet, **surgery.PAPER[student]).state_dict()
    expected = {
        name: (after[name] - before[name]).numpy() for name in before if not torch.equal(after[name], before[name])
    }
    ours = updates(made, students[student])
    assert ours.keys() == expected.keys()
    for name, update in ours.items():
        np.testing.assert_allclose(update, expected[name], atol=1e-5)
    every = sum(float(np.square(part).sum()) for part in _all_updates(scaled, found).values())
    kept = sum(float(np.square(update).sum()) for update in ours.values()) + _text(found)
    assert sum(one.lost for one in moved) / sum(one.squares for one in moved) == pytest.approx(
        1 - kept / every, abs=1e-5
    )
    assert sum(one.modules for one in moved) == len(found["unet"]) + len(found["text_encoder"])
    gone = [one.teacher for one in moved if not one.student]
    removed = read_json(students[student] / "removal_plan.json")["removed"]
    assert all(name in removed or name.rsplit(".", 2)[0] in removed or "samplers" in name for name in gone)
    assert ("mid_block.attentions.0" in gone) == (student != "bk_base")
    assert f"{1 - kept / every:.2%}" in moved_table(moved)
    with safe_open(made, "np") as file:
        said = file.metadata()
    assert said["bksdm_jax.converted_from"] == "style.safetensors"
    assert re.fullmatch("[0-9a-f]{64}", said["bksdm_jax.converted_from_sha256"])
    assert said["bksdm_jax.removed"].split(",") == removed
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"


def _all_updates(scaled: loras.Pairs, found: loras.Pairs) -> dict[str, np.ndarray]:
    unet = {name: (up.flatten(1) @ down.flatten(1)).numpy() for name, (down, up) in scaled["unet"].items()}
    return unet | {"text": np.sqrt(np.array([_text(found)]))}


def _text(found: loras.Pairs) -> float:
    return sum(float(((up @ down) / down.shape[0]).square().sum()) for down, up in found["text_encoder"].values())


def test_all_layouts_convert_alike(teacher: Path, pytorch: Any, students: dict[str, Path], tmp_path: Path) -> None:
    attention = loras.pairs(pytorch, loras.ATTENTION)
    original = unet_modules(find_model(teacher).architectures.denoiser)
    files = {
        "kohya": loras.kohya(attention),
        "peft": loras.peft(attention, "text_model."),
        "oldest": loras.oldest(attention),
        "original": {
            f"lora_unet_{original_name(key, original).removeprefix('model.diffusion_model.').replace('.', '_')}"[:-7]
            + f".lora_{part}.weight": tensor
            for name, pair in attention["unet"].items()
            for key in [f"{name}.weight"]
            for part, tensor in zip(("down", "up"), pair, strict=True)
        },
    }
    expected = None
    for name, tensors in files.items():
        path = loras.write(tmp_path / f"{name}.safetensors", tensors)
        for layout in ("kohya", "diffusers"):
            made, _ = convert(path, students["bk_small"], tmp_path / f"{name}_{layout}", layout=layout)
            update = updates(made, students["bk_small"])
            expected = expected or update
            assert update.keys() == expected.keys()
            for key, value in update.items():
                np.testing.assert_array_equal(value, expected[key])


def test_a_plan_alone_is_enough(found: loras.Pairs, students: dict[str, Path], tmp_path: Path) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(found), {"ss_base_model_version": "sd_v1"})
    plan = tmp_path / "plan" / "removal_plan.json"
    plan.parent.mkdir()
    plan.write_bytes((students["bk_tiny"] / "removal_plan.json").read_bytes())
    made, _ = convert(path, plan, tmp_path / "out")
    again, _ = convert(path, students["bk_tiny"], tmp_path / "again")
    ours, theirs = (read_lora_file(one, {}) for one in (made, again))
    assert ours.keys == theirs.keys
    assert ours.metadata["ss_base_model_version"] == "sd_v1"


def test_a_block_that_is_interpolated_was_the_teachers(
    teacher: Path, pytorch: Any, found: loras.Pairs, tmp_path: Path
) -> None:
    prune(PruneConfig(str(teacher), "down_blocks.1.resnets.0:interpolate"), tmp_path / "student")
    convolutions = loras.pairs(pytorch, ("conv1",), 0)["unet"]
    path = loras.write(tmp_path / "style.safetensors", loras.kohya({"unet": convolutions}))
    made, moved = convert(path, tmp_path / "student", tmp_path / "out")
    assert [one.teacher for one in moved if not one.student] == ["down_blocks.1.resnets.0"]
    assert len(updates(made, tmp_path / "student")) == len(convolutions) - 1
    with pytest.raises(InputError, match="converted already"):
        convert(made, tmp_path / "student", tmp_path / "again")


def test_what_the_teacher_lacks_is_left_out_if_allowed(
    found: loras.Pairs, students: dict[str, Path], tmp_path: Path
) -> None:
    conv = (torch.ones(2, 4, 3, 3), torch.ones(64, 2, 1, 1))
    extra = {"unet": found["unet"] | {"elsewhere": conv}, "text_encoder": dict(found["text_encoder"])}
    name, pair = next(iter(found["text_encoder"].items()))
    extra["text_encoder"][re.sub(r"layers\.\d+", "layers.99", name)] = pair
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(extra))
    with pytest.raises(InputError, match="no place in the teacher"):
        convert(path, students["bk_small"], tmp_path / "refused")
    made, _ = convert(path, students["bk_small"], tmp_path / "out", allow_unplaced_lora=True)
    plain, _ = convert(
        loras.write(tmp_path / "plain.safetensors", loras.kohya(found)), students["bk_small"], tmp_path / "plain"
    )
    assert read_lora_file(made, {}).keys == read_lora_file(plain, {}).keys


def test_a_teachers_lora_is_refused_on_a_student(found: loras.Pairs, students: dict[str, Path], tmp_path: Path) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(found))
    with pytest.raises(InputError, match=r"style\.safetensors: .*no place.*convert_lora"):
        updates(path, students["bk_small"])
    assert "launch.convert_lora" in (students["bk_small"] / "README.md").read_text()


def test_the_program(found: loras.Pairs, students: dict[str, Path], tmp_path: Path) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(found))
    printed = succeed(
        "convert_lora", settings("convert_lora.py", tmp_path / "out", lora=path, model=students["bk_tiny"])
    )
    rows = [line.split() for line in printed.splitlines()]
    assert ["up_blocks.3.attentions.2", "up_blocks.2.attentions.1"] in [row[:2] for row in rows]
    assert ["mid_block.attentions.0", "removed"] in [row[:2] for row in rows]
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "style.safetensors")


def test_what_cannot_be_converted_is_refused(
    pytorch: Any, found: loras.Pairs, students: dict[str, Path], tmp_path: Path
) -> None:
    good, student = loras.write(tmp_path / "good.safetensors", loras.kohya(found)), students["bk_small"]
    mid = {"unet": {name: pair for name, pair in found["unet"].items() if name.startswith("mid_block")}}
    wide = {"unet": {"conv_in": (torch.ones(2, 4, 3, 3), torch.ones(64, 2, 1, 1))}}
    deep = {"unet": {"down_blocks.0.attentions.5.proj_in": found["unet"]["down_blocks.0.attentions.0.proj_in"]}}
    odd = {"unet": {"elsewhere": wide["unet"]["conv_in"]}}
    plan = tmp_path / "plans" / "removal_plan.json"
    plan.parent.mkdir()
    cases: list[tuple[Any, Any, str]] = [
        (loras.write(tmp_path / "mid.safetensors", loras.kohya(mid)), student, r"mid\.safetensors: nothing"),
        (loras.write(tmp_path / "wide.safetensors", loras.kohya(wide)), student, r"wide\.safetensors: .*conv_in.*64"),
        (loras.write(tmp_path / "deep.safetensors", loras.kohya(deep)), student, r"deep\.safetensors: .*attentions_5"),
        (
            loras.write(tmp_path / "odd.safetensors", loras.kohya(odd)),
            student,
            r"odd\.safetensors: .*elsewhere",
        ),
        (good, tmp_path, r"model: .*removal_plan\.json: no such file"),
    ]
    for text, said in (
        ("[]", "JSON object"),
        ('{"removed": 3}', "removed is 3"),
        ('{"removed": ["conv_in"]}', "removed is"),
        ('{"removed": [], "blocks": []}', "blocks is"),
        ('{"removed": [], "blocks": {"a": "b"}}', "blocks has"),
        ('{"removed": [], "blocks": {"mid_block.resnets.0": "mid_block.resnets.1", '
         '"mid_block.resnets.1": "mid_block.resnets.1"}}', "twice"),
    ):  # fmt: skip
        own = tmp_path / "plans" / f"{len(cases)}.json"
        own.write_text(text)
        cases.append((good, own, rf"{len(cases)}\.json: .*{said}"))
    for lora, whose, said in cases:
        with pytest.raises(InputError, match=said) as error:
            convert(lora, whose, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match=r"out: exists already"):
        convert(good, student, tmp_path / "out")
