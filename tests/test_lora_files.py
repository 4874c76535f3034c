"""Names and forms of the tensors in LoRA files, and files that can't be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.lora_file import read_lora_file
from bksdm_jax.formats.lora_names import diffusers_stem, kohya_stem, original_prefixes, understood
from bksdm_jax.formats.original_names import original_name, unet_modules
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.formats.write_lora import write_lora
from bksdm_jax.models.lora import merged_kernel
from bksdm_jax.pipelines.config import LoraOptions, split_lora
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.lora import find_lora, lora_metadata, open_loras
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal
from tests import loras, tiny
from tests.loras import write

NETWORKS = stable_diffusion("v1")
FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SECOND = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def pair(inputs: int = 320, out: int = 320, rank: int = 2, size: tuple[int, ...] = ()) -> Any:
    return torch.ones(rank, inputs, *size), torch.ones(out, rank, *(1 for _ in size))


def opened(path: Path, **options: Any) -> Any:
    """The kernels' updates of SD 1.x."""
    (found,) = open_loras(LoraOptions(lora=(str(path),), **options), NETWORKS)
    return found.adapters


@pytest.mark.parametrize(("generation", "student"), [("v1", "sd"), ("v2", "sd"), ("v1", "bk_small"), ("v1", "bk_tiny")])
def test_names_of_all_modules(generation: str, student: str) -> None:
    """As tools derive them: ComfyUI and stable-diffusion.cpp replace the dots of Diffusers' names."""
    plan = plan_removal(unet_from_diffusers(TEACHERS[generation]), PRESETS[student].removed)
    original = original_prefixes(plan.student)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_to_diffusers(plan.student))
    named = {"unet": loras.modules(unet), "text_encoder": loras.modules(tiny.text_encoder())}
    for network, modules in named.items():
        for name in modules:
            whole = f"text_model.{name}" if network == "text_encoder" else name
            prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network]
            assert kohya_stem(network, whole) == prefix + whole.replace(".", "_")
            assert diffusers_stem(network, whole) == f"{network}.{name}"
            for stem in (kohya_stem(network, whole), diffusers_stem(network, whole)):
                assert understood(f"{stem}.lora_down.weight", original) == (network, whole, "down")


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_names_of_the_original_layout(generation: str) -> None:
    """Which Diffusers' converters take for the same modules."""
    config = unet_from_diffusers(TEACHERS[generation])
    with torch.device("meta"):
        unet = UNet2DConditionModel(**TEACHERS[generation])
    names = [f"{name}.weight" for name in loras.modules(unet)]
    table = {original_name(name, unet_modules(config)): name for name in names}
    markers = {original: torch.tensor(float(i)) for i, original in enumerate(table)}
    for name, value in unet.state_dict().items():
        if name not in names:
            markers[original_name(name, unet_modules(config))] = torch.tensor(-1.0) if value.ndim else value
    theirs = convert_ldm_unet_checkpoint(markers, dict(unet.config))
    prefixes = original_prefixes(config)
    for i, original in enumerate(table):
        stem = original.removeprefix("model.diffusion_model.").removesuffix(".weight")
        expected = next(name for name, value in theirs.items() if value == i).removesuffix(".weight")
        assert understood(f"lora_unet_{stem.replace('.', '_')}.lora_up.weight", prefixes) == ("unet", expected, "up")
        assert understood(f"diffusion_model.{stem}.lora_B.weight", prefixes) == ("unet", expected, "up")
    keys = [f"lora_unet_{name}.lora_down.weight" for name in ORIGINAL]
    mapped = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(dict.fromkeys(keys, 0), unet.config)
    for key, other in zip(keys, mapped, strict=True):
        name = lora_conversion_utils._convert_unet_lora_key(other).replace(".processor.", ".")
        name = name.removesuffix(".down.weight").removesuffix("lora").rstrip("._").replace("to_out", "to_out.0")
        assert understood(key, prefixes).module == name


ORIGINAL = (
    "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    "input_blocks_5_1_proj_in",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj",
    "output_blocks_5_1_transformer_blocks_0_attn2_to_out_0",
)


