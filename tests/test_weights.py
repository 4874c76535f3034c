"""Pipeline folders: read as the original libraries write them, written so that these read them back."""

import json
import re
import shutil
from pathlib import Path

import cloudpickle
import jax
import numpy as np
import pytest
import torch
from diffusers import (
    FlaxAutoencoderKL,
    FlaxUNet2DConditionModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from flax import serialization
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights
from tests import tiny
from tests.arrays import require_equal


def require_in_pytorch(folder: Path, network: str, module: torch.nn.Module) -> None:
    """What PyTorch loads from `folder` is, name by name, what we load from it."""
    params = load_pipeline(folder).networks[network].params
    require_equal(tiny.flax_params(module.requires_grad_(False), params), params)


def require_read_as_it_is(folder: Path) -> Pipeline:
    """What we load from a Flax folder is, name by name, what its files hold."""
    pipeline = load_pipeline(folder)
    for network in ("unet", "vae", "text_encoder"):
        (file,) = (folder / network).glob("*.msgpack")
        raw = serialization.msgpack_restore(file.read_bytes())
        require_equal(pipeline.networks[network].params, raw)
    return pipeline


def test_a_folder_of_diffusers_flax_classes_is_read(flax_teacher: Path, tmp_path: Path) -> None:
    first = require_read_as_it_is(flax_teacher)
    assert (first.schedule.prediction_type, first.architectures.resolution) == ("epsilon", 64)
    options = tiny.MICRO | {"attention_head_dim": [2, 4], "use_linear_projection": True}
    folder = tiny.write_flax_pipeline(tmp_path / "second", options, "v_prediction", tiny.MICRO_VAE)
    second = require_read_as_it_is(folder)
    assert (second.schedule.prediction_type, second.architectures.resolution) == ("v_prediction", 16)


def test_a_folder_of_pytorch_diffusers_is_read(torch_teacher: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(torch_teacher, safety_checker=None)
    for network in ("unet", "vae", "text_encoder"):
        require_in_pytorch(torch_teacher, network, getattr(theirs, network))
    captions = ["a photo of a cat", "", "🚀 été 猫", "the red rocket " * 60]
    expected = theirs.tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids
    np.testing.assert_array_equal(load_pipeline(torch_teacher).caption_inputs(captions)["tokens"], expected)


@pytest.mark.parametrize("student", [pytest.param("bk_base", marks=pytest.mark.slow), "bk_tiny"])
def test_a_safetensors_student_loads_in_pytorch(flax_teacher: Path, tmp_path: Path, student: str) -> None:
    target = tmp_path / "student"
    prune(PruneConfig(str(flax_teacher), student), target)
    pipeline = StableDiffusionPipeline.from_pretrained(target)
    for network in ("unet", "vae", "text_encoder"):
        require_in_pytorch(target, network, getattr(pipeline, network))
    assert pipeline.safety_checker is None
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()
    assert json.loads((target / "removal_plan.json").read_text())["features"]
    require_in_pytorch(target, "text_encoder", CLIPTextModel.from_pretrained(target / "text_encoder"))


def test_a_flax_student_is_read_by_diffusers_flax_classes(flax_teacher: Path, tmp_path: Path) -> None:
    plan, _ = prune(PruneConfig(str(flax_teacher), "bk_small", format="flax"), tmp_path / "student")
    teacher = load_pipeline(flax_teacher)
    with jax.numpy_dtype_promotion("standard"):
        module, params = FlaxUNet2DConditionModel.from_pretrained(tmp_path / "student" / "unet")
    require_equal(params, copy_weights(plan, teacher.networks["unet"].params))
    assert module.layers_per_block == 1
    _, vae = FlaxAutoencoderKL.from_pretrained(tmp_path / "student" / "vae")
    require_equal(vae, teacher.networks["vae"].params)
    index = json.loads((tmp_path / "student" / "model_index.json").read_text())
    assert index["_class_name"] == "FlaxStableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "FlaxUNet2DConditionModel"]
    require_equal(load_pipeline(tmp_path / "student").networks["unet"].params, params)


def test_frozen_networks_keep_their_number_format(micro_torch_teacher: Path, tmp_path: Path) -> None:
    half = shutil.copytree(micro_torch_teacher, tmp_path / "half")
    path = half / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: array.astype(np.float16) for name, array in load_file(path).items()}, path, {"format": "pt"})
    prune(PruneConfig(str(half), "mid_block"), tmp_path / "student")
    written = load_file(tmp_path / "student" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {array.dtype for array in written.values()} == {np.dtype(np.float16)}
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(written[name], array)


def test_transformers_4_names_of_the_text_encoder_are_read(micro_torch_teacher: Path, tmp_path: Path) -> None:
    older = shutil.copytree(micro_torch_teacher, tmp_path / "older")
    path = older / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": array for name, array in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(tensors, path, {"format": "pt"})
    ours, theirs = (load_pipeline(folder).networks["text_encoder"] for folder in (older, micro_torch_teacher))
    require_equal(ours.params, theirs.params)


def test_older_names_of_the_vae_are_read(micro_torch_teacher: Path, tmp_path: Path) -> None:
    older = shutil.copytree(micro_torch_teacher, tmp_path / "older")
    path = older / "vae" / "diffusion_pytorch_model.safetensors"
    now = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for name in list(tensors):
        for new, old in now.items():
            if f".{new}." in name:
                tensors[name.replace(new, old)] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    ours, theirs = (load_pipeline(folder).networks["vae"] for folder in (older, micro_torch_teacher))
    require_equal(ours.params, theirs.params)


def test_one_error_lists_every_name(micro_teacher: Path, micro_torch_teacher: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(micro_torch_teacher, tmp_path / "bad")
    path = bad / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"], tensors["mid_block.resnets.1.conv2.weight"]
    tensors["mid_block.extra.weight"] = np.zeros(3, np.float32)
    tensors["conv_out.bias"] = np.zeros(5, np.float32)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError) as error:
        load_pipeline(bad)
    message = str(error.value)
    assert message.startswith(str(path))
    for part in (
        "conv_in.bias",
        "mid_block.resnets.1.conv2.weight",
        "mid_block.extra",
        "conv_out.bias",
        "(5,)",
        "(4,)",
    ):
        assert part in message
    assert "\n" not in message

    bad = shutil.copytree(micro_teacher, tmp_path / "bad flax")
    path = bad / "unet" / "diffusion_flax_model.msgpack"
    tree = serialization.msgpack_restore(path.read_bytes())
    del tree["conv_in"]["bias"]
    tree["conv_out"]["bias"] = np.zeros(7, np.float32)
    path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(InputError, match=r"conv_in/bias.*conv_out/bias.*\(7,\)"):
        load_pipeline(bad)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Damage -> how it is done, and what the error names.
BROKEN = {
    "a missing component": (lambda folder: shutil.rmtree(folder / "vae"), "vae/"),
    "truncated msgpack": (
        lambda folder: truncate(folder / "unet" / "diffusion_flax_model.msgpack"),
        "unet/diffusion_flax_model.msgpack",
    ),
    "no msgpack at all": (
        lambda folder: (folder / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"not a checkpoint"),
        "unet/diffusion_flax_model.msgpack",
    ),
    "a number for a checkpoint": (
        lambda folder: (folder / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"\x05"),
        "unet/diffusion_flax_model.msgpack",
    ),
    "no weights": (
        lambda folder: (folder / "text_encoder" / "flax_model.msgpack").unlink(),
        "text_encoder",
        "model.safetensors",
        "flax_model.msgpack",
        "pytorch_model.bin",
    ),
    "broken JSON": (lambda folder: truncate(folder / "vae" / "config.json"), "vae/config.json"),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/config.json"),
    "no scheduler config": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        "scheduler_config.json",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer" / "vocab.json").unlink(), "tokenizer", "vocab.json"),
    "no merges": (lambda folder: (folder / "tokenizer" / "merges.txt").write_text(""), "tokenizer", "merges.txt"),
    "an odd scheduler": (
        lambda folder: edit(folder / "scheduler" / "scheduler_config.json", beta_end=None),
        "scheduler_config.json",
        "beta_end",
        "None",
    ),
    "a sample size that is none": (
        lambda folder: edit(folder / "unet" / "config.json", sample_size=[8, 9]),
        "unet/config.json",
        "sample_size",
        "[8, 9]",
    ),
    "a number in quotes": (
        lambda folder: edit(folder / "vae" / "config.json", scaling_factor="0.18215"),
        "vae/config.json",
        "scaling_factor",
        "'0.18215'",
    ),
    "no flag": (
        lambda folder: edit(folder / "unet" / "config.json", use_linear_projection="false"),
        "unet/config.json",
        "use_linear_projection",
        "'false'",
    ),
    "broken tokenizer": (lambda folder: truncate(folder / "tokenizer" / "vocab.json"), "tokenizer"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_folders_are_refused(micro_teacher: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(micro_teacher, tmp_path / "pipeline")
    spoil, *named = BROKEN[damage]
    spoil(folder)
    with pytest.raises(InputError) as error:
        prune(PruneConfig(str(folder), "mid_block"), tmp_path / "student")
    for fact in (str(folder), *named):
        assert fact in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_truncated_safetensors_are_refused(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    truncate(folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"vae/diffusion_pytorch_model\.safetensors"):
        load_pipeline(folder)


def test_networks_that_do_not_belong_together_are_refused(micro_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_teacher, tmp_path / "pipeline")
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(**tiny.MICRO | {"cross_attention_dim": 48}).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=r"cross_attention_dim.* 48 .*hidden_size.* 32"):
        load_pipeline(folder)


def test_a_unet_of_another_family_is_refused_before_weights_are_read(micro_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_teacher, tmp_path / "pipeline")
    path = folder / "unet" / "config.json"
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    json_of = json.loads(path.read_text()) | added | {"projection_class_embeddings_input_dim": 64}
    path.write_text(json.dumps(json_of))
    with pytest.raises(InputError, match=r"pipeline: .*SDXL"):
        find_model(folder)


def test_captions_are_encoded_without_the_weights(micro_teacher: Path) -> None:
    encode = load_pipeline(micro_teacher).caption_inputs
    assert len(cloudpickle.dumps(encode)) < 2**19  # what every worker process gets
    assert encode(["a cat"])["tokens"].shape == (1, 77)


def test_a_student_that_diffusers_cannot_express_is_not_written(micro_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mid_block.*found R-A$"):
        prune(PruneConfig(str(micro_teacher), "mid_block.resnets.1"), tmp_path / "student")
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_folder(micro_teacher: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(micro_teacher)
    plan = plan_removal(pipeline.denoiser.config, removed_blocks("mid_block"))
    student = pipeline.with_denoiser(plan.student, copy_weights(plan, pipeline.denoiser.params))
    target = tmp_path / "student"
    write_pipeline(target, student, SaveConfig(), extra={"note.json": 1})
    with pytest.raises(TypeError):
        write_pipeline(target, student, SaveConfig(), extra={"note.json": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert json.loads((target / "note.json").read_text()) == 1
    write_pipeline(target, student, SaveConfig(), extra={"note.json": 2})
    assert json.loads((target / "note.json").read_text()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_linked_folder_is_written_where_it_points(micro_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prune(PruneConfig(str(micro_teacher), "mid_block"), tmp_path / "link")
    assert (tmp_path / "real" / "model_index.json").is_file()
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("name", ["mine.txt", ".env"])
def test_pruning_into_a_used_folder_is_refused(micro_teacher: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("keep me")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        prune(PruneConfig(str(micro_teacher), "mid_block"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
