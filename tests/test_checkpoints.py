"""Checkpoints that were cut short, damaged or can't be written, and which of them are kept."""

import errno
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bksdm_jax.base.checksums import NAME, damage, write_checksums
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.locks import locked
from bksdm_jax.base.paths import to_path
from bksdm_jax.base.signals import Interrupted
from bksdm_jax.training import checkpoints as module
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.records import bring_back, note_change
from bksdm_jax.training.sharding import make_mesh, on_host, parameter_shardings
from bksdm_jax.training.state import OptimizerConfig, TrainState, create_state
from tests.fake_bucket import NAME as NAME_OF_BUCKET
from tests.fake_bucket import fake_bucket
from tests.regression import Regression, checkpoint_steps, run, table


def state(step: int) -> TrainState:
    made = create_state({"kernel": jnp.arange(6.0) + step}, make_optimizer(OptimizerConfig()))
    return made.replace(step=jnp.int32(step))


def write(folder: Path, steps: list[int], keep: int = 0, keep_every: int = 0) -> None:
    with Checkpoints(folder, keep, keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), {"note": step})


def read(folder: Path) -> int:
    """The step of the state that a run would continue from, whose numbers must be its own."""
    with Checkpoints(folder, 0) as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: state(0)))
        assert checkpoints.facts() == {"note": int(found.step)}
    np.testing.assert_array_equal(found.params["kernel"], np.arange(6.0) + int(found.step))
    return int(found.step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises as on a terminal; a shell's background jobs begin with it ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def interrupt_at_the_end(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the last checkpoint is waited for."""
    close = checkpoints._checkpointer.close

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        close()

    monkeypatch.setattr(checkpoints._checkpointer, "close", interrupted)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    interrupt_at_the_end(checkpoints, monkeypatch)
    with pytest.raises(Interrupted), checkpoints:
        checkpoints.save(state(3), {"note": 3})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read(tmp_path) == 3


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(0, 0, [2, 4, 6, 8, 10]), (1, 0, [10]), (2, 0, [8, 10]), (1, 4, [4, 8, 10]), (2, 3, [6, 8, 10])],
)
def test_the_newest_are_kept_and_every_so_many(tmp_path: Path, keep: int, keep_every: int, left: list[int]) -> None:
    write(tmp_path, [2, 4, 6, 8, 10], keep, keep_every)
    assert checkpoint_steps(tmp_path.parent / tmp_path.name, "") == left
    assert read(tmp_path) == 10


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In every file of a checkpoint, its first, middle and last bytes."""
    write(tmp_path, [2, 4])
    files = sorted(path for path in (tmp_path / "4").rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.name for path in files} > {NAME, "facts.json"}
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            assert damage(epath.Path(tmp_path / "4")), (path, position)
        path.write_bytes(whole)
    assert damage(epath.Path(tmp_path / "4")) == ""
    files[0].write_bytes(b"?" + files[0].read_bytes()[1:])
    assert read(tmp_path) == 2
    assert any(f"{tmp_path / '4'}: skipped" in line and files[0].name in line for line in caplog.messages)
    assert names(tmp_path) == ["2", "4.damaged"]
    write(tmp_path, [4])
    assert read(tmp_path) == 4


@pytest.mark.parametrize("spoil", ["a file is gone", "a file is cut", "checksums are empty", "checksums are a list"])
def test_what_is_not_whole_is_skipped(tmp_path: Path, spoil: str) -> None:
    write(tmp_path, [2, 4])
    largest = max(
        (path for path in (tmp_path / "4").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    if spoil == "a file is gone":
        largest.unlink()
    elif spoil == "a file is cut":
        largest.write_bytes(largest.read_bytes()[:-1])
    else:
        (tmp_path / "4" / NAME).write_text("" if "empty" in spoil else "[1]")
    assert read(tmp_path) == 2
    assert "4.damaged" in names(tmp_path)


def test_what_a_kill_cut_short_is_removed(tmp_path: Path) -> None:
    write(tmp_path, [2, 4])
    (tmp_path / "4" / NAME).unlink()
    (tmp_path / "6" / "state.orbax-checkpoint-tmp-7").mkdir(parents=True)
    assert read(tmp_path) == 2
    assert names(tmp_path) == ["2"]


def test_if_none_is_whole_nothing_is_touched(tmp_path: Path) -> None:
    write(tmp_path, [2, 4])
    for step in (2, 4):
        (tmp_path / str(step) / "facts.json").write_text("{}")
    before = names(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"^{tmp_path}: .*4: facts\.json.*2: facts\.json"):
            Checkpoints(tmp_path, 0)
    assert names(tmp_path) == before


def test_files_that_were_added_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, [2])
    (tmp_path / "2" / ".DS_Store").write_text("a file manager was here")
    assert read(tmp_path) == 2


def test_checksums_are_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"")
    (tmp_path / "é x").write_text("y")
    write_checksums(epath.Path(tmp_path))
    assert sorted(json.loads((tmp_path / NAME).read_text())) == ["a/b/c", "é x"]
    assert damage(epath.Path(tmp_path)) == ""


def full_from(monkeypatch: pytest.MonkeyPatch, steps: set[int], where: str) -> None:
    """The disk is full when the checkpoints of these steps are written, at one of three moments."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "checksums":
        original = module.write_checksums
        monkeypatch.setattr(module, "write_checksums", lambda p: full() if int(p.name) in steps else original(p))
        return
    name = "save" if where == "begin" else "wait_until_finished"
    cls = module.ocp.StandardCheckpointer
    save, wait = cls.save, cls.wait_until_finished
    now: list[int] = []

    def begin(self: Any, folder: Any, tree: Any, **options: Any) -> None:
        now[:] = [int(tree.step)]
        if name == "save" and now[0] in steps:
            full()
        save(self, folder, tree, **options)

    def end(self: Any) -> None:
        wait(self)
        if name != "save" and now and now[0] in steps:
            now.clear()
            full()

    monkeypatch.setattr(cls, "save", begin)
    monkeypatch.setattr(cls, "wait_until_finished", end)


