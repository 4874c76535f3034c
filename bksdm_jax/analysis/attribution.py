"""Where a caption's tokens look: maps of cross-attention (DAAM; Tang et al. 2022), made while an image is."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.resampling import bicubic_matrix
from bksdm_jax.diffusion import guidance
from bksdm_jax.diffusion.noise import as_noise
from bksdm_jax.diffusion.solver import run
from bksdm_jax.models.attention import CROSS_ATTENTION
from bksdm_jax.models.unet import UNet, attention_weights
from bksdm_jax.models.unet_table import Block, UNetConfig, block_table
from bksdm_jax.sampling.text_to_image import TextToImage

Attribute = Callable[[dict[str, Any], Any, Any, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""(parameters by network, caption inputs [B, ...], the empty caption's [1, ...], keys [B] or starting noise
[B, h, w, C]) -> uint8 [B, H, W, 3], whether each image is finite, bool [B], and maps, float32 [B, h, w, T]."""


def traced_layers(unet: UNetConfig) -> dict[str, Block]:
    """The cross-attentions whose weights count, by name: those of down and up stages, in the order of the forward pass.

    The mid block's, of the lowest resolution, doesn't, as in DAAM's code (`castorini/daam`).
    """
    rows = block_table(unet)[0] if unet.context_width is not None else ()
    return {f"{row.name}.attn2": row for row in rows if row.kind == "attention" and row.stage != "mid_block"}


def heat_maps(unet: UNetConfig, weights: Mapping[str, jax.Array], size: tuple[int, int]) -> jax.Array:
    """A map for each token, from the weights of one call of the U-Net or their mean over calls.

    A layer's weights are enlarged to the size of the latents by PyTorch's bicubic interpolation, and clamped at 0 where
    it undershoots. A map is the mean over all heads of all `traced_layers`. DAAM's code clamps each head's map; here
    the mean over a layer's heads is clamped.

    Args:
        unet: the U-Net.
        weights: by layer, [B, h' * w', T].
        size: [h, w] of the latents.

    Returns:
        float32 [B, h, w, T].
    """
    total, heads = jnp.float32(0), 0
    for name, row in traced_layers(unet).items():
        own = tuple(-(-length // 2**row.level) for length in size)
        maps = weights[name].reshape(-1, *own, weights[name].shape[-1])
        tall, wide = (bicubic_matrix(length, target) for length, target in zip(own, size, strict=True))
        maps = jnp.einsum("yh,bhwt,xw->byxt", tall, maps, wide, precision=jax.lax.Precision.HIGHEST)
        total += row.heads * jnp.maximum(maps, 0)
        heads += row.heads
    return total / heads


def denoise_with_maps(
    parts: TextToImage, params: Mapping[str, Any], conditioning: Any, negative: Any, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`TextToImage.denoise`, and maps that are means over the U-Net's calls; with guidance, of its conditional half.

    Args:
        parts: of a run without a teacher and DeepCache.
        params: by network.
        conditioning: arrays [B, ...].
        negative: that of the negative prompt, arrays [1, ...].
        noise: keys [B], or standard normal [B, h, w, C].

    Returns:
        scaled latents [B, h, w, C] and maps [B, h, w, T], float32.
    """
    config, networks = parts.config, parts.networks
    unet = UNet(networks.denoiser, parts.dtype, config.attention, norms=config.norms)
    own = params[networks.kind.denoiser]
    negative = jax.tree.map(lambda one, each: jnp.broadcast_to(one, each.shape), dict(negative), dict(conditioning))
    inputs = guidance.both(dict(conditioning), negative, config.guidance_scale)
    doubled = guidance.guides(conditioning, config.guidance_scale)

    def call(x: jax.Array, t: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        count = x.shape[0]
        x = jnp.concatenate([x, x]) if doubled else x
        times = jnp.broadcast_to(t, x.shape[:1])
        out, sown = unet.apply({"params": own}, x.astype(parts.dtype), times, inputs, mutable=[CROSS_ATTENTION])
        weights = attention_weights(sown)
        return out, {name: weights[name][-count:] for name in traced_layers(networks.denoiser)}  # the conditional half

    def predict(sums: Any, x: jax.Array, t: jax.Array, number: jax.Array) -> tuple[Any, jax.Array]:
        del number
        out, weights = call(x, t)
        out = out.astype(jnp.float32)
        out = guidance.combined(out, config.guidance_scale, config.guidance_rescale) if doubled else out
        return jax.tree.map(jnp.add, sums, weights), out

    slots = parts.calls.begin(as_noise(noise, parts.latent_shape))
    _, shapes = jax.eval_shape(call, slots[0], jnp.float32(0))
    sums = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    keys = noise if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key) else None
    slots, sums, _ = run(parts.calls, predict, slots, keys, sums)
    means = {name: weights / np.float32(len(parts.calls)) for name, weights in sums.items()}
    return slots[0], heat_maps(networks.denoiser, means, parts.latent_shape[:2])


def make_attribute(parts: TextToImage) -> Attribute:
    """The function from captions to images and maps, to be jitted."""

    def attribute(
        params: dict[str, Any], captions: Any, negative: Any, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        conditioning, without = parts.condition(params, captions), parts.condition(params, negative)
        latents, maps = denoise_with_maps(parts, params, conditioning, without, noise)
        return (*parts.decode_checked(params, latents), maps)

    return attribute
