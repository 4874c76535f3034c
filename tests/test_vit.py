"""DINO and DINOv2 against Transformers, in every layout, and their preprocessing."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.resampling import bicubic_matrix
from bksdm_jax.formats.vit_json import vit_from_transformers
from bksdm_jax.metrics.crops import squash
from bksdm_jax.metrics.vit import MEAN, STD, vit_extractor
from bksdm_jax.models.vit import ViT
from bksdm_jax.pipelines.vit_folder import load_vit, vit_files
from tests.arrays import require_close, require_equal

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "attn_implementation": "eager"}
LARGE_GRID = {"image_size": 518, "patch_size": 14}
MODELS = {
    "dino": lambda: ViTModel(ViTConfig(**SMALL, intermediate_size=256), add_pooling_layer=True),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, **LARGE_GRID)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, **LARGE_GRID)),
}


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """With all weights far from their initial values."""
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.5 if "embeddings" in name else 0.1
            shift = 1.0 if "lambda" in name or ("norm" in name and name.endswith("weight")) else 0.0
            weight.copy_(shift + scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def theirs(request: pytest.FixtureRequest) -> PreTrainedModel:
    return randomised(MODELS[request.param]())


def cls_token(model: PreTrainedModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2))).last_hidden_state[:, 0].numpy()


def original(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights as the authors' own files name them."""
    found, scaled = {}, model.config.model_type != "vit"
    state = model.state_dict()
    renamed = {
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "layers.": "blocks.",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "layernorm": "norm",
    }
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name or "pooler" in name:
            continue
        stack = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        new = name.replace("attention.q_proj", "attn.qkv")
        for ours, others in renamed.items():
            new = new.replace(ours, others)
        if scaled:
            new = new.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        found[new] = torch.cat(stack) if "q_proj" in name else tensor
    return found


def test_class_token_is_that_of_transformers(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    loaded = load_vit(tmp_path)
    images = np.random.default_rng().normal(size=(2, 224, 224, 3)).astype(np.float32)
    ours = jax.jit(ViT(loaded.config).apply)({"params": loaded.params}, images)
    require_close(ours, cls_token(theirs, images))

    torch.save({f"backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "w.bin")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "w.bin").rename(tmp_path / "pytorch_model.bin")
    require_equal(load_vit(tmp_path).params, loaded.params)


def test_authors_files_hold_the_same(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    torch.save(original(theirs), tmp_path / "pretrain.pth")
    folder, file = load_vit(tmp_path), load_vit(tmp_path / "pretrain.pth")
    require_equal(file.params, folder.params)
    same = {name for name, value in vars(file.config).items() if value == vars(folder.config)[name]}
    epsilon = {"epsilon"} if theirs.config.model_type == "vit" else set()  # 1e-6 of DINO, 1e-12 of Transformers
    offset = {"offset"} if theirs.config.model_type == "dinov2" else set()
    assert same == vars(file.config).keys() - epsilon - offset


@pytest.mark.parametrize(
    ("length", "target", "offset", "antialias"),
    [(37, 16, 0.0, False), (37, 16, 0.0, True), (37, 16, 0.1, False), (14, 20, 0.0, True), (5, 9, 0.0, False)],
)
def test_interpolation_is_pytorchs(length: int, target: int, offset: float, antialias: bool) -> None:
    grid = np.random.default_rng().normal(size=(length, length)).astype(np.float32)
    size = {"scale_factor": ((target + offset) / length,) * 2} if offset else {"size": (target, target)}
    wanted = functional.interpolate(
        torch.from_numpy(grid)[None, None], mode="bicubic", align_corners=False, antialias=antialias, **size
    )[0, 0]
    matrix = bicubic_matrix(length, target, length / (target + offset), antialias)
    require_close(matrix @ grid @ matrix.T, wanted.numpy())


@pytest.mark.parametrize("preprocess", ["dino", "dgm_eval"])
def test_extractor_prepares_and_computes_in_both_dtypes(preprocess: str, tmp_path: Path) -> None:
    model = randomised(MODELS["registers" if preprocess == "dgm_eval" else "dino"]())
    model.save_pretrained(tmp_path)
    images = [np.random.default_rng(i).integers(0, 256, (240, 300, 3), np.uint8) for i in range(3)]
    extractor = vit_extractor(load_vit(tmp_path), preprocess)
    found = extractor(images, batch_size=1)["cls"]
    pixels = np.stack([extractor.prepare(image) for image in images]).astype(np.float32) / 255
    require_close(found, cls_token(model, ((pixels - MEAN) / STD).astype(np.float32)))
    half = vit_extractor(load_vit(tmp_path), preprocess, "bfloat16")(images, batch_size=1)["cls"]
    assert half.dtype == jax.numpy.bfloat16
    require_close(half.astype(np.float32), found, 0.1)
    assert extractor.facts.keys() == {"weights", "sha256", "config_sha256", "resize", "dtype", "width"}
    if preprocess == "dgm_eval":
        np.testing.assert_array_equal(extractor.prepare(images[0]), squash(images[0], 224))


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_type.*'clip'"):
        vit_from_transformers({"model_type": "clip"})
    with pytest.raises(InputError, match="use_swiglu_ffn"):
        vit_from_transformers({"model_type": "dinov2", "use_swiglu_ffn": True})
    with pytest.raises(InputError, match=r"mlp_ratio.*1000"):
        vit_from_transformers({"model_type": "dinov2", "mlp_ratio": 1000})
    model = MODELS["dinov2"]()
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"image_size": 518', '"image_size": 224'))
    with pytest.raises(InputError, match=r"position_embeddings is \(1, 1370, 128\).*\(1, 257, 128\)"):
        load_vit(tmp_path)
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth.*conv1\.weight.*facebook/dino"):
        load_vit(tmp_path / "other.pth")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        load_vit(tmp_path)


def test_only_needed_files_are_fetched() -> None:
    names = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    assert vit_files(names) == ["config.json", "model.safetensors"]