def test_all_forms_of_one_lora_are_the_same(tmp_path: Path) -> None:
    down, up = torch.randn(2, 320), torch.randn(320, 2)
    ldm = "input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    old = FIRST.replace("to_q", "processor.to_q_lora")
    forms = {
        "kohya": f"lora_unet_{FIRST.replace('.', '_')}.lora_down.weight",
        "ldm": f"lora_unet_{ldm}.lora_down.weight",
        "peft": f"unet.{FIRST}.lora_A.weight",
        "bare": f"{FIRST}.lora_A.weight",
        "wrapped": f"base_model.model.{FIRST}.lora_A.weight",
        "raw": f"base_model.model.unet.{FIRST}.lora_A.default.weight",
        "later": f"unet.{FIRST}.lora.down.weight",
        "oldest": f"{old}.down.weight",
        "comfy": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
    }
    found = []
    for name, key in forms.items():
        other = key.replace("lora_down", "lora_up").replace("lora_A", "lora_B").replace(".down.", ".up.")
        (adapters,) = opened(write(tmp_path / f"{name}.safetensors", {key: down, other: up})).values()
        ((path, adapter),) = adapters.items()
        found.append((path, adapter.update().tobytes()))
    assert len(set(found)) == 1
    assert found[0][0] == "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"


@pytest.mark.parametrize(("generation", "size"), [("v1", ()), ("v1", (1, 1)), ("v2", ()), ("v2", (1, 1))])
def test_projections_may_be_convolutions_or_not(generation: str, size: tuple[int, ...], tmp_path: Path) -> None:
    """SD 1.x has 1x1 convolutions, SD 2.x linear layers; files have either."""
    down, up = torch.randn(2, 320, *size), torch.randn(320, 2, *size)
    key = "lora_unet_mid_block_attentions_0_proj_in".replace("mid_block", "down_blocks_0")
    path = write(tmp_path / "a.safetensors", {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up})
    (found,) = open_loras(LoraOptions(lora=(str(path),)), stable_diffusion(generation))
    update = found.adapters["unet"]["down_blocks_0/attentions_0/proj_in/kernel"].update()
    assert update.ndim == (4 if generation == "v1" else 2)
    expected = (up.reshape(320, 2) @ down.reshape(2, 320)).T
    np.testing.assert_allclose(update.reshape(320, 320), expected, rtol=1e-4, atol=1e-5)


def test_lycoris_of_a_convolution(tmp_path: Path) -> None:
    """LoCon in Tucker form, and DoRA's magnitudes of inputs, as LyCORIS computes them."""
    key, generator = "lora_unet_down_blocks_0_resnets_0_conv1", torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 320, 1, 1, generator=generator), torch.randn(320, 3, 1, 1, generator=generator)
    middle = torch.randn(3, 3, 3, 3, generator=generator)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": middle, "alpha": torch.tensor(2.0)}
    path = write(tmp_path / "a.safetensors", {f"{key}.{name}": tensor for name, tensor in tensors.items()})
    adapter = opened(path)["unet"]["down_blocks_0/resnets_0/conv1/kernel"]
    convolved = torch.nn.functional.conv2d
    x = torch.randn(1, 320, 5, 5, generator=generator)
    expected = convolved(convolved(convolved(x, down), middle, padding=1), up) * 2 / 3
    kernel = torch.from_numpy(adapter.update().transpose(3, 2, 0, 1).copy())
    np.testing.assert_allclose(convolved(x, kernel, padding=1), expected, atol=1e-3)
    weight = torch.randn(320, 320, 3, 3, generator=generator)
    scale = torch.rand(1, 320, 1, 1, generator=generator)
    path = write(path, {f"{key}.{name}": tensor for name, tensor in tensors.items()} | {f"{key}.dora_scale": scale})
    adapter = opened(path)["unet"]["down_blocks_0/resnets_0/conv1/kernel"]
    changed = weight + kernel
    norms = changed.transpose(0, 1).reshape(320, -1).norm(dim=1).reshape(1, 320, 1, 1)
    ours = merged_kernel(weight.numpy().transpose(2, 3, 1, 0), adapter).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(ours, changed * scale / norms, rtol=1e-4, atol=1e-5)


def test_what_kohyas_files_say(tmp_path: Path) -> None:
    file = read_lora_file(write(tmp_path / "a.safetensors", kohya(alpha=torch.tensor(27.0))), {})
    for generation, kind, version in (("v1", "v1", "sd_v1"), ("v2", "v2-512", "sd_v2")):
        write_lora(tmp_path / "b.safetensors", file.layers, metadata=lora_metadata(stable_diffusion(generation)))
        with safe_open(tmp_path / "b.safetensors", "np") as made:
            said = made.metadata()
            assert made.get_tensor(f"{kohya_stem('unet', FIRST)}.alpha") == 27
        assert said["modelspec.architecture"] == f"stable-diffusion-{kind}/lora"
        assert (said["ss_base_model_version"], said["ss_network_module"]) == (version, "networks.lora")
        assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("2", "27")


def kohya(module: str = FIRST, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    stem = f"lora_unet_{module.replace('.', '_')}"
    down, up = pair()
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up} | {
        f"{stem}.{name}": tensor for name, tensor in more.items()
    }


def without(part: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in kohya(alpha=torch.tensor(1.0)).items() if part not in key}


