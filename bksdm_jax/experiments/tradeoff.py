"""Scores of models over guidance scales and numbers of sampling steps, as curves on one page."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import read_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.tables import read_prompts
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.score import SCORES, score
from bksdm_jax.experiments.config import TradeoffConfig, require_tradeoff
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.metrics.table import require_enough
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.reports.curves import Point
from bksdm_jax.reports.score_files import read_scores
from bksdm_jax.reports.score_page import MOST_IMAGES, MOST_MODELS, write_score_page
from bksdm_jax.sampling.config import SampleConfig, require_settings
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import require_sampler

GUIDANCE, STEPS = "guidance_scale", "steps"
_LISTS = ("models", "labels", "over_guidance", "over_steps")
_MAY_CHANGE = (*_LISTS, "prompts", "columns", "batch_size", "scoring_batch_size", "cache")


class _Setting(NamedTuple):
    """Where on the curves a model's images are."""

    guidance: float
    steps: int

    @property
    def scale(self) -> str:
        return repr(self.guidance).removesuffix(".0")

    @property
    def name(self) -> str:
        return f"guidance_{self.scale}_steps_{self.steps}"


@one_run()
def tradeoff(config: TradeoffConfig, workdir: Path) -> Path:
    """Samples and scores every model at every setting, and writes `report.html` with the curves; returns its path.

    `workdir/LABEL/guidance_G_steps_N/` has the images, as of `launch.sample`, and `..._scores/` beside it the scores,
    as of `launch.score`; `curves.csv` has all points. The same call continues where an earlier one stopped, and models
    and settings may be added. What has scores is neither sampled nor scored again.

    Raises:
        InputError: a setting, model or file can't be used, found before the first image where no weights are needed; or
            as `sample` and `score`. Or a model, reference or scoring network has changed since an earlier call.
    """
    require_tradeoff(config)
    models, settings = _models(config), _settings(config)
    texts = [prompt.text for prompt in read_prompts(config.prompts)]
    _require_usable(config, models, settings)
    require_enough(config, len(texts), f"prompts: {config.prompts}")
    _claim(config, models, texts, workdir)
    jobs = [(label, setting) for label in models for setting in settings]
    for number, (label, setting) in enumerate(jobs, start=1):
        scores = _folder(workdir, label, setting, "_scores")
        if (scores / SCORES).is_file():
            continue
        logging.info("== %d of %d, %s, %s", number, len(jobs), label, setting.name)
        images = _folder(workdir, label, setting)
        sample(_sampling(config, models[label], setting), images)
        score(ScoreConfig(images=str(images), **_fields_of(config, MetricsConfig)), scores)
    _require_alike(workdir, jobs)
    points = [point for label, setting in jobs for point in _points(config, workdir, label, setting)]
    shown = jobs if len(jobs) <= MOST_MODELS else [(label, _nearest(config, settings)) for label in models]
    folders = [_folder(workdir, label, setting, "_scores") for label, setting in shown]
    names = [f"{label}, guidance {setting.scale}, {setting.steps} steps" for label, setting in shown]
    return write_score_page(folders, workdir, names, config.columns, False, points)


def _models(config: TradeoffConfig) -> dict[str, str]:
    """Label -> model."""
    if not 0 < len(config.models) <= MOST_MODELS:
        given = f"models: {len(config.models)}; expected 1 to {MOST_MODELS}"
        raise InputError(f"{given}, --config.models=\"('DIR','DIR2')\"")
    if config.labels and len(config.labels) != len(config.models):
        raise InputError(f"labels: {len(config.labels)} for {len(config.models)} models; give one per model, or none")
    names = config.labels or [Path(str(model)).name for model in config.models]
    labels = [re.sub(r"[^\w.-]+", "_", str(name)) for name in names]
    for label in labels:
        if not label.strip("._") or len(label) > 40 or labels.count(label) > 1:
            raise InputError(f"labels: {label!r} is empty, longer than 40 characters or not the only one; give others")
    return dict(zip(labels, config.models, strict=True))


