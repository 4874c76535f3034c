"""Writes a pipeline as one `.safetensors` file in the original layout (CompVis, Stability)."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures, is_second, is_spaced, text_names
from bksdm_jax.formats.markers import markers
from bksdm_jax.formats.original_names import CLIP, OPEN_CLIP_LAYER, original_name, text_name, unet_modules, vae_modules
from bksdm_jax.formats.weights import torch_tensors, write_tensors
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline


def write_single_file(path: Path, pipeline: Pipeline, spaced: bool) -> None:
    """Writes the networks' weights as a single-file checkpoint, without tokenizer and scheduler.

    Its `markers` say what it predicts, and at which resolution.
    The pipeline must have passed `require_single_file`; `spaced` is as in `unet_modules`.
    """
    unet, vae, text = (pipeline.networks[name] for name in ("unet", "vae", "text_encoder"))
    schedule, resolution = pipeline.schedule, pipeline.architectures.resolution
    said, metadata = markers(schedule.prediction_type, schedule.zero_snr, resolution)
    tensors = _renamed(unet, unet_modules(unet.config, spaced)) | _vae(vae) | _text_encoder(text) | said
    write_tensors(path, tensors, metadata)


def require_single_file(networks: Architectures, spaced: bool) -> None:
    """Raises `InputError` if other networks than these would be inferred from a single file.

    Such a file has no config: tools infer widths and blocks from names and shapes and assume Stable Diffusion's values
    for the rest.
    """
    if networks.schedule.prediction_type == "sample":
        raise InputError("format: a single file can't say that the U-Net predicts z_0; write it with safetensors")
    standard = ScheduleConfig(zero_snr=networks.schedule.zero_snr).alphas_cumprod()
    ours = networks.schedule.alphas_cumprod()
    if ours.shape != standard.shape or not np.allclose(ours, standard, rtol=1e-6):
        raise _inexpressible("schedule", "its noise levels differ from Stable Diffusion's")
    table = original_shapes(networks, spaced)
    unet = networks.configs["unet"]
    modules = unet_modules(unet, spaced)
    if len(set(modules.values())) < len(modules):
        raise _inexpressible("unet", "a stage has more blocks than block numbers")
    if is_spaced(table) != (modules != unet_modules(unet)):
        raise _inexpressible("unet", "its block numbers don't show the gaps")
    try:
        found = infer_architectures(table, "its weights")
    except InputError as error:
        raise _inexpressible("pipeline", str(error)) from error
    for name, config in zip(("unet", "vae", "text_encoder"), found, strict=True):
        ours, read = _in_words(networks.configs[name]), _in_words(config)
        differing = [
            f"{key} is {ours.get(key, 'none')}, would be read as {read.get(key, 'none')}"
            for key in ours | read
            if key not in _NOT_COMPARED and ours.get(key) != read.get(key)
        ]
        if differing:
            raise _inexpressible(name, "; ".join(differing))


def original_shapes(networks: Architectures, spaced: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights that `infer_architectures` looks at, from configs alone."""
    table = {}
    unet, vae, text = (networks.configs[name] for name in ("unet", "vae", "text_encoder"))
    for shapes, modules in (
        (parameter_shapes(unet), unet_modules(unet, spaced)),
        (vae_parameter_shapes(vae), vae_modules(vae)),
    ):
        table |= {original_name(name, modules): shape for name, shape in names.torch_shapes(shapes).items()}
    tokens, positions, layer = text_names(is_second(text))
    table |= {tokens: (text.vocab_size, text.width), positions: (text.positions, text.width)}
    layers = text.layers + is_second(text)
    return table | {layer.format(i): (text.mlp_width, text.width) for i in range(layers)}


_NOT_COMPARED = ("sample_size", "upcast_attention")  # of the U-Net; markers say the first, SD 2.x has the second


def _in_words(config: Any) -> dict[str, str]:
    """What a network's config says, by name."""
    return (
        config.in_words()
        if isinstance(config, UNetConfig)
        else {key: str(value) for key, value in vars(config).items()}
    )


def _inexpressible(what: str, why: str) -> InputError:
    return InputError(
        f"format: the original single-file layout can't express this {what} ({why[:300]}); "
        "write a folder, with format safetensors or flax"
    )


def _vae(network: Network) -> dict[str, np.ndarray]:
    tensors = _renamed(network, vae_modules(network.config))
    for name, tensor in tensors.items():  # attention projections are 1x1 convolutions in this layout
        if ".attn_1." in name and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None]
    return tensors


def _text_encoder(network: Network) -> dict[str, np.ndarray]:
    config, second = network.config, is_second(network.config)
    tensors, stacks = {}, defaultdict(dict)
    for name, tensor in torch_tensors(network.params).items():
        original, third = text_name(name, second)
        if third is None:
            tensors[original] = tensor
        else:
            stacks[original][third] = tensor
    if not second:
        return tensors | {f"{CLIP}text_model.embeddings.position_ids": np.arange(config.positions)[None]}
    tensors |= {name: np.concatenate([parts[i] for i in range(3)]) for name, parts in stacks.items()}
    # SD 2.x uses the states before OpenCLIP's last layer, which Diffusers' folders omit but other tools expect: a layer
    # of zeros is the identity.
    last = OPEN_CLIP_LAYER.format(config.layers - 1)
    tensors |= {
        name.replace(last, OPEN_CLIP_LAYER.format(config.layers)): np.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    return tensors


def _renamed(network: Network, modules: dict[str, str]) -> dict[str, np.ndarray]:
    return {original_name(name, modules): tensor for name, tensor in torch_tensors(network.params).items()}
