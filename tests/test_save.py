"""How a pipeline is written: number formats, the parts that are copied, the model card, a student as a start."""

import errno
import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import FlaxUNet2DConditionModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.weights import write_tensors
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.model_card import parent_name, tools_text
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.pipelines.stable_diffusion import TEACHERS
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.prune import InitOptions, PruneConfig, find_initial_weights, plan_student, prune
from bksdm_jax.pruning.removal import plan_removal
from tests import tiny
from tests.arrays import require_equal

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", TORCH)
def test_every_network_is_written_in_the_wanted_numbers(micro_teacher: Path, tmp_path: Path, dtype: str) -> None:
    for file_format in ("safetensors", "flax"):
        config = PruneConfig(str(micro_teacher), tiny.MICRO_SMALL, format=file_format, save_dtype=dtype)
        prune(config, tmp_path / file_format)
    written = load_pipeline(tmp_path / "safetensors")
    for name, params in written.params.items():
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(NUMPY[dtype])}
        require_equal(load_pipeline(tmp_path / "flax").networks[name].params, params)
    stored = load_file(tmp_path / "safetensors" / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "safetensors" / "unet", torch_dtype=TORCH[dtype])
    assert stored.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert stored[name].dtype == TORCH[dtype]
        assert torch.equal(stored[name], tensor), name
    with jax.numpy_dtype_promotion("standard"):
        _, params = FlaxUNet2DConditionModel.from_pretrained(tmp_path / "flax" / "unet")
    require_equal(params, written.networks["unet"].params)


def test_numbers_beyond_float16_are_not_written(micro_teacher: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(micro_teacher)
    layer = pipeline.networks["vae"].params["quant_conv"]
    layer["bias"] = np.full_like(layer["bias"], 7e4)
    with pytest.raises(InputError, match=r"save_dtype: vae.* quant_conv/bias .*float16.*7e\+04"):
        write_pipeline(tmp_path / "half", pipeline, SaveConfig(dtype="float16"))
    assert not any(tmp_path.iterdir())
    write_pipeline(tmp_path / "half", pipeline, SaveConfig(dtype="bfloat16"))


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("bksdm_jax.formats.weights.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_tensors(tmp_path / "a.safetensors", {})
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(3, np.float32)})
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"format": "safetensor"}, ["format: ", "'safetensor'", "'safetensors'"]),
        ({"save_dtype": "fp16"}, ["save_dtype: ", "'fp16'", "float16"]),
        ({"student_init": "teachr"}, ["student_init: ", "'teachr'", "'teacher'"]),
        ({"format": "single_file"}, ["format: ", "unet", "down_blocks.0"]),
    ],
)
def test_settings_that_cannot_work_are_refused(
    micro_teacher: Path, tmp_path: Path, settings: dict, facts: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        prune(PruneConfig(str(micro_teacher), "mid_block", **settings), tmp_path / "student")
    for fact in facts:
        assert fact in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def guarded_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a safety checker, a feature extractor and a licence; with 32 norm groups, as Flax needs."""
    options = {key: value for key, value in tiny.MICRO.items() if key != "norm_num_groups"}
    folder = tiny.write_torch_pipeline(tmp_path_factory.mktemp("guarded") / "teacher", options, vae=tiny.MICRO_VAE)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(folder / "safety_checker")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    head = "license: other\nlicense_name: the\n  parents own\nlicense_link: https://example.org/licence\n"
    (folder / "README.md").write_text(f"---\n{head}tags: [a, b]\n---\n# Words\n")
    return folder


def test_the_safety_checker_is_copied_through(guarded_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(guarded_teacher), tiny.MICRO_STUDENT), tmp_path / "with")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "with")
    assert type(pipeline.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    assert pipeline.feature_extractor.crop_size["height"] == 32
    assert pipeline.config.requires_safety_checker
    for name in ("safety_checker", "feature_extractor"):
        for path in (guarded_teacher / name).iterdir():
            if path.name != "config.json":  # whose dtype may change
                assert (tmp_path / "with" / name / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def half_teacher(guarded_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float16, which Transformers' configs state."""
    folder = tmp_path_factory.mktemp("half") / "teacher"
    StableDiffusionPipeline.from_pretrained(guarded_teacher).to(torch.float16).save_pretrained(folder)
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    return folder


@pytest.mark.parametrize("loaded", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("saved", ["", "float32", "float16"])
def test_pytorch_runs_a_student_of_a_half_precision_teacher(
    half_teacher: Path, tmp_path: Path, saved: str, loaded: str | None
) -> None:
    prune(PruneConfig(str(half_teacher), tiny.MICRO_STUDENT, save_dtype=saved), tmp_path / "student")
    options = {"torch_dtype": TORCH[loaded]} if loaded else {}
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "student", **options)
    pipeline.set_progress_bar_config(disable=True)
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.safety_checker)
    assert {network.dtype for network in networks} == {TORCH[loaded or "float32"]}
    image = pipeline("a cat", height=16, width=16, num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 16, 16, 3)


