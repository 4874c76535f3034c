"""What scores on COCO need, from its files: real images as a protocol has them, their statistics, and prompts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.coco import RULE, Coco, choose_prompts, read_coco, read_prompt_list
from bksdm_jax.data.tables import Prompt, texts_sha256, write_table
from bksdm_jax.evaluation.config import FID, SCORING, ReferenceConfig, metrics_config, reference_metrics
from bksdm_jax.evaluation.images import ImageSet, open_images
from bksdm_jax.evaluation.reference import FACTS, gather_reference
from bksdm_jax.evaluation.scorer import versions
from bksdm_jax.evaluation.squash import squash_all, squashed_names
from bksdm_jax.metrics.config import ScoringNetworks
from bksdm_jax.metrics.extractors import EXTRACTORS
from bksdm_jax.metrics.gather import Extracts, Features
from bksdm_jax.metrics.statistics_file import Statistics, write_statistics
from bksdm_jax.metrics.store import Need
from bksdm_jax.metrics.sums import FeatureSums
from bksdm_jax.metrics.table import METRICS, reference_needs

MAY_CHANGE = (
    *("images", "captions", "prompts", "metrics", "scoring_batch_size", "cache"),
    *(field.name for field in dataclasses.fields(ScoringNetworks)),
)
"""Keys that may differ when a run continues: what they name is recorded too, or they don't change images and prompts.

So statistics can be added to a run without weights.
"""
PROMPTS, IMAGES = "prompts.csv", "images"
STATISTICS = f"{FID}.npz"


@one_run()
def make_reference(config: ReferenceConfig, workdir: Path) -> dict[str, Any]:
    """Makes images, prompts and, with the Inception's weights, statistics; the same call continues an interrupted one.

    The workdir gets `prompts.csv` (`file_name,text`), `images/`, `fid_pytorch_fid.npz` and `reference.json`. The images
    are RGB, squashed by Pillow's `resize` with its default filter (bicubic) and saved as JPEG with its default quality.

    Returns:
        what was written to `reference.json`: `prompts`, `images`, `statistics` (None without weights), `protocol` with
        its `departures`, `extractors`, `versions`.

    Raises:
        InputError: a setting, file, image or list can't be used, or images of the prompts are missing.
    """
    scored = reference_metrics(config)
    with waiting("reading the captions", QUIET):
        coco = read_coco(local_path("captions", config.captions)) if config.captions else None
        prompts, told = _prompts(config, coco)
    source = open_images(local_path(IMAGES, config.images), IMAGES, one_size=False)
    names = squashed_names(source.paths)
    if config.of_prompts:
        names = _of_prompts(names, prompts)
    record = dataclasses.asdict(config) | {
        "source_sha256": source.sha256,
        "captions_sha256": file_sha256(coco.path) if coco else "",
        "prompts_sha256": told["list_sha256"],
    }
    require_same(workdir, record, MAY_CHANGE)
    load = {name: functools.cache(functools.partial(build, config)) for name, build in EXTRACTORS.items()}
    for name in sorted({need.extractor for need in reference_needs(scored)}):
        with waiting(f"reading the network {name}", QUIET):
            load[name]()  # wrong weights are refused before anything slow
    claim(workdir, record)
    write_table(workdir / PROMPTS, ("file_name", "text"), [(prompt.source, prompt.text) for prompt in prompts])
    squash_all(names, workdir / IMAGES, config.size)
    features, images_sha256 = _features(config, scored, workdir, load)
    found = {
        "prompts": {
            "count": len(prompts),
            "sha256": file_sha256(workdir / PROMPTS),
            "texts_sha256": texts_sha256(prompt.text for prompt in prompts),
            **told,
        },
        "images": {
            "count": len(names),
            "sha256": images_sha256,
            "size": config.size,
            **_source_facts(source, coco),
        },
        "captions_sha256": record["captions_sha256"],
        "extractors": {name: dict(load[name]().facts) for name in sorted({need.extractor for need in features})},
        "statistics": STATISTICS if FID in scored else None,
        "protocol": {"name": config.protocol, "departures": _departures(config, len(prompts), len(names))},
        "versions": versions(),
    }
    if FID in scored:
        _write_statistics(workdir / STATISTICS, features, found)
    write_json(workdir / FACTS, found)
    return found


def _prompts(config: ReferenceConfig, coco: Coco | None) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts, and how they were chosen."""
    if config.prompts:
        path = local_path("prompts", config.prompts)
        return read_prompt_list(path, coco), {"list": str(path), "list_sha256": file_sha256(path), "seed": None}
    assert coco is not None  # required by the settings
    told = {"list": "", "list_sha256": "", "rule": RULE, "seed": config.seed, "of": len(coco.captions)}
    return choose_prompts(coco, config.count, config.seed), told


