"""How much worse images get without each block, pair of a ResNet and its transformer, and skip (Figs. 4, 5, 19, 29)."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.analysis.config import OF_IMAGES, AnalyseConfig
from bksdm_jax.base.errors import InputError, NotFiniteError
from bksdm_jax.base.files import make_folder
from bksdm_jax.base.images import save_png
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.sources import is_cached
from bksdm_jax.data.tables import read_prompts
from bksdm_jax.evaluation.scorer import Scorer
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.models.unet_table import UNetConfig, popped_skips, replaceable
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline
from bksdm_jax.reports.blocks_page import COLUMNS, WHOLE
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.engine import Batch, Engine


@dataclasses.dataclass(frozen=True)
class Removal:
    """Blocks that are left out together, the ResNets whose skips are zero, and what all that is called."""

    name: str
    blocks: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()


def removals(unet: UNetConfig, skips: bool = True) -> tuple[Removal, ...]:
    """Nothing; every block that can be removed; every pair of a ResNet and its transformer; the mid block; `skips`:
    every skip that an up stage concatenates, and all of a stage.
    """
    blocks = replaceable(unet)
    found = [Removal(WHOLE), *(Removal(block, (block,)) for block in blocks)]
    for block in blocks:
        stage, mark, j = block.partition(".attentions.")
        if mark and f"{stage}.resnets.{j}" in blocks:
            found.append(Removal(f"{stage}.resnets.{j}+attentions.{j}", (f"{stage}.resnets.{j}", block)))
    middle = tuple(block for block in blocks if block.startswith("mid_block"))
    found += [Removal("mid_block", middle)] if len(middle) > 1 else []
    return (*found, *(_skip_removals(unet) if skips else ()))


def _skip_removals(unet: UNetConfig) -> Iterator[Removal]:
    blocks = popped_skips(unet)
    stages = dict.fromkeys(block.partition(".resnets.")[0] for block in blocks)
    for block in blocks:
        yield Removal(f"skip of {block}", skips=(block,))
    for stage in stages:
        yield Removal(f"skips of {stage}", skips=tuple(block for block in blocks if block.startswith(f"{stage}.")))


def prompts_of(config: AnalyseConfig, examples: Sequence[Any] | None) -> list[str]:
    """The prompts of the images: of a file, or the captions of the calibration set.

    Raises `InputError` if there is no file, or no captions.
    """
    options = config.sensitivity
    if options.prompts:
        return [prompt.text for prompt in read_prompts(options.prompts)[: options.images]]
    if examples is None or is_cached(examples):
        raise InputError("sensitivity.prompts: empty, and there are no captions; give a .txt or .csv file of prompts")
    return [examples[i].texts[0] for i in range(min(options.images, len(examples)))]


def sampler_of(config: AnalyseConfig, networks: Architectures) -> SamplerConfig:
    """How the images are made."""
    options = config.sensitivity
    return SamplerConfig(
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        resolution=options.resolution or networks.resolution,
        sampler=options.sampler,
        seed=options.seed,
    )


def _without_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that decide a score: a network may lie elsewhere than it did."""
    extractors = {name: {k: v for k, v in one.items() if k != "weights"} for name, one in facts["extractors"].items()}
    return {"extractors": extractors, "reference": facts["reference"]}


