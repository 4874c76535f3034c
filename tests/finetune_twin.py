"""Fine-tuning in PyTorch from its definitions: students by hand, DreamBooth's loss, PEFT's adapters; random weights."""

import copy
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch.nn import functional

from bksdm_jax.base import trees
from bksdm_jax.formats import names
from bksdm_jax.formats.clip_json import clip_text_from_transformers
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.tasks.finetune.config import AdapterConfig
from bksdm_jax.tasks.finetune.objective import PRIOR
from bksdm_jax.tasks.noise import moments_of, noise_latents
from tests import micro, surgery, tiny

ONE_STAGE = "one stage"
"""The smallest student, of a teacher of two stages; the others are presets, of teachers of four."""
RESOLUTION = 32
"""Pixels of the images; there are still four latents, which attend to each other, in the mid block of a preset."""
_OF_CLASS = 103  # what the key of a class image is folded with
_LONGEST_CAPTION = 77
Tensors = dict[str, dict[str, np.ndarray]]
"""Network -> parameter, by its name in PyTorch -> its value or gradient, in PyTorch's layout."""


@functools.cache
def originals(student: str) -> dict[str, torch.nn.Module]:
    """U-Net and text encoder in PyTorch; callers copy them before they change them."""
    if student == ONE_STAGE:
        unet = micro.one_stage(_teacher(micro.UNET))
    else:
        unet = surgery.operate(_teacher(tiny.V1), **surgery.PAPER[student])
    return {"unet": unet, "text_encoder": tiny.text_encoder(layers=1)}


def _teacher(config: dict[str, Any]) -> UNet2DConditionModel:
    return tiny.randomize(UNet2DConditionModel(**config), 0)


@functools.cache
def architectures(student: str, prediction: str) -> Architectures:
    """The same networks as ours, with a noise schedule of this prediction type."""
    whole = unet_from_diffusers(tiny.V1)
    plan = micro.plan() if student == ONE_STAGE else plan_removal(whole, PRESETS[student].removed)
    configs = {
        "unet": plan.student,
        "vae": VAEConfig(widths=(32, 32), layers_per_block=1),
        "text_encoder": clip_text_from_transformers(originals(student)["text_encoder"].config.to_dict()),
    }
    return Architectures(configs, schedule_from_diffusers(tiny.scheduler(prediction).config))


def parameters(student: str) -> dict[str, Any]:
    """The originals' weights as our parameters; there are none of an autoencoder, since latents are given."""
    shapes = architectures(student, "epsilon").parameter_shapes()
    return {name: tiny.flax_params(module, shapes[name]) for name, module in originals(student).items()}


