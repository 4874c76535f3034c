"""Absurd and hostile files are refused by name before they take memory or time."""

import os
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.formats.clip_json import clip_text_from_transformers, clip_text_to_transformers
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.formats.weights import INDEXERS
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS
from bksdm_jax.sampling.run import SampleConfig, sample

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 3438354725\n"
HUGE = 10**9


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[" * 100_000, "nested"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested"),
        ("[]", "object"),
        ('{"a": ' + "9" * 5000 + "}", "valid JSON"),
        ('{"a": 1e400}', "1e400"),
    ],
)
def test_json_that_is_no_settings(tmp_path: Path, text: str, fact: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json: .*{fact}"):
        read_json(tmp_path / "config.json")


def test_json_of_another_size(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(InputError, match=r"config\.json: 16777217 bytes; .*16777216"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / name for name in ("config.json", "a.png", *(f"model{suffix}" for suffix in INDEXERS))]
    for path in paths:
        if kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    readers = [read_json, lambda path: read_bytes(path, MOST_BYTES), *INDEXERS.values()]
    for path, read in zip(paths, readers, strict=True):
        with pytest.raises(InputError, match=rf"{path.name}: not a regular file"):
            read(path)


@pytest.mark.parametrize("suffix", INDEXERS)
def test_a_git_lfs_pointer_is_told(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_text(POINTER)
    with pytest.raises(InputError, match=rf"model\{suffix}: .*git lfs pull"):
        INDEXERS[suffix](tmp_path / f"model{suffix}")


def test_weights_of_a_variant_alone_are_told(micro_torch_teacher: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for part in micro_torch_teacher.iterdir():
        (model / part.name).symlink_to(part)
    (model / "unet").unlink()
    (model / "unet").mkdir()
    whole = micro_torch_teacher / "unet"
    (model / "unet" / "config.json").symlink_to(whole / "config.json")
    weights = whole / "diffusion_pytorch_model.safetensors"
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors").symlink_to(weights)
    with pytest.raises(InputError, match=r"unet: no weights; .*variant 'fp16'"):
        find_model(model).read()


SIDES = (("down", "DownEncoder"), ("up", "UpDecoder"))
UNET = {"block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
UNET |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 32}


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": HUGE},
        {"layers_per_block": [1, HUGE]},
        {"layers_per_block": 64, "transformer_layers_per_block": 64},
        {"transformer_layers_per_block": HUGE},
        {"block_out_channels": [32, HUGE * 32]},
        {"block_out_channels": [32] * 1000},
        {"attention_head_dim": HUGE},
        {"cross_attention_dim": HUGE},
        {"in_channels": HUGE},
        {"norm_num_groups": HUGE},
        {"sample_size": HUGE},
        {"addition_embed_type": "text_time", "addition_time_embed_dim": HUGE},
    ],
)
def test_u_nets_beyond_all_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"u\.json: "):
        unet_from_diffusers(UNET | change, "u.json")


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": HUGE},
        {"layers_per_block": 64, "block_out_channels": [32] * 8}
        | {f"{side}_block_types": [f"{kind}Block2D"] * 8 for side, kind in SIDES},
        {"block_out_channels": [HUGE * 32]},
        {"latent_channels": HUGE},
        {"latent_channels": int("9" * 400)},
        {"scaling_factor": int("9" * 400)},
        {"act_fn": ["x"] * 10**5},
    ],
)
def test_autoencoders_beyond_all_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"v\.json: {next(iter(change))}.{{,400}}$"):
        vae_from_diffusers(change, "v.json")


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size"])
def test_text_encoders_beyond_all_bounds(key: str) -> None:
    with pytest.raises(InputError, match=rf"t\.json: {key} is {HUGE}"):
        clip_text_from_transformers(clip_text_to_transformers(CLIPTextConfig()) | {key: HUGE}, "t.json")


def test_schedules_beyond_all_bounds() -> None:
    with pytest.raises(InputError, match=r"s\.json: num_train_timesteps"):
        schedule_from_diffusers({"num_train_timesteps": HUGE}, "s.json")


def test_an_endless_prompt_is_refused_before_anything_is_written(micro_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n" + "a" * (MOST_LETTERS + 1))
    config = SampleConfig(model=str(micro_teacher), prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(InputError, match=rf"prompts: .*{MOST_LETTERS + 1} characters"):
        sample(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"caption .* characters"):
        find_model(micro_teacher).read().caption_inputs(["b" * (MOST_LETTERS + 1)])
