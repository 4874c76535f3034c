"""One of two processes killed, stopped, never started, or with a mistake of its own: what becomes of the other."""

import os
import signal
import socket
import time
from collections.abc import Callable

import pytest

from bksdm_jax.base.exits import FAILED, RESTART
from tests.faults.training import LONG, Training, Victim
from tests.faults.trials import choices, trials

TIMEOUT = 20
_SLACK = 10  # seconds, for a machine that does other things too


def flags(index: int, port: int) -> tuple[str, ...]:
    return f"--distributed=127.0.0.1:{port}", "--processes=2", f"--process_id={index}", f"--timeout={TIMEOUT}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(training: Training, steps: int) -> list[Victim]:
    port = free_port()
    return [training.start(steps, flags=flags(index, port)) for index in range(2)]


def told(victim: Victim, index: int, status: int, since: float) -> float:
    """The seconds until the process that was left ended, with this status and a line that names the other."""
    assert victim.end() == status, victim.said()[-3000:]
    seconds = time.monotonic() - since
    assert f"process {index}" in victim.last_line(), victim.last_line()
    assert seconds <= 2 * TIMEOUT + _SLACK
    return seconds


@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_lost(begin: Callable[..., Training], figure: Callable[[str], None], kind: str) -> None:
    count, random, took = trials("peers"), choices(kind), []
    training = begin(kind, checkpoint_every=5)
    for number in range(count):
        victims = start(training, LONG)
        done = training.rows()
        if random.random() < 0.3:
            victims[0].until_said("compiling the update")
        else:
            least = done + random.randrange(1, 8)
            victims[0].until(lambda least=least: training.rows() >= least)
        lost, left = (victims[number % 2], victims[1 - number % 2])
        os.kill(lost.process.pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        took.append(told(left, number % 2, RESTART, time.monotonic()))
        os.kill(lost.process.pid, signal.SIGCONT)
        assert lost.end() == (RESTART if kind == "stopped" else 128 + signal.SIGKILL)
    steps = (training.newest() // 5 + 1) * 5
    for victim in start(training, steps):
        assert victim.end() == 0, victim.said()[-3000:]
    undisturbed = begin("undisturbed", checkpoint_every=5)
    for victim in start(undisturbed, steps):
        assert victim.end() == 0, victim.said()[-3000:]
    assert training.bits(steps) == undisturbed.bits(steps)
    assert training.table("metrics.csv") == undisturbed.table("metrics.csv")
    training.finish(steps + 1)  # one process continues what two began
    figure(
        f"one of two processes {kind}: {count} of {count} ended by one line, status {RESTART}, "
        f"within {max(took):.0f} s of {2 * TIMEOUT}; after {steps} steps as undisturbed"
    )


def test_missing(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    count, took = trials("peers"), []
    training = begin("missing")
    for number in range(count):
        since = time.monotonic()
        victim = training.start(LONG, flags=flags(number % 2, free_port()))
        took.append(told(victim, 1 - number % 2, FAILED, since))
        assert not training.workdir.exists()
    figure(f"the other process never started: {count} of {count} ended by one line within {max(took):.0f} s")


def test_mistaken(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    count, took = trials("peers"), []
    training = begin("mistaken")
    for number in range(count):
        port, wrong = free_port(), number % 2
        victims = [
            training.start(LONG, flags=flags(index, port), **({"data": "/nowhere"} if index == wrong else {}))
            for index in range(2)
        ]
        assert victims[wrong].end() == FAILED
        since = time.monotonic()
        assert "/nowhere" in victims[wrong].last_line()
        took.append(told(victims[1 - wrong], wrong, FAILED, since))
        assert "/nowhere" in victims[1 - wrong].last_line()
    figure(f"one process with a mistake: {count} of {count} told the other, which ended within {max(took):.0f} s")
