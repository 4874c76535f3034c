"""Sampling that is killed, and sampling by several processes: the same files, or the same images up to rounding."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.binaries import settings
from tests.conftest import QUICK_XLA, ROOT

IMAGES = 200


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"a cat and {i} cups" for i in range(IMAGES)))
    return path


def start(
    model: Path, prompts: Path, workdir: Path, *more: str, devices: int = 1, **changes: object
) -> subprocess.Popen:
    given = {"model": model, "prompts": prompts, "steps": 1, "guidance_scale": 1.0, "batch_size": 8, "workers": 2}
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_XLA}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sample", *settings("sample.py", workdir, **given | changes), *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> None:
    said = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)


def files(workdir: Path) -> dict[str, bytes]:
    """All files but those that tell times."""
    found = [path for path in workdir.rglob("*") if path.is_file() and path.name.strip(".") != "timing.json"]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def images(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in sorted((workdir / "images").iterdir())]


@pytest.fixture(scope="module")
def undisturbed(pico_teacher: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(pico_teacher, prompts, workdir))
    assert len(images(workdir)) == IMAGES
    return workdir


def written(workdir: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len(list((workdir / "images").glob("*.png")))
    return 0


def killed_at_random(model: Path, prompts: Path, workdir: Path, seed: int) -> int:
    """Kills a run a moment after it has written some more files, or nothing yet; how many there are then."""
    generator = random.Random(seed)
    process = start(model, prompts, workdir)
    more = min(written(workdir) + generator.choice([0, 1, 3, 20] if seed else [1]), IMAGES)
    while written(workdir) < more and process.poll() is None:
        time.sleep(0.001)
    time.sleep(generator.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return written(workdir)


@pytest.mark.parametrize("kills", [pytest.param(count, marks=pytest.mark.slow) for count in (1, 20)])
def test_a_killed_run_ends_with_the_files_of_an_undisturbed_one(
    undisturbed: Path, pico_teacher: Path, prompts: Path, tmp_path: Path, kills: int
) -> None:
    workdir = tmp_path / "run"
    reached = [killed_at_random(pico_teacher, prompts, workdir, seed) for seed in range(kills)]
    assert any(0 < count < IMAGES for count in reached)
    finish(start(pico_teacher, prompts, workdir))
    assert files(workdir) == files(undisturbed)


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(
    undisturbed: Path, pico_teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = (f"--distributed={address}", "--processes=2")
    workdir = tmp_path / "run"
    finish(
        *(
            start(pico_teacher, prompts, workdir, *together, f"--process_id={index}", devices=2, batch_size=3)
            for index in range(2)
        )
    )
    assert (workdir / "metadata.csv").read_bytes() == (undisturbed / "metadata.csv").read_bytes()
    assert files(workdir).keys() == files(undisturbed).keys()
    for ours, theirs in zip(images(workdir), images(undisturbed), strict=True):
        assert np.abs(ours - theirs).max() <= 1
