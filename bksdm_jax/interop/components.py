"""Compares single networks of PyTorch and of this package, with the same weights and inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.unet import UNet
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import VAE, VAEConfig

TOLERANCE = 1e-4
"""Largest difference in float32, relative to the largest output."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between two arrays.

    Attributes:
        what: the component.
        largest, mean: of the absolute differences.
        scale: PyTorch's largest absolute output.
        tolerance: upper bound for `largest`, in the same unit.
    """

    what: str
    largest: float
    mean: float
    scale: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether the largest difference is within the tolerance (NaN is not)."""
        return self.largest <= self.tolerance


def text_encoder_difference(
    theirs: CLIPTextModel, config: CLIPTextConfig, params: Any, tokens: np.ndarray
) -> Difference:
    """Of the text states from token ids int32 [B, T]."""
    ours = jax.jit(CLIPTextEncoder(config).apply)({"params": params}, tokens)
    states = _run(lambda ids: theirs(ids).last_hidden_state, theirs, tokens.astype(np.int64))
    return difference("text encoder", ours, states)


def unet_difference(
    theirs: UNet2DConditionModel,
    config: UNetConfig,
    params: Any,
    latents: np.ndarray,
    timesteps: np.ndarray,
    context: np.ndarray,
) -> Difference:
    """Of the prediction from latents [B, H, W, C], timesteps [B] and text states [B, T, K]."""
    ours = jax.jit(UNet(config).apply)({"params": params}, latents, timesteps, {"context": context})
    out = _run(lambda *inputs: theirs(*inputs).sample, theirs, latents, timesteps, context)
    return difference("U-Net", ours, out)


def decoder_difference(theirs: AutoencoderKL, config: VAEConfig, params: Any, latents: np.ndarray) -> Difference:
    """Of the pixels from unscaled latents [B, H, W, C]."""
    ours = jax.jit(lambda p, z: VAE(config).apply({"params": p}, z, method="decode"))(params, latents)
    out = _run(lambda z: theirs.decode(z).sample, theirs, latents)
    return difference("VAE decoder", ours, out)


def encoder_difference(theirs: AutoencoderKL, config: VAEConfig, params: Any, images: np.ndarray) -> Difference:
    """Of the latent means of images [B, H, W, 3] in [-1, 1]."""
    ours = jax.jit(lambda p, x: VAE(config).apply({"params": p}, x, method="encode")[0])(params, images)
    out = _run(lambda x: theirs.encode(x).latent_dist.mean, theirs, images)
    return difference("VAE encoder", ours, out)


def difference(what: str, ours: Any, theirs: np.ndarray, tolerance: float = TOLERANCE) -> Difference:
    """Compares arrays of one shape; `tolerance` is relative to the largest absolute value in `theirs`."""
    ours = np.asarray(ours, np.float32)
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: shapes {ours.shape} and {theirs.shape}")
    differences, scale = np.abs(ours - theirs), float(np.abs(theirs).max())
    return Difference(what, float(differences.max()), float(differences.mean()), scale, tolerance * scale)


def _run(call: Callable[..., torch.Tensor], module: torch.nn.Module, *inputs: np.ndarray) -> np.ndarray:
    """`call` on the module's device; inputs and output [B, H, W, C] are [B, C, H, W] in PyTorch."""
    device = next(module.parameters()).device
    theirs = [np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim == 4 else x) for x in inputs]
    with torch.inference_mode():
        out = call(*(torch.from_numpy(x).to(device) for x in theirs)).float().cpu().numpy()
    return np.moveaxis(out, 1, -1) if out.ndim == 4 else out
