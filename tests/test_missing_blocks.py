"""Single blocks that are missing: interpolations in their places, the same by the conditioning, and the files."""

import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.missing_blocks import has_missing_blocks, unet_from_json, unet_to_json
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.interop.config import CompareConfig
from bksdm_jax.interop.parity import parity
from bksdm_jax.models.layers import interpolate_channels
from bksdm_jax.models.unet import UNet, parameter_shapes
from bksdm_jax.models.unet_table import popped_skips, replaceable
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights
from tests import surgery, tiny

UNET = tiny.MICRO
RESNETS = ("down_blocks.1.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.2", "up_blocks.1.resnets.0")
ATTENTIONS = ("down_blocks.0.attentions.1", "mid_block.attentions.0", "up_blocks.1.attentions.0")
STUDENT = ",".join([*(f"{name}:interpolate" for name in RESNETS), *ATTENTIONS])
SKIPS = ("up_blocks.0.resnets.1", "up_blocks.1.resnets.2")


class Interpolated(torch.nn.Module):
    """In place of a ResNet, by PyTorch's own interpolation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return interpolated(x, self.width)


def interpolated(x: torch.Tensor, width: int) -> torch.Tensor:
    batch, channels, height, columns = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, 1, channels)
    rows = torch.nn.functional.interpolate(rows, size=width, mode="linear", align_corners=False)
    return rows.reshape(batch, height, columns, width).permute(0, 3, 1, 2)


def by_hand(teacher: UNet2DConditionModel, missing: tuple[str, ...]) -> UNet2DConditionModel:
    unet = copy.deepcopy(teacher)
    for name in missing:
        stage, kind, j = name.rsplit(".", 2)
        blocks = getattr(unet.get_submodule(stage), kind)
        blocks[int(j)] = Interpolated(blocks[int(j)].out_channels) if kind == "resnets" else surgery.Nothing()
    return unet


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    return tiny.randomize(UNet2DConditionModel(**UNET), int(np.random.default_rng().integers(2**31)))


def inputs() -> dict:
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((3, 8, 8, 4)).astype(np.float32)
    context = generator.standard_normal((3, 7, tiny.CONTEXT)).astype(np.float32)
    return {"latents": latents, "timesteps": np.array([3, 400, 999]), "conditioning": {"context": context}}


def torch_output(unet: torch.nn.Module, values: dict) -> np.ndarray:
    latents = torch.from_numpy(values["latents"].transpose(0, 3, 1, 2))
    context = torch.from_numpy(values["conditioning"]["context"])
    with torch.no_grad():
        out = unet(latents, torch.from_numpy(values["timesteps"]), context).sample
    return out.numpy().transpose(0, 2, 3, 1)


def require_close(ours: jax.Array, theirs: np.ndarray, tolerance: float = 2e-5) -> None:
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def params_of(teacher: UNet2DConditionModel) -> dict:
    return tiny.flax_params(teacher, parameter_shapes(unet_from_diffusers(UNET)))


@pytest.mark.parametrize("widths", [(4, 8), (96, 32), (7, 5), (6, 6), (5, 1), (1, 4)])
def test_channels_are_interpolated_as_by_pytorch(widths: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 2, widths[0])).astype(np.float32)
    theirs = interpolated(torch.from_numpy(x.transpose(0, 3, 1, 2)), widths[1]).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(interpolate_channels(jnp.asarray(x), widths[1]), theirs, atol=1e-6)


def test_a_student_with_gaps_computes_what_pytorch_does(teacher: UNet2DConditionModel) -> None:
    config, values = unet_from_diffusers(UNET), inputs()
    plan = plan_removal(config, removed_blocks(STUDENT))
    ours = jax.jit(UNet(plan.student).apply)({"params": copy_weights(plan, params_of(teacher))}, **values)
    require_close(ours, torch_output(by_hand(teacher, (*RESNETS, *ATTENTIONS)), values))
    kept = dict(plan.blocks)
    assert kept == {name: name for name in kept}  # numbered as in the teacher
    gone = {*RESNETS, *ATTENTIONS}
    assert {*replaceable(config)} - {*kept} == gone


def test_what_is_kept_is_chosen_by_image_in_one_program(teacher: UNet2DConditionModel) -> None:
    config, values = unet_from_diffusers(UNET), inputs()
    blocks, skips = replaceable(config), popped_skips(config)
    missing = [(), (RESNETS[0], ATTENTIONS[1]), (*RESNETS, *ATTENTIONS)]
    kept = np.array([[block not in gone for block in blocks] for gone in missing])
    run, params = jax.jit(UNet(config).apply), {"params": params_of(teacher)}
    masks = {"kept": kept, "skips": np.ones((3, len(skips)), np.float32)}
    ours = run(params, **values | {"conditioning": values["conditioning"] | masks})
    for i, gone in enumerate(missing):
        require_close(ours[i], torch_output(by_hand(teacher, gone), values)[i])

    masks["kept"] = np.ones_like(kept)
    masks["skips"][1] = [name not in SKIPS for name in skips]
    ours = run(params, **values | {"conditioning": values["conditioning"] | masks})
    assert run._cache_size() == 1
    plain, without = torch_output(teacher, values), torch_output(without_skips(teacher), values)
    require_close(ours[0], plain[0])
    require_close(ours[1], without[1])
    assert np.abs(without[1] - plain[1]).max() > 0.01 * np.abs(plain).max()


def without_skips(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """The skips of `SKIPS` are zero: they are the last channels of their ResNets' inputs."""
    unet = copy.deepcopy(teacher)
    for name in SKIPS:
        stage, _, j = name.rsplit(".", 2)
        blocks = unet.get_submodule(stage).resnets
        before = blocks[int(j) - 1].out_channels

        def cut(_: torch.nn.Module, args: tuple, before: int = before) -> tuple:
            x = args[0].clone()
            x[:, before:] = 0
            return (x, *args[1:])

        blocks[int(j)].register_forward_pre_hook(cut)
    return unet


