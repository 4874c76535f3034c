"""Reads a student's `removal_plan.json`: which teacher block each of its blocks comes from."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json
from bksdm_jax.formats.limits import MOST_BLOCKS, MOST_LAYERS, MOST_STAGES
from bksdm_jax.pruning.removal import INTERPOLATE

PLAN = "removal_plan.json"
_BLOCK = r"(?:(?:down|up)_blocks\.\d{1,3}|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d{1,3}"
_LAYER = re.compile(rf"({_BLOCK})\.transformer_blocks\.\d{{1,3}}")
_STAGE = r"(?:down|up)_blocks\.\d{1,3}|mid_block"
_ANY = re.compile(rf"({_BLOCK}(\.transformer_blocks\.\d{{1,3}})?|{_STAGE})({INTERPOLATE})?")
_MOST = {"blocks": MOST_BLOCKS + 2 * MOST_STAGES, "layers": MOST_BLOCKS * MOST_LAYERS}


@dataclasses.dataclass(frozen=True)
class StoredPlan:
    """The part of a removal plan that doesn't need the networks' widths.

    Attributes:
        removed: the teacher's blocks, as they were asked to be removed.
        students: teacher block -> student block, for every remaining one.
        layers: the same for transformer layers; empty if all transformers have one.
    """

    removed: tuple[str, ...]
    students: Mapping[str, str]
    layers: Mapping[str, str]

    def renamed(self, module: str) -> str:
        """The student's name of a module of the teacher's U-Net; empty: its block was removed."""
        block = block_of_module(module)
        if not block:
            return module  # outside the blocks, such as `conv_in`
        layer = _LAYER.match(module)
        if layer and self.layers:
            student = self.layers.get(layer[0], "")
            return student + module.removeprefix(layer[0]) if student else ""
        student = self.students.get(block, "")
        return student + module.removeprefix(block) if student else ""


def block_of_module(module: str) -> str:
    """The block of a module, `down_blocks.1.resnets.0` of `down_blocks.1.resnets.0.conv1`; empty: it is in none."""
    found = re.match(rf"{_BLOCK}(?=\.|$)", module)
    return found[0] if found else ""


def read_plan(path: Path) -> StoredPlan:
    """Reads a plan as `RemovalPlan.to_json` writes it; raises `InputError` if the file holds something else."""
    json = read_json(path)
    removed = json.get("removed")
    if not isinstance(removed, list) or not all(isinstance(name, str) and _ANY.fullmatch(name) for name in removed):
        raise InputError(f"{path}: removed is {shown(removed)}; expected a list of blocks")
    tables = {}
    for key, pattern in (("blocks", re.compile(_BLOCK)), ("layers", _LAYER)):
        table = json.get(key, {} if key == "layers" else None)
        if not isinstance(table, dict) or len(table) > _MOST[key]:
            raise InputError(f"{path}: {key} is {shown(table)}; expected the student's names -> the teacher's")
        for pair in table.items():
            if not all(isinstance(name, str) and pattern.fullmatch(name) for name in pair):
                raise InputError(f"{path}: {key} has {shown(pair)}; expected two names of {key}")
        tables[key] = {teacher: student for student, teacher in table.items()}
        if len(tables[key]) < len(table):
            raise InputError(f"{path}: {key} has a block of the teacher twice; prune the student again")
    return StoredPlan(tuple(removed), tables["blocks"], tables["layers"])
