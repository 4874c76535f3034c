"""Reads single-file checkpoints in the original layout (CompVis, Stability)."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats import names
from bksdm_jax.formats.infer import infer_architectures, is_second, is_spaced, is_vit_h
from bksdm_jax.formats.markers import ZERO_SNR, prediction_of, resolution_of
from bksdm_jax.formats.original_names import (
    OPEN_CLIP_LAYER,
    OWN_MODULES,
    USUAL_LEFTOVERS,
    current_original_name,
    original_name,
    text_name,
    unet_modules,
    vae_modules,
)
from bksdm_jax.formats.safetensors_file import safetensors_header
from bksdm_jax.formats.scheduler_json import schedule_to_diffusers
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.formats.torch_file import index_torch
from bksdm_jax.formats.weights import read_tensors, renamed, tell_unused
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_parameter_shapes
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline, require_agreement, require_vocabulary
from bksdm_jax.pipelines.tokenizer import TOKENIZER_FILES, caption_length, load_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
"""SD 1.x and 2.x have its vocabulary."""
SINGLE_FILES = (".safetensors", ".ckpt")
"""The suffixes of single files."""
_SECOND_PAD = "!"


@dataclasses.dataclass(frozen=True)
class SingleFileModel:
    """A single-file checkpoint whose header has been read, but not its weights.

    Attributes:
        path: the file.
        architectures: of its networks.
        tables: network -> tensors by Diffusers' names.
        tokenizer: folder or hub id of a tokenizer or a pipeline; empty: `DEFAULT_TOKENIZER`.
        allow_non_finite: as in `ModelSource`.
    """

    path: Path
    architectures: Architectures
    tables: Mapping[str, dict[str, StoredTensor]]
    tokenizer: str = ""
    allow_non_finite: bool = False

    @waiting("reading the model's weights", QUIET)
    def read(self, networks: Collection[str] | None = None) -> Pipeline:
        """Reads the checkpoint. SD 2.x pads captions with `!`, regardless of the tokenizer's files.

        Args:
            networks: those whose weights are read; the others get their config only. None: all.

        Raises:
            InputError: weights are damaged or missing, or the tokenizer can't be read.
        """
        text, kind = self.architectures.configs["text_encoder"], self.architectures.kind
        folder = tokenizer_folder(self.path, self.tokenizer)
        pad = _SECOND_PAD if is_second(text) else ""
        length = caption_length(folder, text.positions)
        found = {name: self._network(name, networks is None or name in networks) for name in kind.networks}
        encoder = dataclasses.replace(found["text_encoder"], config=dataclasses.replace(text, max_length=length))
        pipeline = Pipeline(
            path=self.path,
            networks=found | {"text_encoder": encoder},
            tokenizers={"tokenizer": load_tokenizer(folder, length, pad)},
            schedule=self.architectures.schedule,
            scheduler=schedule_to_diffusers(self.architectures.schedule),
            family=self.architectures.family,
            allow_non_finite=self.allow_non_finite,
        )
        require_vocabulary(pipeline)
        return pipeline

    def read_denoiser(self) -> Network:
        """Reads only the U-Net; raises `InputError` like `read`."""
        return self._network(self.architectures.kind.denoiser, True)

    def _network(self, name: str, weights: bool) -> Network:
        config, kind = self.architectures.configs[name], self.architectures.kind.networks[name]
        source, shapes = f"{self.path}, {name}", kind.parameter_shapes(config)
        params = read_tensors(source, self.tables[name], shapes, self.allow_non_finite) if weights else {}
        return Network(config, params, kind.to_json(config))


def tokenizer_folder(path: Path, tokenizer: str) -> Path:
    """The folder of the tokenizer for weights without one, at `path`; `tokenizer` is as in `SingleFileModel`.

    Raises `InputError` if it can't be had.
    """
    name = tokenizer or DEFAULT_TOKENIZER
    try:
        if is_hub_id(name):
            folder = hub_folder(name, "", _tokenizer_files)
        else:
            folder = Path(name).expanduser().resolve()
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder")
    except InputError as error:
        raise InputError(f"{path}: no tokenizer; set tokenizer to a folder or hub id ({error})") from error
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _tokenizer_files(names: Collection[str]) -> list[str]:
    """The tokenizer's files in the repository of a pipeline or of a tokenizer."""
    inside = [name for name in names if name.removeprefix("tokenizer/") in TOKENIZER_FILES and "/" in name]
    return inside or [name for name in names if name in TOKENIZER_FILES]