def changed(part: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key: tensor if part in key else value for key, value in kohya().items()}


BAD: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str]] = {
    "loha": (lambda: kohya(hada_w1_a=torch.ones(2)), r"hada_w1_a.*LoHa"),
    "lokr": (lambda: kohya(lokr_w1=torch.ones(2)), r"lokr_w1.*LoKr"),
    "sdxl": (lambda: {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(2)}, r"lora_te2_.*SDXL"),
    "sdxl's text": (
        lambda: dict(zip((f"unet.{SECOND}.lora_A.weight", f"unet.{SECOND}.lora_B.weight"), pair(2048), strict=True)),
        r"attn2\.to_k.*2048 -> 320.*768 -> 320.*SDXL",
    ),
    "sd 2": (
        lambda: dict(zip((f"unet.{SECOND}.lora_A.weight", f"unet.{SECOND}.lora_B.weight"), pair(1024), strict=True)),
        r"attn2\.to_k.*1024 -> 320.*768 -> 320.*generation",
    ),
    "flux": (lambda: {"transformer.single.lora_A.weight": torch.ones(2, 2)}, r"transformer\.single.*transformer"),
    "alone": (lambda: {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, r"conv_in\.alpha.*down and up"),
    "no up": (lambda: without("lora_up"), r"lora_down.*up matrix"),
    "no down": (lambda: without("lora_down"), r"lora_up.*down matrix"),
    "ranks": (lambda: changed("lora_up", torch.ones(320, 3)), r"lora_down.*rank 2.* 3;"),
    "nan": (lambda: changed("lora_up", torch.full((320, 2), torch.nan)), r"640 of 640 .*lora_up.*finite"),
    "infinite alpha": (lambda: kohya(alpha=torch.tensor(torch.inf)), r"alpha.*finite"),
    "long alpha": (lambda: kohya(alpha=torch.ones(3)), r"alpha.*\(3,\).*one number"),
    "a vector": (lambda: changed("lora_down", torch.ones(2)), r"lora_down.*\(2,\).*rank"),
    "empty": (lambda: changed("lora_down", torch.ones(0, 320)), r"lora_down.*\(0, 320\)"),
    "integers": (lambda: changed("lora_up", torch.ones(320, 2, dtype=torch.int64)), r"lora_up.*int64"),
    "magnitudes": (lambda: kohya(dora_scale=torch.ones(7, 1)), r"dora_scale.*\(7, 1\).*320"),
    "middle": (lambda: kohya(**{"lora_mid.weight": torch.ones(4, 4, 3, 3)}), r"lora_mid.*\(4, 4, 3, 3\)"),
    "twice": (lambda: kohya() | {f"unet.{FIRST}.lora_A.weight": torch.ones(2, 320)}, r"the same as"),
    "kernel": (
        lambda: {
            f"lora_unet_conv_in.lora_{part}.weight": tensor
            for part, tensor in zip(("down", "up"), pair(4, 320, 2, (5, 5)), strict=True)
        },
        r"conv_in.*\(5, 5\).*\(3, 3\)",
    ),
    "nothing": (lambda: {"weight": torch.ones(2)}, r"1 tensor.*no place.*weight"),
    "bias": (lambda: kohya() | {f"unet.{FIRST}.lora_B.bias": torch.ones(2)}, r"no place.*lora_B\.bias"),
    "a student's": (lambda: kohya("mid_block.attentions.7.proj_in"), r"2 tensor.*attentions_7.*convert_lora"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    make, said = BAD[name]
    path = write(tmp_path / "bad.safetensors", make())
    with pytest.raises(InputError, match=said) as error:
        opened(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_what_has_no_place_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = kohya() | kohya("mid_block.attentions.3.proj_in") | {"bundle_emb.cat.string_to_param": torch.ones(2)}
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InputError, match="3 tensor"):
        opened(path)
    found = opened(path, allow_unplaced_lora=True)
    assert [len(adapters) for adapters in found.values()] == [1]
    assert "attentions_3" in caplog.text
    with pytest.raises(InputError, match="no place"):
        opened(write(path, kohya("mid_block.attentions.3.proj_in")), allow_unplaced_lora=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has"),
        ({"alpha_pattern": {"to_q": None}}, "alpha_pattern to_q"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    tensors = {f"unet.{FIRST}.lora_A.weight": pair()[0], f"unet.{FIRST}.lora_B.weight": pair()[1]}
    inside = {f"unet.{key}": value for key, value in settings.items()}
    path = write(tmp_path / "adapter_model.safetensors", tensors, {"lora_adapter_metadata": json.dumps(inside)})
    with pytest.raises(InputError, match=said):
        opened(path)
    write(path, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=rf"adapter_config\.json: .*{said}"):
        opened(tmp_path)
    write(path, tensors, {"lora_adapter_metadata": "{"})
    with pytest.raises(InputError, match="lora_adapter_metadata isn't JSON"):
        opened(path)


def test_names_and_weights_on_the_command_line() -> None:
    cases = {
        "style.safetensors": ("style.safetensors", 1.0),
        "style.safetensors=0.8": ("style.safetensors", 0.8),
        "a=b.safetensors": ("a=b.safetensors", 1.0),
        "a=b/style": ("a=b/style", 1.0),
        "a=b.safetensors=-1e-1": ("a=b.safetensors", -0.1),
        "owner/name=2": ("owner/name", 2.0),
    }
    for text, expected in cases.items():
        assert split_lora(text) == expected
    assert split_lora("style=much") == ("style=much", 1.0)
    for text in ("", "=0.5", "style=nan", "style=inf", 3):
        with pytest.raises(InputError, match=r"^(lora|config): "):
            split_lora(text)


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file"):
        find_lora(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no file of a LoRA"):
        find_lora(str(tmp_path))
    write(tmp_path / "b.safetensors", kohya())
    assert find_lora(str(tmp_path)) == (tmp_path / "b.safetensors",)
    write(tmp_path / "a.safetensors", kohya())
    with pytest.raises(InputError, match=r"2 files \(a.safetensors, b.safetensors"):
        find_lora(str(tmp_path))
    for name in ("text_encoder/adapter_model.bin", "unet/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert [path.parent.name for path in find_lora(str(tmp_path))] == ["unet", "text_encoder"]
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert [path.name for path in find_lora(str(tmp_path))] == ["pytorch_lora_weights.safetensors"]
    (tmp_path / "a.gguf").touch()
    with pytest.raises(InputError, match=r"a\.gguf: .*\.safetensors"):
        opened(tmp_path / "a.gguf")


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_again(layout: str, dtype: str, tmp_path: Path) -> None:
    tensors = kohya(alpha=torch.tensor(4.0), dora_scale=torch.rand(320, 1))
    stem = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    tensors |= {f"{stem}.lora_down.weight": torch.randn(3, 768), f"{stem}.lora_up.weight": torch.randn(3072, 3)}
    file = read_lora_file(write(tmp_path / "a.safetensors", tensors), {})
    write_lora(tmp_path / "b.safetensors", file.layers, layout, dtype)
    again = read_lora_file(tmp_path / "b.safetensors", {})
    assert {network: modules.keys() for network, modules in again.layers.items()} == {
        network: modules.keys() for network, modules in file.layers.items()
    }
    for network, modules in file.layers.items():
        for module, layer in modules.items():
            ours = again.layers[network][module].adapter()
            tolerance = 1e-6 if dtype == "float32" else 0.1
            np.testing.assert_allclose(ours.update(), layer.adapter().update(), rtol=tolerance, atol=tolerance)
            assert (ours.magnitude is None) == (layer.magnitude is None)
    assert load_file(tmp_path / "b.safetensors").keys() == again_keys(layout)


def again_keys(layout: str) -> set[str]:
    if layout == "kohya":
        first, second = kohya_stem("unet", FIRST), "lora_te_text_model_encoder_layers_1_mlp_fc1"
        ends = ("lora_down.weight", "lora_up.weight", "alpha")
        return {f"{stem}.{end}" for stem in (first, second) for end in ends} | {f"{first}.dora_scale"}
    first, second = f"unet.{FIRST}", "text_encoder.encoder.layers.1.mlp.fc1"
    ends = ("lora_A.weight", "lora_B.weight")
    return {f"{stem}.{end}" for stem in (first, second) for end in ends} | {f"{first}.lora_magnitude_vector"}


def test_equal_loras_are_equal_files(tmp_path: Path) -> None:
    """Whatever the order in which the library writes their metadata, with any characters in them."""
    file = read_lora_file(write(tmp_path / "a.safetensors", kohya()), {})
    more = {f"key {i}": f'"{i}"\\ \n\t\x01\x7f é 猫 😀' for i in range(20)}
    for name in ("b", "c", "d"):
        write_lora(tmp_path / name, file.layers, metadata=more)
    assert len({(tmp_path / name).read_bytes() for name in ("b", "c", "d")}) == 1
    with safe_open(tmp_path / "b", "np") as made:
        assert more.items() <= made.metadata().items()


def test_numbers_that_no_file_can_hold_are_not_written(tmp_path: Path) -> None:
    file = read_lora_file(write(tmp_path / "a.safetensors", changed("lora_up", torch.full((320, 2), 1e6))), {})
    with pytest.raises(InputError, match=r"b\.safetensors: .*lora_up.*float16.*float32"):
        write_lora(tmp_path / "b.safetensors", file.layers)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
