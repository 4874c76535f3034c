"""On CPUs memory is kept from one computation to the next."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bksdm_jax.base import host_memory
from tests.command_lines import ROOT

CALLS, PAGES = 9, 2**15
PROGRAM = f"""
import resource
import jax, jax.numpy as jnp
from bksdm_jax.base.host_memory import keep_memory
keep_memory()
program = jax.jit(lambda x: (jnp.flip(jnp.cumsum(x, axis=0), 0) * x).sum())  # two arrays of 64 MiB in between
x = jnp.ones((2**20, 16))
program(x).block_until_ready()
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range({CALLS}):
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(sorted(after - before for before, after in zip(faults, faults[1:]))[{CALLS // 2}])
"""


def faults(**own: str) -> float:
    """Pages that the system gave the program in a call, the median, as a share of what a call needs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "XLA_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=kept | own, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout) / PAGES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_a_call_uses_the_memory_of_the_former() -> None:
    assert faults(JAX_PLATFORMS="cpu") < 0.05


def test_a_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", None)  # isn't called
    host_memory.keep_memory()


@pytest.mark.parametrize(
    ("file", "asked", "cpus"),
    [
        ("null", None, True),
        ("nvidia0", None, False),
        ("accel/accel0", None, False),
        ("vfio/0", None, False),
        ("nvidia0", "cpu", True),
        ("null", "cuda,cpu", False),
        ("null", "cpu", True),
    ],
)
def test_machines_with_other_devices_are_left_alone(
    file: str, asked: str | None, cpus: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    was = jax.config.jax_platforms
    jax.config.update("jax_platforms", asked)
    try:
        assert host_memory._on_cpus(tmp_path) == cpus
    finally:
        jax.config.update("jax_platforms", was)
