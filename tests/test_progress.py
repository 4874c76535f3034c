"""Long work speaks: lines of a log while it lasts, and rates without the time spent waiting."""

import logging
import re
import threading
import time

import pytest

from bksdm_jax.base import progress
from bksdm_jax.base.progress import Progress, waiting


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "absl")
    return caplog


def test_waiting_speaks_before_during_and_after(said: pytest.LogCaptureFixture) -> None:
    with waiting("compiling", every=0.02):
        assert said.messages == ["compiling ..."]
        time.sleep(0.15)
    _, *during, last = said.messages
    assert len(during) >= 2
    assert all(re.fullmatch(r"compiling: \d+ s \.\.\.", line) for line in during)
    assert re.fullmatch(r"compiling: \d+ s", last)


def test_what_is_quick_may_be_silent(said: pytest.LogCaptureFixture) -> None:
    with waiting("reading", quiet=60.0):
        pass
    assert said.messages == []
    with waiting("reading", quiet=0.01, every=60.0):
        while not said.messages:
            time.sleep(0.01)
    assert [re.sub(r"\d+", "N", line) for line in said.messages] == ["reading: N s ...", "reading: N s"]


def test_only_what_began_last_speaks(said: pytest.LogCaptureFixture) -> None:
    with Progress("all", 2, every=0.01), waiting("outer", every=0.01):
        with waiting("inner", every=0.01):
            time.sleep(0.1)
            during = list(said.messages)
        time.sleep(0.1)
    assert sum(line.startswith("inner") for line in during) >= 3
    inner = during.index("inner ...")
    assert not any(line.startswith(("outer", "all")) for line in during[inner:])
    assert sum(line.startswith("outer: ") for line in said.messages) >= 3


def test_an_error_ends_it_at_once(said: pytest.LogCaptureFixture) -> None:
    before, start = threading.active_count(), time.monotonic()

    def interrupted() -> None:
        with Progress("images", 3), waiting("compiling"):
            assert threading.active_count() == before + 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < progress.EVERY / 2
    assert threading.active_count() == before
    assert said.messages == ["compiling ..."]
    assert progress._under_way == []


def test_rates_leave_out_what_was_waited_for(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("images", 10, done=2) as counted:
        with waiting("evaluating"):
            with waiting("compiling"):
                now[0] += 100.0
            now[0] += 20.0
        now[0] += 4.0
        counted.advance(2, "loss 1")
        counted._say()
        now[0] += 4.0
        counted.advance(6)
    assert [line for line in said.messages if line.startswith("images")] == [
        "images: 4 of 10, 0.50/s, 12 s left loss 1",
        "images: 10 of 10, 1.00/s, 0 s left loss 1",
    ]


def test_a_log_is_told_of_what_does_not_advance(said: pytest.LogCaptureFixture) -> None:
    with Progress("images", 3, every=0.01):
        while len(said.messages) < 2:
            time.sleep(0.01)
    assert {line.strip() for line in said.messages} == {"images: 0 of 3"}
