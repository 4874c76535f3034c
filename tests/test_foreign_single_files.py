"""Single files as other tools write them: markers, other names, leftovers, links, `.ckpt`, other families."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load_file, save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pruning.prune import PruneConfig, prune
from tests.arrays import require_equal
from tests.single_files import single, source, without_metadata

NONE = np.zeros(0, np.float32)
CLIP = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def files(sd_teachers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Generation -> a single file that doesn't say what it predicts."""
    folder = tmp_path_factory.mktemp("single")
    return {name: without_metadata(single(model, folder / name)) for name, model in sd_teachers.items()}


def changed(path: Path, target: Path, added: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    save_file(load_file(path) | added, target, metadata)
    return target


def require_same_weights(ours: Pipeline, theirs: Pipeline) -> None:
    for name, network in theirs.networks.items():
        require_equal(ours.networks[name].params, network.params)


@pytest.mark.parametrize(
    ("generation", "added", "metadata", "wanted", "found"),
    [
        ("v1", {}, {}, "", ("epsilon", False)),
        ("v1", {"v_pred": NONE}, {}, "", ("v_prediction", False)),
        ("v1", {"v_pred": NONE, "ztsnr": NONE}, {}, "", ("v_prediction", True)),
        ("v1", {"v_pred": NONE, "ztsnr": NONE}, {}, "epsilon", ("epsilon", False)),
        ("v1", {}, {"modelspec.prediction_type": "v"}, "", ("v_prediction", False)),
        ("v2", {"v_pred": NONE}, {}, "", ("v_prediction", False)),
        ("v2", {}, {"modelspec.prediction_type": "epsilon"}, "", ("epsilon", False)),
        ("v2", {}, {"modelspec.prediction_type": "odd"}, "", None),
        ("v1", {}, {"modelspec.prediction_type": "sample"}, "", None),
        ("v1", {}, {"modelspec.prediction_type": "sample"}, "epsilon", ("epsilon", False)),
        ("v1", {}, {"modelspec.prediction_type": "V-Prediction"}, "", ("v_prediction", False)),
        ("v1", {"v_pred": NONE}, {"modelspec.prediction_type": "epsilon"}, "", None),
    ],
)
def test_what_a_file_predicts_is_what_it_says(
    files: dict[str, Path],
    sd_teachers: dict[str, Path],
    tmp_path: Path,
    generation: str,
    added: dict[str, Any],
    metadata: dict[str, str],
    wanted: str,
    found: tuple[str, bool] | None,
) -> None:
    path = changed(files[generation], tmp_path / "a.safetensors", added, metadata)
    if found is None:
        with pytest.raises(InputError, match=r"a\.safetensors: .*prediction"):
            find_model(source(path, sd_teachers[generation], wanted))
        return
    schedule = find_model(source(path, sd_teachers[generation], wanted)).architectures.schedule
    assert (schedule.prediction_type, schedule.zero_snr) == found


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_velocity_survives_a_single_file(
    sd_teachers: dict[str, Path], tmp_path: Path, generation: str, zero_snr: bool
) -> None:
    model = shutil.copytree(sd_teachers[generation], tmp_path / "model")
    file = model / "scheduler" / "scheduler_config.json"
    options = {"prediction_type": "v_prediction"} | ({"rescale_betas_zero_snr": True} if zero_snr else {})
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    index = model / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    path = single(model, tmp_path / "out")
    again = load_pipeline(source(path, model))
    assert (again.schedule.prediction_type, again.schedule.zero_snr) == ("v_prediction", zero_snr)
    assert {"v_pred", "ztsnr"} & load_file(path).keys() == ({"v_pred", "ztsnr"} if zero_snr else {"v_pred"})
    assert again.scheduler.get("rescale_betas_zero_snr", False) is zero_snr


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_resolution_survives_a_single_file(
    sd_teachers: dict[str, Path], tmp_path: Path, size: int, prediction: str
) -> None:
    model = shutil.copytree(sd_teachers["v2"], tmp_path / "model")
    for name, change in (
        ("unet/config.json", {"sample_size": size}),
        ("scheduler/scheduler_config.json", {"prediction_type": prediction}),
    ):
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | change))
    assert find_model(source(single(model, tmp_path / "out"), model)).architectures.resolution == size * 8


def test_two_names_of_one_weight_are_refused(
    files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path
) -> None:
    twice = {f"{CLIP}final_layer_norm.bias": np.zeros(768, np.float32)}
    path = changed(files["v1"], tmp_path / "a.safetensors", twice)
    with pytest.raises(InputError, match=r"a\.safetensors: .*final_layer_norm\.bias"):
        find_model(source(path, sd_teachers["v1"]))


def test_clip_names_without_text_model(files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["v1"])
    save_file({name.replace(f"{CLIP}text_model.", CLIP): x for name, x in tensors.items()}, tmp_path / "a.safetensors")
    ours = load_pipeline(source(tmp_path / "a.safetensors", sd_teachers["v1"]))
    require_same_weights(ours, load_pipeline(source(files["v1"], sd_teachers["v1"])))


