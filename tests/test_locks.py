"""Of two programs in one folder the second is refused at once; a lock ends with its process, however that ends."""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base import folders, locks
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.locks import LOCK, locked, one_run
from bksdm_jax.base.workdir import claim, is_used, require_same
from tests.conftest import ROOT
from tests.lock_races import PROCESSES, ROUNDS

SETTINGS = {"steps": 3, "seed": 0}
OTHER_RUN = """
import os, sys, time
from pathlib import Path
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.workdir import claim, require_same

@one_run()
def run(workdir, until):
    require_same(workdir, {"steps": 3, "seed": 0}, ())
    claim(workdir, {"steps": 3, "seed": 0})
    CHILDREN
    print("holds", flush=True)
    sys.stdin.readline()

try:
    run(Path(sys.argv[1]), 0)
except InputError as error:
    print(error, flush=True)
"""
FORKED = """
    if os.fork() == 0:
        os.close(0), os.close(1), os.close(2)
        time.sleep(60)
        os._exit(0)
"""
STARTED = """
    import multiprocessing, subprocess
    subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sys.stdout, out = open(os.devnull, "w"), sys.stdout
    for kind in ("fork", "spawn", "forkserver"):
        multiprocessing.get_context(kind).Process(target=time.sleep, args=(60,)).start()
    sys.stdout = out
"""


@one_run()
def run(workdir: Path, settings: dict[str, Any] = SETTINGS, fails: bool = False) -> None:
    """A run of nothing but its workdir."""
    require_same(workdir, settings, ())
    claim(workdir, settings)
    assert (workdir / LOCK).exists()
    if fails:
        raise KeyboardInterrupt


