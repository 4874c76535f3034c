"""A workdir belongs to the settings of one run, which `config.json` in it records."""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json

COMPILED = ".compiled"
"""Name of a workdir's folder of XLA's compiled programs, which may be there before the workdir is claimed."""

_LATE = 60  # seconds after which a shared disk shows what another machine wrote


def require_same(workdir: Path, settings: Mapping[str, Any], may_change: Collection[str]) -> None:
    """Holds `settings` to those of the run that `workdir` has, if it has one. Writes nothing.

    Args:
        workdir: the folder; it need not exist.
        settings: plain data.
        may_change: keys that don't change a run's results, and so may differ when it goes on.

    Raises:
        InputError: another run's folder, or one with other things in it.
    """
    path = workdir / "config.json"
    if not path.exists():
        if is_used(workdir):
            raise InputError(f"{workdir}: not empty and not created by this program; choose another workdir")
        return
    former, present = read_json(path), json.loads(json.dumps(settings))
    for key in sorted(former.keys() | present.keys()):
        if key not in may_change and former.get(key) != present.get(key):
            raise InputError(
                f"{path}: this workdir's run has {key} {_short(former.get(key))}, not {_short(present.get(key))}; "
                "choose another workdir"
            )


def is_used(folder: Path) -> bool:
    """Whether `folder` exists already and isn't an empty folder.

    Hidden files count, since they are the user's too; those that a kill before the end of `claim` leaves don't.
    """
    if not folder.is_dir():
        return folder.exists()
    return any(path.name not in (".config.json.partial", COMPILED) for path in folder.iterdir())


def claim(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Makes `workdir` and records `settings` in it.

    Raises:
        InputError: it can't be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", settings)
    except OSError as error:
        raise InputError(f"{workdir}: can't be written ({error.strerror}); choose another workdir") from error


def require_shared(workdir: Path) -> None:
    """Raises `InputError` if what the first process of a run recorded isn't there, for as long as disks may take."""
    deadline = time.monotonic() + _LATE
    while not (workdir / "config.json").is_file():
        if time.monotonic() > deadline:
            raise InputError(
                f"{workdir}: what the run's first process wrote here isn't visible to this one; choose a "
                "workdir on a disk that all processes share"
            )
        time.sleep(1)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
