"""The U-Net against PyTorch, with the same random weights, as it is and with blocks taken out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.traced_once import intercepting
from bksdm_jax.models.unet import FEATURES, UNet, captured, parameter_shapes
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights
from tests import surgery, tiny

BY_HAND = {name: lambda t, how=how: surgery.operate(t, **how) for name, how in surgery.PAPER.items()} | {
    surgery.ONE_STAGE: surgery.one_stage,
    surgery.ATTENTIONS: surgery.attentions,
}
# Another depth, other widths, three stages, other head layouts than SD's.
ODD = {
    "sample_size": 8,
    "block_out_channels": (16, 48, 32),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": [1, 3, 2],
    "attention_head_dim": [2, 6, 8],
    "cross_attention_dim": 24,
    "mid_block_type": "UNetMidBlock2D",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
EVERYDAY = [("v1", name) for name in ("bk_tiny", surgery.ONE_STAGE, surgery.ATTENTIONS)] + [("v2", "sd")]
SLOW = [("v1", name) for name in ("sd", "bk_base", "bk_small", "no_mid")] + [
    ("v2", "bk_tiny"),
    ("v2", surgery.ONE_STAGE),
]


def inputs(context: int = tiny.CONTEXT, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    generator = np.random.default_rng()  # fresh each time: the comparison must hold for any input
    return {
        "latents": generator.standard_normal((2, *size, 4), np.float32),
        "timesteps": np.array([3, 977], np.int32),
        "conditioning": {"context": generator.standard_normal((2, 9, context), np.float32)},
    }


def torch_output(unet: UNet2DConditionModel, values: dict[str, Any]) -> np.ndarray:
    with torch.inference_mode():
        out = unet(
            torch.from_numpy(values["latents"].transpose(0, 3, 1, 2)),
            torch.from_numpy(values["timesteps"]),
            torch.from_numpy(values["conditioning"]["context"]),
        ).sample
    return out.numpy().transpose(0, 2, 3, 1)


def require_close(ours: jax.Array, theirs: np.ndarray, tolerance: float = 2e-5) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.fixture(scope="module")
def teachers() -> dict[str, UNet2DConditionModel]:
    seed = int(np.random.default_rng().integers(2**31))
    return {
        name: tiny.randomize(UNet2DConditionModel(**options), seed)
        for name, options in (("v1", tiny.V1), ("v2", tiny.V2))
    }


@pytest.mark.parametrize(
    ("generation", "student"), EVERYDAY + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
)
def test_matches_pytorch(teachers: dict[str, UNet2DConditionModel], generation: str, student: str) -> None:
    teacher = teachers[generation]
    config = unet_from_diffusers(teacher.config)
    params = tiny.flax_params(teacher, parameter_shapes(config))
    plan = plan_removal(config, removed_blocks(student))
    values = inputs()
    # Not jitted: op by op, the cases share what XLA compiles.
    ours = UNet(plan.student).apply({"params": copy_weights(plan, params)}, **values)
    require_close(ours, torch_output(BY_HAND[student](teacher), values))


@pytest.mark.parametrize(
    ("student", "size"),
    [
        pytest.param("sd", (9, 13), marks=pytest.mark.slow),
        ("bk_tiny", (10, 7)),
        pytest.param(surgery.ONE_STAGE, (1, 8), marks=pytest.mark.slow),
        pytest.param("no_mid", (16, 11), marks=pytest.mark.slow),
    ],
)
def test_any_height_and_width_matches_pytorch(
    teachers: dict[str, UNet2DConditionModel], student: str, size: tuple[int, int]
) -> None:
    teacher = teachers["v1"]
    config = unet_from_diffusers(teacher.config)
    plan = plan_removal(config, removed_blocks(student))
    values = inputs(size=size)
    params = copy_weights(plan, tiny.flax_params(teacher, parameter_shapes(config)))
    ours = jax.jit(UNet(plan.student, remat="blocks").apply)({"params": params}, **values)
    require_close(ours, torch_output(BY_HAND[student](teacher), values))


@pytest.mark.slow
def test_other_widths_depths_and_heads_match_pytorch() -> None:
    teacher = tiny.randomize(UNet2DConditionModel(**ODD), 5)
    config = unet_from_diffusers(teacher.config)
    values = inputs(context=24)
    params = tiny.flax_params(teacher, parameter_shapes(config))
    require_close(jax.jit(UNet(config).apply)({"params": params}, **values), torch_output(teacher, values))


@pytest.mark.parametrize("student", [*surgery.PAPER, surgery.ONE_STAGE])
def test_students_config_builds_the_same_network_in_diffusers(student: str) -> None:
    plan = plan_removal(unet_from_diffusers(tiny.V2), removed_blocks(student))
    json = unet_to_diffusers(plan.student)
    assert unet_from_diffusers(json) == plan.student
    module = UNet2DConditionModel(**{k: v for k, v in json.items() if not k.startswith("_")})
    params = tiny.flax_params(module, parameter_shapes(plan.student))  # raises where a name or shape differs
    assert sum(p.numel() for p in module.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_features_are_captured_only_on_request(teachers: dict[str, UNet2DConditionModel]) -> None:
    config = unet_from_diffusers(tiny.V1)
    params = tiny.flax_params(teachers["v1"], parameter_shapes(config))
    values = inputs()

    def plain(params: dict) -> jax.Array:
        return UNet(config).apply({"params": params}, **values)

    def watched(params: dict) -> jax.Array:
        return UNet(config).apply({"params": params}, **values, mutable=[FEATURES])[0]

    with intercepting(
        lambda call, args, kwargs, context: call(*args, **kwargs)
    ):  # jitted layers would have more results
        assert str(jax.make_jaxpr(plain)(params)) == str(jax.make_jaxpr(watched)(params))
    features = jax.eval_shape(
        lambda p: captured(UNet(config).apply(p, **values, mutable=[FEATURES])[1]), {"params": params}
    )
    shapes = {name: leaf.shape for name, leaf in features.items()}
    assert shapes["down_blocks.0"] == (2, 4, 4, 32)
    assert shapes["down_blocks.3"] == (2, 1, 1, 64)
    assert shapes["mid_block"] == (2, 1, 1, 64)
    assert shapes["up_blocks.3"] == (2, 8, 8, 32)
    assert shapes["down_blocks.2.attentions.1.proj_out"] == (2, 2, 2, 64)


@pytest.mark.slow
def test_bfloat16_follows_float32() -> None:
    teacher = tiny.randomize(UNet2DConditionModel(**tiny.MICRO), int(np.random.default_rng().integers(2**31)))
    config = unet_from_diffusers(tiny.MICRO)
    params = tiny.flax_params(teacher, parameter_shapes(config))
    values = inputs()
    exact = UNet(config).apply({"params": params}, **values)
    short = jax.jit(UNet(config, jnp.bfloat16).apply)({"params": params}, **values)
    assert short.dtype == jnp.bfloat16
    error = np.asarray(short, np.float32) - np.asarray(exact)
    assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((np.asarray(exact) ** 2).mean())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"down_block_types": ["CrossAttnDownBlock2D", "Mystery", "DownBlock2D", "DownBlock2D"]}, "'Mystery'"),
        ({"block_out_channels": [30, 32, 64, 64]}, "30 channels"),
        ({"attention_head_dim": [5, 5, 5, 5]}, "5 heads"),
        ({"attention_head_dim": [4, 4]}, "attention_head_dim has 2 entries"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"mid_block_type": "Other"}, "mid_block_type: unknown name 'Other'"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_configs_of_other_networks_are_refused(change: dict, said: str) -> None:
    with pytest.raises(InputError, match="somewhere") as error:
        unet_from_diffusers(tiny.V1 | change, "somewhere")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
