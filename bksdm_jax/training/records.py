"""A workdir's small files: which settings changed when, and copies for a machine that lost its disk."""

import re
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.files import atomic_file, make_folder
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import is_used
from bksdm_jax.training.checkpoints import newest_whole, read_facts

CHANGES = "changes.csv"
"""The settings that changed during a run: after which step, which, from what to what."""
_HEAD = "step,key,former,present"
_KEPT = re.compile(r"config\.json|[a-z_]+\.csv")


def note_change(workdir: Path, step: int, key: str, former: Any, present: Any) -> None:
    """Writes a changed setting to `changes.csv`; to be called when a run continues after `step`.

    Rows of this and later steps go: what followed them wasn't kept.
    """
    path = workdir / CHANGES
    if not is_first() or (former == present and not path.exists()):
        return
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else [_HEAD]
    kept = [rows[0], *(row for row in rows[1:] if int(row.partition(",")[0]) < step)]
    if former != present:
        logging.info("%s: %s until step %d, now %s", key, former, step, present)
        kept.append(f"{step},{key},{former},{present}")
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")


def workdir_files(workdir: Path) -> dict[str, str]:
    """Name -> text of the settings and tables in a workdir."""
    found = [path for path in sorted(workdir.iterdir()) if _KEPT.fullmatch(path.name)] if is_first() else []
    return {path.name: path.read_text(encoding="utf-8") for path in found}


def bring_back(folder: AnyPath, workdir: Path) -> None:
    """Fills an empty workdir with the files that were saved with the newest checkpoint in a folder, if there is one."""
    if is_first() and not is_used(workdir):
        with waiting("looking for checkpoints", QUIET):
            step = newest_whole(folder)
        files = read_facts(folder / str(step))["files"] if step is not None else {}
        if "config.json" in files:
            logging.info("%s: empty; its settings and tables come from checkpoint %d in %s", workdir, step, folder)
            make_folder(workdir)
            for name in sorted(files, key="config.json".__eq__):  # that last, so that a kill in between does no harm
                if _KEPT.fullmatch(name):
                    with atomic_file(workdir / name) as temporary:
                        temporary.write_text(files[name], encoding="utf-8")
    barrier("workdir brought back")
