"""How published scores were taken, and where a score departs from that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.evaluation.config import SCORING, Scoring
from bksdm_jax.pipelines.inception_file import SHA256
from bksdm_jax.sampling.protocols import PROTOCOLS

_CHANGES = ("eta", "vae", "clip_skip", "embeddings", "lora", "latents")
"""Settings of `launch.sample` that no protocol has; empty or 0 where they change nothing."""


def departures(
    name: str,
    images: int,
    size: tuple[int, int] | None,
    settings: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    metrics: Sequence[str],
    prompts_sha256: str | None,
) -> list[str]:
    """Each step in which scores depart from a protocol, or of which nothing is known, in words.

    Args:
        name: a key of `SCORING`.
        images: their number.
        size: width and height in pixels; None: they differ.
        settings: of the `launch.sample` that made them; None: unknown.
        facts: `Scorer.facts`.
        metrics: that were computed.
        prompts_sha256: `texts_sha256` of the images' prompts; None: unknown.
    """
    wanted, found = SCORING[name], []
    if images != wanted.images:
        found.append(f"{images:,} images, not {wanted.images:,}")
    if size != (wanted.size, wanted.size):
        own = f"{size[0]} x {size[1]}" if size else "several sizes"
        found.append(f"{own} pixels, not {wanted.size} x {wanted.size}")
    if settings is None:
        found.append("how the images were made is unknown")
    else:
        for key, value in PROTOCOLS[name].settings.items():
            if settings.get(key) != value:
                found.append(f"{key} {settings.get(key)!r}, not {value!r}")
        found += [f"{key} {settings[key]!r}" for key in _CHANGES if settings.get(key)]
        if settings.get("images_per_prompt", 1) != 1:
            found.append(f"{settings['images_per_prompt']} images of each prompt, not 1")
    reference = facts.get("reference") or {}
    if reference:
        found += _of_reference(wanted, reference)
    found += _of_prompts(prompts_sha256, reference.get("prompts"))
    found += _of_networks(wanted, facts["extractors"])
    found += [
        f"{extractor} in {own['dtype']}"
        for extractor, own in facts["extractors"].items()
        if own.get("dtype", "float32") != "float32"
    ]
    others = [metric for metric in metrics if metric not in wanted.metrics]
    if others:
        found.append(f"not among its metrics: {', '.join(others)}")
    return found


def _of_networks(wanted: Scoring, extractors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found, clip = [], extractors.get("clip")
    if clip and clip.get("architecture") != wanted.clip:
        found.append(f"CLIP {clip.get('architecture') or 'of unknown architecture'}, not {wanted.clip}")
    elif clip and Path(clip["weights"]).name != Path(wanted.clip_weights).name:
        found.append(f"CLIP's weights {clip['weights']}, by their name not {wanted.clip_weights}")
    sums = {own["sha256"] for name, own in extractors.items() if name.startswith("inception_")}
    found += [f"Inception's weights of SHA-256 {own[:8]}..., not {SHA256[:8]}..." for own in sorted(sums - {SHA256})]
    return found


def _of_reference(wanted: Scoring, reference: Mapping[str, Any]) -> list[str]:
    found = []
    if reference["images"] != wanted.reference:
        count = "unknown" if reference["images"] is None else f"{reference['images']:,}"
        found.append(f"number of reference images {count}, not {wanted.reference:,}")
    size = reference["size"]
    if size != [wanted.size, wanted.size]:
        own = f"of {size[0]} x {size[1]} pixels" if size else "of several sizes or unknown size"
        found.append(f"reference images {own}, not {wanted.size} x {wanted.size}")
    return found


def _of_prompts(ours: str | None, theirs: Mapping[str, Any] | None) -> list[str]:
    if ours is None:
        return ["the images' prompts are unknown"]
    if theirs is None:
        return ["prompts may not be the published list: they aren't recorded with the reference"]
    if theirs["texts_sha256"] != ours:
        return ["prompts other than those of the reference's prompts.csv"]
    if theirs["seed"] is not None:
        return [f"prompts chosen with seed {theirs['seed']}, not the published list"]
    return []
