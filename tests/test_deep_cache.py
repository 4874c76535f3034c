"""Reuse of deep features: against PyTorch with one module's output held, and for what it costs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.unet import UNet, deep_cache_calls, example_inputs, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig, cuts
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from tests import surgery, tiny
from tests.arrays import require_close

# The modules before the blocks that take skips 0, 1, ...: their outputs are the deep features.
BEFORE = {
    "sd": (
        *("up_blocks.1.attentions.1", "up_blocks.1.attentions.0", "up_blocks.0"),
        *("up_blocks.0.resnets.1", "up_blocks.0.resnets.0", "mid_block"),
    ),
    "bk_base": ("up_blocks.1.attentions.0", "up_blocks.0", "up_blocks.0.resnets.0", "mid_block"),
    "bk_small": ("up_blocks.1.attentions.0", "up_blocks.0", "up_blocks.0.resnets.0"),
}
STUDENTS = {"sd": "sd", "bk_base": tiny.MICRO_SMALL.replace(",mid_block", ""), "bk_small": tiny.MICRO_SMALL}
EVERYDAY = [pytest.param("sd", marks=pytest.mark.slow), pytest.param("bk_base", marks=pytest.mark.slow), "bk_small"]


def model(student: str) -> tuple[UNet2DConditionModel, UNetConfig, dict[str, Any]]:
    """A network of two stages by hand, ours, and its random weights."""
    teacher = tiny.randomize(UNet2DConditionModel(**tiny.MICRO), int(np.random.default_rng().integers(2**31)))
    module = surgery.operate(teacher, **surgery.PAPER[student])
    config = plan_removal(unet_from_diffusers(tiny.MICRO), removed_blocks(STUDENTS[student])).student
    return module, config, tiny.flax_params(module, parameter_shapes(config))


def step(time: int, context: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Latents of 7x6 positions at some time."""
    latents = np.random.default_rng().standard_normal((2, 7, 6, 4), np.float32)
    return latents, np.full(2, time, np.int32), {"context": context}


def torch_call(module: UNet2DConditionModel, inputs: tuple[Any, ...]) -> np.ndarray:
    latents, timesteps, conditioning = inputs
    with torch.inference_mode():
        arrays = (latents.transpose(0, 3, 1, 2), timesteps, conditioning["context"])
        return module(*map(torch.from_numpy, arrays)).sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["sd", "bk_base", "bk_small"])
def test_a_shallow_call_is_pytorchs_with_the_deep_feature_of_an_earlier_step(student: str) -> None:
    module, config, params = model(student)
    context = np.random.default_rng().standard_normal((2, 9, tiny.CONTEXT), np.float32)
    earlier, later = step(977, context), step(950, context)
    plain = UNet(config).apply({"params": params}, *earlier)  # not jitted: the cuts share what XLA compiles
    assert cuts(config) == range(len(BEFORE[student]))
    for cut, before in enumerate(BEFORE[student]):
        full, shallow = deep_cache_calls(UNet(config, cut=cut))
        out, deep = full(params, *earlier, None)
        require_close(out, np.asarray(plain), 1e-6)
        again, same = shallow(params, *earlier, deep)
        require_close(again, np.asarray(plain), 1e-6)
        np.testing.assert_array_equal(same, deep)

        kept: list[Any] = []
        layer = module.get_submodule(before)
        hook = layer.register_forward_hook(lambda _module, _inputs, result, kept=kept: kept.append(result))
        torch_call(module, earlier)
        hook.remove()
        hook = layer.register_forward_hook(lambda _module, _inputs, _result, kept=kept: kept[0])
        expected = torch_call(module, later)
        hook.remove()
        require_close(shallow(params, *later, deep)[0], expected)


@pytest.mark.parametrize(
    ("student", "expected"), [("sd", 12), ("no_mid", 11), ("bk_base", 8), ("bk_small", 7), ("bk_tiny", 5)]
)
@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_each_skip_is_a_cut_if_something_lies_below_it(generation: str, student: str, expected: int) -> None:
    config = plan_removal(stable_diffusion(generation).denoiser, removed_blocks(student)).student
    assert cuts(config) == range(expected)
    for cut in (expected, -1, None, True):
        with pytest.raises(InputError, match=rf"cut.*{cut}"):
            deep_cache_calls(UNet(config, cut=cut))


@pytest.mark.slow
@pytest.mark.parametrize("student", EVERYDAY)
def test_shallow_calls_cost_less_and_have_the_same_parameters(student: str) -> None:
    _, config, params = model(student)
    inputs = example_inputs(config, 2, 8)

    def flops(call: Any, *inputs: Any) -> float:
        return jax.jit(call).lower(*inputs).cost_analysis()["flops"]  # of the program before XLA optimises it

    plain = flops(UNet(config).apply, {"params": params}, *inputs)
    costs = []
    for cut in cuts(config):
        full, shallow = deep_cache_calls(UNet(config, cut=cut))
        _, deep = jax.eval_shape(full, params, *inputs, None)
        costs.append(flops(shallow, params, *inputs, deep))
    assert costs == sorted(set(costs))
    assert costs[-1] < plain == flops(full, params, *inputs, None)
    init = jax.eval_shape(UNet(config, cut=0).init, jax.random.key(0), *inputs)["params"]
    assert trees.flatten(init) == trees.flatten(parameter_shapes(config))


def test_a_condition_can_choose_between_the_calls() -> None:
    _, config, params = model("bk_small")
    inputs = example_inputs(config, 2, 8)
    full, shallow = deep_cache_calls(UNet(config, jnp.bfloat16, cut=1))
    out, deep = jax.eval_shape(full, params, *inputs, None)
    chosen = jax.eval_shape(lambda *args: jax.lax.cond(args[0], full, shallow, *args[1:]), True, params, *inputs, deep)
    assert chosen == (out, deep)
    assert (out.dtype, deep.dtype, deep.shape) == (jnp.bfloat16, jnp.bfloat16, (2, 8, 8, 64))