def test_only_settings_and_weights_are_copied(guarded_teacher: Path, tmp_path: Path) -> None:
    """A checker in fp16 files alone gets their plain names; what else lies beside it stays where it is."""
    teacher = shutil.copytree(guarded_teacher, tmp_path / "teacher")
    checker = teacher / "safety_checker"
    (checker / "model.safetensors").rename(checker / "model.fp16.safetensors")
    unet = teacher / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    (checker / "notes.txt").symlink_to("/etc/hostname")
    (checker / "deeper").mkdir()
    prune(PruneConfig(str(teacher), tiny.MICRO_STUDENT, variant="fp16"), tmp_path / "student")
    copied = {path.name for path in (tmp_path / "student" / "safety_checker").iterdir()}
    assert copied == {"config.json", "model.safetensors"}
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "student").safety_checker is not None


def require_warned(caplog: pytest.LogCaptureFixture, *each: list[str]) -> None:
    """For each list of facts a warning that has them all; none is kept for the next time."""
    for facts in each:
        assert any(all(fact in warning for fact in facts) for warning in caplog.messages), facts
    caplog.clear()


def test_a_safety_checker_that_is_gone_is_left_out_and_said(
    guarded_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = shutil.copytree(guarded_teacher, tmp_path / "teacher")
    pipeline = load_pipeline(teacher)
    (teacher / "safety_checker" / "model.safetensors").unlink()
    (teacher / "feature_extractor" / "preprocessor_config.json").unlink()
    write_pipeline(tmp_path / "copy", pipeline, SaveConfig())
    require_warned(caplog, ["safety_checker", "model.safetensors"], ["feature_extractor", "preprocessor_config.json"])
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert (index["safety_checker"], index["requires_safety_checker"]) == ([None, None], False)
    write_pipeline(tmp_path / "again", load_pipeline(teacher), SaveConfig())
    require_warned(
        caplog, ["safety_checker", ".safetensors", ".bin"], ["feature_extractor", "preprocessor_config.json"]
    )


def test_the_safety_checker_is_left_out_on_request(guarded_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(guarded_teacher), tiny.MICRO_STUDENT, safety_checker=False), tmp_path / "without")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "without")
    assert pipeline.safety_checker is None
    assert not pipeline.config.requires_safety_checker
    assert not (tmp_path / "without" / "safety_checker").exists()


def test_a_flax_folder_has_no_pytorch_safety_checker(guarded_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(guarded_teacher), tiny.MICRO_SMALL, format="flax"), tmp_path / "flax")
    index = json.loads((tmp_path / "flax" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert not (tmp_path / "flax" / "safety_checker").exists()
    assert (tmp_path / "flax" / "feature_extractor").is_dir()


def test_the_card_says_what_is_known(guarded_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(guarded_teacher), tiny.MICRO_STUDENT), tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.license == "other"
    assert card.data.license_name == "the parents own"
    assert card.data.library_name == "diffusers"
    for fact in (
        f"| `unet` | {trees.count(find_model(tmp_path / 'student').read_denoiser().params):,} |",
        "`mid_block`",
        "predicts noise",
        "16x16 pixels",
        "[the parents own](https://example.org/licence)",
        "teacher",
    ):
        assert fact in card.text, fact
    assert str(guarded_teacher.parent) not in card.content  # no path of this machine


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("owner/model", "owner/model"),
        ("/home/me/models/sd", "sd"),
        ("/home/me/hub/models--owner--my-model/snapshots/0a1b2c", "owner/my-model"),
    ],
)
def test_the_parents_public_name(name: str, public: str) -> None:
    assert parent_name(name) == public


