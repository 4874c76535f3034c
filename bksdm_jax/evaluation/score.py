"""Scores of a folder of images: `scores.json`, and a printed table."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import MOST_READ, local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.data.tables import texts_sha256
from bksdm_jax.evaluation.config import MAY_CHANGE, SCORING, ScoreConfig, require_score_settings
from bksdm_jax.evaluation.images import TABLE, ImageSet, open_images, require_readable
from bksdm_jax.evaluation.protocols import departures
from bksdm_jax.evaluation.scorer import Scorer
from bksdm_jax.metrics.extractor import images_per_call
from bksdm_jax.metrics.table import METRICS, require_enough
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.sampling.protocols import PROTOCOLS

SCORES = "scores.json"
_SETTINGS = (
    *("sampler", "steps", "guidance_scale", "guidance_rescale", "negative_prompt", "eta", "seed", "latents"),
    *("resolution", "height", "width", "format", "dtype", "protocol"),
    *("teacher", "switch_at", "deep_cache", "deep_cache_cut", "vae", "clip_skip", "embeddings"),
)


@one_run()
def score(config: ScoreConfig, workdir: Path) -> dict[str, Any]:
    """Scores a folder of images and writes `scores.json`; the same call continues an interrupted one.

    Features are gathered in `features/` in the workdir, in one pass over the images.

    Returns:
        what was written: `scores` by name, each with `value`, `low`, `high` and `interval`; `images` (their number),
        `unreadable`, `images_sha256`, `prompts_sha256` (`texts_sha256`; None: unknown), `protocol` with its
        `departures`, `reference`, `extractors` with hashes of their weights, `model`, `versions`.

    Raises:
        InputError: a setting, folder, table, image, file of weights or reference can't be used.
    """
    require_score_settings(config)
    place = local_path("images", config.images)
    settings = _settings_of(place)
    images = _open(config, place, settings)
    record = dataclasses.asdict(config) | {"images_sha256": images.sha256}
    require_same(workdir, record, MAY_CHANGE)
    require_enough(config, len(images) - len(images.unreadable), f"images: {images.folder}")
    scorer = Scorer(config)
    claim(workdir, record)
    scorer.restart(workdir / "features", _identity(images, config))
    _feed(scorer, images, config)
    found = _found(scorer, images, config, place, settings)
    write_json(workdir / SCORES, found)
    return found


def _found(
    scorer: Scorer, images: ImageSet, config: ScoreConfig, place: Path, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `scores.json` holds."""
    skipped = set(scorer.skipped)
    readable = [i for i in range(len(images)) if i not in skipped]
    subjects = None if images.subjects is None else [images.subjects[i] for i in readable]
    protocol = config.protocol or (settings or {}).get("protocol", "")
    prompts = None if images.captions is None else texts_sha256(images.captions)
    found = {
        "scores": scorer.scores(subjects),
        "images": len(readable),
        "prompts_sha256": prompts,
        "unreadable": len(skipped),
        "folder": str(images.folder.resolve()),
        "images_sha256": images.sha256,
        "protocol": {"name": protocol, "departures": []},
        "model": None if settings is None else model_facts(place, settings),
        **scorer.facts,
    }
    if protocol in SCORING:
        found["protocol"]["departures"] = departures(
            protocol, len(readable), images.size, settings, scorer.facts, config.metrics, prompts
        )
    return found


def score_table(found: Mapping[str, Any]) -> str:
    """The scores as lines of text."""
    lines = [f"{found['images']:,} images; 95% intervals", ""]
    for name, entry in found["scores"].items():
        lines.append(_line(name, entry))
        for group, own in entry.get("groups", {}).items():
            if group != "all":
                lines.append(_line(f"  {group}", own | {"interval": ""}))
        if "unreadable" in entry:
            lines.append(f"{'  not wholly readable':34} {entry['unreadable']:>10.4f}")
    reference, protocol = found["reference"], found["protocol"]
    lines.append("")
    if reference:
        count = "an unknown number of" if reference["images"] is None else f"{reference['images']:,}"
        lines.append(f"reference: {reference['name']}, {count} images")
    if found["unreadable"]:
        lines.append(f"left out: {found['unreadable']} unreadable image(s)")
    if protocol["name"]:
        departs = protocol["departures"]
        how = "departs from it" if departs else "followed"
        if not departs:
            how += f", if its list of prompts is the one of SHA-256 {reference['prompts']['list_sha256']}"
        lines.append(f"protocol {protocol['name']}: {how}")
        lines += [f"  {step}" for step in departs]
    return "\n".join(lines).rstrip()


