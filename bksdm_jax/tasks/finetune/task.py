"""Fine-tuning: a model and images in, a fine-tuned pipeline or a LoRA out."""

from pathlib import Path

from bksdm_jax.tasks.finetune.config import FinetuneConfig


def finetune(config: FinetuneConfig, workdir: Path) -> Path | None:
    """Runs, or continues, a fine-tuning in `workdir`.

    Returns:
        the folder `model/` (or in the first process the single file in it), or the file of a LoRA,
        `lora.safetensors`; None if the run was interrupted (the same call continues it).

    Raises:
        InputError: a setting, file or folder can't be used, or as `trainer.train`.
    """
    raise NotImplementedError
