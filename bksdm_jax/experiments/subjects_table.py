"""DreamBooth's evaluation, the table: DINO, CLIP-I and CLIP-T of all finished subjects, beside the paper's."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.data.dreambooth import read_dreambooth
from bksdm_jax.data.tables import read_table, write_table
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.reference import gather_reference
from bksdm_jax.evaluation.score import score
from bksdm_jax.experiments.subjects import COLUMNS, RECORD, TABLE
from bksdm_jax.experiments.subjects_config import METRICS, SubjectsConfig, flattened, require_subjects
from bksdm_jax.experiments.subjects_protocol import counts, departures
from bksdm_jax.metrics.extractors import EXTRACTORS
from bksdm_jax.metrics.subjects import likeness_among
from bksdm_jax.metrics.table import reference_needs
from bksdm_jax.reports.published import PAPER, published_subjects

RESULTS, CSV = "subjects.json", "subjects.csv"
_ALIKE = ("model", "revision", "variant", "dtype", "sampling.dtype")  # for all subjects, beside what counts


def subjects_table(config: SubjectsConfig, workdir: Path) -> dict[str, Any]:
    """Scores the images of all subjects that `make_subjects` has finished in `workdir`.

    Writes `subjects.json` and `subjects.csv`; `metadata.csv`, which lists all images for `launch.score`; and
    `scores_N/`, as of `score`, for N subjects. Nothing is copied.

    Returns:
        what is in `subjects.json`: `mean`, the score of all images by metric; `subjects`, the same by subject, with
        `real_dino`, the likeness of its photographs among themselves; `missing` subjects; `departures` from the paper's
        evaluation, in words; `published`, the paper's scores; `settings`, and what `score` says of the networks.

    Raises:
        InputError: no subject is finished, or they were made with different settings; or as `score`.
    """
    config = dataclasses.replace(config, subject="")
    require_subjects(config)
    dataset = read_dreambooth(config.dataset)
    made = [name for name in dataset.classes if (workdir / name / TABLE).is_file()]
    if not made:
        raise InputError(f"{workdir}: no finished subject of {config.dataset}; make one with --config.subject=NAME")
    records = {name: _record(workdir / name / RECORD) for name in made}
    settings = _shared(workdir, records)
    own = config.scores(workdir)
    write_table(workdir / TABLE, COLUMNS, _rows(workdir, made, settings["token"] if config.scoring.strip_token else ""))
    found = score(own, workdir / f"scores_{len(made)}")
    prompts = {len(record["prompts"]) for record in records.values()}
    result = {
        "mean": {metric: _plain(found["scores"][metric]) for metric in METRICS},
        "subjects": _by_subject(made, found["scores"], _real(own)),
        "missing": [name for name in dataset.classes if name not in made],
        "departures": departures(settings, len(made), prompts, found["reference"]["images"], found["extractors"]),
        "published": {label: one._asdict() for label, one in published_subjects().items()},
        "settings": settings | {"scoring.strip_token": config.scoring.strip_token},
        **{key: found[key] for key in ("images", "reference", "extractors", "versions")},
    }
    write_json(workdir / RESULTS, result)
    write_table(workdir / CSV, *_csv(result))
    return result


def _record(path: Path) -> dict[str, Any]:
    """A subject's settings by dotted key."""
    found = flattened(read_json(path, MOST_READ))
    if not isinstance(found.get("prompts"), list) or not isinstance(found.get("token"), str):
        raise InputError(f"{path}: not written by launch.subjects; choose another workdir")
    return found


def _shared(workdir: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that count, which must be the same for all subjects."""
    (first, settings), *others = records.items()
    keys = [key for key in settings if key in _ALIKE or counts(key)]
    for name, other in others:
        for key in keys:
            if other.get(key) != settings[key]:
                raise InputError(
                    f"{workdir / name / RECORD}: {key} is {shown(other.get(key))}, but {shown(settings[key])} for "
                    f"{first}; move one of the subjects to another workdir, or make it again"
                )
    return {key: settings[key] for key in keys}


def _rows(workdir: Path, subjects: Sequence[str], token: str) -> Iterator[tuple[str, str, str]]:
    """All images with their captions, without the word `token`."""
    for name in subjects:
        for row in read_table(workdir / name / TABLE, COLUMNS):
            text = " ".join(word for word in row["text"].split(" ") if word != token)
            yield f"{name}/{row['file_name']}", text, name


def _real(config: ScoreConfig) -> dict[str, float]:
    """DINO of a subject's photographs among themselves, whose features `score` has left in the cache."""
    (need,) = needs = reference_needs(["dino"])
    load = {need.extractor: functools.cache(functools.partial(EXTRACTORS[need.extractor], config))}
    found = gather_reference(dataclasses.replace(config, metrics=("dino",)), needs, load)
    assert found is not None  # the metric needs it
    return likeness_among(found.features[need], found.subjects or ())


def _by_subject(
    subjects: Sequence[str], scores: Mapping[str, Any], real: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    found = {}
    for name in subjects:
        own = {metric: _plain(scores[metric].get("groups", {}).get(name, scores[metric])) for metric in METRICS}
        found[name] = own | {"real_dino": real.get(name)}
    return found


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("value", "low", "high", "interval")}


def _rows_of(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The subjects, and their mean."""
    yield from result["subjects"].items()
    real = [own["real_dino"] for own in result["subjects"].values() if own["real_dino"] is not None]
    yield "mean", result["mean"] | {"real_dino": fmean(real) if real else None}


def _csv(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    columns = [f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high")]
    rows = []
    for name, own in _rows_of(result):
        values = [own[metric][part] for metric in METRICS for part in ("value", "low", "high")]
        rows.append([name, *("" if value is None else repr(value) for value in (*values, own["real_dino"]))])
    return ["subject", *columns, "real_dino"], rows


def table_text(result: Mapping[str, Any]) -> str:
    """The table as lines of text, with the paper's figures, marked as such, and how far it may stand beside them."""
    settings, departs = result["settings"], result["departures"]
    lines = [f"{result['images']:,} images of {len(result['subjects'])} subject(s); 95% intervals over images", ""]
    lines.append(_line("subject", *METRICS, "dino of photographs"))
    for name, own in _rows_of(result):
        real = "" if own["real_dino"] is None else f"{own['real_dino']:.4f}"
        lines.append(_line(name, *(_cell(own[metric]) for metric in METRICS), real))
    lines += ["", f"published, {PAPER}:"]
    for label, scores in result["published"].items():
        lines.append(_line(label, *(f"{scores[metric]:.3f}" for metric in METRICS)))
    stripped = settings["scoring.strip_token"]
    lines += ["", f"clip_t: of prompts {'without' if stripped else 'with'} the word {settings['token']!r}"]
    lines += ["departs from the paper's evaluation:" if departs else "the paper's evaluation: followed"]
    lines += [f"  {step}" for step in departs]
    if result["missing"]:
        lines.append(f"not finished: {', '.join(result['missing'])}")
    return "\n".join(lines)


def _line(name: str, *cells: str) -> str:
    return f"{name:20} {' '.join(f'{cell:26}' for cell in cells)}".rstrip()


def _cell(score: Mapping[str, Any]) -> str:
    interval = "" if score["low"] is None else f" [{score['low']:.4f}, {score['high']:.4f}]"
    return f"{score['value']:.4f}{interval}"
