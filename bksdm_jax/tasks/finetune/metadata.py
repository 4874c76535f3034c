"""What a trained LoRA's file says of its training, in the words of kohya's scripts and of Stability."""

import collections
import json
from collections.abc import Sequence
from typing import Any

from bksdm_jax.pipelines.model_card import parent_name
from bksdm_jax.tasks.finetune.config import FinetuneConfig

_MOST_CAPTIONS = 1000  # of as many images


def training_metadata(config: FinetuneConfig, examples: Sequence[Any], class_images: int) -> dict[str, str]:
    """Entries of the metadata, all text; `class_images` is their number."""
    side, rate = config.resolution, f"{config.optimizer.learning_rate:g}"
    name = parent_name(config.model)
    captions = collections.Counter(examples[i].texts[0] for i in range(min(len(examples), _MOST_CAPTIONS)))
    title = config.caption or f"LoRA of {name}"
    found = {
        "ss_sd_model_name": name,
        "ss_seed": config.seed,
        "ss_steps": config.steps,
        "ss_max_train_steps": config.steps,
        "ss_num_train_images": len(examples),
        "ss_num_reg_images": class_images,
        "ss_prior_loss_weight": config.prior.weight,
        "ss_resolution": f"({side}, {side})",
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": rate if config.text_encoder else "None",
        "ss_lr_scheduler": "cosine" if config.optimizer.cosine_steps else "constant",
        "ss_lr_warmup_steps": config.optimizer.warmup_steps,
        "ss_optimizer": "adamw",
        "ss_total_batch_size": config.batch_size,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_mixed_precision": "bf16" if config.dtype == "bfloat16" else "no",
        "ss_cache_latents": config.cache_latents,
        "ss_noise_offset": config.noise_offset or "None",
        "ss_min_snr_gamma": config.min_snr_gamma or "None",
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_tag_frequency": json.dumps({"images": dict(captions)}),
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
    }
    if set(captions) == {config.caption}:
        found["modelspec.trigger_phrase"] = config.caption
    return {key: str(value) for key, value in found.items()}