class Sensitivity:
    """Images of a teacher without each of `removals`, all from the same noise, and their scores.

    One program is compiled for all of them: it computes every block and takes the interpolation of a missing block's
    input instead of its output, so that an image costs as much as the whole U-Net's.
    """

    def __init__(
        self,
        config: AnalyseConfig,
        teacher: Pipeline,
        prompts: Sequence[str],
        results: dict[str, Any],
        write: Callable[[], object],
        images: Path,
    ) -> None:
        """Loads the scoring networks, if images are left to be scored.

        Args:
            config: of the analysis.
            teacher: whose blocks are left out.
            prompts: one per image.
            results: gets `removals`, name -> `blocks`, `skips` and `scores`, and `scoring`, the networks' facts.
            write: called whenever `results` has changed.
            images: a folder that gets the first few of each removal, as `NAME/000000.png`.

        Raises:
            InputError: a setting or file can't be used, or isn't what earlier images were scored with.
        """
        self._config, self._teacher, self._prompts = config, teacher, prompts
        self._write, self._images = write, images
        self._found = results.setdefault("removals", {})
        wanted = removals(teacher.denoiser.config, config.sensitivity.skips)
        self._wanted = [one for one in wanted if one.name not in self._found]
        if self._wanted:
            options = config.sensitivity
            fields = (field.name for field in dataclasses.fields(MetricsConfig))
            self._scorer = Scorer(MetricsConfig(**{name: getattr(options, name) for name in fields}))
            facts = json.loads(json.dumps({key: self._scorer.facts[key] for key in ("extractors", "reference")}))
            if self._found and _without_paths(results["scoring"]) != _without_paths(facts):
                raise InputError(
                    "sensitivity: a scoring network or the reference has changed since the first removals were scored; "
                    "restore it, or choose another workdir"
                )
            results["scoring"] = facts

    def measure(self, criteria: Sequence[str]) -> dict[str, dict[str, float]]:
        """Scores what is left to be scored; criterion -> block -> by how much its metric is worse without the block.

        Raises `NotFiniteError`, with the removal, for an image or score that isn't finite.
        """
        if self._wanted:
            devices, options = jax.local_device_count(), self._config.sensitivity
            size = min(options.batch_size, -(-len(self._prompts) // devices))
            sampler = sampler_of(self._config, self._teacher.architectures)
            self._score(Engine(self._teacher, sampler, self._config.dtype, size))
        return {criterion: self._losses(criterion) for criterion in criteria}

    def _score(self, engine: Engine) -> None:
        count = len(self._prompts)
        made = engine.make(self._batches(engine.per_call))
        with Progress("removals", len(self._wanted)) as progress:
            for removal in self._wanted:
                try:
                    images = [image for _ in range(0, count, engine.per_call) for image in next(made).images]
                    with tempfile.TemporaryDirectory() as folder:
                        self._scorer.restart(Path(folder), {})
                        self._scorer.add(0, images, list(self._prompts), last=True)
                        scores = self._scorer.scores()
                except NotFiniteError as error:
                    raise NotFiniteError(f"without {removal.name}: {error}; in another workdir") from error
                self._keep(removal.name, images[:COLUMNS])
                facts = {"blocks": list(removal.blocks), "skips": list(removal.skips)}
                self._found[removal.name] = facts | {"scores": scores}
                self._write()
                progress.advance(note=removal.name)

    def _keep(self, name: str, images: Sequence[np.ndarray]) -> None:
        folder = make_folder(self._images / name)
        for number, image in enumerate(images):
            save_png(folder / f"{number:06d}.png", image)

    def _batches(self, per_call: int) -> Iterator[Batch]:
        unet, count = self._teacher.denoiser.config, len(self._prompts)
        blocks, skips = replaceable(unet), popped_skips(unet)
        for removal in self._wanted:
            kept = np.array([block not in removal.blocks for block in blocks])
            factors = np.array([block not in removal.skips for block in skips], np.float32)
            for first in range(0, count, per_call):
                some = range(first, min(first + per_call, count))
                masks = {"kept": np.repeat(kept[None], len(some), axis=0)}
                masks["skips"] = np.repeat(factors[None], len(some), axis=0)
                yield Batch(tuple(some), tuple(self._prompts[i] for i in some), masks=masks)

    def _losses(self, criterion: str) -> dict[str, float]:
        metric = next(name for name in OF_IMAGES[criterion] if name in self._config.sensitivity.metrics)
        sign = 1 if METRICS[metric].better == "lower" else -1

        def value(name: str) -> float:
            return self._found[name]["scores"][metric]["value"]

        return {block: sign * (value(block) - value(WHOLE)) for block in replaceable(self._teacher.denoiser.config)}
