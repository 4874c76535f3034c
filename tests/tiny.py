"""Small pipeline folders with random weights, written by the original libraries, and photographs with captions."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
logging.getLogger("diffusers").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="diffusers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    FlaxAutoencoderKL,
    FlaxUNet2DConditionModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from flax import serialization, traverse_util  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

from bksdm_jax.base import trees  # noqa: E402
from bksdm_jax.formats import names  # noqa: E402
from bksdm_jax.formats.clip_json import clip_from_transformers  # noqa: E402
from bksdm_jax.models.clip_pair import clip_parameter_shapes  # noqa: E402

WIDTHS = (32, 32, 64, 64)
CONTEXT = 32
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V1 = {
    "sample_size": 8,
    "norm_num_groups": 8,  # several channels to a group, as in SD
    "block_out_channels": WIDTHS,
    "attention_head_dim": 4,
    "cross_attention_dim": CONTEXT,
    "layers_per_block": 2,
}
V2 = V1 | {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True}
VAE = {
    "block_out_channels": WIDTHS,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "sample_size": 64,
}
MICRO = {
    "sample_size": 8,
    "norm_num_groups": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": CONTEXT,
    "layers_per_block": 2,
}
MICRO_STUDENT = (
    "down_blocks.0.resnets.1,down_blocks.0.attentions.1,up_blocks.1.resnets.1,up_blocks.1.attentions.1,mid_block"
)
# bk_small for two stages: one layer to a stage and no mid block.
MICRO_SMALL = f"{MICRO_STUDENT},down_blocks.1.resnets.1,up_blocks.0.resnets.1"
# One stage, for tests whose subject isn't the network: it compiles in two thirds of the time.
PICO = MICRO | {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
}
PICO_STUDENT = "mid_block"
MICRO_VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "sample_size": 16,
}
WORDS = ("a", "of", "the", "photo", "red", "blue", "cat", "rocket", "cup", "woman", "motorcycle", "space")


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fresh weights everywhere, norms and biases too, so that nothing is hidden behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
    return module.eval()


def flax_params(module: torch.nn.Module, shapes: Any) -> dict[str, Any]:
    """A PyTorch module's weights as the Flax parameters of the given shapes."""
    state = {names.current_name(name): tensor.numpy() for name, tensor in module.state_dict().items()}
    return trees.unflatten({path: names.to_flax(path, state[names.torch_name(path)]) for path in trees.flatten(shapes)})


def text_encoder(seed: int = 2, activation: str = "quick_gelu", layers: int = 2) -> CLIPTextModel:
    """Transformers' text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=CONTEXT,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=activation,
        bos_token_id=598,
        eos_token_id=599,
        pad_token_id=599,
    )
    return randomize(CLIPTextModel(config), seed)


def clip(seed: int) -> CLIPModel:
    """Both of Transformers' CLIP towers with random weights, for images of 32x32 pixels."""
    both = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = both | {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 599}
    vision = both | {"hidden_size": 48, "image_size": 32, "patch_size": 8}
    return randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), seed)


def clip_params(module: CLIPModel) -> dict[str, Any]:
    """The weights of both towers as our parameters."""
    config = clip_from_transformers(module.config.to_dict())
    state = {name.replace(".text_model.", "."): tensor.numpy() for name, tensor in module.state_dict().items()}
    flat = {}
    for path in trees.flatten(clip_parameter_shapes(config)):
        raw = path.rsplit("/", maxsplit=1)[-1] in ("class_embedding", "logit_scale")
        name = path.replace("/", ".") if raw else names.torch_name(path)
        flat[path] = state[name] if raw else names.to_flax(path, state[name])
    return trees.unflatten(flat)


