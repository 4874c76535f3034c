"""Scores of a model's images straight from the sampler."""

from pathlib import Path
from typing import Any

import jax

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.data.tables import texts_sha256
from bksdm_jax.evaluation.config import SCORING, SampleAndScoreConfig, require_live, require_sample_settings
from bksdm_jax.evaluation.protocols import departures
from bksdm_jax.evaluation.score import SCORES, model_facts
from bksdm_jax.evaluation.scorer import Scorer
from bksdm_jax.metrics.table import require_enough
from bksdm_jax.sampling.protocols import resized_to
from bksdm_jax.sampling.run import Consumer, sample


@one_run()
def sample_and_score(config: SampleAndScoreConfig, workdir: Path) -> dict[str, Any]:
    """Samples, scores the images as their files would be scored, and writes `scores.json`.

    No image is written; features are gathered in `features/`. The same call continues an interrupted one.

    Returns:
        what was written, as `score.score` does.

    Raises:
        InputError: a setting, model, prompt list, file of weights or reference can't be used.
    """
    require_sample_settings(config)
    require_live(config)
    if jax.process_count() > 1:
        raise InputError("score: works in one process; sample on several, then run launch.score on the images")
    scorer: Scorer | None = None

    def begin() -> Consumer:
        nonlocal scorer
        texts = read_json(workdir / "config.json", MOST_READ)["texts"]
        require_enough(config.score, len(texts) * config.images_per_prompt, "prompts")
        scorer = Scorer(config.score)
        scorer.restart(workdir / "features", {"images": "sampled in this workdir"})
        return scorer

    count = sample(config, workdir, begin)
    assert scorer is not None
    settings = read_json(workdir / "config.json", MOST_READ)
    own = tuple(resized_to(config) or settings[key] or settings["resolution"] for key in ("width", "height"))
    prompts = texts_sha256(text for text in settings["texts"] for _ in range(config.images_per_prompt))
    protocol = {"name": config.protocol, "departures": []}
    if config.protocol in SCORING:
        protocol["departures"] = departures(
            config.protocol, count, own, settings, scorer.facts, config.score.metrics, prompts
        )
    found = {
        "scores": scorer.scores(),
        "images": count,
        "prompts_sha256": prompts,
        "unreadable": 0,
        "folder": "",
        "images_sha256": "",
        "protocol": protocol,
        "model": model_facts(workdir, settings),
        **scorer.facts,
    }
    write_json(workdir / SCORES, found)
    return found
