"""The trainer with a task that has nothing to do with images: interrupted, continued, watched, and as two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bksdm_jax.base import distributed
from bksdm_jax.base.errors import InputError
from bksdm_jax.training import checkpoints, loop, trainer, writers
from tests.regression import SLOPE, Regression, checkpoint_steps, run, table


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Regression, Path]:
    """Result, task and workdir of a whole run."""
    workdir = tmp_path_factory.mktemp("regression") / "whole"
    return *run(workdir), workdir


def test_a_task_is_trained_and_written(undisturbed: Any) -> None:
    made, task, workdir = undisturbed
    rows = table(workdir / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 8))
    assert all(float(row["root"]) == pytest.approx(float(row["loss"]) ** 0.5, rel=1e-6) for row in rows)
    assert {float(row["learning_rate"]) for row in rows} == {0.1}
    assert len(task.written) == 1
    assert (np.sign(made) == np.sign(SLOPE)).all()
    assert checkpoint_steps(workdir) == [4, 7]


def test_evaluators_are_called_on_their_schedules_and_at_the_end(undisturbed: Any) -> None:
    _, task, workdir = undisturbed
    assert task.evaluated == [2, 4, 6, 7, "seen 7"]
    rows = table(workdir / "probe.csv")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 7]
    assert 0 < float(rows[-1]["distance"]) < float(rows[0]["distance"]) < 3
    assert not (workdir / "look.csv").exists()
    assert list((workdir / "tensorboard" / "probe").iterdir())


def test_evaluators_see_the_initial_weights_if_asked(undisturbed: Any, tmp_path: Path) -> None:
    made, _, whole = undisturbed
    found, task = run(tmp_path / "run", evaluate_first=True)
    np.testing.assert_array_equal(found, made)
    assert task.evaluated == [0, "seen 0", 2, 4, 6, 7, "seen 7"]
    first, *others = table(tmp_path / "run" / "probe.csv")
    assert first["step"] == "0"
    assert float(first["distance"]) > float(others[0]["distance"])
    assert others == table(whole / "probe.csv")
    assert table(tmp_path / "run" / "metrics.csv") == table(whole / "metrics.csv")


def test_an_interrupted_run_ends_as_an_undisturbed_one(undisturbed: Any, tmp_path: Path) -> None:
    made, _, whole = undisturbed
    assert run(tmp_path / "run", task=Regression(stop_before=2))[0] is None
    steps = [int(row["step"]) for row in table(tmp_path / "run" / "metrics.csv")]
    assert steps == list(range(1, len(steps) + 1))
    assert 2 <= len(steps) < 7
    again, task = run(tmp_path / "run")
    np.testing.assert_array_equal(again, made)
    assert task.evaluated[-2:] == [7, "seen 7"]
    for name in ("metrics.csv", "probe.csv"):
        assert table(tmp_path / "run" / name) == table(whole / name)


@pytest.mark.parametrize(("damaged", "saved"), [(0, []), (2, [2]), (4, [4]), (6, [4, 6])])
def test_a_bad_image_leaves_the_state_before_it(
    undisturbed: Any, tmp_path: Path, damaged: int, saved: list[int]
) -> None:
    made, _, whole = undisturbed
    with pytest.raises(InputError, match=rf"^cat\.png: truncated{f'; .* step {damaged}$' if damaged else '$'}"):
        run(tmp_path, task=Regression(damaged=damaged))
    assert checkpoint_steps(tmp_path) == saved
    if damaged:
        with pytest.raises(InputError, match=rf"^cat\.png: truncated; .* step {damaged}$"):  # not mended yet
            run(tmp_path, task=Regression(damaged=damaged))
    np.testing.assert_array_equal(run(tmp_path)[0], made)
    for name in ("metrics.csv", "probe.csv"):
        assert table(tmp_path / name) == table(whole / name)


def test_what_takes_long_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "absl")
    run(tmp_path, steps=3)
    said = [line for line in caplog.messages if line.startswith(("compiling", "probe", "look"))]
    names = [line.split(":")[0].removesuffix(" ...") for line in said]
    assert names == [
        *["compiling the update"] * 2,
        *["probe at step 2"] * 3,
        *["probe at step 3"] * 3,
        *["look at step 3"] * 2,
    ]


def test_a_run_that_is_done_is_only_written(undisturbed: Any) -> None:
    made, _, workdir = undisturbed
    again, task = run(workdir)
    np.testing.assert_array_equal(again, made)
    assert task.evaluated == []
    raw, _ = run(workdir, save_weights="raw")
    assert (raw != made).all()


def test_what_cannot_be_trained_is_told(undisturbed: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"steps: 5.*{undisturbed[2]}.* 7$"):
        run(undisturbed[2], steps=5)
    with pytest.raises(InputError, match=r"batch_size: 12.*accumulation 2.*8 device"):
        run(tmp_path, batch_size=12)
    assert not list(tmp_path.iterdir())


def test_another_process_waits_at_the_same_barriers_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def record(what: str) -> None:
        waits.append(what)

    def in_a_process(first: bool) -> tuple[list[str], Regression, Any]:
        waits.clear()
        for module in (trainer, writers, loop):
            monkeypatch.setattr(module, "is_first", lambda: first)
        made, task = run(tmp_path / str(first), steps=3, profile_step=1)
        return list(waits), task, made

    monkeypatch.setattr(checkpoints, "barrier", lambda what: None)  # checkpoints know their own processes
    patch_barriers(monkeypatch, record)
    (ours, first, slope), (theirs, other, elsewhere) = in_a_process(True), in_a_process(False)
    assert ours == theirs == ["ready to train", "written"]
    assert first.evaluated == other.evaluated == [2, 3, "seen 3"]
    assert (len(first.written), len(other.written)) == (1, 0)
    assert slope.shape == (3,)
    assert elsewhere == tmp_path / "False" / "result"
    written = {path.name for path in (tmp_path / "True").iterdir()}
    assert written == {"checkpoints", "metrics.csv", "probe.csv", "tensorboard", "profile"}
    assert {path.name for path in (tmp_path / "False").iterdir()} == {"checkpoints"}


def patch_barriers(monkeypatch: pytest.MonkeyPatch, record: Callable[[str], None]) -> None:
    """Names of the barriers at which this process would wait for others, without the numbers that keep them apart."""

    class Runtime:
        @staticmethod
        def sync_global_processes(name: str, **options: object) -> None:
            record(name.rpartition(" ")[0])

    monkeypatch.setattr(distributed, "multihost", Runtime)
