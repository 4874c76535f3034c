"""The settings of `launch.subjects`, and their checks; nothing here imports JAX."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, shown, whole_number
from bksdm_jax.evaluation.config import ScoreConfig, require_score_settings
from bksdm_jax.metrics.config import ScoringNetworks
from bksdm_jax.sampling.config import SampleConfig, require_settings
from bksdm_jax.tasks.finetune.config import FinetuneConfig, PriorConfig, require_finetune
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig

METRICS = ("dino", "clip_i", "clip_t")
ALL = "all"
"""The `subject` that stands for each of them."""
PUBLISHED: dict[str, Any] = {"token": "sks11df", "prior.model": "CompVis/stable-diffusion-v1-4"}
"""Settings of the paper's that aren't the defaults."""
_COMPUTED = ("data", "caption", "prior.prompt")
_FOR_OTHERS = ("checkpoints", "replay", "topology")


@dataclasses.dataclass(frozen=True)
class SubjectSampling:
    """How images of a subject are made. The defaults are the paper's.

    Attributes:
        sampler, steps, guidance_scale: as of `launch.sample`.
        images_per_prompt: image number i is of prompt i // images_per_prompt.
        seed: image number i starts from noise drawn with `fold_in(key(seed), i)`, for every subject alike.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        batch_size: images per program call and device.
    """

    sampler: str = "dpmpp_2m"
    steps: int = 25
    guidance_scale: float = 7.5
    images_per_prompt: int = 4
    seed: int = 0
    dtype: str = "float32"
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class SubjectScoring:
    """How the images are scored.

    Attributes:
        clip: of CLIP-I and CLIP-T: folder, file or hub id of a CLIP; the default is the paper's.
        dino: the ViT of DINO: folder or hub id.
        strip_token: take the token out of the prompts for CLIP-T. The papers don't say; by default a prompt is
            compared as it was sampled.
        dtype: of these networks' computations, `float32` or `bfloat16`.
        batch_size: images per call of a scoring network, and device.
        cache: folder for what is computed of the photographs; empty: `~/.cache/bksdm_jax`.
    """

    clip: str = ScoringNetworks.clip
    dino: str = ScoringNetworks.dino
    strip_token: bool = False
    dtype: str = "float32"
    batch_size: int = 32
    cache: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectsConfig(FinetuneConfig):
    """DreamBooth's evaluation; see `FinetuneConfig` for the settings of a subject's fine-tuning.

    Attributes:
        dataset: the folder `dataset` of github.com/google/dreambooth, which has `prompts_and_classes.txt`.
        subject: a folder of the dataset: it is fine-tuned on and sampled. `all`: each of them in turn. Empty: the
            subjects that are finished are scored.
        model: what is fine-tuned: pipeline folder, single file, id on the hub, or `shapes_teacher`; scoring needs none.
        token: the word that stands for the subject in prompts.
        living: classes whose prompts are those of living subjects.
        keep_training: keep what the fine-tuning has written, its model among it, when the images are made.
        data, caption: leave them empty: they follow from `dataset` and `subject`.
        resolution: pixels, of training and of the images.
        sampling, scoring: groups of settings.
    """

    dataset: str
    subject: str = ""
    model: str = ""
    token: str = "sks"
    living: tuple[str, ...] = ("cat", "dog")
    keep_training: bool = True
    data: str = ""
    random_crop: bool = True
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, ema_decay=0.0)
    prior: PriorConfig = PriorConfig(weight=1.0)
    sheets: SampleGridConfig = SampleGridConfig(every=0, steps=0)
    sampling: SubjectSampling = SubjectSampling()
    scoring: SubjectScoring = SubjectScoring()

    def training(self, photographs: Path, kind: str) -> FinetuneConfig:
        """The fine-tuning on a subject of the class `kind`; the prompts are worded as in the authors' scripts."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(FinetuneConfig)}
        own |= {"data": str(photographs), "caption": f"a {self.token} {kind}"}
        return FinetuneConfig(**own | {"prior": dataclasses.replace(self.prior, prompt=f"a {kind}")})

    def images(self, made: Path, prompts: Path) -> SampleConfig:
        """The sampling of a fine-tuned model, or of the model with a LoRA that was `made`."""
        source: dict[str, Any] = {"model": str(made)}
        if self.adapter.rank:
            kept = ("model", "revision", "variant", "tokenizer", "prediction", "allow_unplaced_lora")
            source = {key: getattr(self, key) for key in kept} | {"lora": (*self.lora, str(made))}
        return SampleConfig(
            **source,
            **vars(self.sampling),
            allow_non_finite=self.allow_non_finite,
            prompts=str(prompts),
            resolution=self.resolution,
        )

    def scores(self, images: Path) -> ScoreConfig:
        """The scoring of images in sub-folders, with their subjects in a table."""
        own = self.scoring
        return ScoreConfig(
            images=str(images),
            metrics=METRICS,
            reference=self.dataset,
            clip=own.clip,
            dino=own.dino,
            scoring_dtype=own.dtype,
            scoring_batch_size=own.batch_size,
            cache=own.cache,
        )


def require_subjects(config: SubjectsConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    flat = flattened(dataclasses.asdict(config))
    for key in _COMPUTED:
        if flat[key]:
            raise InputError(f"{key}: {shown(flat[key])}, but it follows from dataset and subject; leave it empty")
    for key in _FOR_OTHERS:
        if flat[key]:
            raise InputError(f"{key}: is for launch.train or launch.plan; leave it out")
    if not re.fullmatch(r"[^\s{}]+", config.token):
        raise InputError(f"token: {shown(config.token)}; expected a single word, such as sks")
    require_score_settings(config.scores(Path()))
    if not config.subject:
        return
    if not config.model:
        raise InputError("model: empty; give --config.model=DIR, which is fine-tuned on the subject")
    require_finetune(config.training(Path(), "thing"))
    whole_number("config", "sampling.images_per_prompt", config.sampling.images_per_prompt)
    finite_number("config", "sampling.guidance_scale", config.sampling.guidance_scale, 0)
    require_settings(config.images(Path("model"), Path("prompts.txt")))


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found = {}
    for key, value in settings.items():
        inner = flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        found |= inner
    return found