def _of_prompts(names: Mapping[str, Path], prompts: Sequence[Prompt]) -> dict[str, Path]:
    """The images that the prompts name."""
    by_name = {path.name: (name, path) for name, path in names.items()}
    wanted = {prompt.source for prompt in prompts}
    if "" in wanted:
        raise InputError(
            "of_prompts: the list of prompts doesn't name their images; give --config.captions, or a column file_name"
        )
    missing = sorted(wanted - by_name.keys())
    if missing:
        raise InputError(f"images: {len(missing)} image(s) of the prompts aren't in the folder: {missing[0]} is one")
    return dict(sorted(by_name[name] for name in wanted))


def _source_facts(source: ImageSet, coco: Coco | None) -> dict[str, Any]:
    ours, theirs = {path.name for path in source.paths}, set(coco.names.values()) if coco else None
    return {
        "source": str(source.folder.resolve()),
        "source_count": len(ours),
        "source_sha256": source.sha256,
        "not_in_captions": 0 if theirs is None else len(ours - theirs),
        "missing": 0 if theirs is None else len(theirs - ours),
    }


def _features(
    config: ReferenceConfig, scored: Sequence[str], workdir: Path, load: Mapping[str, Callable[[], Extracts]]
) -> tuple[Features, str]:
    """Features of the images that were made, by the cache that `launch.score` uses, and the images' checksum."""
    folder = workdir / IMAGES
    if not scored:
        return {}, open_images(folder, IMAGES).sha256
    reference = gather_reference(metrics_config(config, scored, str(folder)), reference_needs(scored), load)
    assert reference is not None  # some features are needed
    return reference.features, reference.facts["sha256"]


@waiting("writing the statistics", QUIET)
def _write_statistics(path: Path, features: Features, found: Mapping[str, Any]) -> None:
    need = METRICS[FID].reference
    assert isinstance(need, Need)
    sums, extractor = features[need], found["extractors"][need.extractor]
    assert isinstance(sums, FeatureSums)
    facts = {
        "extractor": need.extractor,
        "resize": extractor["resize"],
        "images": sums.count,
        "images_sha256": found["images"]["sha256"],
        "weights_sha256": extractor["sha256"],
        "dtype": extractor["dtype"],
        "size": found["images"]["size"],
        "pillow": found["versions"]["pillow"],
        "prompts": {key: found["prompts"][key] for key in ("texts_sha256", "list_sha256", "seed")},
    }
    write_statistics(path, Statistics(sums.mean, sums.covariance(), facts))


def _departures(config: ReferenceConfig, prompts: int, images: int) -> list[str]:
    if not config.protocol:
        return []
    wanted = SCORING[config.protocol]
    found = [] if config.prompts else [f"prompts chosen with seed {config.seed}, not the published list"]
    for own, theirs, what in (
        (prompts, wanted.images, "prompts"),
        (images, wanted.reference, "real images"),
        (config.size, wanted.size, "pixels"),
    ):
        if own != theirs:
            found.append(f"{own:,} {what}, not {theirs:,}")
    return found


def reference_lines(found: Mapping[str, Any], workdir: Path, config: ReferenceConfig) -> str:
    """What was made, as lines of text; the last one is how to score with it."""
    prompts, images, protocol = found["prompts"], found["images"], found["protocol"]
    how = f"as in {prompts['list']}"
    if not prompts["list"]:
        how = f"seed {prompts['seed']}, {prompts['of']:,} images to choose from"
    lines = [f"{workdir / PROMPTS}: {prompts['count']:,} prompts, {how}"]
    if "rule" in prompts:
        lines.append(f"  rule: {prompts['rule']}")
    lines.append(f"{workdir / IMAGES}: {images['count']:,} images of {images['size']} x {images['size']} pixels")
    if images["not_in_captions"] or images["missing"]:
        lines.append(
            f"  {images['source_count']:,} in {images['source']}: {images['not_in_captions']:,} of them aren't in the "
            f"captions file, {images['missing']:,} of that file are missing"
        )
    if found["statistics"]:
        lines.append(f"{workdir / STATISTICS}: mean and covariance of {images['count']:,} images, as pytorch-fid's")
    if protocol["name"]:
        lines.append(f"protocol {protocol['name']}: {'departs from it' if protocol['departures'] else 'followed'}")
        lines += [f"  {step}" for step in protocol["departures"]]
    variant = f":{protocol['name']}" if protocol["name"] else ""
    lines.append(
        f"score with: python -m launch.score --config=configs/score.py{variant} --config.images=DIR "
        f"--config.reference={workdir / IMAGES} --config.inception={config.inception or 'FILE'} --workdir=DIR"
    )
    return "\n".join(lines)
