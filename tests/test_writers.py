"""`metrics.csv` over a run that stops and goes on."""

from pathlib import Path

import pytest

from bksdm_jax.training import loop
from bksdm_jax.training.writers import CsvWriter


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


def test_rates_are_those_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    rates = loop.Rates(images=8, flops=4e12, peak=40e12)
    now[0] = 2.0
    assert rates.until(10) == {"images_per_second": 40, "data_wait": 0, "flops_per_second": 20e12, "mfu": 0.5}
