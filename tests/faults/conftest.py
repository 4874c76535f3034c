"""A teacher, data, and the table of figures at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.binaries import settings, succeed
from tests.faults.training import Training, World
from tests.faults.trials import SEED

Figure = Callable[[str], None]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The smallest teacher from which a whole stage can be taken, and cached latents of 16 pixels, with a split."""
    folder = tmp_path_factory.mktemp("world")
    unet = tiny.MICRO | {"block_out_channels": (32, 32), "layers_per_block": 1}
    teacher = tiny.write_flax_pipeline(folder / "teacher", unet=unet, vae=tiny.MICRO_VAE)
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 4)):
        (folder / "images" / split).mkdir(parents=True)
        table = ["file_name,text"]
        for index in range(count):
            pixels = generator.integers(0, 256, (16, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index:02d}.png")
            table.append(f"{index:02d}.png,a cat of {index}")
        (folder / "images" / split / "metadata.csv").write_text("\n".join(table) + "\n")
    prepared, latents = folder / "prepared", folder / "latents"
    succeed("prepare", settings("prepare.py", prepared, source=folder / "images", resolution=16))
    succeed("prepare", settings("prepare.py", latents, source=prepared, latents__pipeline=teacher))
    return World(teacher, latents)


@pytest.fixture
def begin(world: World, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """(name, settings) -> a run that hasn't begun, in a workdir of its own; none outlives the test."""
    runs: list[Training] = []

    def begun(name: str, **values: Any) -> Training:
        runs.append(Training(world, tmp_path / name, tmp_path / f"{Path(name).name}_said", values))
        return runs[-1]

    yield begun
    for run in runs:
        for victim in run.victims:
            victim.kill()


@pytest.fixture
def figure(record_property: Callable[[str, Any], None]) -> Figure:
    """Notes a line for the end."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the figures, and the seed with which the same choices are made again."""
    terminalreporter.section(f"figures, FAULTS_SEED={SEED}")
    for report in [one for found in terminalreporter.stats.values() for one in found]:
        for name, line in getattr(report, "user_properties", []):
            if name == "figure" and report.when == "call":
                terminalreporter.write_line(line)
