"""Attribution maps against plain PyTorch with hooks, on the same weights, latents, text states and noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from bksdm_jax.analysis.attribution import heat_maps, make_attribute, traced_layers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models import attention
from bksdm_jax.models.attention import CROSS_ATTENTION
from bksdm_jax.models.choices import REMAT
from bksdm_jax.models.unet import UNet, attention_weights, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import make_generate
from bksdm_jax.sampling.text_to_image import text_to_image
from tests import micro, tiny

V1 = tiny.MICRO | {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
V2 = V1 | {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
DEEP = V2 | {"transformer_layers_per_block": [1, 2]}  # as in SDXL
SIZE, TOKENS = 8, 7


class Hooks:
    """The weights of every cross-attention of a Diffusers U-Net, from the outputs of `to_q` and `to_k`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        for name, module in unet.named_modules():
            if name.endswith(".attn2"):
                module.to_q.register_forward_hook(self._keep(name, "q"))
                module.to_k.register_forward_hook(self._keep(name, "k"))
                module.register_forward_hook(self._weigh(name, module.heads))
        self._seen: dict[tuple[str, str], torch.Tensor] = {}

    def _keep(self, name: str, what: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._seen.__setitem__((name, what), output)

    def _weigh(self, name: str, heads: int) -> Callable[..., None]:
        def weigh(*_: Any) -> None:
            query, key = (
                self._seen[name, what].unflatten(-1, (heads, -1)).transpose(1, 2) for what in ("q", "k")
            )  # [B, heads, N, D]
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            self.weights[name] = scores.softmax(-1)

        return weigh


def maps_by_torch(weights: dict[str, torch.Tensor], size: int) -> np.ndarray:
    """[B, size, size, T]: the mean over all heads of all layers but the mid block's."""
    every = []
    for name, own in weights.items():  # [B, heads, N, T]
        if not name.startswith("mid_block"):
            side = round(own.shape[2] ** 0.5)
            mean = own.mean(1).transpose(1, 2).unflatten(-1, (side, side))  # [B, T, h, w]
            large = torch.nn.functional.interpolate(mean, size=(size, size), mode="bicubic").clamp(min=0)
            every += [large] * own.shape[1]
    return torch.stack(every).mean(0).permute(0, 2, 3, 1).numpy()


def require_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.max() <= 1e-4


def network(options: dict[str, Any], seed: int) -> tuple[UNet2DConditionModel, UNetConfig, dict[str, Any]]:
    module = tiny.randomize(UNet2DConditionModel(**options), seed).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.mul_(3)  # else all weights are nearly alike
    config = unet_from_diffusers(module.config)
    return module, config, tiny.flax_params(module, parameter_shapes(config))


def inputs(config: UNetConfig, count: int = 2) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    generator = np.random.default_rng(4)
    latents = generator.standard_normal((count, SIZE, SIZE, 4)).astype(np.float32)
    context = generator.standard_normal((count, TOKENS, config.context_width)).astype(np.float32)
    return latents, np.linspace(10, 700, count, dtype=np.float32), {"context": context}


@pytest.mark.parametrize("options", [V1, V2, DEEP], ids=["v1", "v2", "deep"])
def test_maps_of_a_call_are_pytorchs(options: dict[str, Any]) -> None:
    module, config, params = network(options, 3)
    hooks, (latents, timesteps, conditioning) = Hooks(module), inputs(config)
    with torch.no_grad():
        out = module(
            torch.from_numpy(latents.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            torch.from_numpy(conditioning["context"]),
        ).sample

    @jax.jit
    def ours(params: Any) -> Any:
        out, sown = UNet(config).apply({"params": params}, latents, timesteps, conditioning, mutable=[CROSS_ATTENTION])
        weights = attention_weights(sown)
        return out, weights, heat_maps(config, weights, (SIZE, SIZE))

    found, weights, maps = jax.tree.map(np.asarray, ours(params))
    assert weights.keys() == hooks.weights.keys()
    assert list(traced_layers(config)) == [name for name in hooks.weights if "mid_block" not in name]
    for name, own in hooks.weights.items():
        np.testing.assert_allclose(weights[name], own.mean(1).numpy(), atol=5e-5)
        np.testing.assert_allclose(weights[name].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found, out.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    require_close(maps, maps_by_torch(hooks.weights, SIZE))
    assert maps.std(axis=(1, 2)).max() > 0.01  # they aren't flat


def test_latents_need_not_be_square() -> None:
    config = unet_from_diffusers(V1)
    layers = traced_layers(config)
    assert {row.level for row in layers.values()} == {0, 1}
    generator = np.random.default_rng(0)
    weights = {name: generator.random((1, 35 if row.level == 0 else 12, 3), np.float32) for name, row in layers.items()}
    maps = heat_maps(config, weights, (5, 7))  # 3 x 4 one level below
    expected = [
        torch.nn.functional.interpolate(
            torch.from_numpy(own).transpose(1, 2).unflatten(-1, (5, 7) if own.shape[1] == 35 else (3, 4)),
            size=(5, 7),
            mode="bicubic",
        ).clamp(min=0)
        for own in weights.values()
    ]
    require_close(np.asarray(maps), torch.stack(expected).mean(0).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_recomputing_changes_no_weights(remat: str) -> None:
    _, config, params = network(tiny.PICO, 3)

    def weights(name: str) -> dict[str, jax.Array]:
        unet = UNet(config, remat=name)
        sown = jax.jit(lambda: unet.apply({"params": params}, *inputs(config), mutable=[CROSS_ATTENTION])[1])()
        return attention_weights(sown)

    plain, again = weights("none"), weights(remat)
    assert len(plain) == 4
    assert plain.keys() == again.keys()
    for name, own in plain.items():
        np.testing.assert_allclose(own, again[name], atol=1e-6)


@pytest.mark.parametrize(("dtype", "upcast"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_weights_that_nobody_asks_for_cost_nothing(dtype: Any, upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config, params = network(tiny.PICO | {"upcast_attention": upcast}, 3)
    unet, given = UNet(config, dtype), inputs(config)

    def off(params: Any) -> jax.Array:
        return unet.apply({"params": params}, *given)

    out, sown = jax.jit(lambda: unet.apply({"params": params}, *given, mutable=[CROSS_ATTENTION]))()
    assert all(weights.dtype == jnp.float32 for weights in attention_weights(sown).values())
    bound = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(jax.jit(off)(params), np.float32), atol=bound)
    others = jax.eval_shape(lambda: unet.apply({"params": params}, *given, mutable=["features"])[1])
    assert others
    assert attention_weights(others) == {}
    assert CROSS_ATTENTION not in jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))
    program = str(jax.make_jaxpr(off)(params))
    monkeypatch.setattr(attention, "attend_with_weights", None)
    monkeypatch.setattr(attention.Attention, "is_mutable_collection", lambda *_: False)
    jax.clear_caches()  # otherwise nothing is traced again
    assert str(jax.make_jaxpr(off)(params)) == program


def test_a_unet_without_text_has_no_maps() -> None:
    config = unet_from_diffusers(micro.UNET)
    assert traced_layers(config)
    assert traced_layers(UNetConfig(**vars(config) | {"context_width": None})) == {}


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_maps_over_ddim_are_those_of_a_loop_in_pytorch(micro_torch_teacher: Path, guidance: float) -> None:
    pipeline = load_pipeline(micro_torch_teacher)
    config = SamplerConfig(steps=3, guidance_scale=guidance, resolution=16, sampler="ddim")
    parts = text_to_image(pipeline.architectures, config)
    captions, empty = pipeline.caption_inputs(["a photo of a cat", "the red rocket"]), pipeline.caption_inputs([""])
    noise = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, 4)).astype(np.float32)
    images, finite, maps = map(np.asarray, jax.jit(make_attribute(parts))(pipeline.params, captions, empty, noise))
    assert finite.all()
    if guidance > 1:  # the images are those of sampling without maps
        plain, _ = jax.jit(make_generate(pipeline.architectures, config))(pipeline.params, captions, empty, noise)
        assert np.abs(images.astype(int) - np.asarray(plain)).max() <= 1

    unet = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet").train(False)
    states, without = (
        torch.from_numpy(np.array(parts.condition(pipeline.params, tokens)["context"])) for tokens in (captions, empty)
    )
    hooks, sums = Hooks(unet), {}
    scheduler = DDIMScheduler.from_pretrained(micro_torch_teacher / "scheduler")
    scheduler.set_timesteps(config.steps)
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = unet(x, t, states).sample
            for name, own in hooks.weights.items():
                sums[name] = sums.get(name, 0) + own / config.steps
            if guidance > 1:
                plain = unet(x, t, without.expand_as(states)).sample
                out = plain + guidance * (out - plain)
            x = scheduler.step(out, t, x).prev_sample
    require_close(maps, maps_by_torch(sums, SIZE))
