"""DreamBooth's evaluation, subject by subject: fine-tuning on its photographs, then images of its prompts."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.dreambooth import DreamBooth, read_dreambooth
from bksdm_jax.data.tables import read_table, write_table
from bksdm_jax.experiments.subjects_config import ALL, SubjectsConfig, require_subjects
from bksdm_jax.pipelines.config import LORA_MAY_CHANGE
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import require_sampler
from bksdm_jax.tasks.finetune import config as training
from bksdm_jax.tasks.finetune.task import finetune

TABLE, RECORD = "metadata.csv", "config.json"
"""Of a subject's folder: the finished images with prompt and subject, as `launch.score` reads them; the settings."""
COLUMNS = ("file_name", "text", "subject")
_TRAINING, _IMAGES, _PROMPTS = "training", "images", "prompts.csv"
_DECIDES_IMAGES = ("steps", "format", "save_dtype", "save_weights", "adapter.layout", "revision", *LORA_MAY_CHANGE)
_MAY_CHANGE = (
    *(key for key in training.MAY_CHANGE if key not in _DECIDES_IMAGES),
    *("dataset", "subject", "keep_training", "sampling.batch_size", "scoring"),
)


def make_subjects(config: SubjectsConfig, workdir: Path) -> Path | None:
    """Fine-tunes on the subject of the settings, or on each, and samples its prompts to `workdir/SUBJECT/`.

    Its folder gets `training/`, as of `finetune`, and `images/`, as of `sample`; `metadata.csv` (`file_name`, `text`,
    `subject`) comes last, and what has it isn't made again. The same call continues an interrupted one. Subjects of one
    workdir may be made side by side.

    Returns:
        the subject's folder, or of all `workdir`; None if the run was interrupted.

    Raises:
        InputError: a setting, the dataset or the model can't be used, found before the first update; or as `finetune`
            and `sample`. Or the subject's folder was made with other settings.
    """
    require_subjects(config)
    if (workdir / RECORD).exists():
        raise InputError(f"{workdir}: another program's workdir; choose a folder for all subjects")
    dataset = read_dreambooth(config.dataset)
    names = list(dataset.classes) if config.subject == ALL else [config.subject]
    for name in names:
        known_name("config", "subject", name, [*dataset.classes, ALL])
        dataset.photographs(name)
    model = find_model(config.source(config.model))
    require_sampler(config.images(Path(config.model), Path(_PROMPTS)), model.architectures)
    record = dataclasses.asdict(config) | {"model": str(model.path.resolve())}
    for number, name in enumerate(names, start=1):
        logging.info("== %d of %d, %s", number, len(names), name)
        if not _make(config, record, dataset, name, workdir / name):
            return None
    return workdir if config.subject == ALL else workdir / names[0]


@one_run()
def _make(config: SubjectsConfig, shared: dict[str, Any], dataset: DreamBooth, name: str, workdir: Path) -> bool:
    """False if interrupted."""
    prompts = dataset.prompts(name, config.token, config.living)
    record = shared | {"class": dataset.classes[name], "prompts": prompts}
    require_same(workdir, record, _MAY_CHANGE)
    if not (workdir / TABLE).is_file():
        claim(workdir, record)
        logging.info("== %s: fine-tuning", name)
        own = config.training(dataset.photographs(name), dataset.classes[name])
        made = finetune(own, workdir / _TRAINING)
        if made is None:
            return False
        logging.info("== %s: sampling", name)
        write_table(workdir / _PROMPTS, COLUMNS[:2], [(name, text) for text in prompts])
        sample(config.images(made, workdir / _PROMPTS), workdir / _IMAGES)
        rows = read_table(workdir / _IMAGES / TABLE, COLUMNS[:2])
        write_table(workdir / TABLE, COLUMNS, [(f"{_IMAGES}/{row['file_name']}", row["text"], name) for row in rows])
    if not config.keep_training:
        shutil.rmtree(workdir / _TRAINING, ignore_errors=True)
    return True