def _line(name: str, entry: Mapping[str, Any]) -> str:
    digits = 3 if abs(entry["value"]) >= 10 else 4
    interval = "no interval"
    if entry["low"] is not None:
        interval = f"[{entry['low']:z.{digits}f}, {entry['high']:z.{digits}f}]  {entry['interval']}"
    more = f"; chance {entry['chance']:.4f}, {entry['facts']} facts" if "chance" in entry else ""
    return f"{name:34} {entry['value']:>z10.{digits}f}   {interval}".rstrip() + more


def _open(config: ScoreConfig, place: Path, settings: Mapping[str, Any] | None) -> ImageSet:
    protocol = (settings or {}).get("protocol", "")
    resized = PROTOCOLS[protocol].resized if protocol in PROTOCOLS else 0
    if resized and (place / f"images_{resized}").is_dir():
        place = place / f"images_{resized}"
    images = open_images(
        place,
        "images",
        captions=str(local_path("captions", config.captions)) if config.captions else "",
        named=any(METRICS[name].captions for name in config.metrics),
        subjects=any(METRICS[name].subjects for name in config.metrics),
    )
    require_readable(images, images.unreadable, config.most_unreadable)
    return images


def _identity(images: ImageSet, config: ScoreConfig) -> dict[str, str]:
    """What features depend on: the images, and captions if a metric reads them."""
    texts = images.captions if any(METRICS[name].captions for name in config.metrics) else None
    return {"images": images.sha256, "captions": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}


def _feed(scorer: Scorer, images: ImageSet, config: ScoreConfig) -> None:
    first, total = scorer.done, len(images.paths)
    require_readable(images, scorer.skipped, config.most_unreadable)
    for batch in images.batches(first, images_per_call(config.scoring_batch_size), "scoring"):
        captions = None if images.captions is None else images.captions[first : first + len(batch)]
        missing = [first + i for i, image in enumerate(batch) if image is None]
        require_readable(images, [*scorer.skipped, *missing], config.most_unreadable)
        scorer.add(first, batch, captions, last=first + len(batch) == total)
        first += len(batch)


def _settings_of(place: Path) -> dict[str, Any] | None:
    """The settings of the `launch.sample` that made the images in a folder; None: they are unknown.

    The folder is its workdir, one of its folders of a model beside the first, or one of images in these.

    Raises `InputError` if the images aren't complete.
    """
    place = place.absolute()
    for workdir in (place, *place.parents[:2]):
        settings = _settings_in(workdir)
        if settings is None:
            continue
        folder, *inner = (*place.relative_to(workdir).parts, "", "")
        others, beside, owner = settings.get("beside") or (), re.fullmatch(r"beside_(\d+)", folder), workdir
        if beside and 0 < int(beside[1]) <= len(others):
            settings["model"] = others[int(beside[1]) - 1]
            owner, folder = workdir / folder, inner[0]
        if not re.fullmatch(r"(images(_\d+)?)?", folder):
            return None
        if not (owner / TABLE).is_file():
            raise InputError(f"images: {owner}: no {TABLE}, so launch.sample hasn't made all; run its command again")
        return settings
    return None


def _settings_in(workdir: Path) -> dict[str, Any] | None:
    """The settings of `launch.sample` in this folder, if it is its workdir."""
    path = workdir / "config.json"
    if not path.is_file():
        return None
    try:
        settings = read_json(path, MOST_READ)
    except InputError:
        return None
    return settings if "guidance_scale" in settings and "model" in settings else None


@waiting("counting the cost of the model that made the images", QUIET)
def model_facts(place: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the model that made the images in a folder with these settings of `launch.sample`."""
    facts: dict[str, Any] = {"name": settings["model"], "settings": {key: settings.get(key) for key in _SETTINGS}}
    if settings.get("lora"):
        facts["settings"]["lora"] = settings["lora"]
    for folder in (place, place.parent):
        if (folder / "timing.json").is_file():
            facts["seconds_per_image"] = read_json(folder / "timing.json").get("seconds_per_image")
            break
    try:
        unet = find_model(settings["model"], networks=()).architectures.denoiser
    except InputError:  # it may have been moved since
        return facts
    cost = unet_cost(unet, unet.sample_size or 64).values()
    return facts | {
        "unet_parameters": sum(stage.parameters for stage in cost),
        "unet_macs": sum(stage.macs for stage in cost),
    }
