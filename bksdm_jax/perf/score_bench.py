"""Times one pass of images through the networks of FID, Inception score and CLIP score, with arbitrary weights."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from bksdm_jax.base.errors import whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.cost.timing import arbitrary_weights
from bksdm_jax.evaluation.images import open_images
from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.metrics.extractor import images_per_call
from bksdm_jax.metrics.gather import Pass
from bksdm_jax.metrics.inception import inception_extractor
from bksdm_jax.metrics.table import image_needs
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.clip_pair import CLIPConfig, CLIPVisionConfig, clip_parameter_shapes
from bksdm_jax.models.inception import inception_parameter_shapes
from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.pipelines.clip_folder import LoadedCLIP
from bksdm_jax.pipelines.inception_file import LoadedInception

METRICS = ("fid_torch_fidelity", "inception_score", "clip_score")
TOWER = {"width": 768, "mlp_width": 3072, "layers": 12, "heads": 12}
CLIP_B_32 = CLIPConfig(
    CLIPTextConfig(width=512, mlp_width=2048, layers=12, heads=8), CLIPVisionConfig(patch_size=32, **TOWER), 512
)
_PIXELS = 256
_ROW = "{:<44}{:>12}{:>14}"


class _Tokens:
    """A tokenizer's stand-in: every caption has eight tokens."""

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        return np.full((len(captions), CLIP_B_32.text.max_length), 7, np.int32)

    def ends(self, tokens: np.ndarray) -> np.ndarray:
        return np.full(len(tokens), 7, np.int32)


def write_images(folder: Path, count: int) -> None:
    """JPEG files of 256 x 256 pixels, smooth enough to be of a photograph's size."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        small.resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def bench_scores(config: BenchConfig) -> str:
    """Returns a table: images per second of one pass that feeds FID, Inception score and CLIP score (ViT-B/32).

    The images are `repeats` batches of JPEG files, read and decoded in that time; compiling is not counted. Raises
    `InputError` for settings that can't be used.
    """
    for key in ("batch_size", "repeats"):
        whole_number("config", key, getattr(config, key))
    compute_dtype(config.dtype)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        per_call = images_per_call(config.batch_size)
        write_images(folder, config.repeats * per_call)
        seconds = time_pass(folder, config.dtype, config.batch_size)
    lines = [
        f"JPEG files of {_PIXELS} x {_PIXELS} pixels, batch {config.batch_size}, {config.dtype}, on "
        f"{jax.devices()[0].device_kind}",
        _ROW.format("", "images", "images/s"),
        score_row("FID, Inception score, CLIP score in one pass", config.repeats * per_call, seconds),
    ]
    return "\n".join(lines)


def score_row(what: str, images: int, seconds: float) -> str:
    """A line of the table."""
    return _ROW.format(what, images, f"{images / seconds:.2f}")


def time_pass(folder: Path, dtype: str, batch_size: int) -> float:
    """Seconds to read a folder's images and compute their features, once compiled."""
    extractors: dict[str, Any] = {
        "inception_torch_fidelity": lambda: inception,
        "clip": lambda: clip,
    }
    weights = arbitrary_weights(inception_parameter_shapes(), np.dtype(np.float32))
    inception = inception_extractor(LoadedInception(weights, "arbitrary", ""), "torch_fidelity", dtype)
    towers = arbitrary_weights(clip_parameter_shapes(CLIP_B_32), np.dtype(np.float32))
    clip = clip_extractor(LoadedCLIP(CLIP_B_32, towers, _Tokens()), "open_clip", dtype)  # type: ignore[arg-type]
    images = open_images(folder, "images")
    needs = image_needs(METRICS, intervals=False)
    per_call = images_per_call(batch_size)
    with tempfile.TemporaryDirectory() as place:
        for run in ("compiling", "timed"):
            one, start, done = Pass(Path(place) / run, needs, extractors, {}, batch_size), time.perf_counter(), 0
            for batch in images.batches(0, per_call, run):
                one.add(done, batch, ["a caption"] * len(batch))
                done += len(batch)
                if run == "compiling":
                    break
        return time.perf_counter() - start
