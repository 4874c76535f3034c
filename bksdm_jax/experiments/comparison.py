"""Comparisons of one teacher's students, all trained, sampled and scored in the same way, with a report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from bksdm_jax.base import trees
from bksdm_jax.base.errors import known_name, whole_number
from bksdm_jax.base.files import read_json, require_space, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.data.sources import open_examples
from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.reference import SHAPES
from bksdm_jax.evaluation.score import score
from bksdm_jax.experiments.config import ComparisonConfig, require_comparison
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.embedded import TEACHER, pretrained_identity
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.config import PruneConfig
from bksdm_jax.pruning.prune import plan_student, prune
from bksdm_jax.reports.page import write_page
from bksdm_jax.sampling.config import SampleConfig, SamplerConfig
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import require_sampler
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.world import ShapesWorld, build
from bksdm_jax.tasks.distill.config import DistillConfig, LossWeights, ValidationConfig, require_settings
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig

_METRICS = ("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes")
_CALLS = 4  # of the sampler at least, where there are images for them: the first isn't timed
_OTHER_SPACE = 100 * 2**20  # bytes: the dataset, compiled programs, images, metrics


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
        name: of its folders.
        label: in tables.
        init: `teacher` or `random`; empty: the row is the teacher itself.
        loss: for training; None: not trained.
    """

    name: str
    label: str
    init: str = "teacher"
    loss: LossWeights | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The rows of a comparison, and the report's `title` and `explanation`."""

    rows: tuple[Row, ...]
    title: str
    explanation: str


@one_run()
def compare_students(config: ComparisonConfig, experiment: Experiment, workdir: Path) -> Path | None:
    """Starts or continues an experiment, and writes `report.json` and `report.html` in `workdir`.

    Rows with the same `init` have the same initial weights, and all rows the same batches, training noise and starting
    noise of samples, so only the rows' own settings differ.

    Returns:
        the page, or None if the run was interrupted (the same call continues it).

    Raises:
        InputError: a setting or file can't be used, the workdir is another run's, or its disk is too full.
    """
    rows, teacher = experiment.rows, find_model(TEACHER).architectures
    _require_settings(config, rows, teacher)
    student = plan_student(teacher, config.student, SaveConfig()).student
    record = dataclasses.asdict(config) | {
        "rows": [dataclasses.asdict(row) for row in rows],
        "pretrained_sha256": pretrained_identity(),
    }
    require_same(workdir, record, ())
    require_space(workdir, _space(student, rows, workdir))
    claim(workdir, record)
    logging.info("== the shapes world")
    with waiting("rendering", QUIET):
        data = build(workdir / "data", config.dataset)
    prompts = workdir / "prompts.csv"
    examples = open_examples(data, "heldout")
    write_table(prompts, ("file_name", "text"), [(f"heldout/{i}", examples[i].texts[0]) for i in range(config.images)])
    results, made = [], []
    for number, row in enumerate(rows, start=1):
        where = f"{number} of {len(rows)}, {row.label}"
        model = _model(config, row, data, workdir / "models" / row.name, where)
        if model is None:
            return None
        images, scores = workdir / "samples" / row.name, workdir / "scores" / row.name
        logging.info("== %s: sampling", where)
        sample(_sampling(config, model, prompts), images)
        if not (scores / "scores.json").exists():
            logging.info("== %s: scoring", where)
            score(_scoring(images, workdir), scores)
        unet = find_model(model).architectures.denoiser
        made.append((unet, images))
        found = read_json(scores / "scores.json")
        results.append(_result(row, unet, found["scores"]))
    for (unet, _), result in zip(made, results, strict=True):
        result["seconds_per_image"] = _seconds([images for other, images in made if other == unet])
    heading = {"title": experiment.title, "explanation": experiment.explanation}
    heading["reference_images"] = found["reference"]["images"]
    write_json(workdir / "report.json", heading | {"config": record, "rows": results})
    return write_page(workdir)


