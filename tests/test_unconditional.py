"""A pipeline without text is one more row of the family table: it trains and samples with what is there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.models.unet_table import Stage, UNetConfig
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines import families
from bksdm_jax.pipelines.families import FAMILIES, STABLE_DIFFUSION
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.pruning.weights import copy_weights
from bksdm_jax.sampling.generate import generate_images, make_generate
from bksdm_jax.sampling.text_to_image import SamplerConfig
from bksdm_jax.tasks.distill.objective import Problem, make_objective
from bksdm_jax.tasks.noise import Augmentation
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.sharding import batch_to_global, make_mesh
from bksdm_jax.training.state import OptimizerConfig, create_state
from bksdm_jax.training.train_step import make_train_step
from tests import tiny

FAMILY = "latent_diffusion"
UNET = UNetConfig(
    down=(Stage(16, 2, ("A",), False),),
    mid=None,
    up=(Stage(16, 2, ("RA",), False),),
    stem_width=16,
    context_width=None,
    norm_groups=4,
    sample_size=8,
)
REMOVED = ("up_blocks.0.attentions.0",)


def no_captions(*_: Any) -> dict[str, Any]:
    return {}


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Architectures:
    row = dataclasses.replace(
        FAMILIES[STABLE_DIFFUSION],
        pipeline_class="LDMPipeline",
        networks={"unet": families.UNET, "vae": families.AUTOENCODER},
        tokenizers={},
        caption_inputs=no_captions,
        caption_shapes=no_captions,
        condition=no_captions,
        pairs_that_agree=lambda configs: iter(()),
    )
    monkeypatch.setitem(FAMILIES, FAMILY, row)
    vae = VAEConfig(widths=(16, 16), layers_per_block=1, norm_groups=4)
    return Architectures({"unet": UNET, "vae": vae}, ScheduleConfig(), FAMILY)


def random_params(networks: Architectures) -> dict[str, Any]:
    shapes = networks.parameter_shapes()
    return {name: tiny.random_tree(tree, seed) for seed, (name, tree) in enumerate(shapes.items())}


@pytest.mark.slow
def test_it_is_distilled(networks: Architectures) -> None:
    params, plan, mesh = random_params(networks), plan_removal(UNET, REMOVED), make_mesh(1, jax.devices()[:1])
    assert networks.frozen == ("vae",)
    problem = Problem(plan, networks, augmentation=Augmentation(caption_dropout=0.5))
    objective = make_objective(problem, 16, (1, 2), cached=True)
    assert (set(objective.frozen), set(objective.batch)) == ({"vae", "teacher"}, {"moments", "captions"})
    step = make_train_step(objective, OptimizerConfig(), 0, mesh)
    student = jax.tree.map(jnp.asarray, copy_weights(plan, params["unet"]))
    frozen = {"teacher": params["unet"], "vae": params["vae"]}
    latents = np.random.default_rng(0).standard_normal((1, 2, 2, 8, 8, 4)).astype(jnp.bfloat16)
    batch = batch_to_global(mesh, {"moments": latents.view(np.uint16), "captions": {}})
    state, metrics = step.update(create_state(student, make_optimizer(OptimizerConfig())), frozen, batch)
    assert int(state.step) == 1
    assert {"loss_task", "loss_output", "loss_feature", "feature/up_blocks.0"} < set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert float(metrics["grad_norm"]) > 0


def test_it_is_sampled(networks: Architectures) -> None:
    params, config = random_params(networks), SamplerConfig(steps=2, guidance_scale=7.5, resolution=16, sampler="ddim")
    generate = jax.jit(make_generate(networks, config))
    images = dict(generate_images(generate, params, no_captions, config, [(0, ""), (1, ""), (2, "")], 2))
    assert [image.shape for image in images.values()] == [(16, 16, 3)] * 3
    assert (images[0] != images[1]).any()
    again = dict(generate_images(generate, params, no_captions, config, [(2, ""), (1, "")], 2))
    np.testing.assert_array_equal(images[1], again[1])
    np.testing.assert_array_equal(images[2], again[2])
