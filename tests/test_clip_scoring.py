"""CLIP for scores against Transformers, in every layout that weights come in; captions and images of all kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_from_transformers
from bksdm_jax.formats.open_clip import clip_from_open_clip, infer_open_clip
from bksdm_jax.metrics.captions import clean_caption
from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.metrics.crops import short_side_crop, square_crop
from bksdm_jax.models.clip_pair import CLIP
from bksdm_jax.pipelines.clip_folder import MEAN, STD, LoadedCLIP, clip_files, load_clip
from bksdm_jax.pipelines.tokenizer import write_tokenizer
from tests import tiny
from tests.arrays import require_close, require_equal

CAPTIONS = ["a photo of a cat", "", "The  RED cup", "woman &amp; rocket", "space " * 100]
VARIANTS = {"g": (88, 4.3637, "gelu"), "H": (80, 4.0, "gelu"), "quick": (64, 4.0, "quick_gelu")}
"""Width of a head of the image tower, MLP ratio, activation."""
OPEN_CLIP_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def model(variant: str, size: int = 32) -> CLIPModel:
    head, ratio, activation = VARIANTS[variant]
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": activation}
    text = shared | {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 600, "eos_token_id": 2}
    vision = shared | {"hidden_size": 2 * head, "intermediate_size": int(2 * head * ratio)}
    vision |= {"image_size": size, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)
    return tiny.randomize(CLIPModel(config), int(np.random.default_rng().integers(2**31)))


def open_clip_state(theirs: CLIPModel) -> dict[str, torch.Tensor]:
    state, found = theirs.state_dict(), {}
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        new, value = name, tensor
        if "q_proj" in name:
            value = torch.cat([state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            new = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for ours, others in OPEN_CLIP_NAMES.items():
            new = new.replace(ours, others)
        found[new] = value.T.contiguous() if "projection" in name else value
    return found


def open_clip_json(variant: str, size: int = 32) -> dict:
    head, ratio, activation = VARIANTS[variant]
    vision = {"image_size": size, "layers": 2, "width": 2 * head, "head_width": head, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 600, "width": 128, "heads": 2, "layers": 2}
    cfg = {"embed_dim": 40, "vision_cfg": vision | {"mlp_ratio": ratio}, "text_cfg": text}
    return {"model_cfg": cfg | ({"quick_gelu": True} if activation == "quick_gelu" else {}), "preprocess_cfg": {}}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(variant: str) -> CLIPModel:
    return model(variant)


@pytest.fixture
def folder(theirs: CLIPModel, tmp_path: Path) -> Path:
    """Transformers' layout."""
    write_tokenizer(tmp_path / "clip", tiny.WORDS)
    theirs.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def wanted(theirs: CLIPModel, pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of images [N, H, W, 3] and their cosines with the captions."""
    with torch.inference_mode():
        out = theirs(
            input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        )
    return out.image_embeds.numpy(), np.diag(out.image_embeds.numpy() @ out.text_embeds.numpy().T)


def test_scores_are_those_of_transformers(variant: str, theirs: CLIPModel, folder: Path) -> None:
    loaded = load_clip(folder)
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(len(CAPTIONS))]
    extractor = clip_extractor(loaded, "open_clip")
    found = extractor(images, CAPTIONS, batch_size=1)
    pixels = np.stack([short_side_crop(image, 32, 32) for image in images]).astype(np.float32) / 255
    pixels = ((pixels - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
    embeddings, cosines = wanted(theirs, pixels, loaded.tokenizer([clean_caption(text) for text in CAPTIONS]))
    require_close(found["image"], embeddings)
    np.testing.assert_allclose(found["clip_cosine"], cosines, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found["image"], axis=-1), 1, rtol=1e-6)
    assert extractor.facts["weights"] == str(folder)
    assert len(extractor.facts["sha256"]) == 64
    if VARIANTS[variant][2] == "gelu":
        return  # compiling takes a while
    half = clip_extractor(loaded, "open_clip", "bfloat16")(images, CAPTIONS, batch_size=1)
    assert half["image"].dtype == np.float32
    np.testing.assert_allclose(half["clip_cosine"], cosines, atol=0.05)
    assert not np.array_equal(half["image"], found["image"])
    cropped = clip_extractor(loaded, "cmmd")(images, batch_size=1)["image"]
    assert np.abs(cropped - found["image"]).max() > 1e-3


def test_every_layout_holds_the_same(variant: str, theirs: CLIPModel, folder: Path, tmp_path: Path) -> None:
    whole = load_clip(folder)
    assert whole.config == clip_from_transformers(theirs.config.to_dict())

    def same(loaded: LoadedCLIP, files: int = 1) -> None:
        assert loaded.config == whole.config
        assert len(loaded.files) == files
        require_equal(loaded.params, whole.params)

    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="300KB")
    same(load_clip(folder), len(list(folder.glob("model-*"))))
    assert len(list(folder.glob("model-*"))) > 1
    for path in folder.glob("model*"):
        path.unlink()
    older = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    torch.save(theirs.state_dict() | older, folder / "pytorch_model.bin")
    same(load_clip(folder))

    state = open_clip_state(theirs)
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_json(variant)))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()}
    torch.save(zeros, folder / "pytorch_model.bin")  # not what is read
    save_file(state, folder / "open_clip_model.safetensors")
    same(load_clip(folder))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "config.json").unlink()
    same(load_clip(folder))

    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "epoch.pt")
    activation = VARIANTS[variant][2]
    if variant == "quick":  # heads of 64
        same(load_clip(tmp_path / "epoch.pt", tokenizer=str(folder), activation=activation))
    with pytest.raises(InputError, match=r"epoch\.pt.*activation.*quick_gelu"):
        load_clip(tmp_path / "epoch.pt", tokenizer=str(folder))


@pytest.mark.parametrize(
    ("width", "heads", "activation"), [(1408, 16, ""), (1280, 16, "gelu"), (1024, 16, "quick_gelu"), (1664, 16, "")]
)
def test_heads_of_single_files_follow_from_the_width(width: int, heads: int, activation: str) -> None:
    table = {
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.positional_embedding": (257, width),
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        **{f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (6144, width) for i in range(40)},
        **{f"transformer.resblocks.{i}.mlp.c_fc.weight": (4096, 1024) for i in range(24)},
    }
    config = infer_open_clip(table, "x.bin", activation)
    assert (config.vision.heads, config.vision.layers, config.vision.image_size) == (heads, 40, 224)
    assert (config.text.heads, config.text.layers, config.projection) == (16, 24, 1024)
    assert config.vision.activation == config.text.activation == (activation or "gelu")


def test_tokens_after_the_end_do_not_matter(folder: Path) -> None:
    loaded = load_clip(folder)
    tokens = loaded.tokenizer(CAPTIONS)
    ends = loaded.tokenizer.ends(tokens)
    others = np.where(np.arange(77) > ends[:, None], 0, tokens).astype(np.int32)  # OpenCLIP pads by 0
    assert (others != tokens).any()
    clip, variables = CLIP(loaded.config), {"params": loaded.params}
    first, second = (clip.apply(variables, ids, ends, method="embed_texts") for ids in (tokens, others))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(ends, tokens.argmax(axis=1))  # the other rule of Transformers, and OpenCLIP's
    assert tokens[4, 76] == tokens.max()  # a long caption is cut before its end


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  A\tcat \n sits ", "a cat sits"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("it’s “odd” ﬁne Ａ", 'it\'s "odd" fine a'),
        ("e\u0301\x00", "é"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
    ],
)
def test_captions_are_cleaned_as_by_openclip(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


@pytest.mark.parametrize("size", [(70, 41), (40, 75), (64, 64)])
def test_images_for_cmmd_are_those_of_its_authors(size: tuple[int, int]) -> None:
    """Cropped and resized by Pillow, then by PyTorch's bicubic, which changes nothing."""
    image = np.random.default_rng().integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(image)
    side = min(size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cropped = picture.crop((left, top, left + side, top + side)).resize((33, 33), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(cropped, np.float32).transpose(2, 0, 1))[None] / 255
    theirs = functional.interpolate(x, size=(33, 33), mode="bicubic")[0].numpy().transpose(1, 2, 0)
    require_close(square_crop(image, 33).astype(np.float32) / 255, theirs, 1e-6)


def test_enlarged_images_are_bounded() -> None:
    with pytest.raises(InputError, match="90000 x 1"):
        short_side_crop(np.zeros((1, 90_000, 3), np.uint8), 224, 224)


def test_normalisation_is_that_of_the_files(folder: Path, variant: str) -> None:
    assert (load_clip(folder).mean, load_clip(folder).std) == (MEAN, STD)
    file = folder / "preprocessor_config.json"
    before = clip_extractor(load_clip(folder), "open_clip").facts
    file.write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.5]}))
    assert load_clip(folder).mean == (0.5, 0.4, 0.3)
    after = clip_extractor(load_clip(folder), "open_clip").facts  # by which features in a cache are known
    assert {key for key in before if before[key] != after[key]} == {"config_sha256"}
    file.write_text(json.dumps({"image_std": [0.5, 0.5, 0]}))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: std"):
        load_clip(folder)