@contextlib.contextmanager
def another(workdir: Path, children: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Another program that uses the workdir, in a process group of its own."""
    script = OTHER_RUN.replace("CHILDREN", children.strip())
    with subprocess.Popen(
        [sys.executable, "-c", script, str(workdir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as other:
        try:
            assert other.stdout.readline() == "holds\n"
            yield other
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(other.pid, signal.SIGKILL)  # its children too


def test_the_second_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with another(workdir) as first:
        before = (workdir / "config.json").read_bytes()
        for settings in (SETTINGS, {"steps": 4, "seed": 0}):
            with pytest.raises(InputError) as error:
                run(workdir, settings)
            message = str(error.value)
            assert message.startswith(f"{workdir}: ")
            assert f"process {first.pid} on {socket.gethostname()}" in message
            assert "\n" not in message
        assert (workdir / "config.json").read_bytes() == before
        first.communicate("\n")
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json"]
    run(workdir)


@pytest.mark.parametrize("children", ["pass", FORKED, STARTED], ids=["alone", "forked", "started"])
def test_a_killed_program_holds_nothing_though_its_children_live(children: str, tmp_path: Path) -> None:
    with another(tmp_path / "run", children) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        if children != "pass":
            os.killpg(first.pid, 0)  # there are some
        assert str(first.pid) in (tmp_path / "run" / LOCK).read_text()
        begin = time.monotonic()
        while time.monotonic() < begin + 10:  # a child may not have begun yet
            with contextlib.suppress(InputError):
                run(tmp_path / "run")
                break
        else:
            pytest.fail("a child holds the lock")


def race(what: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.lock_races", what, str(folder)], cwd=ROOT, check=True)


def test_of_many_at_once_exactly_one_wins(tmp_path: Path) -> None:
    race("workdirs", tmp_path)
    for turn in range(ROUNDS):
        won, lost = list(tmp_path.glob(f"{turn}/won_*")), list(tmp_path.glob(f"lost_{turn}_*"))
        assert (len(won), len(lost)) == (1, PROCESSES - 1), turn


def test_a_run_that_came_and_went_since_the_check_is_noticed(tmp_path: Path) -> None:
    """Its settings aren't overwritten."""

    @one_run()
    def late(workdir: Path) -> None:
        require_same(workdir, SETTINGS, ())
        thread = threading.Thread(target=run, args=(workdir, {"steps": 9, "seed": 0}))
        thread.start()
        thread.join()
        claim(workdir, SETTINGS)

    with pytest.raises(InputError, match=str(tmp_path / "run")):
        late(tmp_path / "run")
    run(tmp_path / "run", {"steps": 9, "seed": 0})


def test_one_process_uses_a_workdir_again_also_after_an_error(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    run(workdir)
    with pytest.raises(KeyboardInterrupt):
        run(workdir, fails=True)
    run(workdir)

    @one_run()
    def outer(workdir: Path) -> None:
        run(workdir)
        claim(workdir, SETTINGS)
        assert (workdir / LOCK).exists()  # the inner run hasn't ended it
        run(workdir)
        thread = threading.Thread(target=tries)
        thread.start()
        thread.join()

    def tries() -> None:
        with pytest.raises(InputError, match="in use"):
            run(workdir)
        refused.append(True)

    refused: list[bool] = []
    outer(workdir)
    assert refused
    assert not (workdir / LOCK).exists()
    with locked(workdir), pytest.raises(InputError, match="in use"):
        run(workdir)
    assert not locks._HELD.keys() & {workdir.resolve()}


def test_a_mistake_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    for name in ("photographs", "model"):
        with pytest.raises(InputError, match=name):
            run(tmp_path / name)
        assert not list((tmp_path / name).glob(".*"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / LOCK).touch()
    assert not is_used(tmp_path / "empty")
    run(tmp_path / "empty")


def test_no_file_elsewhere_is_written_through_the_lock(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=re.escape(LOCK)):
        run(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_disk_that_cannot_lock_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuses)
    run(tmp_path / "run")
    run(tmp_path / "run")
    with atomic_folder(tmp_path / "made"):
        pass
    assert [str(tmp_path / "run") in message for message in caplog.messages[:2]] == [True, True]
    assert str(tmp_path / "made") in caplog.messages[-1]


def test_two_that_write_one_folder_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with atomic_folder(target) as first:
        (first / "a").write_text("first")
        with pytest.raises(InputError, match=f"{target}: "), atomic_folder(target):
            pytest.fail("both write")
        assert (first / "a").read_text() == "first"
    assert (target / "a").read_text() == "first"
    (tmp_path / ".made.partial" / "unet").mkdir(parents=True)  # as a killed program leaves it
    (tmp_path / ".made.partial" / "unet" / "half").touch()
    with pytest.raises(InputError, match=str(target)), atomic_folder(target, replace=False):
        pass
    with atomic_folder(target) as second:
        assert not any(second.iterdir())
        (second / "b").touch()
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_of_many_that_write_one_folder_each_is_whole_or_refused(tmp_path: Path) -> None:
    race("folders", tmp_path)
    assert len({(tmp_path / "made" / name).read_text() for name in ("a", "b")}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def once_before(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, first: Callable[[], object]) -> None:
    """Something happens just before the next call of a function."""
    function = getattr(module, name)

    def call(*arguments: Any) -> Any:
        monkeypatch.setattr(module, name, function)
        first()
        return function(*arguments)

    monkeypatch.setattr(module, name, call)


def test_a_lock_file_that_its_holder_deletes_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once_before(monkeypatch, locks, "lock", (tmp_path / LOCK).unlink)
    with locked(tmp_path), pytest.raises(InputError, match="in use"), locked(tmp_path):
        pass


def test_a_folder_that_another_finishes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, target = tmp_path / ".made.partial", tmp_path / "made"

    def finishes() -> None:
        (partial / "a").touch()
        partial.rename(target)

    once_before(monkeypatch, folders, "lock", finishes)
    with atomic_folder(target) as folder:
        assert folder == partial
        (folder / "b").touch()
        assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_folder_that_another_begins_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = folders._put

    def puts(*arguments: Any) -> None:
        put(*arguments)
        (tmp_path / ".made.partial").mkdir()

    monkeypatch.setattr(folders, "_put", puts)
    with atomic_folder(tmp_path / "made"):
        pass
    assert (tmp_path / ".made.partial").is_dir()


def test_why_there_can_be_no_lock_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk, where there is no lock file to read either."""
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"\.lock: .*Read-only file system"), locked(tmp_path):
        pass
