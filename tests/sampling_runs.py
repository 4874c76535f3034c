"""Runs of `launch.sample` that take seconds, and what they leave."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from bksdm_jax.sampling.config import SampleConfig

PROMPTS = ("a photo of a cat", "the red rocket", "a cup")


def use_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call has as many images as `batch_size`; `test_sample_processes` has several devices."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    for name in ("local_device_count", "device_count"):
        monkeypatch.setattr(jax, name, lambda: 1)


def quick(model: Path, **changes: Any) -> SampleConfig:
    """Settings of a run of seconds at 16 pixels."""
    given = {} if {"prompt", "prompts"} & changes.keys() else {"prompt": "a cat"}
    return SampleConfig(model=str(model), **{"steps": 2, "batch_size": 2, "guidance_scale": 3.0} | given | changes)


def pixels(workdir: Path, index: int = 0) -> np.ndarray:
    (path,) = (workdir / "images").glob(f"{index:06d}.*")
    return np.asarray(Image.open(path)).astype(int)


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
