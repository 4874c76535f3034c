"""Measures a teacher's blocks by several criteria, into one file."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from bksdm_jax.analysis.agreement import agreements
from bksdm_jax.analysis.calibration import Calibration
from bksdm_jax.analysis.config import OF_DATA, OF_IMAGES, AnalyseConfig, require_analysis
from bksdm_jax.analysis.sensitivity import Sensitivity, prompts_of, sampler_of
from bksdm_jax.base.errors import InputError, NotFiniteError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.base.precision import compute_dtype, exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import claim, require_same, require_same_parts
from bksdm_jax.cost.counts import block_costs
from bksdm_jax.data.checked_images import SKIPPED
from bksdm_jax.data.latents import CENTRE, latent_identity, require_identity
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import data_folder, facts_of, is_cached, open_examples
from bksdm_jax.metrics.table import require_enough
from bksdm_jax.models.unet_table import UNetConfig, block_table, replaceable
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pruning.block_scores import FILE
from bksdm_jax.pruning.criteria import magnitude, taylor
from bksdm_jax.pruning.targets import CRITERIA
from bksdm_jax.reports.blocks_page import IMAGES, write_blocks_page
from bksdm_jax.sampling.text_to_image import require_resolution, require_sampler
from bksdm_jax.training.sharding import make_mesh

MAY_CHANGE = ("criteria", "revision", "skip_unusable")
"""Keys that may differ when an analysis continues; those of the data and the images too, until they are used."""
_DATA = (*(one.name for one in dataclasses.fields(SourceOptions)), "data", "data_facts", "split")
_CALIBRATION = ("images", "resolution", "batch_size", "dtype", "seed")
_IMAGES = ("sensitivity", "texts")
_OF_IMAGES_MAY_CHANGE = ("prompts", "batch_size", "scoring_batch_size", "cache", "skips")
_TEACHER = "teacher_sha256"


@one_run()
def analyse(config: AnalyseConfig, workdir: Path) -> Path:
    """Scores every block that can be removed, and writes `blocks.json`, where what it has already stays, and its page.

    Returns:
        `blocks.json`.

    Raises:
        InputError: a setting, file or folder can't be used, the teacher has no such blocks, a score or image isn't
            finite, or what images are scored with has changed since an earlier call.
    """
    require_analysis(config)
    found = find_model(config.source(config.teacher))
    networks = found.architectures
    if not replaceable(networks.denoiser):
        raise InputError(f"teacher: {found.path} has no ResNets and no transformers, so no block can be removed")
    resolution = config.resolution or networks.resolution
    require_resolution(resolution, networks)
    data = _open_data(config) if config.data else None
    record = dataclasses.asdict(config) | {"teacher": str(found.path), "resolution": resolution}
    if data:
        record["data_facts"] = facts_of(*data)
    sampled = [name for name in CRITERIA if name in OF_IMAGES and name in config.criteria]
    if sampled:
        record["texts"] = texts = prompts_of(config, data and data[1])
        require_enough(config.sensitivity, len(texts), "sensitivity.prompts")
        require_sampler(sampler_of(config, networks), networks)
    path = workdir / FILE
    results = read_json(path) if path.is_file() else {}
    _require_same(workdir, record, results, sampled)
    teacher = found.read()
    identity = teacher.identity()
    require_same_parts(workdir, _TEACHER, identity, "teacher")
    if data and is_cached(data[1]):
        require_identity(data[0], latent_identity(teacher, resolution, flip=False, crop=CENTRE))
    former = read_json(workdir / "config.json", MOST_READ) if results.get("removals") else {}
    kept = {key: former[key] for key in _IMAGES if not sampled and key in former}
    claim(workdir, record | kept | {_TEACHER: identity})
    if data and config.skip_unusable:
        data = data[0], Skipping(data[1], workdir / SKIPPED)
    results |= {"teacher": config.teacher, "blocks": describe(networks.denoiser)}
    scores, sensitivity = results.setdefault("scores", {}), None
    if sampled:
        sensitivity = Sensitivity(config, teacher, texts, results, lambda: write_json(path, results), workdir / IMAGES)
    for name in CRITERIA:
        if name in config.criteria and name not in scores and name not in OF_IMAGES:
            logging.info("== %s", name)
            scores[name] = _finite(name, _measure(name, teacher, config, resolution, data))
            write_json(path, results)
    if sensitivity:
        logging.info("== %s", " and ".join(sampled))
        scores |= sensitivity.measure(sampled)
    results["agreement"] = agreements({name: scores[name] for name in CRITERIA if name in scores})
    write_json(path, results)
    write_blocks_page(results, workdir)
    return path


def _require_same(workdir: Path, record: dict[str, Any], results: dict[str, Any], sampled: list[str]) -> None:
    """Raises `InputError` if settings that earlier results depend on have changed."""
    free = {_TEACHER, *MAY_CHANGE, *(f"sensitivity.{key}" for key in _OF_IMAGES_MAY_CHANGE)}
    if not set(results.get("scores", {})) & set(OF_DATA):
        free |= {*_DATA, *_CALIBRATION}
    if not sampled or not results.get("removals"):
        free |= set(_IMAGES)
    if results.get("removals"):
        free.discard("dtype")
    require_same(workdir, record, free)


def _finite(criterion: str, scores: dict[str, float]) -> dict[str, float]:
    for block, score in scores.items():
        if not math.isfinite(score):
            raise NotFiniteError(
                f"{criterion} of {block} is {score}, so nothing is written; set dtype to float32, or mend "
                "the teacher's weights"
            )
    return scores


def describe(unet: UNetConfig) -> dict[str, dict[str, Any]]:
    """Each block that can be removed, with its `number` in the order of the forward pass.

    `parameters` and `macs` are by THOP's rules; `interpolated` says whether `in_width` and `out_width` differ.

    `in_width` counts the skip that an up block's ResNet takes. Where widths differ, an interpolation along the channels
    stands for a removed block; the paper's Fig. 19 marks such blocks with a star without defining the stand-in.
    """
    costs, found = block_costs(unet, unet.sample_size or 64), {}
    for row in block_table(unet)[0]:
        if row.block in costs:
            width = row.in_width + (row.skip.width if row.skip else 0)
            cost = costs[row.block]
            number = found[row.block]["number"] if row.block in found else len(found)
            found[row.block] = {
                "number": number,
                "parameters": cost.parameters,
                "macs": cost.macs,
                "in_width": width,
                "out_width": row.out_width,
                "interpolated": width != row.out_width,
            }
    return found


def _open_data(config: AnalyseConfig) -> tuple[Any, Any]:
    folder = data_folder(config.data)
    return folder, open_examples(folder, config.split, config, config.skip_unusable)


def _measure(
    name: str, teacher: Pipeline, config: AnalyseConfig, resolution: int, data: tuple[Any, Any] | None
) -> dict[str, float]:
    unet = teacher.denoiser
    if name not in OF_DATA:
        return magnitude(unet.config, unet.params)
    assert data is not None
    mesh = make_mesh()
    size = config.batch_size * mesh.size
    loader = LoaderConfig(resolution, size, 1, flip=False, seed=config.seed)

    def batches() -> Iterator[dict[str, Any]]:
        return training_batches(data[1], teacher.caption_inputs, loader)

    count = -(-config.images // size)
    if count * size > len(data[1]):
        logging.warning("images: %d, but there are %d: some are used twice", count * size, len(data[1]))
    with exact_products(config.dtype), jax.set_mesh(mesh):
        with waiting("moving the weights to the devices", QUIET):
            made = Calibration(
                teacher.architectures, teacher.params, batches, count, config.seed, compute_dtype(config.dtype), mesh
            )
        return _MEASURES[name](unet.config, unet.params, made)


def _by_taylor(unet: UNetConfig, params: Mapping[str, Any], calibration: Calibration) -> dict[str, float]:
    gradient, loss = calibration.gradient()
    logging.info("task loss of the calibration set: %.5g", loss)
    return taylor(unet, params, gradient)


def _by_output(unet: UNetConfig, params: Mapping[str, Any], calibration: Calibration) -> dict[str, float]:
    blocks = replaceable(unet)
    return dict(zip(blocks, calibration.output_errors([(block,) for block in blocks]), strict=True))


_MEASURES: dict[str, Callable[[UNetConfig, Mapping[str, Any], Calibration], dict[str, float]]] = {
    "taylor": _by_taylor,
    "output_error": _by_output,
}
