"""The paper's evaluation of personalised generation, and where another one departs from it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from bksdm_jax.evaluation.config import SCORING
from bksdm_jax.experiments.subjects_config import PUBLISHED, SubjectsConfig, flattened
from bksdm_jax.metrics.config import ScoringNetworks

_SUBJECTS, _PROMPTS, _PHOTOGRAPHS = 30, 25, 158
_COUNT = (  # settings, or groups of them
    *("token", "living", "steps", "batch_size", "text_encoder", "only", "resolution", "flip", "random_crop", "lora"),
    *("caption_dropout", "noise_offset", "min_snr_gamma", "save_weights", "optimizer", "adapter", "prior", "sampling"),
)
_DO_NOT = (
    *("adapter.layout", "prior.batch_size", "prior.folder", "prior.prompt"),
    *("sampling.batch_size", "sampling.dtype", "sampling.seed"),
)


def counts(key: str) -> bool:
    """Whether the scores of a subject depend on a setting, by dotted key, in more than their chance."""
    return key not in _DO_NOT and any(key == one or key.startswith(f"{one}.") for one in _COUNT)


def departures(
    settings: Mapping[str, Any],
    subjects: int,
    prompts: set[int],
    photographs: int,
    extractors: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Each step in which an evaluation departs from the paper's, in words.

    Args:
        settings: by dotted key, of the subjects.
        subjects, photographs: their numbers.
        prompts: numbers of prompts that subjects have.
        extractors: facts of the scoring networks.
    """
    numbers = {"subjects": (subjects, _SUBJECTS), "photographs": (photographs, _PHOTOGRAPHS)}
    found = [f"{what} {count}, not {wanted}" for what, (count, wanted) in numbers.items() if count != wanted]
    found += [f"prompts of a subject {count}, not {_PROMPTS}" for count in sorted(prompts - {_PROMPTS})]
    published = flattened(dataclasses.asdict(SubjectsConfig(dataset=""))) | PUBLISHED
    for key, value in json.loads(json.dumps(published)).items():
        own = settings.get(key)
        by_name = key == "prior.model" and PurePath(own or "").name == PurePath(value).name
        if counts(key) and own != value and not by_name:
            found.append(f"{key} {own!r}, not {value!r}")
    clip, dino, wanted = extractors["clip"], extractors["dino"], SCORING["bk_sdm"].clip
    if clip.get("architecture") != wanted:
        found.append(f"CLIP {clip.get('architecture') or 'of unknown architecture'}, not {wanted}")
    if PurePath(dino["weights"]).name != PurePath(ScoringNetworks.dino).name:
        found.append(f"DINO's weights {dino['weights']}, by their name not {ScoringNetworks.dino}")
    return [*found, *(f"{name} in {own['dtype']}" for name, own in extractors.items() if own["dtype"] != "float32")]