def images(count: int, seed: int) -> dict[str, Any]:
    """The autoencoder's moments of so many images, as they are cached, and the tokens of their captions."""
    generator = np.random.default_rng(seed)
    moments = generator.standard_normal((count, 2, RESOLUTION // 2, RESOLUTION // 2, 4))
    moments[:, 0] *= 5  # so that scaled latents are about as large as noise
    tokens = generator.integers(0, 598, (count, _LONGEST_CAPTION), np.int32)
    return {"moments": moments.astype(ml_dtypes.bfloat16).view(np.uint16), "captions": {"tokens": tokens}}


class Rows(NamedTuple):
    """What the twin gets of each image."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    tokens: torch.Tensor


def drawn_rows(networks: Architectures, batch: dict[str, Any], keys: jax.Array) -> Rows:
    """What our task draws with these keys for a micro-batch: first the rows of its images, then those of the class."""
    parts = [_drawn(networks, batch, keys)]
    if PRIOR in batch:
        parts.append(_drawn(networks, batch[PRIOR], jax.vmap(lambda key: jax.random.fold_in(key, _OF_CLASS))(keys)))
    return Rows(*(torch.cat(halves) for halves in zip(*parts, strict=True)))


class _Uncaptioned(Architectures):
    """The same networks without the text encoder."""

    def condition(self, params: Any, dtype: Any, inputs: Any) -> dict[str, Any]:
        return {}


def _drawn(networks: Architectures, batch: dict[str, Any], keys: jax.Array) -> Rows:
    """Latents and noise are what networks that predict `sample` and `epsilon` aim at."""
    moments, found = moments_of(networks, jnp.float32, {}, batch), []
    for prediction in ("sample", "epsilon"):
        schedule = dataclasses.replace(networks.schedule, prediction_type=prediction)
        noisy = noise_latents(_Uncaptioned(networks.configs, schedule), jnp.float32, {}, *moments, {}, keys)
        found.append(torch.from_numpy(np.array(noisy.target).transpose(0, 3, 1, 2)))
    timesteps = torch.from_numpy(np.array(noisy.timesteps)).long()
    return Rows(*found, timesteps, torch.from_numpy(batch["captions"]["tokens"]))


class Twin:
    """The networks in PyTorch; their parameters that require gradients are trained."""

    def __init__(self, student: str) -> None:
        """All parameters are trained."""
        self.networks = {name: copy.deepcopy(module) for name, module in originals(student).items()}

    def adapt(self, settings: AdapterConfig, values: Tensors) -> None:
        """PEFT's adapters with these values are trained instead."""
        for name, rank, alpha, modules in (
            ("unet", settings.rank, settings.alpha, settings.modules),
            ("text_encoder", settings.text_rank, settings.text_alpha, settings.text_modules),
        ):
            network = self.networks[name].requires_grad_(False)
            network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules)))
            own = self._trained(name)
            assert own.keys() == values[name].keys()
            with torch.no_grad():
                for parameter, value in values[name].items():
                    own[parameter].copy_(torch.from_numpy(value).reshape(own[parameter].shape))

    def losses(self, prediction: str, rows: Rows, prior_weight: float, gamma: float) -> dict[str, torch.Tensor]:
        """As in DreamBooth's usual script: the second half of the rows is the class's, if there is a weight of it.

        Above 0, `gamma` weighs each row.
        """
        scheduler = tiny.scheduler(prediction)
        noisy, target = scheduler.add_noise(rows.latents, rows.noise, rows.timesteps), rows.noise
        if prediction == "v_prediction":
            target = scheduler.get_velocity(rows.latents, rows.noise, rows.timesteps)
        states = self.networks["text_encoder"](rows.tokens).last_hidden_state
        predicted = self.networks["unet"](noisy, rows.timesteps, states).sample
        each = functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
        if gamma:
            snr = compute_snr(scheduler, rows.timesteps)
            for half in (snr > gamma).chunk(2) if prior_weight else [snr > gamma]:
                assert half.any()
                assert not half.all()
            each = each * snr.clamp(max=gamma) / (snr + 1 if prediction == "v_prediction" else snr)
        if not prior_weight:
            return {"loss": each.mean()}
        instance, of_class = (half.mean() for half in each.chunk(2))
        return {"loss": instance + prior_weight * of_class, "loss_instance": instance, "loss_prior": of_class}

    def gradients(self) -> Tensors:
        """After a backward pass."""
        found = {name: {key: one.grad.numpy() for key, one in self._trained(name).items()} for name in self.networks}
        return {name: own for name, own in found.items() if own}

    def _trained(self, name: str) -> dict[str, torch.nn.Parameter]:
        """By names without PEFT's name of the adapter."""
        own = ((key, one) for key, one in self.networks[name].named_parameters() if one.requires_grad)
        return {names.current_name(key.replace(".default.", ".")): one for key, one in own}


def in_pytorch(trained: dict[str, Any]) -> Tensors:
    """Trained parameters of ours, or their gradients, as PyTorch and PEFT name and lay them out."""
    return {
        network: dict(_in_pytorch(path, np.asarray(leaf)) for path, leaf in trees.flatten(own).items())
        for network, own in trained.items()
    }


def _in_pytorch(path: str, leaf: np.ndarray) -> tuple[str, np.ndarray]:
    kernel, _, matrix = path.rpartition("/")
    if matrix not in ("down", "up"):
        return names.torch_name(path), names.to_torch(path, leaf)
    module = names.torch_name(kernel).removesuffix(".weight")
    if matrix == "up":
        return f"{module}.lora_B.weight", leaf.T  # of a convolution [out, r, 1, 1]
    return f"{module}.lora_A.weight", leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1)
