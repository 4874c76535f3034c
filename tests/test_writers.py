"""`metrics.csv` over a run that stops and goes on."""

import logging
from pathlib import Path

import pytest

from bksdm_jax.training import rates as module
from bksdm_jax.training.writers import CsvWriter, LogWriter


def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    writer = CsvWriter(path, 0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": step / 3, "grad_norm": 1.0})
    with path.open("a") as file:
        file.write("4,0.")  # a kill in the middle of a row
    writer = CsvWriter(path, 2)
    writer.write_scalars(3, {"loss": 9.0, "grad_norm": 2.0})
    assert path.read_text() == "step,loss,grad_norm\n1,0.333333333,1\n2,0.666666667,1\n3,9,2\n"


def test_what_another_device_has_to_tell_is_a_new_column(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    CsvWriter(path, 0).write_scalars(1, {"loss": 2.0})
    writer = CsvWriter(path, 1)
    writer.write_scalars(2, {"loss": 1.0, "mfu": 0.5})
    writer.write_scalars(3, {"loss": 0.5})
    assert path.read_text() == "step,loss,mfu\n1,2,\n2,1,0.5\n3,0.5,\n"


def test_a_table_cut_off_in_its_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,lo")
    CsvWriter(path, 0).write_scalars(1, {"loss": 2.0})
    assert path.read_text() == "step,loss\n1,2\n"


def test_a_line_of_the_log_has_what_a_user_watches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "absl")
    metrics = {f"feature/{block}": 1.0 for block in range(20)} | {f"share/{block}": 0.1 for block in range(20)}
    metrics |= {"ema_decay": 0.5, "host_memory": 2.0, "data_wait": 0.01, "images_per_second": 12.3456}
    metrics |= {"learning_rate": 5e-5, "grad_norm": 7.0, "loss_task": 1.0, "loss_output": 0.5, "loss": 1.5}
    LogWriter("").write_scalars(20, metrics)
    LogWriter("").write_scalars(30, metrics | {"mfu": 0.25, "loss_feature": 0.125})
    LogWriter("scores").write_scalars(20, {"clip_score": 0.25, "clip_score/low": 0.2})
    losses = "loss_task 1, loss_output 0.5, loss 1.5"
    rest = "grad_norm 7, learning_rate 5e-05, images_per_second 12.35"
    assert caplog.messages == [
        f"step 20: {losses}, {rest}, data_wait 0.01, host_memory 2",
        f"step 30: {losses}, loss_feature 0.125, {rest}, mfu 0.25",
        "scores at step 20: clip_score 0.25",
    ]


def test_rates_are_those_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    rates = module.Rates(images=8, flops=4e12, peak=40e12)
    now[0] = 2.0
    assert rates.until(10) == {"images_per_second": 40, "data_wait": 0, "flops_per_second": 20e12, "mfu": 0.5}
