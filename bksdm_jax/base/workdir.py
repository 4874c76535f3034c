"""A workdir belongs to one run, whose settings are in its `config.json`."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder, read_json, write_json
from bksdm_jax.base.locks import LOCK, hold
from bksdm_jax.base.paths import MOST_READ

_COMPILED = ".compiled"  # of earlier versions, which left it behind before they claimed a workdir
_SHA256 = "[0-9a-f]{64}"
_LATE = 60  # seconds within which a shared disk shows what another machine wrote


def require_same(
    workdir: Path, settings: Mapping[str, Any], may_change: Collection[str], is_first: bool = True
) -> None:
    """Compares `settings` with those of the run in `workdir`; if they are the same, the workdir is locked.

    Writes nothing to a folder that isn't this run's.

    Args:
        workdir: the folder; it need not exist.
        settings: plain data; of hashes, and dicts of counts with a hash under `sha256`, an error says that what is
            hashed has changed, and by how much.
        may_change: keys that may differ when the run continues; those of nested settings as in `optimizer.epsilon`.
        is_first: whether this is the one of the run's processes that locks.

    Raises:
        InputError: the workdir is another run's or in use by another program, or has other files in it.
    """
    path = workdir / "config.json"
    if not path.exists():
        if workdir.is_file():
            raise InputError(f"{workdir}: is a file; choose a folder as workdir")
        if is_used(workdir):
            raise InputError(f"{workdir}: not empty and not created by this program; choose another workdir")
        return
    former = read_json(path, MOST_READ)
    theirs, ours = (_without(found, may_change).keys() for found in (former, settings))
    if len(theirs & ours) < len(theirs ^ ours):
        raise InputError(f"{path}: written by another program; choose another workdir")
    if changed := difference(former, settings, may_change):
        raise InputError(f"{path}: {changed}; choose another workdir, or restore it")
    if is_first and hold(workdir, needed=False):
        require_same(workdir, settings, may_change)  # another run may have changed them before it was locked


def difference(former: Mapping[str, Any], present: Mapping[str, Any], may_change: Collection[str]) -> str:
    """The first setting that differs, in words, of those that may not; empty: none. `may_change` as `require_same`."""
    former, present = (_without(json.loads(json.dumps(found)), may_change) for found in (former, present))
    for key in sorted(former.keys() | present.keys()):
        if former.get(key) != present.get(key):
            return _difference(key, former.get(key), present.get(key))
    return ""


def _without(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    found = {key: value for key, value in settings.items() if key not in keys}
    for outer, _, inner in (key.partition(".") for key in keys):
        if inner and isinstance(found.get(outer), dict):
            found[outer] = _without(found[outer], (inner,))
    return found


def require_same_parts(workdir: Path, key: str, parts: Mapping[str, str], what: str) -> None:
    """Compares the hashes of a model's parts with those that the run in `workdir` recorded under `key`, if it did.

    Raises `InputError`, with `what` the model is called, if a part has changed.
    """
    path = workdir / "config.json"
    former = read_json(path, MOST_READ).get(key) if path.exists() else None
    changed = [name for name in parts if isinstance(former, dict) and former.get(name) != parts[name]]
    if changed:
        raise InputError(
            f"{path}: since this workdir's run began, the {what} has changed ({', '.join(changed)}); "
            "choose another workdir, or restore it"
        )


def _difference(key: str, old: Any, new: Any) -> str:
    """The first value inside `key` that differs, by its name (`loss.task`, `texts.3`), in words."""
    if _are_facts(old) and _are_facts(new):
        return f"the {_noun(key)} changed since this run began: {_counted(old, new)}"
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in old | new if old.get(name) != new.get(name))
        return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    if any(isinstance(value, str) and re.fullmatch(_SHA256, value) for value in (old, new)):
        return f"the {_noun(key)} changed since this run began"
    return f"{key} is {_short(old)} in this workdir, now {_short(new)}"


def _are_facts(value: Any) -> bool:
    """Whether this is a hash with counts, as of data: `{"rows": 40, "sha256": "..."}`."""
    if not isinstance(value, dict) or not isinstance(value.get("sha256"), str):
        return False
    return all(type(count) is int for name, count in value.items() if name != "sha256")


def _counted(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How many more or fewer there are of what is counted; names of counts are plurals."""
    names = sorted((old.keys() | new.keys()) - {"sha256"})
    found = []
    for name in names:
        more = new.get(name, 0) - old.get(name, 0)
        if more:
            noun = name.removesuffix("s") if abs(more) == 1 else name
            found.append(f"{abs(more)} {noun} {'more' if more > 0 else 'fewer'}")
    same = f"same number of {' and '.join(names)}, " if names else ""
    return ", ".join(found) or f"{same}other names or contents"


def _noun(key: str) -> str:
    """What a hash is of: `data_sha256` and `data_facts` are of data."""
    name = re.sub(r"_(sha256|facts)(?=\.|$)", "", key)
    return name if "." in name else name.replace("_", " ")


def is_used(folder: Path) -> bool:
    """Whether `folder` exists and isn't an empty folder.

    Hidden files count, since they are the user's too, except for what a kill during `claim` leaves behind.
    """
    if not folder.is_dir():
        return folder.exists()
    return any(path.name not in (".config.json.partial", _COMPILED, LOCK) for path in folder.iterdir())


def claim(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Creates `workdir`, locks it, and records `settings` in it; `require_same` comes before.

    Raises `InputError` if it can't be written, or another program uses it or has used it since `require_same`.
    """
    path = make_folder(workdir) / "config.json"
    if hold(workdir) and path.exists():
        raise InputError(f"{workdir}: another program has just used it; run the command again")
    write_json(path, settings)


def require_shared(workdir: Path) -> None:
    """Raises `InputError` if the first process's `config.json` doesn't become visible to this process in time."""
    deadline = time.monotonic() + _LATE
    while not (workdir / "config.json").is_file():
        if time.monotonic() > deadline:
            raise InputError(
                f"{workdir}: files of the run's first process aren't visible to this one; choose a workdir on a disk "
                "that all processes share"
            )
        time.sleep(1)


def as_written(value: Any) -> str:
    """A setting as a user would write it: `1e-5`, `1e10`, `'text'`."""
    text = repr(value)
    if isinstance(value, float) and math.isfinite(value) and not (value == 0 or 1e-3 <= abs(value) < 1e6):
        mantissa, _, exponent = f"{Decimal(text):e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = min(text, f"{mantissa}e{int(exponent)}", key=len)
    return text


def changed_settings(config: Any, prefix: str = "config") -> Iterator[str]:
    """The settings of a dataclass that aren't its defaults, one `KEY = VALUE` each."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from changed_settings(value, key)
        elif value != field.default:
            yield f"{key} = {as_written(value)}"


def _short(value: Any) -> str:
    text = "not set" if value is None else as_written(value)
    return text if len(text) <= 100 else text[:97] + "..."
