"""Single-file checkpoints in the original layout: written so that Diffusers' converters understand them, and read."""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.pipelines.stable_diffusion import TEACHERS, stable_diffusion
from bksdm_jax.pipelines.write_single_file import original_shapes, require_single_file
from bksdm_jax.pruning.prune import PruneConfig, prune
from tests.arrays import require_equal
from tests.single_files import UNETS, single, without_metadata

NUMBERINGS = ("single_file", "single_file_spaced")
STUDENTS = ["sd", "bk_base", "bk_small", "bk_tiny", "no_mid"]


def cases(*everyday: tuple[str, ...], other: Sequence[str] = ("",)) -> list[Any]:
    """Every generation, student and `other`; those that aren't `everyday` are slow tests."""
    every = [tuple(filter(None, case)) for case in itertools.product(UNETS, STUDENTS, other)]
    return [pytest.param(*case, marks=() if case in everyday else pytest.mark.slow) for case in every]


def as_torch(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in load_file(path).items()}


def require_in(module: torch.nn.Module, found: dict[str, torch.Tensor]) -> None:
    """`found` is, name by name, what `module` holds."""
    expected = module.state_dict()
    found = {names.current_name(name): tensor for name, tensor in found.items()}
    found.pop(None, None)
    assert found.keys() == {names.current_name(name) for name in expected} - {None}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[names.current_name(name)].reshape(tensor.shape), tensor, err_msg=name)


@pytest.mark.parametrize(("generation", "student"), cases(("v1", "bk_small"), ("v2", "sd")))
def test_diffusers_converters_find_every_weight(
    sd_teachers: dict[str, Path], tmp_path: Path, generation: str, student: str
) -> None:
    path = single(sd_teachers[generation], tmp_path / "single", student)
    prune(PruneConfig(str(sd_teachers[generation]), student), tmp_path / "folder")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    checkpoint = as_torch(path)
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), dict(theirs.unet.config))
    require_in(theirs.unet, unet)
    require_in(theirs.vae, single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), dict(theirs.vae.config)))
    if generation == "v1":
        require_in(theirs.text_encoder, single_file_utils.convert_ldm_clip_checkpoint(checkpoint))
    else:
        text = single_file_utils.convert_open_clip_checkpoint(theirs.text_encoder, checkpoint)
        added = {name: text.pop(name) for name in list(text) if ".layers.3." in name}  # the layer that SD 2 skips
        assert all(not tensor.any() for tensor in added.values())
        assert len(added) == 16
        require_in(theirs.text_encoder, text)


@pytest.mark.parametrize(
    ("generation", "student", "numbering"),
    cases(
        ("v1", "bk_base", "single_file"),
        ("v1", "bk_tiny", "single_file_spaced"),
        ("v2", "bk_small", "single_file_spaced"),
        other=NUMBERINGS,
    ),
)
def test_what_is_written_is_read_again(
    sd_teachers: dict[str, Path], tmp_path: Path, generation: str, student: str, numbering: str
) -> None:
    path = single(sd_teachers[generation], tmp_path / "single", student, format=numbering)
    prune(PruneConfig(str(sd_teachers[generation]), student), tmp_path / "folder")
    ours = load_pipeline(ModelSource(str(path), tokenizer=str(sd_teachers[generation]), prediction_type="epsilon"))
    theirs = load_pipeline(tmp_path / "folder")
    assert ours.architectures == theirs.architectures
    for network in ("unet", "vae", "text_encoder"):
        require_equal(ours.networks[network].params, theirs.networks[network].params)


