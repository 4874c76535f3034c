"""The model card of a pipeline."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

from bksdm_jax.base import trees
from bksdm_jax.formats.missing_blocks import has_missing_blocks
from bksdm_jax.formats.original_names import unet_modules
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Facts that don't follow from the networks.

    Attributes:
        parent: the teacher as the user named it: a path or hub id.
        removed: the teacher's blocks that were removed.
        preset: the preset that removes these; empty: none does.
        trained: the networks that were fine-tuned; empty: those of a student, or none.
        start: the student's initial weights, in words.
        training: setting -> value; empty: not trained.
    """

    parent: str
    removed: tuple[str, ...]
    start: str
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)
    preset: str = ""
    trained: tuple[str, ...] = ()


def model_card(pipeline: Pipeline, facts: CardFacts, file_format: str) -> str:
    """The text of `README.md`, with the metadata that the hub reads; `file_format` is one of `save.FORMATS`."""
    parent = parent_name(facts.parent)
    gaps = has_missing_blocks(pipeline.denoiser.config)
    head = ModelCardData(
        base_model=facts.parent if is_hub_id(facts.parent) else None,
        library_name=None if file_format.startswith("single_file") or gaps else "diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "bk-sdm"],
        **pipeline.licence,
    )
    what = "a copy"
    if facts.removed:
        what = f"the student `{facts.preset}`" if facts.preset else "a student"
    if facts.trained:
        what = "a fine-tuned copy"
    sections = [
        f"---\n{head.to_yaml().strip()}\n---",
        f"# {what.removeprefix('the ').removeprefix('a ').capitalize()} of {parent}",
        f"A Stable Diffusion pipeline, {what} of {parent}: made with bksdm_jax after BK-SDM "
        "([arXiv 2305.15798](https://arxiv.org/abs/2305.15798)).",
        "## Architecture",
        _architecture(pipeline, facts.removed),
        "## Training",
        _start(facts) + _merged(pipeline.loras),
        _table("setting", facts.training) if facts.training else "It has not been trained.",
        "## Scores",
        "No scores have been measured.",
        "## Use",
        _use(pipeline, file_format) + _lora_text(facts.removed),
        "## Licence",
        _licence(pipeline.licence, parent),
    ]
    return "\n\n".join(sections) + "\n"


def _start(facts: CardFacts) -> str:
    if not facts.trained:
        return f"The U-Net started from {facts.start}. The other networks are the parent's."
    both = " and the ".join(facts.trained)
    return f"The parent's {both} {'were' if len(facts.trained) > 1 else 'was'} fine-tuned. The rest is the parent's."