UNUSED = {
    f"{CLIP}text_projection.weight": np.zeros((8, 8), np.float32),
    f"{CLIP}vision_model.embeddings.class_embedding": NONE,
    f"{CLIP}vision_model.encoder.layers.0.mlp.fc1.bias": NONE,
    f"{CLIP}logit_scale": np.zeros((), np.float32),
    "first_stage_model.loss.logvar": np.zeros(1, np.float32),
    "model.diffusion_model.extra": np.zeros(1, np.int64),
    "model_ema.diffusion_modelinput_blocks00weight": NONE,
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_nothing_uses_is_passed_over_and_named(
    files: dict[str, Path],
    sd_teachers: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    path = changed(files["v1"], tmp_path / "a.safetensors", {name: UNUSED[name]})
    with caplog.at_level(logging.WARNING):
        ours = load_pipeline(source(path, sd_teachers["v1"]))
    assert f"passed over 1 unused tensor(s): {name}" in caplog.text
    require_same_weights(ours, load_pipeline(source(files["v1"], sd_teachers["v1"])))


def test_what_files_usually_have_besides_is_not_mentioned(
    files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = {"v1": {"betas": NONE, "alphas_cumprod": NONE}, "v2": {"cond_stage_model.model.text_projection": NONE}}
    for generation, added in usual.items():
        path = changed(files[generation], tmp_path / "a.safetensors", added)
        find_model(source(path, sd_teachers[generation], "epsilon"))
    assert "passed over" not in caplog.text


def test_a_tower_that_is_not_vit_hs_is_told_to_lose_its_last_layer(
    files: dict[str, Path], sd_teachers: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = find_model(source(files["v2"], sd_teachers["v2"], "epsilon"))
    assert found.architectures.configs["text_encoder"].layers == 3  # of 4
    assert "last layer" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.SAFETENSORS"])
def test_a_link_into_the_hubs_cache(
    files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for folder in ("blobs", "snapshots/rev"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(files["v1"], tmp_path / "blobs" / "0123abcd")
    link = tmp_path / "snapshots" / "rev" / name
    link.symlink_to("../../blobs/0123abcd")
    assert load_pipeline(source(link, sd_teachers["v1"])).path == link


@pytest.mark.parametrize("name", ["link", "link.ckpt", "link.safetensors"])
def test_a_link_to_a_file_of_known_format(
    files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).symlink_to(files["v1"])
    assert load_pipeline(source(tmp_path / name, sd_teachers["v1"])).path == files["v1"].resolve()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_ckpt_is_read(files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path, zipped: bool) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in load_file(files["v1"]).items()}
    checkpoint = {"epoch": 3, "global_step": 470_000, "state_dict": tensors}
    torch.save(checkpoint, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    ours = load_pipeline(source(tmp_path / "model.ckpt", sd_teachers["v1"]))
    require_same_weights(ours, load_pipeline(source(files["v1"], sd_teachers["v1"])))


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_a_ckpt_whose_tensors_are_not_in_c_order(
    files: dict[str, Path], sd_teachers: dict[str, Path], tmp_path: Path, generation: str
) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in load_file(files[generation]).items()}
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            tensors[name] = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    torch.save(tensors, tmp_path / "model.ckpt")
    ours = load_pipeline(source(tmp_path / "model.ckpt", sd_teachers[generation], "epsilon"))
    require_same_weights(ours, load_pipeline(source(files[generation], sd_teachers[generation], "epsilon")))


@pytest.mark.parametrize(
    ("added", "what"),
    [
        ({"conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (1,)}, "SDXL"),
        ({"model.diffusion_model.joint_blocks.0.weight": (1,)}, "SD 3"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "ControlNet"),
        ({"lora_unet_x.lora_down.weight": (1,)}, "LoRA"),
    ],
)
def test_other_models_are_refused_by_name(
    files: dict[str, Path], tmp_path: Path, added: dict[str, tuple[int, ...]], what: str
) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in added.items()}
    path = changed(files["v1"], tmp_path / "a.safetensors", arrays)
    with pytest.raises(InputError, match=rf"a\.safetensors: .*{what}"):
        find_model(path)


@pytest.mark.parametrize("generation", ["v1", "v2"])
@pytest.mark.parametrize(("channels", "what"), [(9, "inpainting"), (5, "depth"), (8, "InstructPix2Pix")])
def test_unets_with_more_channels_are_refused_by_name(
    files: dict[str, Path], tmp_path: Path, generation: str, channels: int, what: str
) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    width = load_file(files[generation])[name].shape[0]
    path = changed(files[generation], tmp_path / "a.safetensors", {name: np.zeros((width, channels, 3, 3), np.float32)})
    with pytest.raises(InputError, match=rf"a\.safetensors: .*{what}"):
        find_model(path)


def test_a_message_about_sd_1_does_not_speak_of_open_clip(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["v1"])
    del tensors[f"{CLIP}text_model.embeddings.token_embedding.weight"]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"token_embedding") as error:
        find_model(tmp_path / "a.safetensors")
    assert "cond_stage_model.model" not in str(error.value)


@pytest.mark.parametrize(
    ("generation", "student", "prediction", "dtype"),
    [
        ("v1", "bk_small", "epsilon", None),
        ("v1", "bk_tiny", "v_prediction", torch.bfloat16),
        ("v2", "bk_base", "v_prediction", None),
        pytest.param("v2", "no_mid", "epsilon", torch.float16, marks=pytest.mark.slow),
    ],
)
def test_diffusers_loads_a_single_file_with_the_configs_beside_it(
    sd_teachers: dict[str, Path],
    tmp_path: Path,
    generation: str,
    student: str,
    prediction: str,
    dtype: torch.dtype | None,
) -> None:
    model = shutil.copytree(sd_teachers[generation], tmp_path / "model")
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": prediction}))
    path = single(model, tmp_path / "single", student)
    prune(PruneConfig(str(model), student), tmp_path / "folder")
    options = {"torch_dtype": dtype} if dtype else {}
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(path.parent / "config"), **options)
    expected = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", **options)
    assert theirs.scheduler.config.prediction_type == prediction
    images = []
    for pipeline in (theirs, expected):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline("a cat", 64, 64, 2, output_type="np", generator=generator).images)
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