def _require_settings(config: ComparisonConfig, rows: Sequence[Row], teacher: Architectures) -> None:
    """Checks all settings before anything is written."""
    require_comparison(config)
    known_name("config", "dataset", config.dataset, ShapesWorld.builder_configs)
    whole_number("config", "images", config.images, 2, ShapesWorld.builder_configs[config.dataset].heldout)
    for row in rows:
        require_settings(_training(config, row, Path()))
    sampler = SamplerConfig(
        steps=config.sampling_steps, guidance_scale=config.guidance_scale, resolution=PIXELS, seed=config.seed
    )
    require_sampler(sampler, teacher)


def _space(student: UNetConfig, rows: Sequence[Row], workdir: Path) -> int:
    """Approximate bytes that the missing rows will take."""
    missing = [row for row in rows if row.loss and not (workdir / "models" / row.name / "model").is_dir()]
    if not missing:
        return 0
    parameters = trees.count(parameter_shapes(student))
    state = 16 * parameters  # float32: parameters, moving average, two moments
    model = 4 * parameters + 2**22  # the second term for the other networks
    return len(missing) * (state + model) + state + _OTHER_SPACE  # a checkpoint is deleted once the next is written


def _model(config: ComparisonConfig, row: Row, data: Path, folder: Path, where: str) -> Path | None:
    """The pipeline folder of a row, made if missing; None if interrupted."""
    if not row.init:
        return find_model(TEACHER).path
    if row.loss is None:
        if not folder.exists():
            logging.info("== %s: pruning", where)
            prune(PruneConfig(TEACHER, config.student, config.seed, student_init=row.init), folder)
        return folder
    if (folder / "model").is_dir():  # written atomically
        return folder / "model"
    logging.info("== %s: training", where)
    return distill(_training(config, row, data), folder)


def _training(config: ComparisonConfig, row: Row, data: Path) -> DistillConfig:
    return DistillConfig(
        teacher=TEACHER,
        student=config.student,
        student_init=row.init,
        data=str(data),
        resolution=PIXELS,
        flip=False,  # captions mention left and right
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        accumulation=1,
        dtype="float32",
        log_every=max(1, config.steps // 50),
        checkpoint_every=100,
        keep_checkpoints=1,
        loss=row.loss or LossWeights(),  # the default is for checks of rows that aren't trained
        optimizer=OptimizerConfig(
            learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, cosine_steps=config.steps
        ),
        sheets=SampleGridConfig(every=0, steps=0),
        validation=ValidationConfig(images=0),  # students are scored instead
    )


def _sampling(config: ComparisonConfig, model: Path, prompts: Path) -> SampleConfig:
    return SampleConfig(
        model=str(model),
        prompts=str(prompts),
        seed=config.seed,
        steps=config.sampling_steps,
        sampler="pndm",
        batch_size=max(1, min(64, config.images // (_CALLS * jax.local_device_count()))),
        guidance_scale=config.guidance_scale,
    )


def _scoring(images: Path, workdir: Path) -> ScoreConfig:
    cache = str(workdir / "scores" / "reference")
    return ScoreConfig(images=str(images), metrics=_METRICS, reference=SHAPES, cache=cache)


def _result(row: Row, unet: UNetConfig, scores: dict[str, Any]) -> dict[str, Any]:
    cost = unet_cost(unet, unet.sample_size or 64).values()
    return {
        "name": row.name,
        "label": row.label,
        "trained": row.loss is not None,
        "unet_parameters": sum(stage.parameters for stage in cost),
        "unet_macs": sum(stage.macs for stage in cost),
        "scores": scores,
    }


def _seconds(folders: Sequence[Path]) -> float | None:
    """Median seconds per image over all calls of rows with one architecture, whose speed their weights don't change.

    None: no row has a timed call.
    """
    each: list[float] = []
    for folder in folders:
        timing = read_json(folder / "timing.json") if (folder / "timing.json").exists() else {}
        each += timing.get("seconds_per_image_by_call", [])
    return float(np.median(each)) if each else None