def parent_name(name: str) -> str:
    """A pipeline's name for a public card: its hub id, if it has one, or its path's last component."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$", name)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return name if is_hub_id(name) else name.rstrip("/").rpartition("/")[2]


_PREDICTS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "the noise-free latents"}


def _architecture(pipeline: Pipeline, removed: tuple[str, ...]) -> str:
    counts = {name: f"{trees.count(network.params):,}" for name, network in pipeline.networks.items()}
    schedule, size = pipeline.schedule, pipeline.architectures.resolution
    said = f"The U-Net predicts {_PREDICTS[schedule.prediction_type]}"
    said += f" and is made for {size}x{size} pixels."
    gone = f"Removed from the parent's U-Net: {', '.join(f'`{name}`' for name in removed)}." if removed else ""
    return "\n\n".join(part for part in (_table("network", counts, "parameters"), gone, said) if part)


def _table(name: str, values: Mapping[str, object], heading: str = "value") -> str:
    rows = [f"| `{key}` | {str(value).replace('|', '/')} |" for key, value in values.items()]
    return "\n".join([f"| {name} | {heading} |", "|---|---|", *rows])


def _merged(loras: Sequence[str]) -> str:
    return f" LoRAs were merged into the parent first: {', '.join(loras)}." if loras else ""


def _lora_text(removed: tuple[str, ...]) -> str:
    """What to do with a LoRA of the parent."""
    if not removed:
        return ""
    return (
        "\n\nA LoRA of the parent has the parent's block numbers: tools may load it onto the wrong blocks without an "
        "error. Convert it first: `python -m launch.convert_lora --config=configs/convert_lora.py --config.lora=FILE "
        "--config.model=FOLDER --workdir=NEW`."
    )


def _use(pipeline: Pipeline, file_format: str) -> str:
    if file_format == "flax":
        return "Load it with Diffusers' Flax classes: `FlaxStableDiffusionPipeline.from_pretrained(FOLDER)`."
    unet, prediction = pipeline.denoiser.config, pipeline.schedule.prediction_type
    if has_missing_blocks(unet):
        return (
            "Only bksdm_jax can load it: `bksdm_jax.load(FOLDER)`, or `launch.sample --config.model=FOLDER`. Single "
            "blocks are missing; an interpolation along the channels stands for each missing ResNet."
        )
    if file_format == "safetensors":
        said = f"Load it with {_DIFFUSERS}: `StableDiffusionPipeline.from_pretrained(FOLDER)`."
        velocity = f" {_CPP_VELOCITY}" if prediction != "epsilon" else ""
        return f"{said} {_CPP} takes this folder too.{velocity}" if _is_tiny(unet) else said
    said = (
        "`model.safetensors` holds U-Net, autoencoder and text encoder in the original single-file layout; the folder "
        f"`{CONFIGS}` has their configs, the tokenizer and the scheduler."
    )
    return f"{said}\n\n{tools_text(unet, file_format.endswith('spaced'), prediction)}"


_DIFFUSERS, _COMFY, _CPP = "Diffusers (0.39)", "ComfyUI (0.3.64)", "stable-diffusion.cpp (master-612)"
_CPP_VELOCITY = "It must be told that the U-Net predicts velocity, by `--prediction v`, or images are wrong."
CONFIGS = "config"
"""The folder of the configs beside a single file."""


def tools_text(unet: UNetConfig, spaced: bool, prediction_type: str = "epsilon") -> str:
    """Which tools can load a single file with this U-Net; `spaced` is as in `original_names.unet_modules`."""
    lines = []
    if unet_modules(unet, spaced) != unet_modules(unet):
        lines.append("Blocks are numbered with gaps, as by Diffusers' conversion script.")
        if _is_tiny(unet):
            lines.append(f"{_CPP} loads it as a tiny U-Net; {_COMFY} and {_DIFFUSERS} can't load it.")
            lines += [_CPP_VELOCITY] if prediction_type != "epsilon" else []
        else:
            lines.append(f"{_CPP}, {_COMFY} and {_DIFFUSERS} can't load it: use the format `single_file`.")
        return " ".join(lines)
    load = f'StableDiffusionPipeline.from_single_file("model.safetensors", config="{CONFIGS}")'
    lines += [
        "Blocks are numbered without gaps, as by the original code.",
        f"{_DIFFUSERS} loads it with its configs: `{load}`.",
        f"{_COMFY} infers the blocks from the names.",
    ]
    if unet.mid is not None and all(len(stage.pairs) == 2 for stage in unet.down):
        lines.append("Other tools that load Stable Diffusion checkpoints can load it.")
    else:
        webui = "Tools that build the U-Net from a config file (Stable Diffusion WebUI) "
        lines.append(webui + ("need `num_res_blocks: 1` in it." if unet.mid is not None else "require a mid block."))
        way_out = ": use the format `single_file_spaced`, or the folder of format `safetensors`"
        lines.append(f"{_CPP} can't load it{way_out if _is_tiny(unet) else ''}.")
    if prediction_type != "epsilon":
        lines.append(
            f"Tell your tool that it predicts velocity, or images are wrong: {_COMFY} needs the node "
            f"`ModelSamplingDiscrete` with `v_prediction`, {_CPP} the option `--prediction v`."
        )
    return " ".join(lines)


def _is_tiny(unet: UNetConfig) -> bool:
    """Whether stable-diffusion.cpp knows this small U-Net: SD's first three stages of one layer, no mid block."""
    stages = [(stage.width, stage.pairs) for stage in unet.down]
    return unet.mid is None and stages == [(width, ("RA",)) for width in (320, 640, 1280)]


def _licence(licence: Mapping[str, str], parent: str) -> str:
    name = licence.get("license_name") or licence.get("license")
    if not name:
        return f"These weights inherit {parent}'s licence, which its folder does not name."
    link = licence.get("license_link")
    return f"These weights inherit {parent}'s licence: {f'[{name}]({link})' if link else name}."
