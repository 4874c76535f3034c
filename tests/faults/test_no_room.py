"""A file system that is full, out of inodes, or read-only, while training writes to it.

Where mounting isn't allowed, a limit on the size of files (`RLIMIT_FSIZE`) stands for the full disk, and the other
kinds are left out.
"""

import contextlib
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disk import PAGE, Disk
from tests.faults.training import Training, Victim
from tests.faults.trials import choices, trials

EVERY, PART = 4, 12
EVALUATED = {"validation__every": EVERY, "sheets__steps": 2, "sheets__every": EVERY}
REASONS = ("no space left", "file too large", "read-only file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk | None]:
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(Disk(tmp_path / "disk"))
        except (OSError, subprocess.CalledProcessError):
            yield None


def pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


def take_room(kind: str, disk: Disk | None, checkpoint: Path, choice: random.Random) -> int:
    """Leaves too little for what a run of `PART` steps writes; returns the largest size of a file, in bytes."""
    size = pages(checkpoint)
    if kind == "inodes":
        disk.leave_files(choice.randrange(sum(1 for _ in checkpoint.rglob("*"))))
    elif kind == "read-only":
        disk.forbid()
    else:
        least, most = {"state": (0.05, 0.95), "checksums": (0.85, 1.0), "tables": (0.0, 0.02)}[kind]
        left = round(choice.uniform(least * size, most * size))
        if disk is None:
            return left * PAGE // 4
        disk.leave(left)
    return resource.RLIM_INFINITY


def require_told(training: Training, victim: Victim, kind: str) -> None:
    """It ended with one line that names the folder and the reason; so does the log of each checkpoint that failed."""
    last = victim.last_line()
    told = [line for line in victim.said().splitlines() if "checkpoint" in line and "can't be written" in line]
    for line in [last, *told]:
        assert str(training.workdir) in line, (kind, line)
        assert any(reason in line.lower() for reason in REASONS), (kind, line)
    assert last.startswith("error: "), (kind, last)


def test_full(begin: Callable[..., Training], figure: Callable[[str], None], disk: Disk | None) -> None:
    count, choice = trials("full"), choices("full")
    kinds = ["state", "tables", "inodes", "read-only", "checksums"] if disk else ["state"]
    training = begin("disk/run", checkpoint_every=EVERY, keep_checkpoints=1, **EVALUATED)
    if disk is None:
        training.workdir.parent.mkdir()
    steps = EVERY
    training.finish(steps)
    met = []
    for number in range(count):
        kind = kinds[number % len(kinds)] if number < len(kinds) else choice.choice(kinds)
        how = choice.choice(["retry", "stop"])
        limit = take_room(kind, disk, training.checkpoints / str(steps), choice)
        victim = training.start(steps + PART, without_room=how)
        resource.prlimit(victim.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        status = victim.end()
        if status or kind != "checksums":  # whose room may just suffice
            assert status == 1, (kind, how, victim.said()[-3000:])
            require_told(training, victim, f"{kind} {how}")
        assert training.newest() >= steps, (kind, how)
        met.append(
            f"{kind} {how}: {'wrote all' if not status else 'told'}, {training.newest() - steps} of {PART} saved"
        )
        if disk:
            disk.mend()
        steps += PART
        training.finish(steps, without_room=how)
    training.require_same(begin("undisturbed", **EVALUATED).finish(steps), steps)
    figure(f"no room: {count} trials, {count} recoveries; {'; '.join(met)}")


def test_read_only_at_some_time(
    begin: Callable[..., Training], figure: Callable[[str], None], disk: Disk | None
) -> None:
    """Of the checkpoints alone; training goes on until its end, or ends by choice."""
    if disk is None:
        pytest.skip("needs to mount")
    training, ends = begin("run", checkpoint_every=EVERY, keep_checkpoints=1), []
    training.finish(EVERY)  # a workdir that has no settings yet must be empty
    with Disk(training.checkpoints) as own:
        training.finish(2 * EVERY)
        for how, steps in (("stop", 100_000), ("retry", 200)):
            before, victim = training.newest(), training.start(steps, without_room=how)
            victim.until(lambda before=before: training.newest() > before)
            victim.until(lambda: forbidden(own))
            assert victim.end() == 1, victim.said()[-3000:]
            require_told(training, victim, how)
            ends.append((training.newest(), training.rows()))
            own.mend()
        training.finish(200)
        training.require_same(begin("undisturbed").finish(200), 200, ("metrics.csv",))  # each part's end was validated
    assert ends[1][1] == 200
    figure(f"read-only: newest checkpoint and last step by `stop`, then `retry`: {ends}; the end as undisturbed")


def forbidden(disk: Disk) -> bool:
    """Makes it read-only as soon as nothing is being written."""
    try:
        disk.forbid()
    except subprocess.CalledProcessError:
        return False
    return True
