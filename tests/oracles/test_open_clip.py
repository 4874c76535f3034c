"""CLIP's scores against OpenCLIP: its network, image transform and tokenizer."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
from open_clip.model import CLIP
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from bksdm_jax.data.decode import to_rgb
from bksdm_jax.metrics.captions import clean_caption
from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.pipelines.clip_folder import load_clip
from bksdm_jax.pipelines.tokenizer import END, START, load_tokenizer
from tests import tiny
from tests.odd_captions import CAPTIONS

GELU = {"mlp_ratio": 4.3637, "head_width": 88, "width": 176}
VARIANTS = {
    "g": (GELU, False),
    "H": ({"head_width": 80, "width": 160}, False),
    "quick gelu": ({"head_width": 64, "width": 128}, True),
}
MOJIBAKE = "schÃ¶n"
"""Text in a wrong encoding, which ftfy repairs and we don't."""


def photographs() -> dict[str, Image.Image]:
    chelsea, camera = Image.fromarray(skimage.data.chelsea()), skimage.data.camera()
    return {
        **{name: Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "rocket")},
        "upright": chelsea.rotate(90, expand=True),
        "odd": chelsea.resize((227, 301)),
        "small": chelsea.resize((40, 61)),
        "grey": Image.fromarray(camera[:300]),
        "alpha": Image.fromarray(skimage.data.logo()),
        "palette": chelsea.quantize(64),
        "16-bit": Image.fromarray(camera[:, :400].astype(np.uint16) * 257),
    }


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's own, from OpenCLIP's copy, as Transformers' files."""
    folder = tmp_path_factory.mktemp("vocabulary")
    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    encoder = open_clip.tokenizer.SimpleTokenizer().encoder
    table = dict(zip([*list(encoder)[:-2], START, END], encoder.values(), strict=True))
    (folder / "vocab.json").write_text(json.dumps(table))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": START, "eos_token": END}))
    return folder


def write(folder: Path, model: CLIP, config: dict) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def their_cosines(model: CLIP, images: list[Image.Image], captions: list[str], size: int) -> np.ndarray:
    transform = image_transform(size, is_train=False)
    with torch.inference_mode():
        pictures = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        texts = model.encode_text(open_clip.tokenize(captions), normalize=True)
    return (pictures * texts).sum(dim=-1).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_clip_score_is_openclips(variant: str, vocabulary: Path, tmp_path: Path) -> None:
    vision, quick = VARIANTS[variant]
    vision = vision | {"image_size": 64, "patch_size": 16, "layers": 3}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
    config = {"embed_dim": 96, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
    model = tiny.randomize(CLIP(**config), int(np.random.default_rng().integers(2**31)))
    write(tmp_path, model, config)
    images = [to_rgb(image) for image in photographs().values()]
    captions = [text for text in CAPTIONS if 0 < len(text) < 400 and END not in text.lower()][: len(images)]
    loaded = load_clip(tmp_path, tokenizer=str(vocabulary))
    ours = clip_extractor(loaded, "open_clip")([np.asarray(image) for image in images], captions, batch_size=2)
    wanted = their_cosines(model, images, captions, 64)
    assert np.ptp(wanted) > 0.01
    difference = np.abs(ours["clip_cosine"] - wanted).max()
    print(f"{variant}: largest difference of a cosine {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("size", [224, 336])
def test_images_are_prepared_as_by_openclip(size: int) -> None:
    from bksdm_jax.metrics.crops import short_side_crop

    transform = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    for name, image in photographs().items():
        rgb = to_rgb(image)
        theirs = transform(rgb).mul(255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(short_side_crop(np.asarray(rgb), size, size), theirs, err_msg=name)


def test_dino_images_are_prepared_as_by_torchvision() -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    from bksdm_jax.metrics.vit import PREPROCESSING

    theirs = {
        "dino": Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224)]),
        "dgm_eval": Resize((224, 224), InterpolationMode.BICUBIC),
    }
    for image in map(to_rgb, photographs().values()):
        for name, transform in theirs.items():
            np.testing.assert_array_equal(PREPROCESSING[name](np.asarray(image)), np.asarray(transform(image)))


def test_captions_have_openclips_tokens(vocabulary: Path) -> None:
    """All but what `clean_caption` says, and the names of special tokens, which differ."""
    tokenizer = load_tokenizer(vocabulary, 77)
    captions = [text for text in CAPTIONS if "<|" not in text and "of_text>" not in text]
    ours = tokenizer([clean_caption(text) for text in captions])
    theirs = open_clip.tokenize(captions).numpy()
    ends = tokenizer.ends(ours)
    different = [
        text[:60]
        for text, row, other, end in zip(captions, ours, theirs, ends, strict=True)
        if not np.array_equal(row[: end + 1], other[: end + 1])
    ]
    print(f"{len(captions)} captions, different tokens: {different}")
    assert [text for text in different if "&NBSP;" not in text] == []
    assert not np.array_equal(tokenizer([clean_caption(MOJIBAKE)])[0, :5], open_clip.tokenize([MOJIBAKE])[0, :5])


@pytest.mark.slow
def test_full_size_vit_g(vocabulary: Path, tmp_path: Path) -> None:
    """11 GB of memory for both copies of the weights, 5.5 GB of disk."""
    config = json.loads((Path(open_clip.__file__).parent / "model_configs" / "ViT-g-14.json").read_text())
    with torch.device("meta"):
        model = CLIP(**config)
    model = model.to_empty(device="cpu").eval()
    generator = np.random.default_rng(0)
    noise = torch.from_numpy(generator.standard_normal(2**24, np.float32))  # repeated: quick to make
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat, start = weight.view(-1), int(generator.integers(2**20))
            for first in range(0, len(flat), 2**23):
                part = flat[first : first + 2**23]
                part.copy_(noise[start : start + len(part)])
            if weight.ndim > 1:
                weight.mul_(weight[0].numel() ** -0.5)
            else:
                weight.mul_(0.1).add_(float("ln" in name and name.endswith("weight")))
        model.attn_mask.copy_(torch.full((77, 77), float("-inf")).triu_(1))
    write(tmp_path, model, config)
    images = [to_rgb(image) for image in photographs().values()] * 2
    images, captions = images[:16], [f"a photo of {i} cats" for i in range(16)]
    torch.set_num_threads(2)
    start = time.monotonic()
    wanted = their_cosines(model, images, captions, 224)
    print(f"OpenCLIP: {time.monotonic() - start:.0f} s")
    del model
    start = time.monotonic()
    loaded = load_clip(tmp_path, tokenizer=str(vocabulary))
    assert (loaded.config.vision.mlp_width, loaded.config.vision.heads) == (6144, 16)
    print(f"loading: {time.monotonic() - start:.0f} s")
    extractor = clip_extractor(loaded, "open_clip")
    pictures = [np.asarray(image) for image in images]
    for run in ("first", "second"):
        start = time.monotonic()
        ours = extractor(pictures, captions, batch_size=2)["clip_cosine"]  # 8 devices
        print(f"{run} run of 16 images: {time.monotonic() - start:.0f} s")
    print(f"largest difference of a cosine {np.abs(ours - wanted).max():.2e}; spread {np.ptp(wanted):.4f}")
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