def test_only_one_layout_is_fetched() -> None:
    settings = ["config.json", "open_clip_config.json", "merges.txt", "vocab.json"]
    both = [*settings, "README.md", "pytorch_model.bin", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"]
    assert set(clip_files(both)) == {*settings, "open_clip_model.safetensors"}
    assert set(clip_files([*both, "model.safetensors"])) == {*settings, "model.safetensors"}
    assert set(clip_files(["config.json", "flax_model.msgpack"])) == {"config.json", "flax_model.msgpack"}


def test_other_networks_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "clip", tiny.WORDS)
    folder = tmp_path / "clip"
    with pytest.raises(InputError, match=r"config\.json.*laion/CLIP"):
        load_clip(folder)
    theirs = model("quick")
    theirs.save_pretrained(folder)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    save_file(state | {name: torch.zeros(3, 5)}, weights)
    with pytest.raises(InputError, match=rf"{name} is \(3, 5\), expected \(512, 128\)"):
        load_clip(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    with pytest.raises(InputError, match=r"config\.json: text_config"):
        load_clip(folder)
    (folder / "config.json").write_text(json.dumps(config))

    state = open_clip_state(theirs)
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_json("quick")))
    weights.unlink()
    extra = {"visual.transformer.resblocks.2.ln_1.weight": torch.zeros(128)}
    save_file(state | extra, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"open_clip_model.safetensors.*resblocks\.2\.ln_1"):
        load_clip(folder)
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors.*conv\.weight.*laion/CLIP"):
        load_clip(tmp_path / "other.safetensors", activation="gelu")


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit"}, "timm_model_name"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "layers"),
        ("vision_cfg", {"head_width": 7}, "num_attention_heads"),
        ("text_cfg", {"hf_model_name": "roberta"}, "hf_model_name"),
        ("text_cfg", {"pool_type": "last"}, "pool_type"),
        ("text_cfg", {"mlp_ratio": 1e9}, "mlp_ratio"),
    ],
)
def test_unsupported_open_clip_configs_are_told(part: str, change: dict, named: str) -> None:
    config = open_clip_json("H")
    config["model_cfg"][part] |= change
    with pytest.raises(InputError, match=named):
        clip_from_open_clip(config)
