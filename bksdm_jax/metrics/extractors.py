"""The extractors by name."""

import functools
from collections.abc import Callable

from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.metrics.config import ScoringNetworks
from bksdm_jax.metrics.gather import Extracts
from bksdm_jax.metrics.inception import inception_extractor
from bksdm_jax.metrics.shapes_reader import ShapesReader
from bksdm_jax.metrics.vit import vit_extractor
from bksdm_jax.pipelines.clip_folder import load_clip
from bksdm_jax.pipelines.embedded import clip_folder
from bksdm_jax.pipelines.inception_file import LoadedInception, load_inception
from bksdm_jax.pipelines.vit_folder import load_vit


@functools.lru_cache(maxsize=1)
def _inception(path: str) -> LoadedInception:
    """Shared by the extractors that differ in the resize."""
    return load_inception(path)


EXTRACTORS: dict[str, Callable[[ScoringNetworks], Extracts]] = {
    "inception_pytorch_fid": lambda own: inception_extractor(
        _inception(own.inception), "pytorch_fid", own.scoring_dtype
    ),
    "inception_torch_fidelity": lambda own: inception_extractor(
        _inception(own.inception), "torch_fidelity", own.scoring_dtype
    ),
    "inception_clean": lambda own: inception_extractor(_inception(own.inception), "clean", own.scoring_dtype),
    "clip": lambda own: clip_extractor(load_clip(own.clip), "open_clip", own.scoring_dtype),
    "clip_336": lambda own: clip_extractor(load_clip(own.clip_336), "cmmd", own.scoring_dtype),
    "dino": lambda own: vit_extractor(load_vit(own.dino), "dino", own.scoring_dtype),
    "dinov2": lambda own: vit_extractor(load_vit(own.dinov2), "dgm_eval", own.scoring_dtype),
    "clip_shapes": lambda own: clip_extractor(load_clip(clip_folder()), "shapes", own.scoring_dtype),
    "shapes_reader": lambda own: ShapesReader(),
}
"""By name: settings -> the extractor, loaded."""
