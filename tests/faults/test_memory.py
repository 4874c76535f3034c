"""Many saves of a large state."""

import subprocess
import sys
from collections.abc import Callable

from tests.conftest import ROOT
from tests.faults.trials import trials

STATE, ALLOWED = 500, 50
"""MB."""


def test_memory_stays(figure: Callable[[str], None]) -> None:
    count = trials("saves")
    command = [sys.executable, "-m", "tests.faults.saves", str(STATE), str(count)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    after = [float(line) for line in said.split()]
    assert len(after) == count
    grown = max(after[1:]) - after[1]
    figure(f"memory: {count} saves of {STATE} MB; {after[1]:.0f} MB after the second, later up to {grown:+.0f} MB")
    assert grown <= ALLOWED, after