@pytest.mark.parametrize(
    "student",
    [
        STUDENT,
        "up_blocks.1.attentions.1",
        "mid_block.resnets.0:interpolate,mid_block.attentions.0",
        "down_blocks.1.resnets.0:interpolate,down_blocks.1.resnets.1:interpolate",
        f"{tiny.MICRO_SMALL},up_blocks.1.resnets.0:interpolate",
    ],
)
def test_configs_with_gaps_are_read_as_written(student: str) -> None:
    config = plan_removal(unet_from_diffusers(UNET), removed_blocks(student)).student
    assert has_missing_blocks(config)
    json = unet_to_json(config)
    assert json["_class_name"] != "UNet2DConditionModel"
    assert unet_from_json(json) == config
    with pytest.raises(InputError):
        unet_to_diffusers(config)


def test_other_configs_are_diffusers_own() -> None:
    for student in ("sd", "no_mid", tiny.MICRO_SMALL):
        config = plan_removal(unet_from_diffusers(UNET), removed_blocks(student)).student
        assert not has_missing_blocks(config)
        assert unet_to_json(config) == unet_to_diffusers(config)


def test_a_folder_with_gaps_is_ours_alone(micro_torch_teacher: Path, tmp_path: Path) -> None:
    plan, path = prune(PruneConfig(str(micro_torch_teacher), STUDENT), tmp_path / "student")
    found = load_pipeline(path)
    assert found.denoiser.config == plan.student
    card = (path / "README.md").read_text()
    assert "bksdm_jax.load" in card
    assert "library_name" not in card
    with pytest.raises((ValueError, OSError, AttributeError, ImportError)):
        StableDiffusionPipeline.from_pretrained(path)
    with pytest.raises(ValueError, match="blocks are missing"):
        UNet2DConditionModel.from_pretrained(path, subfolder="unet")
    with pytest.raises(InputError, match="single blocks are missing"):
        parity(CompareConfig(model=str(path)), tmp_path / "compared")
    assert not (tmp_path / "compared").exists()
    for name in ("flax", "single_file", "single_file_spaced"):
        with pytest.raises(InputError, match=f"format: {name} .*safetensors"):
            prune(PruneConfig(str(micro_torch_teacher), STUDENT, format=name), tmp_path / name)
        assert not (tmp_path / name).exists()
    again, _ = prune(PruneConfig(str(path), "sd"), tmp_path / "copy")
    assert again.student == plan.student


@pytest.mark.parametrize(
    ("student", "facts"),
    [
        ("down_blocks.0.attentions.0:interpolate", ("attentions.0:interpolate", "ResNet")),
        ("mid_block:interpolate", ("'mid_block:interpolate'", "ResNet")),
        ("down_blocks.0.resnet.0:interpolate", ("'down_blocks.0.resnets.0'",)),
        (
            "down_blocks.0.resnets.0,down_blocks.0.resnets.0:interpolate",
            ("down_blocks.0.resnets.0", "with and without"),
        ),
        ("down_blocks.0.resnets.0:interpolat", ("'down_blocks.0.resnets.0:interpolat'",)),
    ],
)
def test_names_that_cannot_be_interpolated_are_refused(student: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="student") as error:
        plan_removal(unet_from_diffusers(UNET), removed_blocks(student))
    assert all(fact in str(error.value) for fact in facts), error.value


@pytest.mark.parametrize("missing", ["mid_block", ["down_blocks.9.resnets.0"], [{}], [3], ["mid_block"] * 10_000])
def test_configs_with_other_gaps_are_refused(missing: object) -> None:
    with pytest.raises(InputError, match=r"x\.json: missing_blocks"):
        unet_from_json(UNET | {"missing_blocks": missing}, "x.json")
