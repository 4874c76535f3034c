"""The settings of `launch.shapes_teacher`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.errors import finite_number, whole_number
from bksdm_jax.sampling.config import MOST_SEED
from bksdm_jax.training.config import OptimizerConfig, TrainerConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """How one network is trained.

    Attributes:
        steps: updates.
        batch_size: examples per update.
        learning_rate: after the warm-up; it then falls along a cosine to zero.
        warmup: in updates.
        ema_decay: of the moving average, whose weights are kept.
        checkpoint_every, log_every: updates between these; 0: only at the end.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    ema_decay: float = 0.999
    checkpoint_every: int = 250
    log_every: int = 50

    def trainer(self, seed: int) -> TrainerConfig:
        """These settings as the trainer's."""
        same = {name: getattr(self, name) for name in ("steps", "batch_size", "log_every", "checkpoint_every")}
        optimizer = OptimizerConfig(
            self.learning_rate, warmup_steps=self.warmup, cosine_steps=self.steps, ema_decay=self.ema_decay
        )
        return TrainerConfig(seed=seed, keep_checkpoints=1, optimizer=optimizer, **same)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """How long each network is trained.

    Attributes:
        seed: of everything random.
        dataset: of the shapes world, `full` or `demo`.
        vae_images: number of examples that the autoencoder is trained on.
        clip_groups: number of groups of four captions that CLIP is trained on; its batches are counted in groups too.
        vae_crops, vae, clip, unet: how each network is trained.
    """

    vae_crops: Phase
    vae: Phase
    clip: Phase
    unet: Phase
    seed: int = 0
    dataset: str = "full"
    vae_images: int = 8_000
    clip_groups: int = 4_000


def require_settings(config: TeacherConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used."""
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    for key in ("vae_images", "clip_groups"):
        whole_number("config", key, getattr(config, key))
    for name in ("vae_crops", "vae", "clip", "unet"):
        phase = getattr(config, name)
        for key, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("checkpoint_every", 0), ("log_every", 0)):
            whole_number("config", f"{name}.{key}", getattr(phase, key), least)
        finite_number("config", f"{name}.learning_rate", phase.learning_rate, 0)
        finite_number("config", f"{name}.ema_decay", phase.ema_decay, 0, 1)