def test_an_unknown_licence_is_not_made_up(micro_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(micro_teacher), "mid_block"), tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.license is None
    assert "## Licence" in card.text


@pytest.mark.parametrize(
    ("student", "spaced", "takes", "refuses"),
    [
        ("sd", False, "Diffusers ComfyUI Other", ""),
        ("bk_tiny", False, "Diffusers ComfyUI", "stable-diffusion.cpp"),
        ("bk_small", False, "Diffusers ComfyUI", "stable-diffusion.cpp"),
        ("bk_tiny", True, "stable-diffusion.cpp", "Diffusers ComfyUI"),
        ("bk_small", True, "", "stable-diffusion.cpp Diffusers ComfyUI"),
        ("no_mid", True, "Diffusers ComfyUI", "stable-diffusion.cpp"),  # has no gaps
    ],
)
def test_the_card_of_a_single_file_says_which_tools_take_it(
    student: str, spaced: bool, takes: str, refuses: str
) -> None:
    unet = plan_removal(unet_from_diffusers(TEACHERS["v1"]), PRESETS[student].removed).student
    said = re.split(r"[.;] ", tools_text(unet, spaced))
    refusals = [part for part in said if "can't" in part]
    for tool in refuses.split():
        assert any(tool in part.split("can't")[0] for part in refusals), tool
    for tool in takes.split():
        assert any(tool in part for part in said if part not in refusals), tool
    assert ("with gaps" in said[0]) == (spaced and student != "no_mid")


def test_the_card_of_a_single_file_says_that_velocity_must_be_set() -> None:
    unet = unet_from_diffusers(TEACHERS["v2"])
    assert "--prediction v" in tools_text(unet, False, "v_prediction")
    assert "--prediction" not in tools_text(unet, False)


def test_a_student_can_start_at_random(micro_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bksdm_jax.pruning.prune.random_weights", lambda config, seed: {"seed": np.full(2, seed)})
    plan = plan_student(find_model(micro_teacher).architectures, "mid_block", SaveConfig())
    weights = find_initial_weights(plan, InitOptions(student_init="random")).read({}, 5)
    assert weights["seed"].tolist() == [5.0, 5.0]
    with pytest.raises(InputError, match=r"init_variant: .*random"):
        find_initial_weights(plan, InitOptions(student_init="random", init_variant="fp16"))


def test_training_can_start_from_a_student(micro_torch_teacher: Path, tmp_path: Path) -> None:
    """A released student is a folder whose config lists one layer to a block and no mid block."""
    teacher = find_model(micro_torch_teacher).architectures
    prune(PruneConfig(str(micro_torch_teacher), tiny.MICRO_SMALL), tmp_path / "released")
    weights = tmp_path / "released" / "unet" / "diffusion_pytorch_model.safetensors"
    trained = {name: 2 * tensor for name, tensor in load_file(weights).items()}  # so they aren't the teacher's
    save_file(trained, weights, {"format": "pt"})
    config = json.loads((tmp_path / "released" / "unet" / "config.json").read_text())
    assert (config["mid_block_type"], config["layers_per_block"]) == (None, 1)
    released = str(tmp_path / "released")
    start = InitOptions(student_init=released)
    weights = find_initial_weights(plan_student(teacher, tiny.MICRO_SMALL, SaveConfig()), start).read({}, 0)
    require_equal(weights, find_model(released).read_denoiser().params)
    for name in ("vae", "scheduler", "tokenizer"):  # its U-Net is all that counts
        shutil.rmtree(tmp_path / "released" / name)
    again = find_initial_weights(plan_student(teacher, tiny.MICRO_SMALL, SaveConfig()), start).read({}, 0)
    require_equal(again, weights)
    with pytest.raises(InputError, match=r"student_init: .*released.* down_blocks.1: "):
        find_initial_weights(plan_student(teacher, tiny.MICRO_STUDENT, SaveConfig()), start)
