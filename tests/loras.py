"""LoRA files with random numbers, named after PyTorch's modules without help of the package, and PyTorch's images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from tests import tiny

UNETS = {"v1": tiny.MICRO, "v2": tiny.MICRO | {"attention_head_dim": [2, 4], "use_linear_projection": True}}
PROMPTS = ["a photo of a red cat", "the blue rocket"]
STEPS, SCALE, SIDE = 3, 3.0, 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
LAYERS = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "fc1", "fc2")
CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out")
Pairs = dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]
"""Network -> module -> down and up."""


def load(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modules(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Those that an adapter can change."""
    return {name: one for name, one in network.named_modules() if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))}


def pairs(
    pipeline: Any, ends: Sequence[str] = LAYERS, rank: int = 4, networks: Sequence[str] = ("unet", "text_encoder")
) -> Pairs:
    """Random matrices for all modules whose names end so; every other one has another rank if `rank` is 0."""
    generator = torch.Generator().manual_seed(len(ends) + rank)
    found: Pairs = {}
    for network in networks:
        found[network] = {}
        for number, (name, module) in enumerate(modules(getattr(pipeline, network)).items()):
            if not any(f".{name}".endswith(f".{end}") for end in ends):
                continue
            r = rank or (2 + 2 * (number % 2))
            out, inputs, *size = module.weight.shape
            down = torch.randn(r, inputs, *size, generator=generator) / (inputs * np.prod(size or 1)) ** 0.5
            up = torch.randn(out, r, *(1 for _ in size), generator=generator) * (0.7 / r**0.5)
            found[network][name] = down, up
    return found


def kohya(found: Pairs, alpha: float | None = None, prefix: str = "lora_te_") -> dict[str, torch.Tensor]:
    tensors = {}
    for network, own in found.items():
        for name, (down, up) in own.items():
            whole = f"text_model.{name}" if network == "text_encoder" else name
            stem = {"unet": "lora_unet_", "text_encoder": prefix}[network] + whole.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def peft(found: Pairs, text: str = "") -> dict[str, torch.Tensor]:
    """As Diffusers writes it; with Transformers before 5.6, `text` is `text_model.`."""
    tensors = {}
    for network, own in found.items():
        for name, (down, up) in own.items():
            stem = f"{network}.{text if network == 'text_encoder' else ''}{name}"
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return tensors


def oldest(found: Pairs, prefix: str = "unet.") -> dict[str, torch.Tensor]:
    """Attention's only, as the first versions of Diffusers wrote it."""
    tensors = {}
    for network, own in found.items():
        for name, (down, up) in own.items():
            if network == "unet":
                head, leaf = name.removesuffix(".0").rsplit(".", 1)
                stem = f"{prefix}{head}.processor.{leaf}_lora"
            else:
                head, leaf = name.rsplit(".", 1)
                stem = f"text_encoder.text_model.{head}.{leaf.replace('_proj', '').join(('to_', ''))}_lora"
            tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors


def scaled(found: Pairs, factor: float) -> Pairs:
    return {network: {name: (down, up * factor) for name, (down, up) in own.items()} for network, own in found.items()}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def noise() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((len(PROMPTS), 8, 8, 4)).astype(np.float32)


def images(pipeline: StableDiffusionPipeline, loras: Mapping[Path, float] | None = None) -> np.ndarray:
    """PyTorch's images [2, H, W, 3] in [0, 1] with these LoRA files and weights."""
    names = [f"lora{number}" for number, _ in enumerate(loras or {})]
    for name, path in zip(names, loras or {}, strict=True):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    if names:
        pipeline.set_adapters(names, list(loras.values()))
    latents = torch.from_numpy(noise().transpose(0, 3, 1, 2).copy())
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "np"}
    made = pipeline(PROMPTS, latents=latents, **options).images
    if names:
        pipeline.unload_lora_weights()
    return made