@pytest.mark.parametrize("where", ["begin", "background", "checksums"])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with monkeypatch.context() as patch:
        full_from(patch, {4, 6}, where)
        write(tmp_path, [2, 4, 6, 8], keep=1)
    assert names(tmp_path) == ["8"]
    told = [line for line in caplog.messages if "can't be written" in line]
    assert len(told) == 2
    assert all(fact in told[0] for fact in (str(tmp_path), "checkpoint 4", "No space left", "newest whole one is 2"))
    assert [record.levelno for record in caplog.records if "can't be written" in record.message] == [logging.ERROR] * 2
    assert read(tmp_path) == 8


def test_no_thread_waits_for_folders_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a program whose disk is read-only ends minutes after it has said so."""

    def mkdir(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    before = set(threading.enumerate())
    checkpoints = Checkpoints(tmp_path, 0)
    monkeypatch.setattr(os, "mkdir", mkdir)
    checkpoints.save(state(4), {})
    assert "Read-only" in str(checkpoints.problem)
    assert {thread.name for thread in set(threading.enumerate()) - before if not thread.daemon} == set()


def test_the_reason_is_told_after_long_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorStore says it."""

    def full(*_: Any) -> None:
        inner = f"{tmp_path}/{'state/' * 60}d: Failed to write 1620320 bytes to file 4: No space left on device"
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing {inner} [os_error_code='28']")

    monkeypatch.setattr(module, "write_checksums", full)
    with pytest.raises(InputError, match=r"checkpoint 4 .*\(No space left on device\)"):
        write(tmp_path, [4])


def test_writes_that_end_after_a_failed_checkpoint_leave_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: heard.append(str(told.exc_value)))
    module._expect_late_writes.cache_clear()
    Checkpoints(tmp_path, 0)
    for said in ("Event loop is closed", "something else"):
        sys.unraisablehook(SimpleNamespace(object=None, exc_value=RuntimeError(said)))
    with warnings.catch_warnings(record=True) as warned:
        for said in ("coroutine 'write' was never awaited", "something else"):
            warnings.warn(said, RuntimeWarning, stacklevel=1)
    assert [str(one.message) for one in warned] == ["something else"]
    module._expect_late_writes.cache_clear()
    assert heard == ["something else"]


def test_training_goes_on_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patch:
        full_from(patch, {4}, "background")
        made, _ = run(tmp_path / "run", checkpoint_every=2)
    np.testing.assert_array_equal(made, whole)
    assert checkpoint_steps(tmp_path / "run") == [2, 6, 7]