def write_tokenizer(folder: Path) -> None:
    """CLIP tokenizer files with every byte and a few words; no training data needed."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            if merge not in merges:
                merges.append(merge)
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    table = {token: index for index, token in enumerate(vocabulary)}
    table |= {"<|startoftext|>": 598, "<|endoftext|>": 599}
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def scheduler(prediction: str = "epsilon") -> PNDMScheduler | DDIMScheduler:
    """SD v1's PNDM, or for v-prediction SD 2.1's DDIM."""
    options = SD_BETAS | {"prediction_type": prediction, "steps_offset": 1, "set_alpha_to_one": False}
    if prediction == "epsilon":
        return PNDMScheduler(**options, skip_prk_steps=True)
    return DDIMScheduler(**options, clip_sample=False)


def write_flax_pipeline(
    folder: Path,
    unet: dict[str, Any] | None = None,
    prediction: str = "epsilon",
    vae: dict[str, Any] | None = None,
) -> Path:
    """A teacher folder whose U-Net and VAE Diffusers' own Flax classes write."""
    for name, cls, options, seed in (
        ("unet", FlaxUNet2DConditionModel, unet or V1, 0),
        ("vae", FlaxAutoencoderKL, vae or VAE, 1),
    ):
        fixed = {key: value for key, value in options.items() if key != "norm_num_groups"}  # 32 in Flax
        module = cls(**fixed)
        with jax.numpy_dtype_promotion("standard"):
            shapes = jax.eval_shape(module.init_weights, jax.random.key(0))
        module.save_pretrained(folder / name, params=random_tree(shapes, seed))
    write_flax_text_encoder(folder / "text_encoder", text_encoder())
    write_tokenizer(folder / "tokenizer")
    scheduler(prediction).save_pretrained(folder / "scheduler")
    return folder


def random_tree(shapes: Any, seed: int) -> Any:
    """Random parameters of a Flax module: kernels scaled by fan-in, norms near one, biases near zero."""
    generator = np.random.default_rng(seed)
    flat = {}
    for path, leaf in sorted(traverse_util.flatten_dict(shapes).items()):
        noise = generator.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1:
            flat[path] = noise / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        else:
            flat[path] = np.float32(0.1) * noise + np.float32(path[-1] == "scale")
    return traverse_util.unflatten_dict(flat)


def write_flax_text_encoder(folder: Path, model: CLIPTextModel) -> None:
    """`flax_model.msgpack` in the names of Transformers 4, which had Flax classes."""
    tree: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        *path, leaf = name.removeprefix("text_model.").split(".")
        array = tensor.numpy()
        if leaf == "weight":
            kind = "embedding" if "embedding" in path[-1] else "scale" if "norm" in path[-1] else "kernel"
            array = array.T if kind == "kernel" else array
        else:
            kind = leaf
        tree["text_model", *path, kind] = np.ascontiguousarray(array)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(tree)))
    model.config.save_pretrained(folder)


def write_torch_pipeline(
    folder: Path,
    unet: dict[str, Any] | None = None,
    prediction: str = "epsilon",
    vae: dict[str, Any] | None = None,
    text: CLIPTextModel | None = None,
) -> Path:
    """A teacher folder that PyTorch Diffusers writes, in safetensors."""
    write_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        unet=randomize(UNet2DConditionModel(**(unet or V1)), 0),
        vae=randomize(AutoencoderKL(**(vae or VAE)), 1),
        text_encoder=text or text_encoder(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


PHOTOGRAPHS = {
    "astronaut.png": "a photo of a woman in a space suit",
    "chelsea.png": "a photo of a cat",
    "coffee.png": "a cup of coffee",
    "rocket.jpg": "a rocket on the launch pad",
    "motorcycle_left.png": "a photo of the red motorcycle",
    "hubble_deep_field.jpg": "the deep space",
}


def write_photographs(folder: Path) -> Path:
    """An image folder with `metadata.csv`: photographs that scikit-image ships, captions ours."""
    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    source = Path(skimage.__file__).parent / "data"
    lines = ["file_name,text"]
    for name, caption in PHOTOGRAPHS.items():
        image = Image.open(source / name).convert("RGB")
        image.thumbnail((160, 160))
        image.save(folder / f"{Path(name).stem}.png")
        lines.append(f"{Path(name).stem}.png,{caption}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
