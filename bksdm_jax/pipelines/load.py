"""Finds models by name: pipeline folders, single-file checkpoints, models on the hub, the bundled teacher."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import local_path
from bksdm_jax.pipelines.embedded import TEACHER, teacher_folder
from bksdm_jax.pipelines.families import FAMILIES, STABLE_DIFFUSION
from bksdm_jax.pipelines.folder import FolderModel, needed_files, open_denoiser, open_folder
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.passthrough import NO_EXTRAS, Extras
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.single_file import SINGLE_FILES, SingleFileModel, open_single_file
from bksdm_jax.pipelines.source import ModelSource

Model = FolderModel | SingleFileModel
"""A model that was found: `path` and `architectures`; `read()` and `read_denoiser()` read its weights."""


def find_model(
    source: ModelSource | str | Path, extras: Extras = NO_EXTRAS, networks: Collection[str] | None = None
) -> Model:
    """Finds a model, downloads its files if needed, and reads its configs but not its weights.

    `shapes_teacher` is the bundled teacher (`./shapes_teacher` is a path); `owner/name` is a model on the hub unless
    there is a folder `owner` here; any other name is a path.

    Args:
        source: the model, or just its name.
        extras: files to download besides.
        networks: those whose weights to download, not just their config. None: all.

    Raises:
        InputError: the model doesn't exist, is incomplete or unsupported, or an option doesn't apply to it.
    """
    if isinstance(source, Path) and str(source) != TEACHER:  # never an id on the hub
        source = str(source.expanduser().absolute())
    source = source if isinstance(source, ModelSource) else ModelSource(str(source))
    path = _path(source, extras, networks)
    if not path.is_file():
        if source.tokenizer or source.prediction_type:
            key = "tokenizer" if source.tokenizer else "prediction"
            raise InputError(f"{key}: applies to single-file checkpoints only; {path} is a folder with its own")
        return dataclasses.replace(open_folder(path, source.variant), allow_non_finite=source.allow_non_finite)
    if path.suffix.lower() not in SINGLE_FILES:
        raise InputError(f"{path}: a file of unknown format; expected a folder, or {' or '.join(SINGLE_FILES)}")
    if source.variant:
        raise InputError(f"variant: {source.variant!r} applies to folders only; {path} is a single file")
    found = open_single_file(path, source.tokenizer, source.prediction_type, source.any_prediction)
    return dataclasses.replace(found, allow_non_finite=source.allow_non_finite)


def find_denoiser(source: ModelSource, weights: bool = False) -> Model:
    """Finds a model for its denoiser alone; nothing else of it needs to be supported, or even there.

    Args:
        source: the model.
        weights: download the denoiser's weights too, for `read_denoiser`.

    Raises:
        InputError: as `find_model`.
    """
    kind = FAMILIES[STABLE_DIFFUSION]
    path = _path(source, NO_EXTRAS, (kind.denoiser,) if weights else ())
    if path.is_file():
        return find_model(source)
    return dataclasses.replace(open_denoiser(path, source.variant), allow_non_finite=source.allow_non_finite)


def load_pipeline(source: ModelSource | str | Path) -> Pipeline:
    """Finds a model and reads all of it; raises `InputError` like `find_model`, or if weights can't be read."""
    return find_model(source).read()


def _path(source: ModelSource, extras: Extras, networks: Collection[str] | None) -> Path:
    if source.name == TEACHER:
        return teacher_folder()
    if is_hub_id(source.name):
        return hub_folder(
            source.name, source.revision, lambda names: needed_files(names, source.variant, extras, networks)
        )
    if source.revision:
        raise InputError(f"{source.name}: not on the hub; revision ({source.revision!r}) applies to hub models only")
    path = local_path("model", source.name)
    target = path.resolve()
    # A link to a blob in the hub's cache has the suffix, the blob hasn't.
    is_blob = target.is_file() and target.suffix.lower() not in SINGLE_FILES
    return path.parent.resolve() / path.name if is_blob else target
