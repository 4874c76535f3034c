"""Small pipelines in the proportions of Stable Diffusion 1.x and 2.x, which single files can express."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bksdm_jax.pipelines.save import SINGLE_FILE
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.pruning.prune import PruneConfig, prune
from tests import tiny

# Small, with what the layout can't say as in Stable Diffusion: 8 heads in v1, heads of 64 channels in v2.
UNETS = {
    "v1": {
        "sample_size": 64,
        "block_out_channels": tiny.WIDTHS,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "v2": {
        "sample_size": 64,
        "block_out_channels": (64, 64, 128, 128),
        "attention_head_dim": [1, 1, 2, 2],
        "cross_attention_dim": 128,
        "use_linear_projection": True,
    },
}
TEXT = {
    "v1": {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
    "v2": {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu"},
}


def write_teacher(folder: Path, generation: str) -> Path:
    """A teacher with random weights, as PyTorch Diffusers writes it."""
    tiny.write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=600,
        intermediate_size=64,
        num_hidden_layers=3,
        bos_token_id=598,
        eos_token_id=599,
        pad_token_id=599,
        **TEXT[generation],
    )
    StableDiffusionPipeline(
        unet=tiny.randomize(UNet2DConditionModel(**UNETS[generation]), 0),
        vae=tiny.randomize(AutoencoderKL(**tiny.VAE), 1),
        text_encoder=tiny.randomize(CLIPTextModel(text), 2),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def single(teacher: Path, target: Path, student: str = "sd", **settings: Any) -> Path:
    """A student as a single file."""
    prune(PruneConfig(str(teacher), student, **{"format": "single_file"} | settings), target)
    return target / SINGLE_FILE


def without_metadata(path: Path) -> Path:
    """The file, rewritten without saying what it predicts."""
    save_file(load_file(path), path)
    return path


def source(path: Path, teacher: Path, prediction_type: str = "") -> ModelSource:
    """A single file with its teacher's tokenizer."""
    return ModelSource(str(path), tokenizer=str(teacher), prediction_type=prediction_type)
