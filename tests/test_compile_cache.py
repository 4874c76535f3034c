"""Compiled programs are kept between runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from bksdm_jax.base.compile_cache import keep_compiled

DIR = "JAX_COMPILATION_CACHE_DIR"
PROGRAM = """
import os, sys
from bksdm_jax.base.compile_cache import keep_compiled
keep_compiled()
assert "jax" not in sys.modules
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
assert jax.jit(lambda x: x * 2 + 1)(20.5) == 42
print(events.count("cache_hits"), events.count("cache_misses"))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path / "bksdm_jax" / "compiled"


def run() -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_second_run_compiles_nothing(cache: Path) -> None:
    hits, misses = map(int, run().split())
    assert hits == 0 < misses == len(list(cache.glob("*/*-cache")))
    assert run() == f"{misses} 0\n"


@pytest.mark.parametrize("name", [DIR, "JAX_ENABLE_COMPILATION_CACHE"])
def test_what_the_user_has_set_stays(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, name, "0")
    keep_compiled()
    assert {key: value for key, value in os.environ.items() if key.startswith("JAX_")} == {name: "0"}
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_means_no_cache(cache: Path) -> None:
    cache.parent.write_text("a file")
    keep_compiled()
    assert DIR not in os.environ


def test_what_a_kill_has_left_half_written_is_removed(cache: Path) -> None:
    keep_compiled()
    folder = Path(os.environ[DIR])
    for name in ("whole", "half"):
        (folder / f"{name}-cache").write_text(name)
    (folder / "whole-atime").write_text("")
    del os.environ[DIR]
    with FileLock(folder / ".lockfile"):  # a process may be writing the half
        keep_compiled()
    assert (folder / "half-cache").exists()
    del os.environ[DIR]
    keep_compiled()
    assert sorted(path.name for path in folder.glob("*-*")) == ["whole-atime", "whole-cache"]


def test_without_a_home_there_is_no_cache(cache: Path) -> None:
    os.environ |= {"XDG_CACHE_HOME": "~nobody_of_this_name/x"}
    keep_compiled()
    assert DIR not in os.environ
