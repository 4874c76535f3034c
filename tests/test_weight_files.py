"""Files of weights in every format people have them in, and files that are damaged or hostile."""

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.locate import choose_files, weight_files
from bksdm_jax.formats.weights import INDEXERS
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.source import ModelSource
from tests.arrays import require_equal

TENSORS = {
    "float32": torch.randn(3, 5),
    "float16": torch.randn(2, 2, 3).half(),
    "bfloat16": torch.randn(7).bfloat16(),
    "float64": torch.randn(2, 2).double(),
    "positions": torch.arange(4)[None],
    "turned": torch.randn(4, 3).t(),
    "part": torch.randn(10)[2:9:3],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.float().numpy().astype(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def write_bin(path: Path, table: dict[str, torch.Tensor]) -> None:
    torch.save(collections.OrderedDict(table), path)


def write_safetensors(path: Path, table: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in table.items()}, path, {"format": "pt"})


def write_msgpack(path: Path, table: dict[str, torch.Tensor]) -> None:
    tree = {"outer": {name: {"inner": numpy_of(tensor)} for name, tensor in table.items()}}
    path.write_bytes(serialization.msgpack_serialize(tree))


FORMATS: dict[str, Callable[[Path, dict[str, torch.Tensor]], None]] = {
    ".bin": write_bin,
    ".safetensors": write_safetensors,
    ".msgpack": write_msgpack,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_tensor_is_found_and_read(tmp_path: Path, suffix: str) -> None:
    FORMATS[suffix](tmp_path / f"file{suffix}", TENSORS)
    found = INDEXERS[suffix](tmp_path / f"file{suffix}")
    found = {name.removeprefix("outer/").removesuffix("/inner"): tensor for name, tensor in found.items()}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        ours, theirs = found[name].read(), numpy_of(tensor)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_large_maps_and_arrays_of_flax_checkpoints_are_read(tmp_path: Path) -> None:
    tree = {f"layer_{i}": {"kernel": np.full((300, i % 3), i, np.float32)} for i in range(70_000 // 256)}
    tree["wide"] = {"kernel": np.arange(70_000, dtype=np.float32).reshape(1, -1, 1)}
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    found = INDEXERS[".msgpack"](tmp_path / "a.msgpack")
    require_equal(trees.unflatten({name: tensor.read() for name, tensor in found.items()}), tree)


def spread(folder: Path, network: str, save: Callable[[Path], None]) -> Path:
    """`folder` with the files of one network written anew by `save`."""
    shutil.rmtree(folder / network)
    save(folder / network)
    return folder


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "bin": ({"safe_serialization": False}, 1),
    "sharded safetensors": ({"max_shard_size": "200KB"}, 2),
    "sharded bin": ({"safe_serialization": False, "max_shard_size": "200KB"}, 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_unets_as_pytorch_diffusers_writes_them(micro_torch_teacher: Path, tmp_path: Path, way: str) -> None:
    options, files = WAYS[way]
    module = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet")
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    spread(folder, "unet", lambda place: module.save_pretrained(place, **options))
    model = find_model(folder)
    found = model.read()
    assert len(model.files(["unet"])["unet"]) >= files
    require_equal(found.denoiser.params, find_model(micro_torch_teacher).read_denoiser().params)
    require_equal(model.read_denoiser().params, found.denoiser.params)


def test_sharded_flax_checkpoints_are_read(micro_teacher: Path, tmp_path: Path) -> None:
    """Shards as Transformers 4 wrote them: each a tree of its own, an index from paths to files."""
    folder = shutil.copytree(micro_teacher, tmp_path / "pipeline")
    whole = folder / "text_encoder" / "flax_model.msgpack"
    flat = trees.flatten(serialization.msgpack_restore(whole.read_bytes()))
    whole.unlink()
    files = {path: f"flax_model-0000{1 + index % 3}-of-00003.msgpack" for index, path in enumerate(flat)}
    for file in set(files.values()):
        shard = trees.unflatten({path: array for path, array in flat.items() if files[path] == file})
        (folder / "text_encoder" / file).write_bytes(serialization.msgpack_serialize(shard))
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    whole.with_suffix(".msgpack.index.json").write_text(json.dumps(index))
    require_equal(load_pipeline(folder).networks["text_encoder"].params, trees.unflatten(flat))
    (folder / "text_encoder" / files[next(iter(flat))]).unlink()
    with pytest.raises(InputError, match=files[next(iter(flat))]):
        load_pipeline(folder)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}], ids=["whole", "sharded"])
def test_a_variant_is_read_where_there_is_one(
    micro_torch_teacher: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    module = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet").half()
    module.save_pretrained(folder / "unet", variant="fp16", **options)
    plain, half = load_pipeline(folder), load_pipeline(ModelSource(str(folder), variant="fp16"))
    assert plain.networks["unet"].params["conv_in"]["bias"].dtype == np.float32
    require_equal(
        half.networks["unet"].params, jax.tree.map(lambda leaf: leaf.astype(np.float16), plain.networks["unet"].params)
    )
    require_equal(half.networks["vae"].params, plain.networks["vae"].params)
    with pytest.raises(InputError, match="non_ema"):
        load_pipeline(ModelSource(str(folder), variant="non_ema"))


def test_bfloat16_is_read(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    module = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet").bfloat16()
    spread(folder, "unet", module.save_pretrained)
    plain = find_model(micro_torch_teacher).read_denoiser().params
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), plain)
    require_equal(find_model(folder).read_denoiser().params, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_as_bfloat16(micro_torch_teacher: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    eight = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(eight, path)
    found = find_model(folder).read_denoiser().params
    save_file({name: tensor.bfloat16() for name, tensor in eight.items()}, path)
    require_equal(found, find_model(folder).read_denoiser().params)
    assert found["conv_in"]["bias"].dtype == ml_dtypes.bfloat16


def test_formats_are_preferred_in_order() -> None:
    stems = {".safetensors": "a", ".msgpack": "b", ".bin": "c"}
    assert choose_files(["c.bin", "b.msgpack", "a.safetensors"], stems, "") == ("a.safetensors",)
    assert choose_files(["c.bin", "b.msgpack", "a.fp16.safetensors"], stems, "") == ("c.bin",)
    assert choose_files(["c.fp16.bin", "b.msgpack"], stems, "") == ("b.msgpack",)
    assert choose_files(["c.fp16.bin", "b.msgpack"], stems, "fp16") == ("c.fp16.bin",)
    assert choose_files(["config.json"], stems, "") == ()


def test_little_bytes_are_not_made_much(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"kernel": np.zeros(0, np.float32)}
    for _ in range(20):
        tree = {"n" * 1000: tree}
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(InputError, match=r"a\.msgpack: .*nnnn"):
        INDEXERS[".msgpack"](tmp_path / "a.msgpack")


def test_a_missing_shard_is_named(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "pipeline")
    module = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet")
    spread(folder, "unet", lambda place: module.save_pretrained(place, max_shard_size="200KB"))
    next((folder / "unet").glob("*-00001-of-*")).unlink()
    with pytest.raises(InputError, match=r"index\.json: .*'diffusion_pytorch_model-00001-of-"):
        load_pipeline(folder)


@pytest.mark.parametrize("shard", ["../vae/config.json", "/etc/passwd"])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, shard: str) -> None:
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": shard}}))
    with pytest.raises(InputError, match=f"index.json: .*{shard}"):
        weight_files(tmp_path, {".safetensors": "a", ".msgpack": "b", ".bin": "c"}, "")


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=r"a\.safetensors: "):
        INDEXERS[".safetensors"](tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small real file of each format."""
    folder = tmp_path_factory.mktemp("originals")
    for suffix, write in FORMATS.items():
        write(folder / f"file{suffix}", TENSORS)
    return {suffix: (folder / f"file{suffix}").read_bytes() for suffix in FORMATS}


MUTATIONS = st.lists(st.tuples(st.sampled_from(("set", "cut", "drop", "copy")), st.floats(0, 1), st.integers(0, 255)))


def mutated(data: bytes, mutations: list[tuple[str, float, int]]) -> bytes:
    for kind, place, value in mutations:
        at = int(place * max(len(data) - 1, 0))
        if kind == "set":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + value :]
        else:
            data = data[:at] + data[at : at + value] + data[at:]
    return data


@pytest.mark.parametrize("suffix", FORMATS)
@settings(
    max_examples=700,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(mutations=MUTATIONS)
def test_a_mutant_is_read_or_refused(
    originals: dict[str, bytes], tmp_path: Path, suffix: str, mutations: list[tuple[str, float, int]]
) -> None:
    path = tmp_path / f"mutant{suffix}"
    path.write_bytes(mutated(originals[suffix], mutations))
    try:
        for tensor in INDEXERS[suffix](path).values():
            array = tensor.read()
            assert array.nbytes <= 2**20
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
