"""Pipelines by name: a folder in Diffusers' layout, a single-file checkpoint, a model of the hub, the package's own."""

from collections.abc import Collection
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.models.unet import UNetConfig
from bksdm_jax.pipelines.embedded import TEACHER, teacher_folder
from bksdm_jax.pipelines.folder import (
    needed_files,
    read_architectures,
    read_network,
    read_pipeline_folder,
    read_unet_config,
    require_pipeline_folder,
)
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.passthrough import NO_EXTRAS, Extras
from bksdm_jax.pipelines.pipeline import NETWORKS, Architectures, Network, Pipeline, require_agreement
from bksdm_jax.pipelines.single_file import index_single_file, read_single_file, read_single_unet


def find_pipeline(
    name: str | Path,
    revision: str = "",
    variant: str = "",
    extras: Extras = NO_EXTRAS,
    networks: Collection[str] = NETWORKS,
) -> Path:
    """The folder or file that a name of a pipeline stands for.

    `shapes_teacher` is the one that comes with the package (`./shapes_teacher` one of the working directory's);
    `owner/name` a model of the hub, fetched unless it is in the hub's cache, where no folder `owner` is here; every
    other name is a path.

    Args:
        name: of the pipeline.
        revision: branch, tag or commit of a model of the hub; empty: its default branch.
        variant: of the weights, as `load_pipeline` takes it: decides which files are fetched.
        extras: what is to be fetched besides.
        networks: those whose weights are to be fetched; of the others only the config.

    Raises:
        InputError: no such folder, file or model, one without a pipeline's parts, or a damaged file of the package.
    """
    if str(name) == TEACHER:
        return teacher_folder()
    if isinstance(name, str) and is_hub_id(name):
        place = hub_folder(name, revision, lambda names: needed_files(names, variant, extras, networks))
    elif revision:
        raise InputError(f"{name}: no model of the hub, and only those have a revision ({revision!r})")
    else:
        place = Path(name).expanduser().resolve()
    if not place.is_file():
        require_pipeline_folder(place)
    elif place.suffix != ".safetensors":
        raise InputError(
            f"{place}: not a .safetensors file; as a single file only those are read, since a .ckpt is a pickle that "
            "can run code: convert it where you trust it"
        )
    return place


def load_pipeline(
    name: str | Path,
    variant: str = "",
    tokenizer: str = "",
    prediction: str = "",
    networks: Collection[str] = NETWORKS,
) -> Pipeline:
    """Reads a pipeline.

    Args:
        name: as `find_pipeline` takes it, or what it returned.
        variant: of a folder's weights, as `read_pipeline_folder` takes it.
        tokenizer, prediction: what a single file doesn't say, as `read_single_file` takes it; empty for folders.
        networks: those whose weights are read; the others have their config alone.

    Raises:
        InputError: a component is missing, damaged, or doesn't fit its config.
    """
    place = find_pipeline(name, networks=networks)
    single = place.is_file()
    _require_folder(place, variant)
    if not single and (tokenizer or prediction):
        key = "tokenizer" if tokenizer else "prediction"
        raise InputError(f"{key}: for single-file checkpoints only; {place} is a folder, which has its own")
    if single:
        pipeline = read_single_file(place, tokenizer, prediction, networks)
    else:
        pipeline = read_pipeline_folder(place, variant, networks)
    require_agreement(pipeline)
    return pipeline


def load_unet_config(name: str | Path, prediction: str = "", revision: str = "") -> UNetConfig:
    """Reads the architecture of a pipeline's U-Net alone, and fetches no weights.

    Arguments and errors are those of `find_pipeline` and `load_pipeline`.
    """
    place = find_pipeline(name, revision, networks=())
    return index_single_file(place, prediction).unet if place.is_file() else read_unet_config(place)


def load_architectures(name: str | Path, prediction: str = "", revision: str = "") -> Architectures:
    """Reads the configs of a pipeline, and fetches no weights; arguments and errors as `load_unet_config`."""
    place = find_pipeline(name, revision, networks=())
    if not place.is_file():
        return read_architectures(place)
    found = index_single_file(place, prediction)
    return Architectures(found.unet, found.vae, found.text_encoder, ScheduleConfig(prediction=found.prediction))


def load_unet(name: str | Path, revision: str = "", variant: str = "") -> Network:
    """Reads a pipeline's U-Net, and fetches no other weights; arguments and errors are `find_pipeline`'s."""
    place = find_pipeline(name, revision, variant, networks=("unet",))
    _require_folder(place, variant)
    return read_single_unet(place) if place.is_file() else read_network(place, "unet", variant)


def _require_folder(place: Path, variant: str) -> None:
    if variant and place.is_file():
        raise InputError(f"variant: {variant!r} is for folders, and {place} is a single file")