@pytest.mark.parametrize("where", ["begin", "background"])
def test_or_ends_by_choice_and_then_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    whole, _ = run(tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patch:
        full_from(patch, {4, 6}, where)
        with pytest.raises(InputError, match=r"checkpoint 4 .*No space left"):
            run(tmp_path / "run", checkpoint_every=2, without_room="stop", steps=20)
    assert checkpoint_steps(tmp_path / "run") == [2]
    made, _ = run(tmp_path / "run", checkpoint_every=2)
    np.testing.assert_array_equal(made, whole)
    assert table(tmp_path / "run" / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_from(monkeypatch, {7}, "background")
    with pytest.raises(InputError, match=r"checkpoint 7 .*No space left"):
        run(tmp_path)
    assert checkpoint_steps(tmp_path) == [4]


def test_a_run_continues_from_the_last_whole_checkpoint(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    assert run(tmp_path / "run", task=Regression(stop_before=5))[0] is None
    newest = checkpoint_steps(tmp_path / "run")[-1]
    victim = next(path for path in (tmp_path / "run" / "checkpoints" / str(newest)).rglob("d/*"))
    victim.write_bytes(victim.read_bytes()[:-8] + b"damaged!")
    made, _ = run(tmp_path / "run")
    np.testing.assert_array_equal(made, whole)
    assert table(tmp_path / "run" / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_process_can_save_what_its_devices_have(tmp_path: Path, fsdp: int) -> None:
    """A state that is split over the devices of this process is saved as a whole, once."""
    mesh = make_mesh(fsdp)
    made = create_state({"kernel": jnp.arange(2.0**14).reshape(64, -1)}, make_optimizer(OptimizerConfig()))
    spread = jax.device_put(made.replace(step=jnp.int32(3)), parameter_shardings(mesh, made))
    assert spread.params["kernel"].is_fully_replicated is (fsdp == 1)
    checkpoints = Checkpoints(tmp_path, 0)
    for note in (1, 2):
        checkpoints.save_alone(spread, {"note": note})
    with Checkpoints(tmp_path, 0) as again:
        assert again.latest() == 3
        assert again.facts() == {"note": 1}
        found = again.restore(jax.eval_shape(lambda: made))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_elsewhere_too_is_not_on_this_host() -> None:
    class Part:
        index, data = (slice(0, 2),), np.zeros(2)

    class Leaf:
        addressable_shards, size, shape, dtype = (Part(), Part()), 4, (4,), np.float32

    assert on_host({"kernel": Leaf()}) is None


def test_checkpoints_in_a_bucket_outlive_the_machine(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    (tmp_path / "bucket").mkdir()
    with fake_bucket(tmp_path / "bucket", []):
        settings = {"checkpoints": f"{NAME_OF_BUCKET}/run", "keep_checkpoints": 1, "checkpoint_every": 2}
        assert run(tmp_path / "first", task=Regression(stop_before=4), **settings)[0] is None
        (step,) = checkpoint_steps(tmp_path / "bucket", "run")
        (tmp_path / "first" / "config.json").write_text("{}")
        assert not (tmp_path / "first" / "checkpoints").exists()
        bring_back(to_path(settings["checkpoints"]), tmp_path / "empty")
        assert not (tmp_path / "empty").exists()  # there were no settings to bring back
        made, _ = run(tmp_path / "first", **settings, steps=6)
        files = {"config.json", "metrics.csv", "probe.csv"}
        bring_back(to_path(settings["checkpoints"]), tmp_path / "second")
        assert set(names(tmp_path / "second")) == files
        made, _ = run(tmp_path / "second", **settings)
        flipped = next((tmp_path / "bucket" / "run" / "7").rglob("d/*"))
        flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
        with pytest.raises(InputError, match=f"{NAME_OF_BUCKET}/run: no checkpoint is whole"):
            run(tmp_path / "third", **settings)
    assert step >= 4
    np.testing.assert_array_equal(made, whole)
    assert table(tmp_path / "second" / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    settings = {"checkpoints": str(tmp_path / "shared"), "checkpoint_every": 2}
    for name, seed in (("first", 1), ("second", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"seed": seed, "steps": 4}))
    run(tmp_path / "first", **settings)
    before = names(tmp_path / "shared" / "6")
    with pytest.raises(InputError, match=r"shared: of another run: seed is 1 in the newest checkpoint, now 2"):
        run(tmp_path / "second", **settings)
    assert names(tmp_path / "shared" / "6") == before
    with locked(tmp_path / "shared" / ".run"), pytest.raises(InputError, match=r"\.run: in use"):
        run(tmp_path / "first", **settings)


def test_old_checkpoints_that_cannot_be_deleted_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remove = module._remove

    def busy(folder: Any) -> None:
        if folder.name == "2":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(folder)

    monkeypatch.setattr(module, "_remove", busy)
    write(tmp_path, [2, 4, 6], keep=1)
    assert names(tmp_path) == ["2", "6"]
    assert read(tmp_path) == 6
    assert any("old checkpoints can't be deleted (Directory not empty)" in line for line in caplog.messages)


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [2, 4])

    def stale(path: Any) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("bksdm_jax.base.checksums._sha256", stale)
        with pytest.raises(InputError, match=r"4: can't be read .*Stale file handle"):
            Checkpoints(tmp_path, 0)
    assert read(tmp_path) == 4


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_does_not_hide_a_failed_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_from(monkeypatch, {4}, "checksums")
    checkpoints = Checkpoints(tmp_path, keep=1)
    interrupt_at_the_end(checkpoints, monkeypatch)
    with pytest.raises(InputError, match="checkpoint 4 can't be written"), checkpoints:
        checkpoints.save(state(4), {})


def test_a_changed_rate_is_noted_once(tmp_path: Path) -> None:
    path = tmp_path / "changes.csv"
    note_change(tmp_path, 4, "rate", 0.1, 0.1)
    assert not path.exists()
    for former, present in ((0.1, 0.2), (0.1, 0.2)):  # the second time after a kill
        note_change(tmp_path, 4, "rate", former, present)
    note_change(tmp_path, 8, "rate", 0.2, 0.3)
    assert path.read_text() == "step,key,former,present\n4,rate,0.1,0.2\n8,rate,0.2,0.3\n"
    note_change(tmp_path, 6, "rate", 0.2, 0.2)  # back to the checkpoint of step 6
    assert path.read_text() == "step,key,former,present\n4,rate,0.1,0.2\n"
