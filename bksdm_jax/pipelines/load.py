"""Models by name: a folder in Diffusers' layout, a single-file checkpoint, a model of the hub, the package's own."""

from collections.abc import Collection
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.embedded import TEACHER, teacher_folder
from bksdm_jax.pipelines.folder import FolderModel, needed_files, open_folder
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.passthrough import NO_EXTRAS, Extras
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.single_file import SingleFileModel, open_single_file
from bksdm_jax.pipelines.source import ModelSource

Model = FolderModel | SingleFileModel
"""A model that was found: its `path` and `architectures`; `read()` and `read_denoiser()` read its weights."""


def find_model(
    source: ModelSource | str | Path, extras: Extras = NO_EXTRAS, networks: Collection[str] | None = None
) -> Model:
    """Finds a model, fetches its files and reads its configs; its weights are read later, by what is returned.

    `shapes_teacher` is the one that comes with the package (`./shapes_teacher` one of the working directory's);
    `owner/name` a model of the hub, fetched unless it is in the hub's cache, where no folder `owner` is here; every
    other name is a path.

    Args:
        source: the model, or its name alone.
        extras: what is to be fetched besides.
        networks: those whose weights are to be fetched; of the others only the config. None: all.

    Raises:
        InputError: no such folder, file or model, one that lacks a component, one that can't be used, or an option
            that isn't for it.
    """
    source = source if isinstance(source, ModelSource) else ModelSource(str(source))
    path = _path(source, extras, networks)
    if not path.is_file():
        if source.tokenizer or source.prediction_type:
            key = "tokenizer" if source.tokenizer else "prediction"
            raise InputError(f"{key}: for single-file checkpoints only; {path} is a folder, which has its own")
        return open_folder(path, source.variant)
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: not a .safetensors file; as a single file only those are read, since a .ckpt is a pickle that "
            "can run code: convert it where you trust it"
        )
    if source.variant:
        raise InputError(f"variant: {source.variant!r} is for folders, and {path} is a single file")
    return open_single_file(path, source.tokenizer, source.prediction_type)


def load_pipeline(source: ModelSource | str | Path) -> Pipeline:
    """Finds a model and reads all of it; raises `InputError` as `find_model`, or if weights can't be read."""
    return find_model(source).read()


def _path(source: ModelSource, extras: Extras, networks: Collection[str] | None) -> Path:
    if source.name == TEACHER:
        return teacher_folder()
    if is_hub_id(source.name):
        return hub_folder(
            source.name, source.revision, lambda names: needed_files(names, source.variant, extras, networks)
        )
    if source.revision:
        raise InputError(f"{source.name}: not a model on the hub, and only those have a revision ({source.revision!r})")
    return Path(source.name).expanduser().resolve()
