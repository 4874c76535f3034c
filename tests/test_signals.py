"""Ctrl-C and SIGTERM in programs: while Python runs, while it doesn't, in a loop, and while evaluating."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bksdm_jax.base.files import atomic_file
from bksdm_jax.base.signals import Interrupted, Interrupts
from bksdm_jax.training.task import Evaluator
from launch import train
from tests.conftest import ROOT
from tests.regression import Regression, checkpoint_steps, run, table

DEAF = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'  # C that Python can't interrupt; other threads run


def program(body: str, number: int) -> tuple[int, str]:
    """Status and last line of a program that gets a signal when it has said so."""
    frame = """
        import hashlib, sys, time
        from bksdm_jax.base import signals
        signals._PATIENCE = 0.2
        try:
            with signals.handled():
                {}
        except signals.Interrupted as error:
            print(error.line, file=sys.stderr)
            sys.exit(error.status)
    """
    text = textwrap.dedent(frame).format(textwrap.indent(textwrap.dedent(body), " " * 8).strip())
    process = subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.strip().split("\n")[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", ["time.sleep(60)", DEAF], ids=["python", "library"])
def test_a_signal_ends_a_program_with_nothing_saved(number: signal.Signals, work: str) -> None:
    status, line = program(f'print("ready", flush=True)\n{work}', number)
    assert status == 128 + number
    assert line == "interrupted"


@pytest.mark.parametrize("work", ["time.sleep(60)", DEAF], ids=["python", "library"])
def test_what_is_saved_decides_the_status(work: str) -> None:
    body = f"""
        with signals.leaving(lambda number: (75, "continues from step 3")):
            print("ready", flush=True)
            {work}
    """
    assert program(body, signal.SIGTERM) == (75, "continues from step 3")


def test_a_signal_counts_where_python_ignores_exceptions() -> None:
    body = """
        import gc

        def slow(phase, info):
            print("ready", flush=True)
            time.sleep(1)

        gc.callbacks.append(slow)
        gc.collect()
        gc.callbacks.clear()
        time.sleep(100)
    """
    assert program(body, signal.SIGTERM)[0] == 143


def test_a_loop_stops_when_it_looks() -> None:
    body = """
        with signals.Interrupts() as interrupts:
            print("ready", flush=True)
            while not interrupts.wanted:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 3 * 10**6)
        raise signals.Interrupted(75, "saved")
    """
    assert program(body, signal.SIGTERM) == (75, "saved")


def test_a_block_in_a_loop_can_be_left_at_once() -> None:
    """With or without a former handler, which is there again afterwards."""
    former = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted), interrupts.raising():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.wanted
        with pytest.raises(Interrupted), interrupts.raising():
            pytest.fail("the signal came before")
    assert signal.getsignal(signal.SIGTERM) is former


def kill(step: int, at: int) -> None:
    if step == at:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [4, 6, 7])
def test_an_evaluation_that_was_interrupted_is_done_when_the_run_continues(tmp_path: Path, at: int) -> None:
    """The state is saved; the last step's evaluation too is done in the end, and no row stands twice."""
    whole, _ = run(tmp_path / "whole")
    made, _ = run(tmp_path / "run", task=Regression(probe=lambda step: kill(step, at)))
    assert made is None
    assert checkpoint_steps(tmp_path / "run")[-1] == at
    made, again = run(tmp_path / "run")
    np.testing.assert_array_equal(made, whole)
    assert again.evaluated[0] == at
    for name in ("metrics.csv", "probe.csv"):
        assert table(tmp_path / "run" / name) == table(tmp_path / "whole" / name)


