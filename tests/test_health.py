"""Updates that aren't finite: skipped and counted, told apart, and ending a run that has too many of them."""

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.training import trainer
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.config import TrainerConfig, require_trainer_settings
from bksdm_jax.training.state import OptimizerConfig, create_state
from bksdm_jax.training.train_step import GO, SIGNALS, STOP, UNUSABLE, make_update
from tests.regression import CONFIG, RATE, Regression, checkpoint_steps, run, table


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def update() -> Any:
    """A jitted update of a quadratic whose loss or gradient can be made to overflow by its input."""

    def loss(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        total = jnp.mean(jnp.square(batch["x"] * params["w"])) + batch["offset"].mean()
        return total, {"loss": total}

    return jax.jit(make_update(loss, OptimizerConfig(learning_rate=0.1, ema_decay=0.9), 0))


def batch(x: float = 1.0, offset: float = 0.0, signal: int = GO) -> dict[str, Any]:
    values = {"x": jnp.full((1, 2), x), "offset": jnp.full((1, 2), offset)}
    return values | {SIGNALS: jnp.array([GO, signal], jnp.int32)}


def trained(update: Any, batches: list[dict[str, Any]]) -> tuple[Any, dict[str, float]]:
    state = create_state({"w": jnp.ones(2)}, make_optimizer(OptimizerConfig(learning_rate=0.1)))
    for one in batches:
        state, metrics = update(state, {}, one)
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("bad", [batch(offset=np.nan), batch(offset=np.inf), batch(x=1e19), batch(x=np.inf)])
def test_an_update_that_is_not_finite_changes_nothing(update: Any, bad: dict[str, Any]) -> None:
    before, _ = trained(update, [batch()] * 3)
    after, metrics = trained(update, [batch()] * 3 + [bad])
    for part in ("params", "ema", "opt_state"):
        assert bits(getattr(after, part)) == bits(getattr(before, part)), part
    assert (int(after.step), int(after.skipped)) == (4, 1)
    assert (metrics["applied"], metrics["skipped"]) == (0, 1)


def test_the_next_update_goes_on_as_if_the_skipped_one_had_not_been(update: Any) -> None:
    """The moving average's decay and Adam's bias correction count the updates that were applied."""
    without, _ = trained(update, [batch()] * 4)
    skipping, metrics = trained(update, [batch(), batch(), batch(x=np.nan), batch(), batch()])
    assert metrics["applied"] == 1
    for part in ("params", "ema", "opt_state"):
        assert bits(getattr(skipping, part)) == bits(getattr(without, part)), part


def test_a_batch_that_one_process_cannot_use_changes_nothing_at_all(update: Any) -> None:
    before, _ = trained(update, [batch()] * 3)
    after, metrics = trained(update, [batch()] * 3 + [batch(x=5.0, signal=UNUSABLE)])
    assert bits(after) == bits(before)
    assert metrics[SIGNALS] == UNUSABLE
    assert trained(update, [batch(signal=STOP)])[1] | {SIGNALS: 0} == trained(update, [batch()])[1]


@pytest.mark.parametrize(
    "changed", [{"learning_rate": 1e30}, {"clip_norm": 1e38}, {"epsilon": 1e-30, "clip_norm": 1e12}]
)
def test_settings_with_which_a_step_could_overflow_are_refused(changed: dict[str, float]) -> None:
    optimizer = dataclasses.replace(OptimizerConfig(learning_rate=1e-4), **changed)
    with pytest.raises(InputError, match=r"optimizer\.learning_rate.*overflow"):
        require_trainer_settings(TrainerConfig(steps=1, batch_size=1, optimizer=optimizer))


def test_a_skipped_update_is_counted_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, _ = run(tmp_path, task=Regression(infinite=lambda step: step in (2, 5)))
    assert np.isfinite(made).all()
    rows = table(tmp_path / "metrics.csv")
    assert [row["skipped"] for row in rows] == ["0", "0", "1", "1", "1", "2", "2"]
    assert [bool(row["loss"]) for row in rows] == [True, True, False, True, True, False, True]
    assert not any("nan" in value or "inf" in value for row in rows for value in row.values())
    told = [line for line in caplog.messages if "changed nothing" in line]
    assert [line.split()[1] for line in told] == ["3", "6"]


def test_skipped_updates_survive_an_interruption(tmp_path: Path) -> None:
    def infinite(step: int) -> bool:
        return step in (1, 4)

    whole, _ = run(tmp_path / "whole", task=Regression(infinite=infinite))
    assert run(tmp_path / "run", task=Regression(stop_before=2, infinite=infinite))[0] is None
    again, _ = run(tmp_path / "run", task=Regression(infinite=infinite))
    np.testing.assert_array_equal(again, whole)
    assert table(tmp_path / "run" / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")


@pytest.mark.parametrize(("most", "log_every"), [(1, 0), (3, 1), (5, 0)])
def test_too_many_in_a_row_end_the_run(tmp_path: Path, most: int, log_every: int) -> None:
    settings = {"steps": 30, "most_skipped": most, "log_every": log_every}
    with pytest.raises(InputError) as raised:
        run(tmp_path, task=Regression(infinite=lambda step: step >= 10), **settings)
    folder = tmp_path / "not_finite" / f"{10 + most:06d}"
    said = str(raised.value)
    assert all(fact in said for fact in ("loss", f"step {10 + most}", "step 8", "learning_rate=0.01", str(folder)))
    assert f"{tmp_path / 'checkpoints' / '8'} away" in said  # and 4 is the one before
    assert checkpoint_steps(tmp_path) == [4, 8]
    facts = json.loads((folder / "step.json").read_text())
    assert facts["examples"] == [f"{10 + most - 1}.png"]
    assert facts["metrics"]["loss"] in ("inf", "nan")
    config = TrainerConfig(**{"optimizer": RATE, **CONFIG, **settings, "replay": str(folder)})
    told = trainer.train_again(Regression(infinite=lambda step: step >= 10), config)
    assert f"step {10 + most}: " in told
    assert f"loss {facts['metrics']['loss']}; in the run {facts['metrics']['loss']}" in told
    mended = trainer.train_again(Regression(), config)
    assert f"in the run {facts['metrics']['loss']}" in mended
    assert not any(f"loss {wrong};" in mended for wrong in ("nan", "inf"))


class Spoilt(Regression):
    """Its frozen network has a NaN."""

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        yield "truth", {"slope": np.array([1.0, np.nan, 3.0], np.float32)}


def test_weights_and_data_are_told_from_the_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data aren't finite"):
        run(tmp_path / "data", task=Regression(infinite=lambda step: True), steps=9)
    with pytest.raises(InputError, match="the weights of the truth aren't finite"):
        run(tmp_path / "weights", task=Spoilt(), steps=9)
    with pytest.raises(InputError, match=r"the training diverges.*starts again"):
        run(tmp_path / "rate", optimizer=OptimizerConfig(learning_rate=3e38), steps=9)


def test_an_evaluator_that_finds_nan_ends_the_run_before_saving(tmp_path: Path) -> None:
    class Nan(Regression):
        def evaluators(self, mesh: Any, workdir: Path) -> Any:
            found = super().evaluators(mesh, workdir)
            return found | {"probe": found["probe"].__class__(4, lambda *_: {"distance": float("nan")})}

    with pytest.raises(InputError, match="probe at step 4: distance"):
        run(tmp_path, task=Nan())
    assert checkpoint_steps(tmp_path) == []
    assert not (tmp_path / "probe.csv").exists()


def test_the_rate_may_change_and_that_is_noted(tmp_path: Path) -> None:
    run(tmp_path, task=Regression(stop_before=3))
    (step,) = checkpoint_steps(tmp_path)
    run(tmp_path, optimizer=OptimizerConfig(learning_rate=0.01))
    with (tmp_path / "changes.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": str(step), "key": "optimizer.learning_rate", "former": "0.1", "present": "0.01"}
        ]
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "metrics.csv")]
    assert rates == pytest.approx([0.1] * step + [0.01] * (7 - step))
