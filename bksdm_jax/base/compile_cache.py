"""Keeps compiled programs between runs; nothing here imports JAX, which reads its settings once it is imported."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from filelock import FileLock, Timeout

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import cache_folder

_OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
_MOST = 10 * 2**30  # bytes; beyond, JAX deletes what was used longest ago


def keep_compiled() -> None:
    """Has JAX cache compiled programs, and how GPUs run them fastest, in the user's cache folder, up to 10 GiB.

    Call it before JAX is imported, and in a single process only: JAX has one of several write for all, whose folder the
    others might not see. JAX's own settings, by environment variables, are left as they are; a folder that
    can't be written means no cache.
    """
    if any(name in os.environ for name in _OWN):
        return
    try:
        folder = cache_folder() / "compiled" / _cpu()  # programs for CPUs run on such ones only
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (OSError, InputError):
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST))


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that were being written when their process was killed: JAX notes their time of use last.

    JAX holds the folder's lock while it reads or writes.
    """
    with contextlib.suppress(Timeout), FileLock(folder / ".lockfile", blocking=False):
        for path in folder.glob("*-cache"):
            if not path.with_name(path.name.removesuffix("-cache") + "-atime").exists():
                path.unlink(missing_ok=True)


def _cpu() -> str:
    """Stands for the instruction set of this machine's CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = sorted({line for line in text.splitlines() if re.match(r"model name|flags|Features|CPU part", line)})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
