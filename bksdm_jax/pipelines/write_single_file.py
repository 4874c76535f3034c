"""A pipeline as one `.safetensors` file in the original layout (CompVis, Stability), for tools that take such files."""

import dataclasses
from pathlib import Path

import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures, is_second, is_spaced, text_names
from bksdm_jax.formats.original_names import (
    CLIP,
    OPEN_CLIP,
    POSITIONS,
    open_clip_modules,
    open_clip_rows,
    original_name,
    unet_modules,
    vae_modules,
)
from bksdm_jax.formats.weights import torch_tensors, write_tensors
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline


def write_single_file(path: Path, pipeline: Pipeline, spaced: bool = False) -> None:
    """Writes the networks' weights as a single-file checkpoint. Tokenizer, scheduler, prediction type are not in it.

    Args:
        path: the file.
        pipeline: what to write.
        spaced: how a student's blocks are numbered, see `unet_modules`.

    Raises:
        InputError: as `require_single_file`.
    """
    require_single_file(pipeline.architectures, spaced)
    tensors = (
        _unet(pipeline.networks["unet"], spaced)
        | _vae(pipeline.networks["vae"])
        | _text_encoder(pipeline.networks["text_encoder"])
    )
    write_tensors(path, tensors)


def require_single_file(networks: Architectures, spaced: bool) -> None:
    """Holds networks to what a single file can say.

    Such a file has no config: a tool sees widths and blocks by names and shapes and takes the rest for Stable
    Diffusion's.

    Raises:
        InputError: read back, the file would be taken for other networks than these.
    """
    ours, standard = networks.schedule.alphas_cumprod(), ScheduleConfig().alphas_cumprod()
    if ours.shape != standard.shape or not np.allclose(ours, standard, rtol=1e-6):
        raise _unsayable("schedule", "its noise levels are others than Stable Diffusion's")
    table = original_shapes(networks, spaced)
    unet = networks.configs["unet"]
    modules = unet_modules(unet, spaced)
    if len(set(modules.values())) < len(modules):
        raise _unsayable("unet", "a stage has more blocks than it has numbers")
    if is_spaced(table) != (modules != unet_modules(unet)):
        raise _unsayable("unet", "its numbers don't show that some are left out")
    try:
        found = infer_architectures(table, "its weights")
    except InputError as error:
        raise _unsayable("pipeline", str(error)) from error
    for name, config in zip(("unet", "vae", "text_encoder"), found, strict=True):
        ours = networks.configs[name]
        differing = [
            f"{key} {getattr(ours, key)!r}, read back {getattr(config, key)!r}"
            for key in vars(ours)
            if key not in _UNSAID and getattr(ours, key) != getattr(config, key)
        ]
        if differing:
            raise _unsayable(name, "; ".join(differing))


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def original_shapes(networks: Architectures, spaced: bool) -> dict[str, _Shape]:
    """What `infer_architectures` looks at: name -> shape of the weights, from configs alone."""
    table = {}
    unet, vae, text = (networks.configs[name] for name in ("unet", "vae", "text_encoder"))
    for shapes, modules in (
        (parameter_shapes(unet), unet_modules(unet, spaced)),
        (vae_parameter_shapes(vae), vae_modules(vae)),
    ):
        for path, leaf in trees.flatten(shapes).items():
            name = original_name(names.torch_name(path), modules)
            table[name] = _Shape(names.torch_shape(path, tuple(leaf.shape)))
    words, places, layer = text_names(is_second(text))
    table[words] = _Shape((text.vocab_size, text.width))
    table[places] = _Shape((text.max_length, text.width))
    for i in range(text.layers + is_second(text)):
        table[layer.format(i)] = _Shape((text.mlp_width, text.width))
    return table


_UNSAID = ("sample_size", "upcast_attention")  # of the U-Net; they follow from the prediction type


def _unsayable(what: str, why: str) -> InputError:
    return InputError(
        f"format: the original single-file layout can't say what this {what} is ({why[:300]}); "
        "write it as a folder, with format safetensors or flax"
    )


def _unet(network: Network, spaced: bool) -> dict[str, np.ndarray]:
    config: UNetConfig = network.config
    return _renamed(network, unet_modules(config, spaced))


def _vae(network: Network) -> dict[str, np.ndarray]:
    tensors = _renamed(network, vae_modules(network.config))
    for name, tensor in tensors.items():  # the attention's projections are 1x1 convolutions there
        if ".attn_1." in name and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None]
    return tensors


def _text_encoder(network: Network) -> dict[str, np.ndarray]:
    config = network.config
    flat = torch_tensors(network.params)
    if not is_second(config):
        positions = {f"{CLIP}text_model.embeddings.position_ids": np.arange(config.max_length)[None]}
        return {CLIP + name: tensor for name, tensor in flat.items()} | positions
    modules, rows = open_clip_modules(config), open_clip_rows(config)
    tensors, thirds = {}, {}
    for name, tensor in flat.items():
        if name in rows:
            original, third = rows[name]
            thirds.setdefault(original, {})[third] = tensor
        else:
            tensors[POSITIONS[1] if name == POSITIONS[0] else original_name(name, modules)] = tensor
    tensors |= {name: np.concatenate([parts[i] for i in range(3)]) for name, parts in thirds.items()}
    # Stable Diffusion 2 takes the states before OpenCLIP's last layer, which Diffusers' folders leave out and other
    # tools want to find: one of zeros adds nothing to its input.
    layer = f"{OPEN_CLIP}transformer.resblocks.{{}}."
    last = layer.format(config.layers - 1)
    tensors |= {
        name.replace(last, layer.format(config.layers)): np.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    return tensors


def _renamed(network: Network, modules: dict[str, str]) -> dict[str, np.ndarray]:
    return {original_name(name, modules): tensor for name, tensor in torch_tensors(network.params).items()}
