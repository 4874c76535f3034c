"""Images with LoRA files of every layout, against PyTorch Diffusers with the same file or the same numbers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from bksdm_jax.formats.write_lora import write_lora
from bksdm_jax.pipelines.config import LoraOptions
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.lora import lora_metadata, open_loras, stored_layers, with_loras
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pruning.convert_lora import convert_lora
from bksdm_jax.pruning.lora_config import ConvertLoraConfig
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import make_generate
from tests import loras, tiny

GENERATIONS = list(loras.UNETS)
NETWORKS = ("unet", "text_encoder")
SETTINGS = SamplerConfig(steps=loras.STEPS, guidance_scale=loras.SCALE, resolution=loras.SIDE)
PROGRAMS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: tiny.write_torch_pipeline(folder / name, unet, vae=tiny.MICRO_VAE) for name, unet in loras.UNETS.items()
    }


@pytest.fixture(scope="module")
def pytorchs(folders: dict[str, Path]) -> dict[str, StableDiffusionPipeline]:
    return {name: loras.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: load_pipeline(folder) for name, folder in folders.items()}


def ours(pipeline: Pipeline) -> np.ndarray:
    """Our images in [0, 1]; one program makes those of all pipelines of the same architectures."""
    key = repr(pipeline.architectures)
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(make_generate(pipeline.architectures, SETTINGS))
    captions = pipeline.caption_inputs
    made, _ = PROGRAMS[key](pipeline.params, captions(loras.PROMPTS), captions([""]), loras.noise())
    return np.asarray(made) / 255.0


def merged(pipeline: Pipeline, *names: object) -> Pipeline:
    options = LoraOptions(lora=tuple(map(str, names)))
    return with_loras(pipeline, open_loras(options, pipeline.architectures))


def require_same(made: np.ndarray, expected: np.ndarray, without: np.ndarray) -> None:
    """Within a level of 255; the LoRA changes far more than that."""
    assert np.abs(expected - without).mean() > 5 / 255
    assert np.abs(made - expected).max() <= 1 / 255


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("ends", [loras.LAYERS, loras.LAYERS + loras.CONVOLUTIONS], ids=["layers", "convolutions"])
def test_kohyas(
    generation: str, ends: tuple[str, ...], pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path
) -> None:
    """With alpha, and a weight. With Transformers 5.6, Diffusers can't load kohya's text encoders: it gets PEFT's."""
    pytorch = pytorchs[generation]
    found = loras.pairs(pytorch, ends)
    path = loras.write(tmp_path / "kohya.safetensors", loras.kohya(found, alpha=3.0))
    unet = loras.write(tmp_path / "unet.safetensors", loras.kohya({"unet": found["unet"]}, alpha=3.0))
    text = {"text_encoder": found["text_encoder"]}
    text = loras.write(tmp_path / "text.safetensors", loras.peft(loras.scaled(text, 3 / 4)))
    made = ours(merged(models[generation], f"{path}=0.8"))
    require_same(made, loras.images(pytorch, {unet: 0.8, text: 0.8}), loras.images(pytorch))


def test_several_ranks_and_files(pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path) -> None:
    first, second = (loras.pairs(pytorchs["v1"], ends, 0, ["unet"]) for ends in (loras.ATTENTION, loras.CONVOLUTIONS))
    files = {
        loras.write(tmp_path / "a.safetensors", loras.kohya(first, 2.0)): 0.5,
        loras.write(tmp_path / "b=c.safetensors", loras.kohya(second, 1.0)): -0.7,
    }
    made = ours(merged(models["v1"], *(f"{path}={weight}" for path, weight in files.items())))
    require_same(made, loras.images(pytorchs["v1"], files), loras.images(pytorchs["v1"]))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_diffusers_writes(
    generation: str,
    dora: bool,
    folders: dict[str, Path],
    pytorchs: dict[str, Any],
    models: dict[str, Pipeline],
    tmp_path: Path,
) -> None:
    """`save_lora_weights` of adapters that PEFT made, with its settings in the metadata."""
    trained = loras.load(folders[generation])
    torch.manual_seed(1)
    own = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "use_dora": dora}
    unet = LoraConfig(target_modules=["to_q", "to_out.0", "proj_in", "conv1", "ff.net.2"], **own)
    unet.rank_pattern, unet.alpha_pattern = {"proj_in": 2, "attn2.to_q": 8}, {"proj_in": 1, "attn2.to_q": 4}
    trained.unet.add_adapter(unet)
    trained.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], use_rslora=True, **own))
    with torch.no_grad():
        for network in (trained.unet, trained.text_encoder):
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(0.5)
                if "magnitude" in name:
                    parameter.mul_(0.8)
    metadata = _collate_lora_metadata({"unet": trained.unet, "text_encoder": trained.text_encoder})
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(getattr(trained, name)) for name in NETWORKS}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "saved", **layers, **metadata)
    without = loras.images(pytorchs[generation])
    require_same(ours(merged(models[generation], tmp_path / "saved")), loras.images(trained), without)
    path = tmp_path / "saved" / "pytorch_lora_weights.safetensors"
    if not dora:  # Transformers loses the magnitudes of text encoders
        made = ours(merged(models[generation], f"{path}=0.9"))
        require_same(made, loras.images(pytorchs[generation], {path: 0.9}), without)


