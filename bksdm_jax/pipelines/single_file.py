"""Reads single-file checkpoints in the original layout (CompVis, Stability)."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.diffusion.schedule import TARGETS, ScheduleConfig
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures, is_second, is_spaced
from bksdm_jax.formats.original_names import CLIP, UNET, VAE, original_name, text_name, unet_modules, vae_modules
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.scheduler_json import schedule_to_diffusers
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.formats.weights import read_tensors
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_parameter_shapes
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline, require_agreement, require_vocabulary
from bksdm_jax.pipelines.tokenizer import TOKENIZER_FILES, load_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
"""SD 1.x and 2.x have its vocabulary."""
_SECOND_PAD = "!"

Table = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class SingleFileModel:
    """A single-file checkpoint whose header has been read, but not its weights.

    Attributes:
        path: the file.
        architectures: of its networks.
        tables: network -> tensors by Diffusers' names.
        tokenizer: folder or hub id of a tokenizer or a pipeline; empty: `DEFAULT_TOKENIZER`.
    """

    path: Path
    architectures: Architectures
    tables: Mapping[str, dict[str, StoredTensor]]
    tokenizer: str = ""

    def read(self, networks: Collection[str] | None = None) -> Pipeline:
        """Reads the checkpoint. SD 2.x pads captions with `!`, regardless of the tokenizer's files.

        Args:
            networks: those whose weights are read; the others get their config only. None: all.

        Raises:
            InputError: weights are damaged or missing, or the tokenizer can't be read.
        """
        text, kind = self.architectures.configs["text_encoder"], self.architectures.kind
        folder = _tokenizer_folder(self.path, self.tokenizer)
        pad = _SECOND_PAD if is_second(text) else ""
        pipeline = Pipeline(
            path=self.path,
            networks={name: self._network(name, networks is None or name in networks) for name in kind.networks},
            tokenizers={"tokenizer": load_tokenizer(folder, text.max_length, pad)},
            schedule=self.architectures.schedule,
            scheduler=schedule_to_diffusers(self.architectures.schedule),
            denoiser_files=(self.path,),
            family=self.architectures.family,
        )
        require_vocabulary(pipeline)
        return pipeline

    def read_denoiser(self) -> Network:
        """Reads only the U-Net; raises `InputError` like `read`."""
        return self._network(self.architectures.kind.denoiser, True)

    def _network(self, name: str, weights: bool) -> Network:
        config, kind = self.architectures.configs[name], self.architectures.kind.networks[name]
        source, shapes = f"{self.path}, {name}", kind.parameter_shapes(config)
        return Network(config, read_tensors(source, self.tables[name], shapes) if weights else {}, kind.to_json(config))


def _tokenizer_folder(path: Path, tokenizer: str) -> Path:
    name = tokenizer or DEFAULT_TOKENIZER
    try:
        if is_hub_id(name):
            folder = hub_folder(name, "", _tokenizer_files)
        else:
            folder = Path(name).expanduser().resolve()
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder")
    except InputError as error:
        raise InputError(
            f"{path}: a single file has no tokenizer; set tokenizer to a folder or hub id ({error})"
        ) from error
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _tokenizer_files(names: Collection[str]) -> list[str]:
    """The tokenizer's files in the repository of a pipeline or of a tokenizer."""
    inside = [name for name in names if name.removeprefix("tokenizer/") in TOKENIZER_FILES and "/" in name]
    return inside or [name for name in names if name in TOKENIZER_FILES]


def open_single_file(path: Path, tokenizer: str = "", prediction_type: str = "") -> SingleFileModel:
    """Reads a `.safetensors` checkpoint's header.

    Args:
        path, tokenizer: as in `SingleFileModel`.
        prediction_type: `epsilon` or `v_prediction`; may be empty for SD 1.x (`epsilon`), must be given for SD 2.x.

    Raises:
        InputError: the file is damaged, incomplete, or needs a prediction type.
    """
    table = index_safetensors(path)
    unet, vae, text = infer_architectures({name: tensor.shape for name, tensor in table.items()}, str(path))
    if prediction_type:
        known_name("config", "prediction", prediction_type, TARGETS)
    elif is_second(text):
        raise InputError(
            f"{path}: an SD 2.x checkpoint, which doesn't record its prediction type; set prediction to epsilon "
            "(the 512-pixel base models) or v_prediction (the 768-pixel models)"
        )
    if prediction_type == "v_prediction" and is_second(text):  # SD 2.1 at 768 pixels overflows in half precision
        unet = dataclasses.replace(unet, sample_size=96, upcast_attention=True)
    tables = {
        "unet": _renamed(table, UNET, parameter_shapes(unet), unet_modules(unet, is_spaced(table))),
        "vae": _renamed(table, VAE, vae_parameter_shapes(vae), vae_modules(vae)),
        "text_encoder": _text_table(table, text),
    }
    schedule = ScheduleConfig(prediction_type=prediction_type or "epsilon")
    networks = Architectures({"unet": unet, "vae": vae, "text_encoder": text}, schedule)
    require_agreement(networks, str(path))
    return SingleFileModel(path, networks, tables, tokenizer)


def _renamed(table: Table, prefix: str, shapes: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """The tensors below `prefix` by Diffusers' names; unknown ones keep their names."""
    rest = {name: tensor for name, tensor in table.items() if name.startswith(prefix)}
    found = {}
    for name, shape in names.torch_shapes(shapes).items():
        tensor = rest.pop(original_name(name, modules), None)
        if tensor is not None:
            one_by_one = tensor.shape == (*shape, 1, 1)  # a 1x1 convolution instead of a linear layer
            found[name] = dataclasses.replace(tensor, shape=shape) if one_by_one else tensor
    return found | rest


def _text_table(table: Table, config: CLIPTextConfig) -> dict[str, StoredTensor]:
    if not is_second(config):
        inside = {name.removeprefix(CLIP): tensor for name, tensor in table.items() if name.startswith(CLIP)}
        return {name: tensor for name, tensor in inside.items() if names.current_name(name) is not None}
    found = {}
    for name, shape in names.torch_shapes(clip_text_parameter_shapes(config)).items():
        original, third = text_name(name, second=True)
        if original in table:
            found[name] = table[original] if third is None else _third(table[original], third, shape)
    return found


def _third(tensor: StoredTensor, third: int, shape: tuple[int, ...]) -> StoredTensor:
    """Rows [third * n, (third + 1) * n) of a tensor with 3n rows; the tensor itself if it has another shape."""
    if tensor.shape != (3 * shape[0], *shape[1:]):
        return tensor
    offset = tensor.offset + third * math.prod(shape) * tensor.dtype.itemsize
    return dataclasses.replace(tensor, offset=offset, shape=shape)
