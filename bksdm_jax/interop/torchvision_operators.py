"""Declares torchvision's operators, which its import needs, where its library doesn't load: that one needs CUDA."""

import functools
import importlib.util
from pathlib import Path

import torch

_OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


@functools.cache
def declare() -> torch.library.Library | None:
    """Declares the operators once; they live as long as the process."""
    (folder,) = importlib.util.find_spec("torchvision").submodule_search_locations
    try:
        for library in Path(folder).glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        own = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms", *_OPERATORS, *(f"_{name}_backward" for name in _OPERATORS)):
            own.define(f"{name}() -> Tensor")
        return own
    return None