def _settings(config: TradeoffConfig) -> list[_Setting]:
    """What to sample, each once."""
    found = [_Setting(float(scale), config.steps) for scale in config.over_guidance]
    found += [_Setting(config.guidance_scale, count) for count in config.over_steps]
    return list(dict.fromkeys(found))


def _require_usable(config: TradeoffConfig, models: Mapping[str, str], settings: Sequence[_Setting]) -> None:
    """Checks what needs no weights."""
    whole_number("config", "columns", config.columns, 0, MOST_IMAGES)
    for model in models.values():
        networks = find_model(model).architectures
        for setting in settings:
            own = _sampling(config, model, setting)
            require_settings(own)
            require_sampler(dataclasses.replace(own, resolution=own.resolution or networks.resolution), networks)


def _claim(config: TradeoffConfig, models: Mapping[str, str], texts: Sequence[str], workdir: Path) -> None:
    """Records the settings, and where each label's model lies; keeps the record of models of earlier calls."""
    record = dataclasses.asdict(config) | {"texts": list(texts), "program": "launch.tradeoff"}
    record |= {f"model.{label}": str(find_model(model).path.resolve()) for label, model in models.items()}
    path = workdir / "config.json"
    former: dict[str, Any] = read_json(path, MOST_READ) if path.is_file() else {}
    others = {key for key in former.keys() ^ record.keys() if key.startswith("model.")}
    require_same(workdir, record, {*_MAY_CHANGE, *others})
    claim(workdir, former | record)


def _sampling(config: TradeoffConfig, model: str, setting: _Setting) -> SampleConfig:
    return SampleConfig(
        model=model,
        prompts=config.prompts,
        guidance_scale=setting.guidance,
        steps=setting.steps,
        sampler=config.sampler,
        seed=config.seed,
        resolution=config.resolution,
        dtype=config.dtype,
        batch_size=config.batch_size,
    )


def _fields_of(config: TradeoffConfig, cls: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}


def _folder(workdir: Path, label: str, setting: _Setting, more: str = "") -> Path:
    return workdir / label / f"{setting.name}{more}"


def _points(config: TradeoffConfig, workdir: Path, label: str, setting: _Setting) -> Iterator[Point]:
    """A setting's scores on the curves on which it lies."""
    places = {}
    if setting.guidance in config.over_guidance and setting.steps == config.steps:
        places[GUIDANCE] = setting.guidance
    if setting.steps in config.over_steps and setting.guidance == config.guidance_scale:
        places[STEPS] = float(setting.steps)
    found = read_scores(_folder(workdir, label, setting, "_scores")).scores
    for x_name, x in places.items():
        for metric, entry in found.items():
            yield Point(label, x_name, x, metric, entry.value, entry.low, entry.high)


def _require_alike(workdir: Path, jobs: Sequence[tuple[str, _Setting]]) -> None:
    """Raises `InputError` if points of a curve are by other files than those before."""
    known: dict[tuple[str, str], tuple[Any, Path]] = {}
    for label, setting in jobs:
        images, scores = _folder(workdir, label, setting), _folder(workdir, label, setting, "_scores")
        facts = read_scores(scores).facts
        found = {("", key): value for key, value in facts.items() if key.endswith("sha256")}
        if (images / "config.json").is_file():
            found[label, "model_sha256"] = read_json(images / "config.json", MOST_READ).get("model_sha256")
        for (owner, key), value in found.items():
            former, folder = known.setdefault((owner, key), (value, scores))
            if value != former:
                raise InputError(
                    f"{scores / SCORES}: {f'{owner}: ' if owner else ''}{key} isn't that of {folder}, since a file has "
                    "changed in between; choose another workdir, or delete the folders of earlier points"
                )


def _nearest(config: TradeoffConfig, settings: Sequence[_Setting]) -> _Setting:
    """The setting that stands for a model where there isn't room for all."""
    return min(settings, key=lambda one: (abs(one.guidance - config.guidance_scale), abs(one.steps - config.steps)))
