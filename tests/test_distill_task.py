"""Distillation as a task: which networks it needs and keeps, and its update over micro-batches and meshes."""

import gc
import itertools
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from bksdm_jax.perf.compiled_step import planned_step
from bksdm_jax.perf.distillation import distillation
from bksdm_jax.tasks.distill import task as distill_task
from bksdm_jax.tasks.distill.config import DistillConfig, LossWeights, ValidationConfig
from bksdm_jax.tasks.distill.inputs import oddities, open_inputs
from bksdm_jax.tasks.distill.objective import make_objective
from bksdm_jax.tasks.distill.task import DistillTask
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig
from bksdm_jax.training.sharding import batch_to_global, make_mesh
from bksdm_jax.training.state import create_state
from bksdm_jax.training.train_step import make_train_step
from tests import micro, tiny

NO_KD = LossWeights(output=0.0, feature=0.0)


def make_task(teacher: Path, data: Path, **settings: Any) -> DistillTask:
    fixed = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32"}
    config = DistillConfig(str(teacher), tiny.MICRO_STUDENT, str(data), **fixed | settings)
    return DistillTask(config, open_inputs(config))


@pytest.mark.parametrize(
    ("loss", "grid_steps", "needed"), [(NO_KD, 0, False), (NO_KD, 2, True), (LossWeights(feature=0.0), 0, True)]
)
def test_the_teacher_is_on_devices_only_where_it_is_needed(
    micro_teacher: Path, photographs: Path, loss: LossWeights, grid_steps: int, needed: bool
) -> None:
    task = make_task(micro_teacher, photographs, loss=loss, sheets=SampleGridConfig(steps=grid_steps))
    assert ("teacher" in task.objective.frozen) is needed
    found = [name for name, _ in task.frozen_params()]
    assert sorted(found) == sorted(task.objective.frozen)
    assert set(found) - {"teacher"} == {"vae", "text_encoder"}


def test_a_plan_keeps_what_its_run_keeps(micro_teacher: Path, photographs: Path) -> None:
    fixed = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32", "loss": NO_KD}
    config = DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, str(photographs), **fixed)
    inputs = open_inputs(config)
    planned = planned_step(distillation(config, inputs.plan, inputs.teacher.architectures), make_mesh())
    assert planned.frozen.keys() == DistillTask(config, inputs).objective.frozen.keys()
    assert "teacher" in planned.frozen  # sample grids are on by default


def test_the_teachers_weights_leave_the_hosts_memory(micro_teacher: Path, photographs: Path) -> None:
    task = make_task(micro_teacher, photographs)
    kernel = weakref.ref(task._pipeline.denoiser.params["conv_in"]["kernel"])
    student = task.initial_params()["conv_in"]["kernel"].copy()
    taken = task.frozen_params()
    name, params = next(taken)
    assert (name, params["conv_in"]["kernel"] is kernel()) == ("teacher", True)
    np.testing.assert_array_equal(student, params["conv_in"]["kernel"])
    name, params = next(taken)
    gc.collect()
    assert name != "teacher"
    assert kernel() is None


def test_validation_has_the_plain_loss(micro_teacher: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = []
    monkeypatch.setattr(distill_task, "make_batch_loss", lambda problem, dtype: problems.append(problem))
    loss = LossWeights(feature=0.5, min_snr_gamma=5.0)
    make_task(micro_teacher, photographs, loss=loss, caption_dropout=0.1, noise_offset=0.1)
    (problem,) = problems
    assert problem == problem.plain()
    assert problem.weights == LossWeights(feature=0.5)


@pytest.mark.parametrize(
    ("settings", "held_out", "said"),
    [
        ({}, 2, []),
        ({"batch_size": 16}, 2, ["batch_size: 16, .* 10 "]),
        ({"validation": ValidationConfig(images=3)}, 2, [r"validation\.images: 3, .* 2 "]),
        ({}, 0, ["validation: none, .*pictures"]),
        ({"validation": ValidationConfig(images=0)}, 0, []),
        ({"steps": 5, "optimizer": OptimizerConfig(warmup_steps=5)}, 2, [r"optimizer\.warmup_steps: 5, .*steps is 5"]),
    ],
)
def test_what_is_hardly_meant_is_told(settings: dict[str, Any], held_out: int, said: list[str]) -> None:
    fixed = {"batch_size": 10, "validation": ValidationConfig(images=2)} | settings
    config = DistillConfig("teacher", "bk_base", "pictures", **fixed)
    inputs = SimpleNamespace(examples=range(10), held_out=range(held_out), data="pictures")
    found = list(oddities(config, inputs))
    assert len(found) == len(said)
    assert all(re.match(pattern, line) for pattern, line in zip(said, found, strict=True))


def test_the_start_tells_what_is_not_the_default(
    micro_teacher: Path, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "absl")
    changes = {"resolution": 16, "batch_size": 8, "accumulation": 1, "optimizer": OptimizerConfig(learning_rate=1e-4)}
    config = DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, str(photographs), loss=NO_KD, **changes)
    distill_task._log_start(config, open_inputs(config))
    assert {line for line in caplog.messages if line.startswith("config.")} == {
        f"config.teacher = {str(micro_teacher)!r}",
        f"config.student = {tiny.MICRO_STUDENT!r}",
        f"config.data = {str(photographs)!r}",
        "config.batch_size = 8",
        "config.accumulation = 1",
        "config.optimizer.learning_rate = 1e-4",
        "config.loss.output = 0.0",
        "config.loss.feature = 0.0",
        "config.resolution = 16",
    }
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "batch_size: 8, but there are 6 examples: an update has some of them twice",
        f"validation: none, since {photographs} has no split validation or heldout",
    ]


@pytest.mark.slow
def test_batches_are_those_of_the_step(micro_teacher: Path, photographs: Path) -> None:
    task = make_task(micro_teacher, photographs)
    from_first, from_second = task.batches(0, range(8)), task.batches(1, [2, 5])
    _, whole = itertools.islice(from_first, 2)
    part = next(from_second)
    assert jax.tree.map(np.shape, part) == {"images": (1, 2, 16, 16, 3), "captions": {"tokens": (1, 2, 77)}}
    for ours, theirs in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs[:, [2, 5]])


def losses(parts: int, devices: int, fsdp: int = 1, steps: int = 10) -> list[dict[str, float]]:
    """Metrics of so many updates of the micro distillation."""
    mesh, problem, config = make_mesh(fsdp, jax.devices()[:devices]), micro.problem(), OptimizerConfig()
    step = make_train_step(make_objective(problem, 16, (parts, 8 // parts)), config, 7, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (step.state, step.frozen))
    first = create_state(micro.params(problem.plan.student, 0), make_optimizer(config))
    networks = {"teacher": micro.params(problem.plan.teacher, 1), **micro.encoders()}
    state, frozen = jax.device_put((first, networks), shardings)
    whole = micro.batch(8)
    batch = batch_to_global(mesh, jax.tree.map(lambda x: x.reshape(parts, 8 // parts, *x.shape[1:]), whole))
    history = []
    for _ in range(steps):
        state, metrics = step.update(state, frozen, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return history


@pytest.fixture(scope="module")
def alone() -> list[dict[str, float]]:
    """One device, no accumulation."""
    return losses(1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "devices", "fsdp"), [(4, 1, 1), (1, 8, 1), (1, 8, 2), (1, 8, 8), (2, 4, 2)], ids=str)
def test_accumulation_and_meshes_change_no_loss(
    alone: list[dict[str, float]], parts: int, devices: int, fsdp: int
) -> None:
    for ours, theirs in zip(losses(parts, devices, fsdp), alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
