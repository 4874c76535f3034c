"""Real processes over loopback, of which one is missing, killed, stopped or fails: the other says so, in one line."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.rendezvous import meet
from tests.conftest import ROOT

TIMEOUT = 4
SLACK = 5.0  # seconds: two busy cores


class Worker:
    """A process; see `peers_worker`."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.output, self.errors = folder / f"{arguments[3]}.out", folder / f"{arguments[3]}.err"
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.peers_worker", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self.output.open("w"),
            stderr=self.errors.open("w"),
        )

    def ready(self) -> None:
        self.says("ready")

    def says(self, word: str) -> None:
        deadline = time.monotonic() + 120
        while word not in self.output.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ended(self, within: float) -> tuple[int, str]:
        """Status and what it said on standard error."""
        self.process.wait(within)
        return self.process.returncode, self.errors.read_text().strip()


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def go(*workers: Worker) -> list[Worker]:
    """Lets them connect, when all have started."""
    for worker in workers:
        worker.says("up")
    for worker in workers:
        worker.process.stdin.close()
    return list(workers)


class Run:
    """Starts processes of one run."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.folder, self.runtime, self.address = folder, runtime, free_address()
        self.workers: list[Worker] = []

    def start(self, index: int, what: str, processes: int = 2, timeout: int = TIMEOUT) -> Worker:
        self.workers.append(Worker(self.folder, self.runtime, self.address, processes, index, timeout, what))
        return self.workers[-1]

    def both(self, first: str, other: str) -> list[Worker]:
        return go(self.start(0, first), self.start(1, other))


@pytest.fixture(params=["bare", pytest.param("jax", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path, request.param)
    yield made
    for worker in made.workers:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()


def one_line(said: str) -> str:
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize("lost", [0, 1])
def test_one_that_never_comes(run: Run, lost: int) -> None:
    [worker] = go(run.start(1 - lost, "work", timeout=2))
    start = time.monotonic()
    status, said = worker.ended(30)
    assert status == 1
    assert f"process {lost} " in one_line(said)
    assert "2 s" in said
    assert (run.address in said) == (lost == 0)
    assert time.monotonic() - start < 2 * 2 + SLACK


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_lost(run: Run, lost: int, number: signal.Signals) -> None:
    workers = run.both("work", "work")
    for worker in workers:
        worker.ready()
    workers[lost].process.send_signal(number)
    start = time.monotonic()
    status, said = workers[1 - lost].ended(40)
    assert status == 75
    assert f"process {lost} ({socket.gethostname()[:64]})" in one_line(said)
    assert (f"{TIMEOUT} s" in said) == (number == signal.SIGSTOP)
    assert time.monotonic() - start < 2 * TIMEOUT + SLACK
    assert "hook" in workers[1 - lost].output.read_text()
    if number == signal.SIGSTOP:
        workers[lost].process.send_signal(signal.SIGCONT)
        assert workers[lost].ended(20)[0] == 75


@pytest.mark.parametrize("run", ["bare"], indirect=True)
def test_a_pause_of_all_is_nobodys_silence(run: Run) -> None:
    workers = go(*(run.start(index, "work", timeout=2) for index in range(2)))
    for worker in workers:
        worker.ready()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for worker in workers:
            worker.process.send_signal(number)
        time.sleep(3)
    assert [worker.process.poll() for worker in workers] == [None, None]


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_tells_why(run: Run, failing: int) -> None:
    what = ["work", "work"]
    what[failing] = "fail:/data: no such \x1bfolder"
    workers = run.both(*what)
    start = time.monotonic()
    assert workers[failing].ended(60)[0] == 1
    assert workers[failing].errors.read_text() == "error: /data: no such \x1bfolder\n"
    status, said = workers[1 - failing].ended(10)
    assert status == 1
    assert f"process {failing} (" in one_line(said)
    assert said.endswith("failed: /data: no such ?folder")
    assert time.monotonic() - start < 2 * TIMEOUT + SLACK


def test_the_same_error_is_said_once_by_each(run: Run) -> None:
    for worker in run.both("fail:a wrong setting", "fail:a wrong setting"):
        assert worker.ended(60) == (1, "error: a wrong setting")


@pytest.mark.parametrize("interrupted", [0, 1])
def test_one_that_is_interrupted(run: Run, interrupted: int) -> None:
    workers = run.both("work", "work")
    for worker in workers:
        worker.ready()
    workers[interrupted].process.send_signal(signal.SIGINT)
    assert workers[interrupted].ended(20) == (130, "interrupted")
    status, said = workers[1 - interrupted].ended(20)
    assert status == 75
    assert f"process {interrupted} (" in one_line(said)
    assert "interrupted" in said


@pytest.mark.parametrize("crashed", [0, 1])
def test_a_bug_has_its_traceback_in_one_process_only(run: Run, crashed: int) -> None:
    what = ["work", "work"]
    what[crashed] = "crash"
    workers = run.both(*what)
    status, said = workers[crashed].ended(60)
    assert status == 1
    assert said.startswith("Traceback")
    assert said.endswith("RuntimeError: a bug")
    status, said = workers[1 - crashed].ended(20)
    assert status == 1
    assert one_line(said).endswith("failed: RuntimeError: a bug")


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(("what", "status"), [("end", 0), ("stop", 75)])
def test_ends_that_are_well(run: Run, late: int, what: str, status: int) -> None:
    """No process is lost that waits for a slower one."""
    each = [what, what]
    each[late] += "-late"
    for worker in run.both(*each):
        assert worker.ended(60) == (status, "")


def test_one_that_does_not_stop_with_the_others(run: Run) -> None:
    working, stopping = run.both("work", "stop")
    status, said = working.ended(60)
    assert status == 75
    assert "process 1 (" in one_line(said)
    assert stopping.ended(20) == (75, "")


@pytest.mark.parametrize("run", ["jax"], indirect=True)
def test_the_first_is_killed_while_another_waits_at_a_barrier(run: Run) -> None:
    check_that_the_first_is_missed(run, "wait")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["jax"], indirect=True)
def test_an_error_of_the_runtime_may_look_like_one_of_the_user(run: Run) -> None:
    check_that_the_first_is_missed(run, "wrap")


def check_that_the_first_is_missed(run: Run, what: str) -> None:
    first, other = run.both("work", what)
    first.ready()
    other.ready()
    first.process.kill()
    status, said = other.ended(2 * TIMEOUT + SLACK)
    assert status == 75
    assert "process 0 (" in one_line(said)


@pytest.mark.slow
@pytest.mark.parametrize("connects", [0, 1])
@pytest.mark.parametrize("killed", [False, True])
def test_the_runtime_does_not_connect(tmp_path: Path, connects: int, killed: bool) -> None:
    """The other process meets this one, and then doesn't connect its runtime."""
    bare, full = Run(tmp_path, "bare"), Run(tmp_path, "jax")
    full.address = bare.address
    idle, other = go(bare.start(1 - connects, "work"), full.start(connects, "end"))
    idle.ready()
    if killed:
        time.sleep(1)
        idle.process.kill()
    start = time.monotonic()
    status, said = other.ended(2 * TIMEOUT + SLACK)
    assert time.monotonic() - start < 2 * TIMEOUT + SLACK
    assert status == (75 if killed else 1)
    assert (f"process {1 - connects} (" if killed else f"{bare.address} within {TIMEOUT} s") in one_line(said)
    if not killed:
        status, said = idle.ended(10)
        assert (status, f"process {connects} (" in one_line(said)) == (1, True)