def open_single_file(
    path: Path, tokenizer: str = "", prediction_type: str = "", any_prediction: bool = False
) -> SingleFileModel:
    """Reads a `.safetensors` checkpoint's header, or a `.ckpt`'s table of tensors.

    Args:
        path, tokenizer: as in `SingleFileModel`.
        prediction_type: `epsilon` or `v_prediction`, whatever the file says. If empty, the file's own
            (`prediction_of`); SD 1.x files without one are `epsilon`, SD 2.x files are refused.
        any_prediction: it doesn't matter, so those SD 2.x files are taken for `epsilon`.

    Raises:
        InputError: the file is damaged, incomplete, another family's, or needs a prediction type.
    """
    table, metadata = safetensors_header(path) if path.suffix.lower() == ".safetensors" else (index_torch(path), {})
    table = renamed(str(path), table, current_original_name)
    unet, vae, text = infer_architectures({name: tensor.shape for name, tensor in table.items()}, str(path))
    require_agreement(Architectures({"unet": unet, "vae": vae, "text_encoder": text}, ScheduleConfig()), str(path))
    said = "" if prediction_type else prediction_of(table, metadata, str(path))
    if is_second(text) and not (prediction_type or said or any_prediction):
        raise InputError(
            f"{path}: an SD 2.x checkpoint, which doesn't record its prediction type; set prediction to epsilon "
            "(the 512-pixel base models) or v_prediction (the 768-pixel models)"
        )
    if prediction_type:
        known_name("config", "prediction", prediction_type, ("epsilon", "v_prediction"))
    schedule = _schedule(prediction_type or said or "epsilon", ZERO_SNR in table)
    if schedule.prediction_type == "v_prediction" and is_second(text):  # SD 2.1 at 768 overflows in half precision
        unet = dataclasses.replace(unet, sample_size=96, upcast_attention=True)
    resolution = resolution_of(metadata)
    if resolution and resolution % vae.factor == 0:
        unet = dataclasses.replace(unet, sample_size=resolution // vae.factor)
    networks = Architectures({"unet": unet, "vae": vae, "text_encoder": text}, schedule)
    rest = dict(table)
    tables = {
        "unet": taken(rest, parameter_shapes(unet), unet_modules(unet, is_spaced(table))),
        "vae": taken(rest, vae_parameter_shapes(vae), vae_modules(vae)),
        "text_encoder": _text_table(rest, text, str(path)),
    }
    pass_over(path, rest)
    return SingleFileModel(path, networks, tables, tokenizer)


def _schedule(prediction_type: str, zero_snr: bool) -> ScheduleConfig:
    """Stable Diffusion's, with zero terminal SNR only if it predicts velocity."""
    schedule = ScheduleConfig(prediction_type=prediction_type)
    if not zero_snr or prediction_type == "epsilon":
        return schedule
    return dataclasses.replace(schedule, zero_snr=True, sampler="ddim", timestep_spacing="trailing")


def taken(rest: dict[str, StoredTensor], shapes: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """A network's tensors by Diffusers' names, taken out of `rest`."""
    found = {}
    for name, shape in names.torch_shapes(shapes).items():
        tensor = rest.pop(original_name(name, modules), None)
        if tensor is not None:
            one_by_one = tensor.shape == (*shape, 1, 1)  # a 1x1 convolution instead of a linear layer
            found[name] = tensor.without_last(2) if one_by_one else tensor
    return found


def _text_table(rest: dict[str, StoredTensor], config: CLIPTextConfig, source: str) -> dict[str, StoredTensor]:
    second, found, used = is_second(config), {}, set()
    for name, shape in names.torch_shapes(clip_text_parameter_shapes(config)).items():
        original, third = text_name(name, second)
        if original in rest:
            found[name] = rest[original] if third is None else _third(rest[original], third, shape)
            used.add(original)
    last = {name for name in rest if second and name.startswith(OPEN_CLIP_LAYER.format(config.layers))}
    if last and not is_vit_h(config):
        logging.info("%s: the text encoder's last layer isn't used, as in SD 2.x", source)
    for name in used | last:
        del rest[name]
    return found


def pass_over(path: Path, rest: Collection[str]) -> None:
    """Warns of tensors that no network uses; raises `InputError` for those in a network's own modules."""
    unused = [name for name in rest if name not in USUAL_LEFTOVERS]
    strange = [name for name in unused if name.startswith(OWN_MODULES)]
    if strange:
        raise InputError(f"{path}: unexpected weights ({len(strange)}): {', '.join(strange[:5])}")
    tell_unused(str(path), unused)


def _third(tensor: StoredTensor, third: int, shape: tuple[int, ...]) -> StoredTensor:
    """Rows [third * n, (third + 1) * n) of a tensor with 3n rows; the tensor itself if it has another shape."""
    if tensor.shape != (3 * shape[0], *shape[1:]):
        return tensor
    return tensor.rows(third * shape[0], shape[0])
