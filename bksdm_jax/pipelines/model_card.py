"""The model card of a pipeline: what is known about it, and nothing else."""

import dataclasses
from collections.abc import Mapping

from huggingface_hub import ModelCardData

from bksdm_jax.base import trees
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Facts that the networks don't tell.

    Attributes:
        parent: the teacher as the user named it: a path, or an id on the hub.
        removed: its blocks that were removed.
        preset: the name of a student without these; empty: it has none.
        start: what the student's weights were before training, in words.
        training: setting -> value; empty: not trained.
    """

    parent: str
    removed: tuple[str, ...]
    start: str
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)
    preset: str = ""


def model_card(pipeline: Pipeline, facts: CardFacts, file_format: str) -> str:
    """The text of `README.md`, with the head that the hub reads.

    Args:
        pipeline: as it is written.
        facts: see there.
        file_format: a key of `save.FORMATS`.
    """
    parent = parent_name(facts.parent)
    head = ModelCardData(
        base_model=facts.parent if is_hub_id(facts.parent) else None,
        library_name=None if file_format.startswith("single_file") else "diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "bk-sdm"],
        **pipeline.licence,
    )
    what = (
        f"the student `{facts.preset}`"
        if facts.preset and facts.removed
        else "a student"
        if facts.removed
        else "a copy"
    )
    sections = [
        f"---\n{head.to_yaml().strip()}\n---",
        f"# {what.removeprefix('the ').removeprefix('a ').capitalize()} of {parent}",
        f"A Stable Diffusion pipeline, {what} of {parent}: made with bksdm_jax after BK-SDM "
        "([arXiv 2305.15798](https://arxiv.org/abs/2305.15798)).",
        "## Architecture",
        _architecture(pipeline, facts.removed),
        "## Training",
        f"The U-Net started from {facts.start}. The other networks are the parent's.",
        _table("setting", facts.training) if facts.training else "It has not been trained.",
        "## Scores",
        "No scores have been measured.",
        "## Use",
        _use(pipeline, file_format),
        "## Licence",
        _licence(pipeline.licence, parent),
    ]
    return "\n\n".join(sections) + "\n"


def parent_name(name: str) -> str:
    """A pipeline's name as a card gives it: an id on the hub, or the last part of a path, since a card is public."""
    return name if is_hub_id(name) else name.rstrip("/").rpartition("/")[2]


def _architecture(pipeline: Pipeline, removed: tuple[str, ...]) -> str:
    counts = {name: f"{trees.count(network.params):,}" for name, network in pipeline.networks.items()}
    schedule, size = pipeline.schedule, pipeline.architectures.resolution
    said = f"The U-Net predicts {'noise' if schedule.prediction_type == 'epsilon' else 'velocity'}"
    said += f" and was made for {size}x{size} pixels."
    gone = f"Removed from the parent's U-Net: {', '.join(f'`{name}`' for name in removed)}." if removed else ""
    return "\n\n".join(part for part in (_table("network", counts, "parameters"), gone, said) if part)


def _table(name: str, values: Mapping[str, object], heading: str = "value") -> str:
    rows = [f"| `{key}` | {str(value).replace('|', '/')} |" for key, value in values.items()]
    return "\n".join([f"| {name} | {heading} |", "|---|---|", *rows])


def _use(pipeline: Pipeline, file_format: str) -> str:
    if file_format == "flax":
        return "In Diffusers' Flax layout: `FlaxStableDiffusionPipeline.from_pretrained(FOLDER)`."
    if file_format == "safetensors":
        return "`diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)` loads it."
    said = (
        "`model.safetensors` holds U-Net, autoencoder and text encoder under the names of the original single-file "
        "layout. Tokenizer and scheduler are Stable Diffusion's and not in it"
    )
    said += (
        "; tell the tool that the U-Net predicts velocity." if pipeline.schedule.prediction_type != "epsilon" else "."
    )
    return f"{said}\n\n{tools_text(pipeline.denoiser.config, spaced=file_format.endswith('spaced'))}"


def tools_text(unet: UNetConfig, spaced: bool) -> str:
    """Which tools take a single file with a U-Net of this shape, by what their loaders look at.

    Args:
        unet: the U-Net.
        spaced: how its blocks are numbered, see `original_names.unet_modules`.
    """
    whole = unet.mid is not None and all(len(stage.pairs) == 2 for stage in unet.down)
    if whole:
        return "Tools that take Stable Diffusion checkpoints take it."
    tiny = unet.mid is None and len(unet.down) == 3 and all(stage.pairs == ("RA",) for stage in unet.down)
    lines = []
    if spaced:
        lines.append("Blocks are numbered with gaps, as Diffusers' conversion script does.")
        lines.append(
            "stable-diffusion.cpp takes it as a tiny U-Net."
            if tiny
            else "stable-diffusion.cpp takes small U-Nets of three stages without a mid block only (`bk_tiny`), "
            "so not this one."
        )
    else:
        lines.append("Blocks are numbered without gaps, as the original program does.")
        lines.append("ComfyUI reads the blocks off the names, with or without a mid block.")
        lines.append(
            "Tools that build the U-Net from a config file (Stable Diffusion WebUI) need `num_res_blocks: 1` in it."
            if unet.mid is not None
            else "Tools that build the U-Net from a config file (Stable Diffusion WebUI) can't do without a mid block."
        )
        if tiny:
            lines.append("For stable-diffusion.cpp write the format `single_file_spaced`.")
    return " ".join(lines)


def _licence(licence: Mapping[str, str], parent: str) -> str:
    name = licence.get("license_name") or licence.get("license")
    if not name:
        return f"These weights inherit {parent}'s licence, which its folder does not name."
    link = licence.get("license_link")
    return f"These weights inherit {parent}'s licence: {f'[{name}]({link})' if link else name}."
