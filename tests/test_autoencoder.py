"""Autoencoders alone: folders, single files in either layout, and one on the hub."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from transformers import CLIPTextModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.original_names import original_name, vae_modules
from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.autoencoder import autoencoder_files, load_autoencoder
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.load import load_pipeline
from tests import tiny
from tests.arrays import require_equal

OPTIONS = tiny.MICRO_VAE | {"layers_per_block": 2, "block_out_channels": (32, 64)}
PREFIX = "first_stage_model."


@pytest.fixture(scope="module")
def module() -> AutoencoderKL:
    return tiny.randomize(AutoencoderKL(**OPTIONS), 3)


@pytest.fixture(scope="module")
def original(module: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The weights in the original layout without prefix, which Diffusers' converter turns into the module's."""
    modules = vae_modules(vae_from_diffusers(dict(module.config)))
    found = {}
    for name, tensor in module.state_dict().items():
        one_by_one = ".attentions." in name and tensor.ndim == 2
        found[original_name(name, modules)] = tensor[:, :, None, None] if one_by_one else tensor
    converted = convert_ldm_vae_checkpoint(dict(found), dict(module.config))
    assert converted.keys() == module.state_dict().keys()
    assert all(torch.equal(converted[name].squeeze(), one.squeeze()) for name, one in module.state_dict().items())
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def require_read(path: Path, module: AutoencoderKL, scaling_factor: float = 0.18215) -> None:
    ours = load_autoencoder(str(path))
    assert ours.config == vae_from_diffusers(dict(module.config) | {"scaling_factor": scaling_factor})
    assert vae_from_diffusers(ours.json) == ours.config
    require_equal(ours.params, tiny.flax_params(module, vae_parameter_shapes(ours.config)))


def test_folders_are_read(module: AutoencoderKL, tmp_path: Path) -> None:
    module.register_to_config(scaling_factor=0.5)
    module.save_pretrained(tmp_path / "alone")
    module.save_pretrained(tmp_path / "pipeline" / "vae", safe_serialization=False)
    require_read(tmp_path / "alone", module, 0.5)
    require_read(tmp_path / "pipeline", module, 0.5)
    teacher = load_pipeline(teacher_folder()).networks["vae"]
    require_equal(load_autoencoder("shapes_teacher").params, teacher.params)


def test_single_files_are_read(
    module: AutoencoderKL, original: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = {f"{PREFIX}{name}": tensor for name, tensor in original.items()}
    state = dict(module.state_dict())
    save_file(state, tmp_path / "current.safetensors")
    torch.save({"state_dict": original | {"loss.logvar": torch.zeros(1)}, "epoch": 3}, tmp_path / "original.ckpt")
    torch.save(original, tmp_path / "original.vae.PT")
    save_file(full | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "checkpoint.safetensors")
    for name in ("current.safetensors", "original.ckpt", "original.vae.PT", "checkpoint.safetensors"):
        require_read(tmp_path / name, module)
    assert "checkpoint.safetensors: passed over 1 unused tensor(s): model.diffusion_model.out.2.bias" in caplog.text


def test_only_the_files_of_the_autoencoder_are_downloaded(
    module: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        "bksdm_jax.pipelines.autoencoder.hub_folder", lambda *arguments: asked.append(arguments) or tmp_path
    )
    load_autoencoder("somebody/vae")
    assert asked == [("somebody/vae", "", autoencoder_files)]
    weights = ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    alone = ["README.md", "config.json", *weights, "taesd_decoder.safetensors"]
    assert autoencoder_files(alone) == ["config.json", weights[1]]
    pipeline = ["model_index.json", "vae/config.json", "unet/config.json", *(f"vae/{name}" for name in weights)]
    assert autoencoder_files(pipeline) == ["vae/config.json", f"vae/{weights[1]}"]


def test_other_files_are_refused(
    module: AutoencoderKL, original: dict[str, torch.Tensor], micro_torch_teacher: Path, tmp_path: Path
) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(InputError, match=said) as error:
            load_autoencoder(str(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def file(tensors: dict[str, torch.Tensor]) -> Path:
        save_file(tensors, tmp_path / "bad.safetensors")
        return tmp_path / "bad.safetensors"

    refused(tmp_path / "nothing", "no such folder or file")
    refused(tmp_path, r"no config\.json")
    refused(micro_torch_teacher / "unet", r"_class_name.*UNet2DConditionModel.*AutoencoderTiny")
    refused(micro_torch_teacher / "unet" / "diffusion_pytorch_model.safetensors", r"encoder\.conv_in\.weight.* \(\d+,")
    text = CLIPTextModel.from_pretrained(micro_torch_teacher / "text_encoder").state_dict()
    refused(file({name.removeprefix("text_model."): tensor.clone() for name, tensor in text.items()}), r"layers\.0\.")
    gone, odd = "encoder.mid.block_1.norm1.bias", "decoder.conv_out.bias"
    refused(file({k: v for k, v in original.items() if k != gone}), r"missing: encoder\.mid_block\.resnets\.0\.norm1")
    refused(file(original | {odd: torch.zeros(9)}), r"conv_out\.bias is \(9,\), expected \(3,\)")
    refused(file(original | {"encoder.mid.attn_2.q.bias": torch.zeros(9)}), r"unexpected .*attn_2\.q\.bias")
    refused(file({"lora_unet.weight": torch.zeros(3)}), r"lora_unet\.weight \(3,\)")
    module.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused(tmp_path / "vae", r"diffusion_pytorch_model\.safetensors")
    settings = dict(module.config) | {"_class_name": "AsymmetricAutoencoderKL"}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(settings))
    refused(tmp_path / "vae", r"_class_name.*AsymmetricAutoencoderKL")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", r"\.safetensors, \.ckpt")