def test_a_folder_of_peft(
    folders: dict[str, Path], pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path
) -> None:
    """`save_pretrained` of PEFT's own models, one for each network."""
    trained = loras.load(folders["v1"])
    torch.manual_seed(2)
    for name, ends in (("unet", ["to_k", "conv2"]), ("text_encoder", ["v_proj", "fc2"])):
        config = LoraConfig(r=3, lora_alpha=4, target_modules=ends, init_lora_weights="gaussian", use_rslora=True)
        wrapped = get_peft_model(getattr(trained, name), config)
        with torch.no_grad():
            for parameter in (one for key, one in wrapped.named_parameters() if "lora_B" in key):
                parameter.normal_(std=0.5)
        wrapped.save_pretrained(tmp_path / "saved" / name)
    for name in NETWORKS:
        assert any(key.startswith("base_model.model.") for key in load_file(_adapter(tmp_path / "saved" / name)))
    require_same(ours(merged(models["v1"], tmp_path / "saved")), loras.images(trained), loras.images(pytorchs["v1"]))


def _adapter(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_oldest_names(prefix: str, pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path) -> None:
    networks = ("unet", "text_encoder") if prefix else ("unet",)
    found = loras.pairs(pytorchs["v1"], loras.ATTENTION, networks=networks)
    old = loras.write(tmp_path / "old.safetensors", loras.oldest(found, prefix))
    torch.save(loras.oldest(found, prefix), tmp_path / "old.bin")
    new = loras.write(tmp_path / "new.safetensors", loras.peft(found))
    made = ours(merged(models["v1"], old))
    require_same(made, loras.images(pytorchs["v1"], {new: 1.0}), loras.images(pytorchs["v1"]))
    np.testing.assert_array_equal(made, ours(merged(models["v1"], tmp_path / "old.bin")))


def test_names_of_the_text_encoder(pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path) -> None:
    """With and without `text_model.`, and kohya's `lora_te1_`."""
    found = loras.pairs(pytorchs["v1"], networks=["text_encoder"])
    files = [
        loras.peft(found),
        loras.peft(found, "text_model."),
        loras.kohya(found),
        loras.kohya(found, None, "lora_te1_"),
    ]
    made = [merged(models["v1"], loras.write(tmp_path / f"{i}.safetensors", file)) for i, file in enumerate(files)]
    assert len({one.networks["text_encoder"].weights_sha256() for one in made}) == 1
    assert made[0].identity()["text_encoder"] != models["v1"].identity()["text_encoder"]


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_diffusers_loads_what_is_written(
    layout: str, generation: str, pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path
) -> None:
    pytorch, model = pytorchs[generation], models[generation]
    networks = ("unet",) if layout == "kohya" else ("unet", "text_encoder")
    found = loras.pairs(pytorch, loras.LAYERS + loras.CONVOLUTIONS, 0, networks)
    given = loras.write(tmp_path / "given.safetensors", loras.kohya(found, alpha=1.5))
    (read,) = open_loras(LoraOptions(lora=(str(given),)), model.architectures)
    path = tmp_path / "made.safetensors"
    write_lora(path, stored_layers(read.adapters), layout, metadata=lora_metadata(model.architectures))
    made = ours(merged(model, path))
    require_same(made, loras.images(pytorch, {path: 1.0}), loras.images(pytorch))
    assert {tensor.dtype for tensor in load_file(path).values() if tensor.ndim} == {torch.float16}
    assert not list(tmp_path.glob(".*"))


def test_a_converted_lora_is_that_of_the_teacher(
    folders: dict[str, Path], pytorchs: dict[str, Any], tmp_path: Path
) -> None:
    """PyTorch's student with the converted file makes our images of the student of the merged teacher.

    With the teacher's file it makes others, without an error.
    """
    found = loras.pairs(pytorchs["v1"], loras.ATTENTION, networks=["unet"])
    given = loras.write(tmp_path / "given.safetensors", loras.kohya(found, alpha=3.0))
    for name, names in (("plain", ()), ("merged", (str(given),))):
        prune(PruneConfig(str(folders["v1"]), tiny.MICRO_SMALL, lora=names), tmp_path / name)
    settings = ConvertLoraConfig(lora=str(given), model=str(tmp_path / "plain"))
    path, _ = convert_lora(settings, tmp_path / "converted")
    student = loras.load(tmp_path / "plain")
    without, expected = loras.images(student), loras.images(student, {path: 1.0})
    require_same(ours(load_pipeline(tmp_path / "merged")), expected, without)
    assert np.abs(loras.images(student, {given: 1.0}) - expected).mean() > 1 / 255


def test_dora_in_kohyas_names(pytorchs: dict[str, Any], models: dict[str, Pipeline], tmp_path: Path) -> None:
    """Magnitudes of outputs. Diffusers passes over them in kohya's files, but not in those of its own layout."""
    found = loras.pairs(pytorchs["v1"], ("to_q", "ff.net.2", "conv1"), networks=["unet"])
    tensors = loras.kohya(found, alpha=2.0)
    generator = torch.Generator().manual_seed(0)
    for name, (_, up) in found["unet"].items():
        norms = pytorchs["v1"].unet.get_submodule(name).weight.flatten(1).norm(dim=1)
        drawn = norms.detach() * (0.7 + 0.6 * torch.rand(up.shape[0], generator=generator))
        tensors[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = drawn.reshape(-1, *(1 for _ in up.shape[1:]))
    given = loras.write(tmp_path / "given.safetensors", tensors)
    made = ours(merged(models["v1"], f"{given}=0.9"))
    (read,) = open_loras(LoraOptions(lora=(str(given),)), models["v1"].architectures)
    for layout in ("kohya", "diffusers"):
        write_lora(tmp_path / f"{layout}.safetensors", stored_layers(read.adapters), layout, "float32")
    np.testing.assert_array_equal(ours(merged(models["v1"], f"{tmp_path / 'kohya.safetensors'}=0.9")), made)
    expected = loras.images(pytorchs["v1"], {tmp_path / "diffusers.safetensors": 0.9})
    require_same(made, expected, loras.images(pytorchs["v1"]))
