"""Times scoring here beside torch-fidelity and OpenCLIP, one after the other, on the same images."""

import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.timing import arbitrary_weights
from bksdm_jax.formats.weights import torch_tensors
from bksdm_jax.interop.torchvision_operators import declare
from bksdm_jax.metrics.extractor import images_per_call
from bksdm_jax.models.inception import OUTPUTS, inception_parameter_shapes
from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.perf.score_bench import bench_scores, score_row, write_images

_NEEDED = ("torch_fidelity", "open_clip", "torchvision")


def bench_scores_beside(config: BenchConfig) -> str:
    """The table of `bench_scores`, with lines for torch-fidelity's FID features and Inception score, and for OpenCLIP.

    Raises `InputError` if they aren't installed, or a setting can't be used.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{missing[0]}: not installed; run `make install-oracles` and set PYTHONPATH=.oracles, or bench `scores`"
        )
    table = bench_scores(config)
    count = config.repeats * images_per_call(config.batch_size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        write_images(folder, count)
        fidelity, clip = _fidelity(folder, Path(place), config.batch_size), _open_clip(folder, config.batch_size)
    lines = [
        score_row("torch-fidelity, Inception score alone", count, fidelity),
        score_row("OpenCLIP", count, clip),
        score_row("the two one after the other", count, fidelity + clip),
    ]
    return "\n".join([table, *lines])


def _fidelity(folder: Path, place: Path, batch_size: int) -> float:
    declare()
    import torch_fidelity  # noqa: PLC0415 - needs the operators

    weights = arbitrary_weights(inception_parameter_shapes(), np.dtype(np.float32))
    state = {name: torch.from_numpy(value) for name, value in torch_tensors(weights).items()}
    state["fc.bias"] = torch.zeros(OUTPUTS)
    path = place / "inception.pth"
    torch.save(state, path)
    start = time.perf_counter()
    torch_fidelity.calculate_metrics(
        input1=str(folder),
        isc=True,
        cuda=False,
        batch_size=batch_size,
        feature_extractor_weights_path=str(path),
        cache=False,
        verbose=False,
    )
    return time.perf_counter() - start


@torch.inference_mode()
def _open_clip(folder: Path, batch_size: int) -> float:
    declare()
    import open_clip  # noqa: PLC0415 - needs the operators

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    model.eval()
    paths = sorted(folder.iterdir())
    start = time.perf_counter()
    for first in range(0, len(paths), batch_size):
        images = torch.stack([preprocess(Image.open(path)) for path in paths[first : first + batch_size]])
        texts = tokenize(["a caption"] * len(images))
        ours, theirs = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
        (ours * theirs).sum(dim=-1)
    return time.perf_counter() - start