def test_spaced_numbers_are_those_of_stable_diffusion_cpp(sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    """Its tiny U-Net: three stages of one block down and two up; a number is left free where SD has one more block."""
    path = single(sd_teachers["v1"], tmp_path / "single", "bk_tiny", format="single_file_spaced")
    found = {re.sub(r"^((\w+)_blocks\.\d+\.\d+)\..*", r"\1", name.removeprefix("model.diffusion_model."))
             for name in load_file(path) if "put_blocks" in name}  # fmt: skip
    down = {"0.0", "1.0", "1.1", "3.0", "4.0", "4.1", "6.0", "7.0", "7.1"}
    up = {f"{i}.{j}" for i in (0, 1, 3, 4, 6, 7) for j in (0, 1)} | {"2.1", "5.2"}
    assert found == {f"input_blocks.{n}" for n in down} | {f"output_blocks.{n}" for n in up}


@pytest.mark.parametrize("prediction", [pytest.param("epsilon", marks=pytest.mark.slow), "v_prediction"])
def test_a_student_of_a_single_file_runs_in_pytorch(
    sd_teachers: dict[str, Path], tmp_path: Path, prediction: str
) -> None:
    path = single(sd_teachers["v2"], tmp_path / "single")
    settings = {"tokenizer": str(sd_teachers["v2"]), "prediction": prediction}
    prune(PruneConfig(str(path), "bk_tiny", **settings), tmp_path / "student")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == prediction
    assert pipeline.unet.config.upcast_attention is (prediction == "v_prediction")
    assert pipeline.tokenizer.pad_token == "!"
    tokens = load_pipeline(tmp_path / "student").caption_inputs(["a cat"])["tokens"]
    assert tokens[0, -1] == 0
    theirs = pipeline.tokenizer(["a cat"], padding="max_length", max_length=77, truncation=True).input_ids
    np.testing.assert_array_equal(tokens, theirs)
    image = pipeline("a cat", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert np.isfinite(image).all()


def test_the_unet_alone_is_inferred(sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    path = without_metadata(single(sd_teachers["v2"], tmp_path / "single", "bk_small"))
    config = find_model(ModelSource(str(path), prediction_type="v_prediction")).architectures.denoiser
    assert (config.sample_size, config.upcast_attention, config.mid) == (96, True, None)
    assert [stage.heads for stage in config.down] == [1, 1, 2, 2]


def test_what_a_single_file_cannot_say_is_asked_for(
    sd_teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = without_metadata(single(sd_teachers["v2"], tmp_path / "second"))
    first = single(sd_teachers["v1"], tmp_path / "first")
    with pytest.raises(InputError, match=r"second/model\.safetensors: .*prediction.*epsilon.*v_prediction"):
        load_pipeline(ModelSource(str(second), tokenizer=str(sd_teachers["v2"])))
    with pytest.raises(InputError, match=r"prediction: .*'v'"):
        load_pipeline(ModelSource(str(first), tokenizer=str(sd_teachers["v1"]), prediction_type="v"))
    with pytest.raises(InputError, match=r"first/model\.safetensors: .*tokenizer.*nowhere"):
        load_pipeline(ModelSource(str(first), tokenizer=str(tmp_path / "nowhere")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"first/model\.safetensors: .*tokenizer.*openai/clip-vit-large-patch14"):
        load_pipeline(first)
    with pytest.raises(InputError, match=r"variant: 'fp16'.*first/model\.safetensors"):
        load_pipeline(ModelSource(str(first), variant="fp16"))
    with pytest.raises(InputError, match=r"tokenizer: .*v1"):
        load_pipeline(ModelSource(str(sd_teachers["v1"]), tokenizer="x"))


def test_other_files_are_refused(sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    path = single(sd_teachers["v1"], tmp_path / "single")
    tensors = load_file(path)

    def refused(said: str, kept: dict[str, np.ndarray]) -> None:
        save_file(kept, tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match=said) as error:
            load_pipeline(ModelSource(str(tmp_path / "bad.safetensors"), tokenizer=str(sd_teachers["v1"])))
        assert str(tmp_path / "bad.safetensors") in str(error.value)
        assert "\n" not in str(error.value)

    unet = {name: array for name, array in tensors.items() if name.startswith("model.diffusion_model.")}
    refused("first_stage_model", unet)
    refused(r"bad\.safetensors: ", {"lora_unet.weight": np.zeros(3, np.float32)})
    gone = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    refused("missing: down_blocks.0.resnets.0.conv1.weight", {k: v for k, v in tensors.items() if k != gone})
    odd = "model.diffusion_model.out.2.bias"
    refused(r"conv_out.bias.*\(9,\)", tensors | {odd: np.zeros(9, np.float32)})
    stranger = "model.diffusion_model.label_emb.0.0.weight"
    refused("unexpected weights.*label_emb", tensors | {stranger: np.zeros(9, np.float32)})
    shutil.copy(path, tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"model\.gguf: .*\.safetensors.*\.ckpt"):
        load_pipeline(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def shapes(sd_teachers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple]]:
    """Generation -> the names and shapes of a student's single file."""
    folder = tmp_path_factory.mktemp("shapes")
    return {
        generation: {
            name: array.shape for name, array in load_file(single(teacher, folder / generation, "bk_small")).items()
        }
        for generation, teacher in sd_teachers.items()
    }


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_names_and_shapes_of_no_network_are_refused(shapes: dict[str, dict[str, tuple]], data: st.DataObject) -> None:
    table = dict(shapes[data.draw(st.sampled_from(list(UNETS)))])
    shape = st.lists(st.sampled_from([0, 1, 3, 4, 31, 32, 64, 77, 768, 2**40]), max_size=5)
    for name in data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=6)):
        if data.draw(st.booleans()):
            table[name] = tuple(data.draw(shape))
        else:
            table.pop(name, None)
    said = "it: all is well"
    try:
        infer_architectures(table, "it")
    except InputError as error:
        said = str(error)
    assert said.startswith("it: ")
    assert "\n" not in said


@pytest.mark.parametrize("missing", [True, False], ids=["23 layers", "24 layers"])
def test_the_layer_that_sd_2_skips_may_be_missing(missing: bool) -> None:
    """Some tools write the 23 layers that are used, others OpenCLIP's 24."""
    table = original_shapes(stable_diffusion("v2"), spaced=False)
    if missing:
        table = {name: shape for name, shape in table.items() if ".resblocks.23." not in name}
    _, _, text = infer_architectures(table, "it")
    assert text == stable_diffusion("v2").configs["text_encoder"]


def test_gaps_are_seen_on_either_side(sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    """A block that goes from the last down and the first up stage leaves a gap among the output blocks alone."""
    student = "down_blocks.3.resnets.1,up_blocks.0.resnets.1"
    files = (single(sd_teachers["v1"], tmp_path / name, student, format=name) for name in NUMBERINGS)
    assert len({find_model(file).architectures.denoiser for file in files}) == 1


def test_more_blocks_than_numbers_are_not_written() -> None:
    networks = stable_diffusion("v1")
    deep = networks.with_denoiser(unet_from_diffusers(TEACHERS["v1"] | {"layers_per_block": 3}))
    with pytest.raises(InputError, match=r"format: .*unet.*numbers"):
        require_single_file(deep, spaced=True)
    require_single_file(deep, spaced=False)


def test_another_schedule_is_not_written() -> None:
    networks = stable_diffusion("v1")
    linear = dataclasses.replace(networks.schedule, beta_schedule="linear")
    with pytest.raises(InputError, match=r"format: .*schedule"):
        require_single_file(dataclasses.replace(networks, schedule=linear), spaced=False)


def test_networks_that_would_be_taken_for_others_are_not_written(sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    pipeline = load_pipeline(sd_teachers["v1"])
    config = pipeline.denoiser.config
    down, up = (tuple(dataclasses.replace(stage, heads=4) for stage in side) for side in (config.down, config.up))
    config = dataclasses.replace(config, down=down, mid=dataclasses.replace(config.mid, heads=4), up=up)
    other = pipeline.with_denoiser(config, pipeline.denoiser.params)
    with pytest.raises(InputError, match=r"format: .*unet.*4 heads"):
        write_pipeline(tmp_path / "single", other, SaveConfig("single_file"))
    assert not any(tmp_path.iterdir())
