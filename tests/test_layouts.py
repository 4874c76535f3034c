"""Weights of convolutions in cuDNN's layout: the same training, interrupted and continued, on any devices."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.models.convolution import convolve
from bksdm_jax.perf.plan import plan_run
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.training.config import TrainerConfig, require_trainer_settings
from bksdm_jax.training.layouts import with_conv_layout
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.task import Evaluator
from bksdm_jax.training.train_step import Objective, make_train_step
from tests.regression import RATE, ROWS, Regression, run, table

KERNEL, SIZE = (3, 3, 16, 32), 5  # large enough to be sharded
TRUTH = np.random.default_rng(0).standard_normal(KERNEL).astype(np.float32)
OHWI = (3, 0, 1, 2)


def squared_error(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    ours, theirs = (
        convolve(batch["x"], tree["slope"], (1, 1), ((1, 1), (1, 1))) + tree["shift"]
        for tree in (params, frozen["truth"])
    )
    total = jnp.mean(jnp.square(ours - theirs))
    return total, {"loss": total}


class Convolution(Regression):
    """A kernel that is learnt from another one's output."""

    def __init__(self, stop_before: int = -1) -> None:
        super().__init__(stop_before)
        shapes = {"slope": jax.ShapeDtypeStruct(KERNEL, jnp.float32), "shift": jax.ShapeDtypeStruct((32,), jnp.float32)}
        batch = {"x": jax.ShapeDtypeStruct((2, ROWS, SIZE, SIZE, 16), jnp.float32)}
        self.objective = Objective(squared_error, shapes, {"truth": shapes}, batch)
        self.seen = []

    def initial_params(self) -> Any:
        return {"slope": np.zeros(KERNEL, np.float32), "shift": np.zeros(32, np.float32)}

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        yield "truth", {"slope": TRUTH, "shift": np.ones(32, np.float32)}

    def batches(self, step: int, rows: Any) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(super().batches(step, rows), step):
            shape = (*batch["x"].shape[:2], SIZE, SIZE, 16)
            yield {"x": np.random.default_rng(number).standard_normal(shape).astype(np.float32)}

    def evaluators(self, mesh: Any, workdir: Path) -> dict[str, Evaluator]:
        def look(step: int, state: Any, frozen: Any) -> dict[str, float]:
            self.seen += [layout(leaf) for leaf in jax.tree.leaves((state, frozen)) if leaf.ndim == 4]
            assert ("fsdp" in state.params["slope"].sharding.spec) == (mesh.shape["fsdp"] > 1)
            return {}

        return {"look": Evaluator(2, look, metrics=False)}


def layout(leaf: jax.Array) -> tuple[int, ...]:
    return leaf.format.layout.major_to_minor


@pytest.mark.parametrize("fsdp", [1, 4])
def test_training_is_the_same(tmp_path: Path, fsdp: int) -> None:
    made, task = run(tmp_path / "plain", task=Convolution(), fsdp=fsdp)
    assert set(task.seen) == {(0, 1, 2, 3)}
    again, task = run(tmp_path / "other", task=Convolution(), fsdp=fsdp, conv_layout="ohwi")
    assert set(task.seen) == {OHWI}
    assert len(task.seen) == 5 * 4  # weights, average, moments, frozen weights, at steps 2, 4, 6 and 7
    np.testing.assert_allclose(again, made, rtol=2e-5, atol=1e-6)
    assert np.abs(made).max() > 0.1
    for ours, theirs in zip(*(table(tmp_path / name / "metrics.csv") for name in ("other", "plain")), strict=True):
        assert {k: float(v) for k, v in ours.items()} == pytest.approx({k: float(v) for k, v in theirs.items()}, 1e-4)


def test_a_run_continues_in_either_layout(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", task=Convolution(), conv_layout="ohwi")
    assert run(tmp_path / "run", task=Convolution(stop_before=2), conv_layout="ohwi")[0] is None
    again, task = run(tmp_path / "run", task=Convolution(), conv_layout="ohwi")
    np.testing.assert_array_equal(again, whole)
    assert set(task.seen) == {OHWI}
    for first, then, seen in (("ohwi", "hwio", (0, 1, 2, 3)), ("hwio", "ohwi", OHWI)):
        assert run(tmp_path / first, task=Convolution(stop_before=2), conv_layout=first)[0] is None
        mixed, task = run(tmp_path / first, task=Convolution(), conv_layout=then)
        np.testing.assert_allclose(mixed, whole, rtol=2e-5, atol=1e-6)
        assert set(task.seen) == {seen}


def test_the_compiled_update_keeps_the_layout() -> None:
    mesh = make_mesh(1, jax.devices()[:1])
    step = make_train_step(Convolution().objective, RATE, 0, mesh, "ohwi")
    with jax.set_mesh(mesh):
        compiled = step.update.lower(*step.arguments()).compile()
    given, returned = compiled.input_formats[0], compiled.output_formats
    kernels = [leaf for leaf in jax.tree.leaves((given[:2], returned[0])) if len(leaf.layout.major_to_minor) == 4]
    assert {leaf.layout.major_to_minor for leaf in kernels} == {OHWI}
    assert len(kernels) == 5 + 4


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(InputError, match=r"conv_layout.*'nchw'.*hwio, ohwi"):
        require_trainer_settings(TrainerConfig(steps=1, batch_size=1, conv_layout="nchw"))


def test_tpus_have_another_layout() -> None:
    device = SimpleNamespace(platform="tpu", device_kind="TPU v4")
    mesh = SimpleNamespace(devices=np.array([device]))
    with pytest.raises(InputError, match=r"conv_layout: ohwi .*NVIDIA GPUs; found TPU v4; use hwio"):
        with_conv_layout({}, "ohwi", mesh)
    plan = DistillConfig("", "bk_base", "", generation="v1", topology="v4:2x2x1", conv_layout="ohwi")
    with pytest.raises(InputError, match=r"conv_layout: ohwi .*v4:2x2x1; use hwio"):
        plan_run(plan)
