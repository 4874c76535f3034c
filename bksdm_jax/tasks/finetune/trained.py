"""What a fine-tuning trains: networks, some modules of them, or adapters of low rank."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, listed, shown
from bksdm_jax.formats import names
from bksdm_jax.formats.lora_names import TEXT, UNET
from bksdm_jax.models.lora import Adapter, merge
from bksdm_jax.pipelines.lora import places
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.tasks.finetune.config import FinetuneConfig

_LABELS = {UNET: "U-Net", TEXT: "text encoder"}


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is trained of a pipeline: leaves of its parameters, or adapters of some of its kernels.

    Trained parameters are nested by network and Flax names: the leaves themselves, or in the place of a kernel `down`,
    [in, r] or [h, w, in, r], and `up`, [r, out].

    Attributes:
        networks: the pipeline's.
        leaves: network -> paths of its trained leaves.
        scales: network -> paths of the kernels with adapters, and alpha / r of each.
        ranks: network -> rank of its adapters.
    """

    networks: Architectures
    leaves: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    scales: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The networks that are trained."""
        return tuple(self.leaves) or tuple(self.scales)

    @property
    def labels(self) -> tuple[str, ...]:
        """The same in words."""
        return tuple(_LABELS[name] for name in self.names)

    def summary(self) -> str:
        """How much is trained, in words."""
        what = "numbers of adapters" if self.scales else "weights"
        return f"{trees.count(self.shapes()):,} {what} of {' and '.join(self.labels)} are trained"

    def shapes(self) -> dict[str, Any]:
        """Of the trained parameters."""
        found, whole = {}, self.networks.parameter_shapes()
        for name, paths in self.leaves.items():
            flat = trees.flatten(whole[name])
            found[name] = trees.unflatten({path: flat[path] for path in paths})
        for name, scales in self.scales.items():
            flat, rank = trees.flatten(whole[name]), self.ranks[name]
            found[name] = trees.unflatten(
                {f"{path}/{key}": leaf for path in scales for key, leaf in _adapter_shapes(flat[path], rank)}
            )
        return found

    def frozen_shapes(self) -> dict[str, Any]:
        """Of all other parameters, by network."""
        return self.frozen(self.networks.parameter_shapes())

    def frozen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves of a pipeline's parameters that aren't trained; networks of which none is left are missing."""
        found = {}
        for name, own in params.items():
            chosen = set(self.leaves.get(name, ()))
            if left := {path: leaf for path, leaf in trees.flatten(own).items() if path not in chosen}:
                found[name] = trees.unflatten(left)
        return found

    def initial(self, params: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The trained parameters before training, float32, from a pipeline's: adapters change nothing at first.

        As by PEFT, `down` is uniform within +-1 / sqrt(its inputs), and `up` zero.
        """
        found, generator = {}, np.random.default_rng(seed)
        for name, paths in self.leaves.items():
            flat = trees.flatten(params[name])
            found[name] = trees.unflatten({path: np.asarray(flat[path], np.float32) for path in paths})
        for name, scales in self.scales.items():
            flat, made = trees.flatten(params[name]), {}
            for path in sorted(scales):
                down, up = (leaf.shape for _, leaf in _adapter_shapes(flat[path], self.ranks[name]))
                bound = 1 / math.sqrt(math.prod(down[:-1]))
                made[f"{path}/down"] = generator.uniform(-bound, bound, down).astype(np.float32)
                made[f"{path}/up"] = np.zeros(up, np.float32)
            found[name] = trees.unflatten(made)
        return found

    def adapters(self, trained: Mapping[str, Any]) -> dict[str, dict[str, Adapter]]:
        """Network -> path of a kernel -> its adapter."""
        found: dict[str, dict[str, Adapter]] = {UNET: {}, TEXT: {}}
        for name, scales in self.scales.items():
            flat = trees.flatten(trained[name])
            found[name] = {
                path: Adapter(flat[f"{path}/down"], flat[f"{path}/up"], None, scale) for path, scale in scales.items()
            }
        return found

    def whole(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """Network -> parameters, without adapters."""
        found = dict(frozen)
        for name in self.leaves:
            both = trees.flatten(trained[name]) | trees.flatten(frozen.get(name, {}))
            found[name] = trees.unflatten(both)
        return found

    def merged(self, trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """Network -> parameters, with adapters merged."""
        adapters = self.adapters(trained)
        return {name: merge(own, adapters.get(name, {})) for name, own in self.whole(trained, frozen).items()}


def what_is_trained(config: FinetuneConfig, networks: Architectures) -> Trained:
    """Raises `InputError` if a setting names modules that the networks don't have."""
    adapter = config.adapter
    if adapter.rank:
        ends = {UNET: adapter.modules} | ({TEXT: adapter.text_modules} if config.text_encoder else {})
        ranks = {UNET: adapter.rank, TEXT: adapter.text_rank or adapter.rank}
        alphas = {UNET: adapter.alpha, TEXT: adapter.text_alpha}
        kernels = {name: {module: path for module, (path, _) in own.items()} for name, own in places(networks).items()}
        scales = {}
        for name, own in ends.items():
            key = "adapter.modules" if name == UNET else "adapter.text_modules"
            paths = _chosen(key, own, kernels[name], name)
            scales[name] = dict.fromkeys(paths, (alphas[name] or ranks[name]) / ranks[name])
        return Trained(networks, scales=scales, ranks={name: ranks[name] for name in scales})
    shapes = networks.parameter_shapes()
    paths = {name: tuple(trees.flatten(shapes[name])) for name in (UNET, TEXT)}
    if config.only:
        modules = {path: names.torch_name(path).rpartition(".")[0] for path in paths[UNET]}
        wanted = set(_chosen("only", config.only, {module: module for module in modules.values()}, UNET))
        paths[UNET] = tuple(path for path, module in modules.items() if module in wanted)
    return Trained(networks, leaves={name: own for name, own in paths.items() if name == UNET or config.text_encoder})


def _chosen(key: str, ends: Sequence[str], modules: Mapping[str, str], network: str) -> list[str]:
    """The values of the modules whose names end with one of `ends`; raises `InputError` if one of these fits none."""
    found: dict[str, None] = {}
    for end in ends:
        fitting = [value for name, value in modules.items() if f".{name}".endswith(f".{end}")]
        if not fitting:
            known = listed(dict.fromkeys(filter(None, map(_end, modules))), end)
            raise InputError(f"{key}: no module of the {network} ends with {shown(end)}; it has {known}")
        found |= dict.fromkeys(fitting)
    if not found:
        raise InputError(f"{key}: empty; expected ends of modules' names, such as to_q")
    return list(found)


def _end(module: str) -> str:
    """The last part of a name, with the one before if it is a number."""
    return re.sub(r"^.*?([^.]+(\.\d+)*)$", r"\1", module)


def _adapter_shapes(kernel: Any, rank: int) -> tuple[tuple[str, Any], tuple[str, Any]]:
    *before, last = kernel.shape
    struct = jax.ShapeDtypeStruct
    return ("down", struct((*before, rank), jnp.float32)), ("up", struct((rank, last), jnp.float32))