def test_the_initial_weights_are_evaluated_once(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", evaluate_first=True)
    interrupt: Callable[[int], object] = lambda step: kill(step, 0)  # noqa: E731
    assert run(tmp_path / "run", task=Regression(probe=interrupt), evaluate_first=True)[0] is None
    made, again = run(tmp_path / "run", evaluate_first=True)
    np.testing.assert_array_equal(made, whole)
    assert again.evaluated[:2] == [0, "seen 0"]
    for name in ("metrics.csv", "probe.csv"):
        assert table(tmp_path / "run" / name) == table(tmp_path / "whole" / name)


def test_only_what_is_left_is_evaluated_again(tmp_path: Path) -> None:
    class Second(Regression):
        def evaluators(self, mesh: Any, workdir: Path) -> dict[str, Evaluator]:
            def look(step: int, *_: Any) -> dict[str, float]:
                self.evaluated.append(f"seen {step}")
                self.probe(step)
                return {}

            return {"probe": Evaluator(4, lambda step, *_: {"step": step}), "look": Evaluator(4, look, metrics=False)}

    interrupt: Callable[[int], object] = lambda step: kill(step, 4)  # noqa: E731
    assert run(tmp_path, task=Second(probe=interrupt))[0] is None
    _, task = run(tmp_path, task=Second())
    assert task.evaluated == ["seen 4", "seen 7"]
    assert [row["step"] for row in table(tmp_path / "probe.csv")] == ["4", "7"]


def test_a_grid_that_a_full_disk_refuses_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Regression):
        def evaluators(self, mesh: Any, workdir: Path) -> dict[str, Evaluator]:
            def draw(*_: Any) -> dict[str, float]:
                with atomic_file(tmp_path / "grid.png"):
                    raise OSError(errno.ENOSPC, "No space left on device")

            return {"grid": Evaluator(4, draw, metrics=False)}

    made, _ = run(tmp_path, task=Full())
    assert np.isfinite(made).all()
    told = [line for line in caplog.messages if "No space left" in line]
    assert [line.startswith("grid at step ") for line in told] == [True, True]


def test_a_signal_before_the_first_update_leaves_nothing(tmp_path: Path) -> None:
    class Slow(Regression):
        def initial_params(self) -> Any:
            raise Interrupted(143, "interrupted")

    with pytest.raises(Interrupted):
        run(tmp_path, task=Slow())
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_starting_again_keeps_what_is_saved(tmp_path: Path) -> None:
    class Slow(Regression):
        def evaluators(self, mesh: Any, workdir: Path) -> Any:
            raise Interrupted(143, "interrupted")

    run(tmp_path, task=Regression(stop_before=2))
    assert run(tmp_path, task=Slow())[0] is None


def test_a_signal_while_the_program_starts_again_says_that_it_continues(tmp_path: Path) -> None:
    """Before the checkpoints are opened, which takes JAX's import and the reading of a teacher."""
    for checkpoints in ("", str(tmp_path / "elsewhere")):
        config: Any = SimpleNamespace(checkpoints=checkpoints)
        folder = Path(checkpoints or tmp_path / "checkpoints") / "3"
        folder.mkdir(parents=True)
        assert train._left(config, tmp_path, signal.SIGTERM)[0] == 143
        (folder / "checksums.json").touch()
        assert train._left(config, tmp_path, signal.SIGTERM)[0] == 75


def test_a_second_sigterm_is_the_same_request() -> None:
    """Schedulers signal a job and its steps."""
    with Interrupts() as interrupts:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.wanted
        with pytest.raises(Interrupted), interrupts.raising():
            pass


def test_the_same_signal_twice_in_a_library_is_handled_once() -> None:
    body = """
        import os, signal, threading

        def twice():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)

        print("ready", flush=True)
        with signals.Interrupts() as interrupts:
            threading.Timer(0.01, twice).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 4 * 10**5)
        time.sleep(1)
        print("went on" if interrupts.wanted else "unheard", file=sys.stderr)
    """
    assert program(body, 0) == (0, "went on")


def test_an_evaluator_that_was_switched_off_is_not_due(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(tmp_path, task=Regression(probe=stop))[0] is None

    class Unwatched(Regression):
        def evaluators(self, mesh: Any, workdir: Path) -> dict[str, Evaluator]:
            return {}

    made, _ = run(tmp_path, task=Unwatched())
    assert np.isfinite(made).all()


def test_a_failed_program_does_not_wait_for_a_librarys_threads() -> None:
    code = """
        import sys, threading, time
        from launch import command
        command._AT_MOST = 0.2
        threading.Thread(target=time.sleep, args=(100,)).start()
        command._end_soon()
        sys.exit("error: the disk is read-only")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"error: the disk is read-only\n")
