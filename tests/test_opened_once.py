"""A run opens and parses each of its teacher's JSON files once."""

import builtins
import collections
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.task import DistillTask, distill
from bksdm_jax.training.config import TrainerConfig
from tests import tiny

ONCE = [f"{name}/config.json" for name in ("unet", "vae", "text_encoder")]
ONCE += ["scheduler/scheduler_config.json", "model_index.json"]


@pytest.fixture
def teacher(micro_teacher: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(micro_teacher, tmp_path / "teacher")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """How often each file was opened, by its path."""
    counter: collections.Counter[str] = collections.Counter()
    plain = builtins.open

    def counting(file: Any, *args: Any, **options: Any) -> Any:
        counter[str(file)] += 1
        return plain(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)  # which pathlib calls
    yield counter
    monkeypatch.undo()


def test_pruning_opens_the_teachers_configs_once(
    teacher: Path, opened: collections.Counter[str], tmp_path: Path
) -> None:
    prune(PruneConfig(str(teacher), tiny.MICRO_STUDENT), tmp_path / "student")
    assert {name: opened[str(teacher / name)] for name in ONCE} == dict.fromkeys(ONCE, 1)


def test_distilling_opens_the_teachers_configs_once(
    teacher: Path,
    opened: collections.Counter[str],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def untrained(task: DistillTask, config: TrainerConfig, workdir: Path, may_change: object) -> Path:
        """All that the trainer asks of a task's files, without an update in between."""
        params = task.initial_params()
        assert dict(task.frozen_params())
        next(task.batches(0, range(config.batch_size)))
        return task.write(params, workdir)

    monkeypatch.setattr("bksdm_jax.tasks.distill.task.train", untrained)
    config = DistillConfig(
        teacher=str(teacher),
        student=tiny.MICRO_STUDENT,
        data=str(photographs),
        resolution=16,
        batch_size=8,
        accumulation=1,
        dtype="float32",
    )
    made = distill(config, tmp_path / "run")
    assert made
    assert (made / "unet" / "config.json").is_file()
    assert {name: opened[str(teacher / name)] for name in ONCE} == dict.fromkeys(ONCE, 1)
