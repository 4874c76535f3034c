"""Scores of blocks against PyTorch, and the students that targets of size give."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import Cost, block_costs, unet_cost
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.unet import UNet, parameter_shapes
from bksdm_jax.models.unet_table import replaceable
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.stable_diffusion import TEACHERS
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.criteria import chosen, magnitude, ranked, taylor
from bksdm_jax.pruning.presets import CHOSEN
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.pruning.targets import read_target
from tests import tiny


def by_torch(unet: UNet2DConditionModel, blocks: tuple[str, ...], slopes: bool) -> dict[str, float]:
    """From the definition: the mean over all output neurons of the sum over a neuron's inputs."""
    found = {}
    for block in blocks:
        neurons = []
        for name, weight in unet.named_parameters():
            if name.startswith(f"{block}.") and weight.ndim > 1:
                value = weight * weight.grad if slopes else weight
                neurons.append(value.detach().double().abs().flatten(1).sum(1))
        found[block] = float(torch.cat(neurons).mean())
    return found


def require_close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    for block, score in theirs.items():
        assert ours[block] == pytest.approx(score, rel=1e-4), block


@pytest.mark.parametrize(
    "generation", ["micro", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v1", "v2", "shapes"))]
)
def test_scores_are_pytorchs(generation: str, tmp_path: Path) -> None:
    generator = np.random.default_rng()
    if generation == "shapes":
        prune(PruneConfig("shapes_teacher", "sd", save_dtype="float32"), tmp_path / "teacher")
        module = StableDiffusionPipeline.from_pretrained(tmp_path / "teacher").unet.float().train(False)
    else:
        options = {"micro": tiny.MICRO, "v1": tiny.V1, "v2": tiny.V2}[generation]
        module = tiny.randomize(UNet2DConditionModel(**options), int(generator.integers(2**31)))
    config = unet_from_diffusers(module.config)
    latents = generator.standard_normal((2, 8, 8, 4)).astype(np.float32)
    target = generator.standard_normal((2, 8, 8, 4)).astype(np.float32)
    context = generator.standard_normal((2, 5, config.context_width)).astype(np.float32)
    timesteps = np.array([10, 700])
    out = module(
        torch.from_numpy(latents.transpose(0, 3, 1, 2)), torch.from_numpy(timesteps), torch.from_numpy(context)
    )
    (out.sample - torch.from_numpy(target.transpose(0, 3, 1, 2))).square().mean().backward()

    params = tiny.flax_params(module.requires_grad_(False), parameter_shapes(config))

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        out = UNet(config).apply({"params": params}, latents, timesteps, {"context": context})
        return jnp.mean(jnp.square(out - target))

    blocks = replaceable(config)
    require_close(magnitude(config, params), by_torch(module, blocks, slopes=False))
    require_close(taylor(config, params, gradient(params)), by_torch(module, blocks, slopes=True))


def test_costs_of_blocks_are_what_their_removal_saves() -> None:
    config = unet_from_diffusers(tiny.MICRO)
    whole, costs = sum(unet_cost(config, 8).values(), Cost()), block_costs(config, 8)
    assert set(costs) == set(replaceable(config))
    for removed in (("down_blocks.1.resnets.0:interpolate",), ("up_blocks.1.attentions.2", "mid_block.attentions.0")):
        left = sum(unet_cost(plan_removal(config, removed).student, 8).values(), Cost())
        saved = sum((costs[name.partition(":")[0]] for name in removed), Cost())
        assert left + saved == whole


@pytest.mark.parametrize(("target", "of"), [("magnitude:{:.6f}M", "parameters"), ("taylor:{:.9f}G", "macs")])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_target_takes_the_least_important_blocks(target: str, of: str, share: float) -> None:
    config = unet_from_diffusers(tiny.MICRO)
    whole, costs = sum(unet_cost(config, 8).values(), Cost()), block_costs(config, 8)
    scores = dict(zip(costs, np.random.default_rng(3).permutation(len(costs)).astype(float), strict=True))
    most = share * getattr(whole, of)
    wanted = read_target(target.format(most / {"parameters": 1e6, "macs": 1e9}[of]))
    removed = chosen(scores, costs, whole, wanted)
    names = [name.partition(":")[0] for name in removed]
    assert names == list(ranked(scores))[: len(names)]
    left = [sum(unet_cost(plan_removal(config, part).student, 8).values(), Cost()) for part in (removed, removed[:-1])]
    assert getattr(left[0], of) <= most < getattr(left[1], of)


LOWEST = [f"{name}.resnets.{j}" for name, count in (("down_blocks.3", 2), ("mid_block", 2)) for j in range(count)]
AT_LEVEL = {  # the transformers of one width
    level: [f"down_blocks.{level}.attentions.{j}" for j in range(2)]
    + [f"up_blocks.{3 - level}.attentions.{j}" for j in range(3)]
    for level in range(3)
}
CHOSEN_BLOCKS = {
    "Taylor": (
        *LOWEST,
        "mid_block.attentions.0",
        *(f"up_blocks.0.resnets.{j}" for j in range(3)),
        "down_blocks.2.resnets.0",
        "down_blocks.2.attentions.0",
    ),
    "CLIP score": (*LOWEST, "down_blocks.1.resnets.1", *AT_LEVEL[0][:4], *AT_LEVEL[1], *AT_LEVEL[2]),
}


@pytest.mark.parametrize("criterion", CHOSEN_BLOCKS)
def test_the_papers_students_have_the_size_of_lists_with_interpolations(criterion: str) -> None:
    """Taylor's parameters and multiply-adds fit one choice among kinds of blocks, the CLIP score's 19 blocks four."""
    config = unet_from_diffusers(TEACHERS["v1"])
    whole, costs = sum(unet_cost(config, 64).values(), Cost()), block_costs(config, 64)
    published = next(row for row in CHOSEN if row.criterion == criterion)
    removed = CHOSEN_BLOCKS[criterion]
    assert len(removed) == {"Taylor": 10, "CLIP score": 19}[criterion]
    parameters, macs = (sum(getattr(costs[name], key) for name in removed) for key in ("parameters", "macs"))
    assert abs(whole.parameters - parameters - published.parameters) <= 0.05e6
    assert abs(whole.macs - macs - published.macs) <= 0.05e9


def write_scores(folder: Path, scores: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "blocks.json").write_text(json.dumps({"scores": scores}))
    return folder


def test_a_student_by_a_criterion_is_like_any_other(micro_teacher: Path, tmp_path: Path) -> None:
    unet = find_model(micro_teacher).architectures.denoiser
    folder = write_scores(tmp_path / "scores", {"output_error": {name: i for i, name in enumerate(replaceable(unet))}})
    most = trees.count(parameter_shapes(unet)) * 0.8e-6
    options = {"teacher": str(micro_teacher), "student": f"output_error:{most:.4f}M", "block_scores": str(folder)}
    plan, path = prune(PruneConfig(**options), tmp_path / "student")
    assert plan.removed[:2] == ("down_blocks.0.resnets.0:interpolate", "down_blocks.0.attentions.0")
    assert trees.count(load_pipeline(path).denoiser.params) <= most * 1e6
    assert json.loads((path / "removal_plan.json").read_text())["removed"] == list(plan.removed)
    assert plan_removal(unet, removed_from(unet, options["student"], str(folder / "blocks.json"))) == plan


@pytest.mark.parametrize(
    ("student", "scores", "facts"),
    [
        ("tailor:482M", "", ("'tailor'", "'taylor'")),
        ("taylor:482", "", ("'482'", "482M", "217G")),
        ("taylor:482T", "", ("'482T'",)),
        ("taylor:0M", "", ("'0M'",)),
        (f"taylor:{'9' * 310}M", "", ("isn't a size",)),
        ("mid_block:interpolate", "", ("'mid_block:interpolate'", "ResNet")),
        ("taylor:482M", "", ("taylor:482M", "launch.analyse", "block_scores")),
        ("taylor:482M", "missing", ("missing",)),
        ("magnitude:482M", "scores", ("blocks.json", "magnitude", "output_error")),
        ("output_error:482M", "other", ("another U-Net", "mid_block")),
        ("output_error:900M", "scores", ("output_error:900M", "859.5M")),
        ("output_error:1M", "scores", ("output_error:1M", "no list", "38 blocks")),
        ("output_error:1G", "scores", ("output_error:1G", "multiply-adds")),
    ],
)
def test_targets_that_cannot_be_met_are_refused(
    student: str, scores: str, facts: tuple[str, ...], tmp_path: Path
) -> None:
    unet = unet_from_diffusers(TEACHERS["v1"])
    every = dict.fromkeys(replaceable(unet), 1.0)
    write_scores(tmp_path / "scores", {"output_error": every})
    write_scores(tmp_path / "other", {"output_error": {name: 1.0 for name in every if "mid" not in name}})
    with pytest.raises(InputError) as error:
        plan_removal(unet, removed_from(unet, student, str(tmp_path / scores) if scores else ""))
    assert all(fact in str(error.value) for fact in facts), error.value
    assert "\n" not in str(error.value)


def test_sizes_are_read_exactly() -> None:
    assert read_target("taylor:4.1M").amount == 4_100_000
    assert read_target(" taylor:0.0907G ").amount == 90_700_000
    assert read_target("bk_small") is read_target("mid_block,down_blocks.1.resnets.0:interpolate") is None