@pytest.mark.parametrize("run", ["bare"], indirect=True)
def test_the_third_hears_of_the_second(run: Run) -> None:
    workers = go(*(run.start(index, "work", 3) for index in range(3)))
    for worker in workers:
        worker.ready()
    workers[1].process.kill()
    lines = {workers[index].ended(20) for index in (0, 2)}
    assert len(lines) == 1
    assert "process 1 (" in lines.pop()[1]


@pytest.mark.parametrize("run", ["bare"], indirect=True)
@pytest.mark.parametrize(("index", "processes", "named"), [(1, 3, "process 1"), (2, 4, "4 processes")])
def test_processes_that_disagree(run: Run, index: int, processes: int, named: str) -> None:
    workers = go(run.start(0, "work", 3, 20), run.start(1, "work", 3, 20))
    time.sleep(1)
    run.folder = run.folder / "more"
    run.folder.mkdir()
    workers += go(run.start(index, "work", processes, 20))
    said = {worker.ended(20) for worker in workers}
    assert len(said) == 1
    status, line = said.pop()
    assert status == 1
    assert named in one_line(line)


@pytest.mark.parametrize("run", ["bare"], indirect=True)
@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000, b"\0" * 100_000, b'{"kind": "hello"}\n', b""]
)
def test_strangers_are_ignored(run: Run, data: bytes) -> None:
    [first] = go(run.start(0, "end", timeout=20))
    host, _, port = run.address.partition(":")
    while True:
        try:
            stranger = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    with stranger:
        stranger.sendall(data)
        [other] = go(run.start(1, "end", timeout=20))
        assert [worker.ended(30) for worker in (first, other)] == [(0, ""), (0, "")]


def test_a_port_in_use_by_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match=f"process 0 at {address}"):
            meet(address, 2, 1, 1)
    assert time.monotonic() - start < 2 * 1 + SLACK
