"""U-Nets that Stable Diffusion 1 and 2 don't have: deep transformers, an added embedding, no text."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures
from bksdm_jax.formats.unet_depths import DOWN, UP
from bksdm_jax.formats.unet_json import require_flax_expressible, unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.attention import SpatialTransformer
from bksdm_jax.models.unet import FEATURES, UNet, captured, example_inputs, parameter_shapes
from bksdm_jax.models.unet_table import block_table
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pipelines.write_single_file import original_shapes
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights
from tests import surgery, tiny

TIME_WIDTH, POOLED = 8, 16
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_WIDTH,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME_WIDTH,
}
BOTH = tiny.MICRO | {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
DEEP = {
    "as in SDXL": tiny.MICRO
    | ADDED
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": [2, 4],
        "layers_per_block": 1,
        "use_linear_projection": True,
        "upcast_attention": None,
        DOWN: [1, 3],
    },
    "lists of lists": BOTH
    | ADDED
    | {"layers_per_block": [1, 2], "flip_sin_to_cos": False, DOWN: [2, [1, 2]], UP: [[1, 3, 1], [1, 2]]},
}


def torch_unet(json: dict[str, Any], seed: int = 0) -> UNet2DConditionModel:
    return tiny.randomize(UNet2DConditionModel(**{k: v for k, v in json.items() if not k.startswith("_")}), seed)


def inputs(config: Any) -> tuple[Any, ...]:
    generator = np.random.default_rng()
    latents, _, conditioning = jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape, np.float32), example_inputs(config, 2, 4)
    )
    if "time_ids" in conditioning:
        conditioning["time_ids"] = generator.integers(0, 1024, conditioning["time_ids"].shape).astype(np.float32)
    return latents, np.array([3.0, 977.0], np.float32), conditioning


def require_same_output(config: Any, params: dict[str, Any], module: UNet2DConditionModel) -> None:
    latents, timesteps, conditioning = inputs(config)
    added = {key: torch.from_numpy(value) for key, value in conditioning.items() if key != "context"}
    with torch.inference_mode():
        theirs = module(
            torch.from_numpy(latents.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            torch.from_numpy(conditioning["context"]),
            added_cond_kwargs=added or None,
        ).sample.numpy()
    ours = jax.jit(UNet(config).apply)({"params": params}, latents, timesteps, conditioning)
    assert np.abs(np.asarray(ours) - theirs.transpose(0, 2, 3, 1)).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["as in SDXL", pytest.param("lists of lists", marks=pytest.mark.slow)])
def test_matches_pytorch(name: str) -> None:
    module = torch_unet(DEEP[name])
    config = unet_from_diffusers(module.config)
    require_same_output(config, tiny.flax_params(module, parameter_shapes(config)), module)
    again = unet_to_diffusers(config)
    assert unet_from_diffusers(again) == config
    assert torch_unet(again).state_dict().keys() == module.state_dict().keys()
    costs = unet_cost(config, 8).values()
    assert sum(cost.parameters for cost in costs) == sum(parameter.numel() for parameter in module.parameters())


def test_each_layer_is_a_row_and_sows_its_features() -> None:
    config = unet_from_diffusers(DEEP["as in SDXL"])
    rows = [row.name for row in block_table(config)[0] if row.kind == "attention"]
    transformers = ["down_blocks.1.attentions.0", "mid_block.attentions.0"]
    transformers += [f"up_blocks.0.attentions.{j}" for j in range(2)]
    assert rows == [f"{name}.transformer_blocks.{k}" for name in transformers for k in range(3)]
    _, sown = jax.eval_shape(
        lambda params, *values: UNet(config).apply({"params": params}, *values, mutable=[FEATURES]),
        parameter_shapes(config),
        *example_inputs(config, 2, 8),
    )
    assert {f"{row}.attn1" for row in rows} | {f"{name}.proj_out" for name in transformers} <= captured(sown).keys()


LAYERS = ("down_blocks.1.attentions.1.transformer_blocks.1", "up_blocks.0.attentions.2.transformer_blocks.0")


def test_a_removal_list_can_name_a_layer() -> None:
    module = torch_unet(DEEP["as in SDXL"] | {"layers_per_block": 2})
    config = unet_from_diffusers(module.config)
    plan = plan_removal(config, LAYERS)
    moved = {ours: theirs for ours, theirs in plan.layers if ours != theirs}
    assert moved == {
        "down_blocks.1.attentions.1.transformer_blocks.1": "down_blocks.1.attentions.1.transformer_blocks.2",
        "up_blocks.0.attentions.2.transformer_blocks.0": "up_blocks.0.attentions.2.transformer_blocks.1",
        "up_blocks.0.attentions.2.transformer_blocks.1": "up_blocks.0.attentions.2.transformer_blocks.2",
    }
    assert plan.to_json()["layers"] == dict(plan.layers)
    assert all(ours == theirs for ours, theirs in plan.blocks)
    copied = trees.flatten(copy_weights(plan, tiny.flax_params(module, parameter_shapes(config))))
    for name in LAYERS:
        surgery.drop_layer(module, name)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    ours = {names.torch_name(path): names.to_torch(path, leaf) for path, leaf in copied.items()}
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name])
    json = unet_to_diffusers(plan.student)
    assert (json[DOWN], json[UP]) == ([1, [3, 2]], [[3, 3, 2], 1])
    assert torch_unet(json).state_dict().keys() == expected.keys()
    assert unet_from_diffusers(json) == plan.student
    with pytest.raises(InputError, match="flax"):
        require_flax_expressible(plan.student)


def test_a_transformer_goes_with_its_last_layer() -> None:
    config = unet_from_diffusers(DEEP["as in SDXL"])
    gone = [f"mid_block.attentions.0.transformer_blocks.{k}" for k in range(3)]
    assert plan_removal(config, tuple(gone)).student == plan_removal(config, ("mid_block.attentions.0",)).student
    with pytest.raises(InputError, match="mid_block"):  # two layers are left there, three in the last down stage
        unet_to_diffusers(plan_removal(config, tuple(gone[:1])).student)
    with pytest.raises(InputError, match=r"mid_block\.attentions\.0\.transformer_blocks\.3"):
        plan_removal(config, ("mid_block.attentions.0.transformer_blocks.3",))


def test_plans_of_shallow_teachers_have_no_layers() -> None:
    plan = plan_removal(unet_from_diffusers(tiny.MICRO), removed_blocks(tiny.MICRO_STUDENT))
    assert list(plan.to_json()) == ["removed", "blocks", "features"]
    assert plan.to_json()["blocks"]["up_blocks.1.attentions.1"] == "up_blocks.1.attentions.2"


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    DOWN: [1, 2, 10],
}


def koala(depth: int, mid: bool) -> RemovalPlan:
    """The students of KOALA (Lee et al. 2023, section 3.2): one layer less a stage, and less deep transformers."""
    config = unet_from_diffusers(SDXL)
    removed = [] if mid else ["mid_block"]
    for name, stage in config.stages().items():
        if name != "mid_block":
            removed += [f"{name}.resnets.1", *([f"{name}.attentions.1"] if stage.depths[1] else [])]
        for j in (j for j, found in enumerate(stage.depths) if found == 10 and (j != 1)):
            removed += [f"{name}.attentions.{j}.transformer_blocks.{k}" for k in range(depth, 10)]
    return plan_removal(config, tuple(removed))


@pytest.mark.parametrize(("depth", "mid", "published"), [(6, True, 1_161), (5, False, 782)])
def test_koala_is_a_list_of_removed_layers(depth: int, mid: bool, published: int) -> None:
    plan = koala(depth, mid)
    json = unet_to_diffusers(plan.student)
    assert json[DOWN] == [1, 2, depth]
    assert UP not in json
    require_flax_expressible(dataclasses.replace(plan.student, mid=plan.teacher.mid))
    assert trees.count(parameter_shapes(plan.student)) // 10**6 == published


@pytest.mark.slow
def test_sdxl_has_the_published_size() -> None:
    assert trees.count(parameter_shapes(unet_from_diffusers(SDXL))) == 2_567_463_684


def test_depth_is_inferred_from_names() -> None:
    networks = stable_diffusion("v2")
    deep = dataclasses.replace(
        networks.denoiser,
        **{
            key: tuple(
                dataclasses.replace(
                    stage, pairs=tuple(pair + "A" * (j if "A" in pair else 0) for j, pair in enumerate(stage.pairs))
                )
                for stage in getattr(networks.denoiser, key)
            )
            for key in ("down", "up")
        },
    )
    shapes = original_shapes(networks.with_denoiser(deep), spaced=False)
    assert infer_architectures(shapes, "it")[0].stages() == deep.stages()


@pytest.mark.parametrize(
    "change",
    [
        {DOWN: 0},
        {DOWN: [1, 2, 3]},
        {DOWN: [[1], 1], UP: [1, 1]},
        {DOWN: [[1, "2"], 1], UP: [1, 1]},
        {DOWN: [1, 1], UP: [1, [1, 2]]},
        {DOWN: [1, 1], UP: 2},
        {"addition_embed_type": "text"},
        ADDED | {"addition_time_embed_dim": None},
        ADDED | {"projection_class_embeddings_input_dim": 6 * TIME_WIDTH},
    ],
    ids=str,
)
def test_configs_that_no_network_has_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="somewhere") as error:
        unet_from_diffusers(BOTH | change, "somewhere")
    assert any(key in str(error.value) for key in change)
    assert "\n" not in str(error.value)


def test_one_number_is_the_depth_everywhere() -> None:
    config = unet_from_diffusers(BOTH | {DOWN: 2})
    assert {stage.depths for stage in config.stages().values()} == {(2, 2), (2, 0), (2, 2, 2)}
    assert config == unet_from_diffusers(BOTH | {DOWN: [2, 2]})


def test_lists_of_lists_must_say_what_the_up_stages_have() -> None:
    with pytest.raises(InputError, match=UP):
        unet_from_diffusers(BOTH | {DOWN: [[1, 2], [1, 1]]})


class Twin(torch.nn.Module):
    """A transformer without text of Diffusers' own layers, between linear projections."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(8, width, eps=1e-6)
        self.proj_in, self.proj_out = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.transformer_blocks = torch.nn.ModuleList(
            BasicTransformerBlock(width, heads, width // heads, cross_attention_dim=None) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for layer in self.transformer_blocks:
            h = layer(h)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)


def test_transformers_without_text_match_pytorch() -> None:
    module = SpatialTransformer(heads=4, depth=2, linear_projection=True, groups=8)
    twin = tiny.randomize(Twin(32, 4, 2), 1)
    x = np.random.default_rng().standard_normal((2, 4, 6, 32), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = tiny.flax_params(twin, shapes)
    assert len(trees.flatten(params)) == len(twin.state_dict())
    with torch.inference_mode():
        theirs = twin(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    ours = module.apply({"params": params}, x)
    assert np.abs(np.asarray(ours) - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_a_unet_without_text_runs_on_no_conditioning() -> None:
    json = tiny.MICRO | {"layers_per_block": 1}
    config = dataclasses.replace(unet_from_diffusers(json), context_width=None)
    latents, timesteps, conditioning = inputs(config)
    assert conditioning == {}
    shapes = parameter_shapes(config)
    assert not [path for path in trees.flatten(shapes) if "attn2" in path]
    params = tiny.random_tree(shapes, 0)
    apply = jax.jit(UNet(config).apply)
    out = apply({"params": params}, latents, timesteps, conditioning)
    assert out.shape == latents.shape
    assert np.isfinite(out).all()
    assert not np.allclose(out, apply({"params": params}, latents, timesteps[::-1], conditioning))
    assert sum(cost.parameters for cost in unet_cost(config, 8).values()) == trees.count(shapes)
    with pytest.raises(InputError, match="cross_attention_dim"):
        unet_to_diffusers(config)
    assert unet_from_diffusers(json | {"cross_attention_dim": None}) == config
    assert plan_removal(config, ("mid_block",)).student.context_width is None
