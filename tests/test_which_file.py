"""Of several files for one network, the one is read that Diffusers and Transformers read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.locate import DIFFUSERS_STEMS, choose_files
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.source import ModelSource
from tests import tiny
from tests.arrays import require_equal

WHOLE = "diffusion_pytorch_model.safetensors"
CLASSES = {"unet": (UNet2DConditionModel, "diffusion_pytorch_model"), "text_encoder": (CLIPTextModel, "model")}


@pytest.fixture
def folder(micro_torch_teacher: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro_torch_teacher, tmp_path / "model")


def other(path: Path) -> None:
    """The weights twice as large."""
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def require_read_as(folder: Path, name: str, variant: str = "") -> None:
    """Ours are the weights that the library reads from this folder."""
    cls, _ = CLASSES[name]
    ours = find_model(ModelSource(str(folder), variant=variant)).read().networks[name].params
    require_equal(ours, tiny.flax_params(cls.from_pretrained(folder / name, variant=variant or None), ours))


def shard(folder: Path, name: str, **options: Any) -> Path:
    """Adds shards to a network's folder; returns their index."""
    cls, _ = CLASSES[name]
    place = folder / name
    cls.from_pretrained(place).save_pretrained(place, max_shard_size="60KB", **options)
    return next(place.glob("*.index*"))


@pytest.mark.parametrize("name", CLASSES)
def test_a_whole_file_beside_shards(folder: Path, name: str) -> None:
    """Diffusers reads the shards, Transformers the file."""
    _, stem = CLASSES[name]
    whole = folder / name / f"{stem}.safetensors"
    kept = whole.read_bytes()
    shard(folder, name)
    whole.write_bytes(kept)
    other(whole)
    require_read_as(folder, name)


def test_an_index_beside_a_whole_file_but_no_shards(folder: Path) -> None:
    whole = folder / "unet" / WHOLE
    kept = whole.read_bytes()
    index = shard(folder, "unet")
    whole.write_bytes(kept)
    for path in folder.glob("unet/*-of-*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"{index.name}: .*{WHOLE}"):
        find_model(folder).read()


def test_shards_without_their_index(folder: Path) -> None:
    shard(folder, "unet").unlink()
    (folder / "unet" / WHOLE).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"unet: no weights; .*-of-.*index\.json"):
        find_model(folder).read()


def test_safetensors_beside_bin(folder: Path) -> None:
    torch.save(load_file(folder / "unet" / WHOLE), folder / "unet" / "diffusion_pytorch_model.bin")
    other(folder / "unet" / WHOLE)
    require_read_as(folder, "unet")


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_a_bin_beside_bin_shards(folder: Path, variant: str) -> None:
    """Here Diffusers reads the file."""
    options = {"variant": variant} if variant else {}
    shard(folder, "unet", safe_serialization=False, **options)
    whole = folder / "unet" / WHOLE
    if not whole.is_file():  # saving deletes other weights
        whole = folder / "unet" / "gone"
    tensors = UNet2DConditionModel(**tiny.MICRO).state_dict()
    infix = f".{variant}" if variant else ""
    torch.save(tensors, folder / "unet" / f"diffusion_pytorch_model{infix}.bin")
    whole.unlink(missing_ok=True)
    require_read_as(folder, "unet", variant)


@pytest.mark.parametrize("older", ["shards", "index", "both"])
def test_older_names_of_a_variants_shards(folder: Path, older: str) -> None:
    index = shard(folder, "unet", variant="fp16")
    text = index.read_text()
    if older != "index":
        for path in folder.glob("unet/*.fp16-*"):
            name = re.sub(r"\.fp16(-\d+-of-\d+)\.safetensors", r"\1.fp16.safetensors", path.name)
            text = text.replace(path.name, name)
            path.rename(path.with_name(name))
    index.write_text(text)
    if older != "shards":
        index.rename(index.with_name("diffusion_pytorch_model.safetensors.fp16.index.json"))
    other(folder / "unet" / WHOLE)
    require_read_as(folder, "unet", "fp16")


def test_a_variant_of_one_component(folder: Path) -> None:
    place = folder / "text_encoder"
    shutil.copy(place / "model.safetensors", place / "model.fp16.safetensors")
    other(place / "model.safetensors")
    require_read_as(folder, "text_encoder", "fp16")


@pytest.mark.parametrize("odd", ["../unet2/a.safetensors", "config.json", ""])
def test_an_index_names_only_shards_of_its_folder(folder: Path, odd: str) -> None:
    index = shard(folder, "unet")
    table = json.loads(index.read_text())
    table["weight_map"] = dict.fromkeys(table["weight_map"], odd)
    index.write_text(json.dumps(table))
    with pytest.raises(InputError, match=rf"{index.name}: lists"):
        find_model(folder).read()


def test_the_hubs_listing_gives_the_same_files() -> None:
    """All names of a folder are known before anything is downloaded."""
    older = [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    names = [WHOLE, "diffusion_pytorch_model.safetensors.index.fp16.json", *older, "diffusion_flax_model.msgpack"]
    assert choose_files(names, DIFFUSERS_STEMS, "fp16") == (names[1], *older)
    assert choose_files(names, DIFFUSERS_STEMS, "") == (WHOLE,)
