"""The smallest whole distillation, shared by tests: a teacher of two stages, 16-pixel images, 8x8 latents."""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import UNet2DConditionModel

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.tasks.distill.objective import Problem, make_loss
from tests import surgery, tiny

UNET = tiny.MICRO | {"block_out_channels": (32, 32)}  # of one width, so that a whole stage can go
ONE_STAGE = f"{tiny.MICRO_STUDENT},down_blocks.1,up_blocks.0"
VOCABULARY, TOKENS = 50, 8


def one_stage(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """`ONE_STAGE` by hand, as the paper's tiny student."""
    unet = copy.deepcopy(teacher)
    surgery.drop_pair(unet.down_blocks[0], 1)
    surgery.drop_pair(unet.up_blocks[1], 1)
    unet.mid_block = None
    unet.down_blocks, unet.up_blocks = unet.down_blocks[:1], unet.up_blocks[1:]
    unet.down_blocks[0].downsamplers = None
    return unet


def plan(student: str = ONE_STAGE) -> RemovalPlan:
    """The student's plan."""
    return plan_removal(unet_from_diffusers(UNET), removed_blocks(student))


def networks() -> Architectures:
    """The teacher's pipeline."""
    configs = {
        "unet": unet_from_diffusers(UNET),
        "vae": VAEConfig(widths=(32, 32), layers_per_block=1),
        "text_encoder": CLIPTextConfig(
            width=tiny.CONTEXT,
            mlp_width=32,
            layers=1,
            heads=2,
            vocab_size=VOCABULARY,
            positions=TOKENS,
            max_length=TOKENS,
        ),
    }
    return Architectures(configs, ScheduleConfig())


def problem(student: str = ONE_STAGE) -> Problem:
    """The distillation as the paper has it."""
    return Problem(plan(student), networks())


def params(config: UNetConfig, seed: int) -> dict[str, Any]:
    """Random weights of a U-Net."""
    return tiny.random_tree(parameter_shapes(config), seed)


@functools.cache
def gradient(of: RemovalPlan) -> Any:
    """(student, frozen, noisy batch) -> ((loss, terms), gradients), compiled once for each shape."""
    return jax.jit(jax.value_and_grad(make_loss(Problem(of, networks())), has_aux=True))


@functools.cache
def encoders() -> dict[str, Any]:
    """Random weights of the networks that encode images and captions."""
    architectures = networks()
    shapes = {name: architectures.parameter_shapes()[name] for name in architectures.frozen}
    return {name: tiny.random_tree(tree, seed) for seed, (name, tree) in enumerate(shapes.items())}


def batch(count: int) -> dict[str, Any]:
    """Random images uint8 [N, 16, 16, 3] and the tokens [N, T] of captions."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, (count, TOKENS), np.int32)
    return {"images": generator.integers(0, 256, (count, 16, 16, 3), np.uint8), "captions": {"tokens": tokens}}


def keys(count: int, seed: int = 0) -> jax.Array:
    """Keys of a micro-batch, [N]."""
    return jax.random.split(jax.random.key(seed), count)


def moments(count: int) -> tuple[jax.Array, jax.Array]:
    """Means and log-variances as the autoencoder gives them, [N, 8, 8, 4]."""
    generator = np.random.default_rng(1)
    mean = generator.standard_normal((count, 8, 8, 4)).astype(np.float32)
    return jnp.asarray(mean), jnp.full(mean.shape, -4.0)
