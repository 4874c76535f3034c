"""NaN and infinities, in weights, latents, images, features and scores, are errors, and nothing of them is written."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from absl import logging
from diffusers import AutoencoderTiny
from flax import serialization
from safetensors.numpy import load_file, save_file
from transformers import ViTConfig, ViTModel

from bksdm_jax.api import load, save
from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.data.prepare import latents
from bksdm_jax.data.prepare.config import LatentConfig, PrepareConfig
from bksdm_jax.data.prepare.latents import prepare_latents
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.sources import open_examples
from bksdm_jax.formats.names import torch_shapes
from bksdm_jax.interop.config import CompareConfig
from bksdm_jax.interop.parity import parity
from bksdm_jax.models.inception import OUTPUTS, inception_parameter_shapes
from bksdm_jax.pipelines.autoencoder import load_autoencoder
from bksdm_jax.pipelines.clip_folder import load_clip, write_clip
from bksdm_jax.pipelines.config import PartsConfig, SaveConfig
from bksdm_jax.pipelines.inception_file import load_inception
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.parts import with_parts
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.pipelines.vit_folder import load_vit
from bksdm_jax.pruning.config import PruneConfig
from bksdm_jax.pruning.prune import prune
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import generate_images
from bksdm_jax.sampling.run import sample
from tests import single_files, tiny
from tests.sampling_runs import quick, use_one_device

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2)
BAD = (np.nan, -np.nan, np.inf, -np.inf)
WEIGHTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "up_blocks.1.resnets.0.conv1.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "encoder.conv_in.bias"),
    "text_encoder": ("model.safetensors", "embeddings.token_embedding.weight"),
}
STUDENT = tiny.MICRO_STUDENT


def spoil(file: Path, name: str, value: float = np.nan, dtype: Any = None, count: int = 1) -> int:
    """Makes the last values of the tensor whose name ends so, in a file of safetensors, this value; its size."""
    tensors = load_file(file)
    (name,) = (key for key in tensors if key.endswith(name))
    spoilt = np.array(tensors[name].astype(dtype or tensors[name].dtype))
    spoilt.reshape(-1)[-count:] = value
    save_file(tensors | {name: spoilt}, file, metadata={"format": "pt"})
    return spoilt.size


@pytest.fixture
def teacher(micro_torch_teacher: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(micro_torch_teacher, tmp_path / "teacher")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def spoilt(pipeline: Pipeline, network: str, end: str) -> Pipeline:
    """With a NaN in a parameter of a network."""
    flat = trees.flatten(pipeline.networks[network].params)
    path = next(path for path in flat if path.endswith(end))
    flat[path] = np.array(flat[path])
    flat[path].reshape(-1)[0] = np.nan
    changed = dataclasses.replace(pipeline.networks[network], params=trees.unflatten(flat))
    return dataclasses.replace(pipeline, networks=dict(pipeline.networks) | {network: changed})


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_counted_as_numpy_does(dtype: Any) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 100_003)).astype(np.float32).astype(dtype)
    limits, wide = ml_dtypes.finfo(dtype), np.dtype(dtype) == np.float64
    largest = float(np.finfo(np.float32).max) if wide else limits.max
    numbers[0, :5] = [largest, -largest, limits.smallest_subnormal, -0.0, 0.0]
    for array in (numbers, numbers.T, numbers[:, ::7], numbers[:0], numbers[0, 0]):
        assert count_non_finite(np.asarray(array)) == 0
    for number, value in enumerate(BAD):
        numbers[number % 3, 17 * number :: 50_000] = value
        assert count_non_finite(numbers) == np.count_nonzero(~np.isfinite(numbers.astype(np.float32)))
    if wide:  # what float32 can't hold
        assert count_non_finite(np.array([3.4e38, 3.41e38, -1e300, 1e-300])) == 2


@pytest.mark.parametrize("network", WEIGHTS)
@pytest.mark.parametrize(("dtype", "value"), [*zip(DTYPES, BAD, strict=False), (np.float32, np.inf)])
def test_each_network_in_each_dtype_is_refused(teacher: Path, network: str, dtype: Any, value: float) -> None:
    file, name = WEIGHTS[network]
    size = spoil(teacher / network / file, name, value, dtype, count=3)
    with pytest.raises(InputError, match=rf"{network}/{file}: 3 of {size:,} values of .*{name}.*allow_non_finite"):
        prune(PruneConfig(str(teacher), STUDENT), teacher.parent / "student")
    with pytest.raises(InputError, match=rf"{network}/{file}: .*{name}"):
        sample(quick(teacher), teacher.parent / "images")
    assert not (teacher.parent / "student").exists()
    assert not (teacher.parent / "images").exists()


@pytest.mark.slow
def test_other_formats_are_refused(
    teacher: Path, micro_teacher: Path, sd_teachers: dict[str, Path], tmp_path: Path
) -> None:
    flax = shutil.copytree(micro_teacher, tmp_path / "flax") / "vae" / "diffusion_flax_model.msgpack"
    tree = serialization.msgpack_restore(flax.read_bytes())
    tree["decoder"]["conv_out"]["bias"] = np.full_like(tree["decoder"]["conv_out"]["bias"], np.inf)
    flax.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(InputError, match=r"vae/diffusion_flax_model.msgpack: 3 of 3 .*decoder/conv_out/bias"):
        load_pipeline(flax.parents[1])
    stored = teacher / "unet" / WEIGHTS["unet"][0]
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(stored).items()}
    tensors["conv_in.bias"][1] = torch.inf
    torch.save(tensors, stored.with_suffix(".bin"))
    stored.unlink()
    with pytest.raises(InputError, match=r"unet/diffusion_pytorch_model.bin: 1 of 32 .*conv_in.bias"):
        load_pipeline(teacher)
    file = single_files.single(sd_teachers["v1"], tmp_path / "single")
    spoil(file, "encoder.down.0.block.0.conv1.bias")
    found = ModelSource(str(file), tokenizer=str(sd_teachers["v1"]))
    name = r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.bias"
    with pytest.raises(InputError, match=rf"model\.safetensors, vae: 1 of .*{name}.*allow_non_finite"):
        load_pipeline(found)
    assert load_pipeline(dataclasses.replace(found, allow_non_finite=True)).allow_non_finite


def test_parts_of_other_files_are_refused(micro_torch_teacher: Path, tmp_path: Path, said: list[str]) -> None:
    tiny.randomize(AutoencoderTiny(), 0).save_pretrained(tmp_path / "tiny")
    spoil(tmp_path / "tiny" / "diffusion_pytorch_model.safetensors", "decoder.layers.0.bias")
    with pytest.raises(InputError, match=r"tiny, decoder: 1 of 64 .*layers\.0\.bias in diffusion_pytorch_model"):
        load_autoencoder(str(tmp_path / "tiny"))
    load_autoencoder(str(tmp_path / "tiny"), allow_non_finite=True)
    pipeline = load_pipeline(micro_torch_teacher)
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), pipeline.networks["text_encoder"].params)
    text = dataclasses.replace(pipeline.networks["text_encoder"], params=half)
    pipeline = dataclasses.replace(pipeline, networks=dict(pipeline.networks) | {"text_encoder": text})
    for value, fact in ((np.nan, "1 of 64 .*'<new>'.*allow_non_finite"), (1e9, "'<new>'.*float16")):
        vectors = np.zeros((2, 32), np.float32)
        vectors[1, 3] = value
        save_file({"<new>": vectors}, tmp_path / "new.safetensors")
        with pytest.raises(InputError, match=rf"new\.safetensors: .*{fact}"):
            with_parts(pipeline, PartsConfig(embeddings=(str(tmp_path / "new.safetensors"),)))
    assert len(said) == 1
    assert "decoder" in said[0]


def test_scoring_networks_are_refused_whatever_the_settings(tmp_path: Path) -> None:
    shapes = torch_shapes(inception_parameter_shapes()) | {"fc.bias": (OUTPUTS,)}
    state = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    state["Mixed_5b.branch1x1.bn.running_var"][5] = np.inf
    save_file(state, tmp_path / "inception.safetensors")
    module = tiny.clip(0)
    with torch.no_grad():
        module.logit_scale.fill_(torch.nan)
    module.save_pretrained(tmp_path / "clip")
    tiny.write_tokenizer(tmp_path / "clip")
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(**options), add_pooling_layer=True)
    with torch.no_grad():
        vit.layernorm.bias[:2] = torch.inf
    vit.save_pretrained(tmp_path / "vit")
    for read, name, fact in (
        (load_inception, "inception.safetensors", r"1 of 64 values of Mixed_5b\.branch1x1\.bn\.running_var"),
        (load_clip, "clip", "1 of 1 values of logit_scale"),
        (load_vit, "vit", r"2 of 32 values of \w+\.bias"),
    ):
        with pytest.raises(InputError, match=rf"{name}.*: {fact}") as error:
            read(str(tmp_path / name))
        assert "allow_non_finite" not in str(error.value)
    loaded = {"text_model": {"bias": np.full(3, np.nan, np.float32)}}
    with pytest.raises(InputError, match=r"out: .*3 of 3 values of clip's text_model/bias"):
        write_clip(tmp_path / "out", None, loaded, tmp_path / "clip")


def test_they_are_allowed_by_the_flag_and_named(teacher: Path, tmp_path: Path, said: list[str]) -> None:
    spoil(teacher / "unet" / WEIGHTS["unet"][0], "conv_norm_out.weight", np.inf)
    spoil(teacher / "vae" / WEIGHTS["vae"][0], WEIGHTS["vae"][1])
    student = tmp_path / "student"
    prune(PruneConfig(str(teacher), STUDENT, allow_non_finite=True), student)
    for network, name in (("unet", "conv_norm_out.weight"), ("vae", WEIGHTS["vae"][1])):
        assert any(f"{network}/" in line and name in line for line in said), said
        assert np.isinf(load_file(student / network / WEIGHTS[network][0])[name][-1]) == (network == "unet")
    with pytest.raises(InputError, match=r"student/vae.*encoder\.conv_in\.bias|student/unet.*conv_norm_out"):
        load(student)
    clean = tmp_path / "clean"
    shutil.copytree(student, clean)
    shutil.copy(teacher / "text_encoder" / WEIGHTS["text_encoder"][0], clean / "text_encoder")
    options = {"student_init": str(student), "allow_non_finite": True}
    with pytest.raises(InputError, match="allow_non_finite"):
        prune(PruneConfig(str(teacher), STUDENT, student_init=str(student)), tmp_path / "other")
    prune(PruneConfig(str(teacher), STUDENT, **options), tmp_path / "other")
    again = load(student, allow_non_finite=True)
    save(again, tmp_path / "again")
    with pytest.raises(InputError, match="again"):
        save(dataclasses.replace(again, allow_non_finite=False), tmp_path / "again_2")


def test_a_sampled_image_is_an_error_with_the_flag_too(
    micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_device(monkeypatch)
    file = shutil.copytree(micro_teacher, tmp_path / "teacher") / "vae" / "diffusion_flax_model.msgpack"
    tree = serialization.msgpack_restore(file.read_bytes())
    tree["decoder"]["conv_out"]["bias"] = np.float32([0, np.nan, 0])
    file.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(InputError, match=r"image 0.*a red cup.*finite"):
        sample(quick(file.parents[1], prompt="a red cup", allow_non_finite=True), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_images_of_a_callers_program_are_checked() -> None:
    def generate(params: Any, captions: Any, negative: Any, keys: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((2, 4, 4, 3), np.uint8), np.array([True, captions[1] != "bad"])

    prompts = [(5, "good"), (6, "fine"), (7, "good"), (8, "bad"), (9, "good")]
    made = generate_images(generate, {}, lambda texts: texts, SamplerConfig(), prompts, 2)
    assert [next(made)[0] for _ in range(3)] == [5, 6, 7]
    with pytest.raises(InputError, match=r"image 8 \('bad'\)"):
        next(made)


@pytest.mark.parametrize("form", ["safetensors", "flax", "single_file"])
def test_a_student_is_not_written(sd_teachers: dict[str, Path], tmp_path: Path, form: str) -> None:
    pipeline = load_pipeline(sd_teachers["v1"])
    for network, path in (("unet", "conv_in/bias"), ("text_encoder", "position_embedding/embedding")):
        with pytest.raises(InputError, match=rf"out: .*1 of [\d,]+ values of {network}'s .*{path}"):
            write_pipeline(tmp_path / "out", spoilt(pipeline, network, path), SaveConfig(form))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def images(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(PrepareConfig(str(photographs), workers=1, validation=0), tmp_path_factory.mktemp("set") / "images")


def test_latents_are_refused_when_made_and_when_read(
    teacher: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = teacher / "vae" / WEIGHTS["vae"][0]
    whole = file.read_bytes()
    config = LatentConfig(str(teacher), flip=False, batch_size=1)
    spoil(file, WEIGHTS["vae"][1])
    make: Callable[[LatentConfig, str], Path | None] = lambda own, name: prepare_latents(  # noqa: E731
        str(images), own, 16, 100, tmp_path / name
    )
    with pytest.raises(InputError, match=r"vae/.*1 of 32 .*encoder\.conv_in\.bias"):
        make(config, "a")
    allowed = dataclasses.replace(config, allow_non_finite=True)
    with pytest.raises(InputError, match=r"\.png.*512 of 512 .*weights of the autoencoder.*conv_in/bias"):
        make(allowed, "b")
    assert not list((tmp_path / "b").rglob("*array_record"))

    monkeypatch.setattr(latents, "require_finite_latents", lambda *_: None)
    examples = open_examples(make(allowed, "c"))
    with pytest.raises(InputError, match=r"c: split 'train': example 2 .*\.png.*512 of 512"):
        examples[2].moments(False)
    monkeypatch.undo()

    file.write_bytes(whole)
    large = {"quant_conv.weight": 1e38, "encoder.conv_out.weight": 1e3}
    save_file({name: tensor * np.float32(large.get(name, 1)) for name, tensor in load_file(file).items()}, file)
    for dtype, advice in (("float32", "leave the image out"), ("bfloat16", "latents.dtype to float32")):
        with pytest.raises(InputError, match=rf"\.png.*overflows.*{advice}"):
            make(dataclasses.replace(config, dtype=dtype), f"d_{dtype}")


def test_a_comparison_is_not_written(teacher: Path, tmp_path: Path) -> None:
    spoil(teacher / "text_encoder" / WEIGHTS["text_encoder"][0], "final_layer_norm.bias")
    settings = CompareConfig(str(teacher), prompts=("a cat",), steps=0, allow_non_finite=True)
    with pytest.raises(InputError, match=r"teacher: .*text encoder"):
        parity(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "differences.json").exists()
