"""Images that are read directly are opened before a run, once for its workdir."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.distributed import is_first
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.forms.pairs import counted
from bksdm_jax.data.forms.reasons import commonest
from bksdm_jax.data.pair_examples import PairExamples, unusable_error

SKIPPED = "skipped.csv"
"""The file of a workdir that lists images that couldn't be used."""
_CHECKED = ".images_checked.json"


def check_images(found: Sequence[Any], where: AnyPath, skip: bool, workdir: Path) -> None:
    """Opens every image that is read directly, unless that was done for this workdir and no file has changed since.

    `where` the examples come from is for errors. Raises `InputError` if images can't be used and `skip` isn't set.
    """
    if isinstance(found, PairExamples) and is_first() and not _is_checked(found, workdir, skip):
        rejects = found.unusable()
        if rejects and not skip:
            raise unusable_error(where, rejects, found.facts()["pairs"])
        if rejects:
            number, told = counted(len(rejects), "image"), commonest(rejects)
            logging.warning("%s: %s can't be used and will be skipped (%s)", where, number, told)


def note_checked(found: Sequence[Any], skip: bool, workdir: Path) -> None:
    """Notes in a claimed workdir that all images were opened, and whether all of them had to be usable."""
    if isinstance(found, PairExamples) and is_first():
        write_json(workdir / _CHECKED, {"listing": found.listing, "skips": skip})


def _is_checked(found: PairExamples, workdir: Path, skip: bool) -> bool:
    path = workdir / _CHECKED
    if not path.exists():
        return False
    noted = read_json(path)
    return noted.get("listing") == found.listing and (skip or not noted.get("skips"))
