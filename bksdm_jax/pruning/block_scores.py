"""The scores of a teacher's blocks in a file, as `launch.analyse` writes it."""

import random

from bksdm_jax.base.errors import InputError, finite_number, listed
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import AnyPath, local_path
from bksdm_jax.cost.counts import Cost, block_costs, unet_cost
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.pruning.criteria import chosen
from bksdm_jax.pruning.removal import removed_blocks
from bksdm_jax.pruning.targets import CRITERIA, RANDOM, Target, missing_scores, read_target

FILE = "blocks.json"
"""The name of such a file in the workdir of `launch.analyse`."""


def removed_from(teacher: UNetConfig, student: str, scores: str) -> tuple[str, ...]:
    """The removed blocks of a student: of a preset, a list, or a target such as `taylor:482M`.

    Args:
        teacher: whose blocks they are.
        student: as a user wrote it.
        scores: for a target, the file of the blocks' scores or the folder that it is in.

    Raises:
        InputError: as `removed_blocks` and `chosen`, or the file can't be used.
    """
    target = read_target(student)
    if target is None:
        return removed_blocks(student)
    size = teacher.sample_size or 64
    whole = sum(unet_cost(teacher, size).values(), Cost())
    found = _random_scores(teacher, target.seed) if target.criterion == RANDOM else read_scores(teacher, target, scores)
    return chosen(found, block_costs(teacher, size), whole, target)


def _random_scores(teacher: UNetConfig, seed: int) -> dict[str, float]:
    generator = random.Random(seed)  # whose numbers are the same with every version of Python
    return {block: generator.random() for block in replaceable(teacher)}


def read_scores(teacher: UNetConfig, target: Target, scores: str) -> dict[str, float]:
    """Block -> its score by the target's criterion.

    Raises `InputError` as `read_all_scores`, or if there are none by this criterion.
    """
    if not scores:
        raise missing_scores(target.text)
    found = read_all_scores(teacher, scores)
    if target.criterion not in found:
        raise InputError(f"{_file(scores)}: no scores by {target.criterion}; it has: {listed(sorted(found))}")
    return found[target.criterion]


def read_all_scores(teacher: UNetConfig, scores: str) -> dict[str, dict[str, float]]:
    """Criterion -> block -> its score, from the file of the blocks' scores or the folder that it is in.

    Raises `InputError` if there is no such file, it has no scores, or a criterion doesn't have a number for each block
    of the teacher.
    """
    path = _file(scores)
    found = read_json(path).get("scores")
    if not isinstance(found, dict):
        raise InputError(f"{path}: no scores of blocks; expected a file that launch.analyse wrote")
    blocks, every = replaceable(teacher), {}
    for criterion in (name for name in CRITERIA if isinstance(found.get(name), dict)):
        each = found[criterion]
        if each.keys() != set(blocks):
            odd = sorted(each.keys() ^ set(blocks))[0]
            raise InputError(f"{path}: the scores are of another U-Net than the teacher's: {odd} is in one alone")
        every[criterion] = {block: finite_number(str(path), block, each[block]) for block in blocks}
    if not every:
        raise InputError(f"{path}: no scores of blocks; continue launch.analyse there")
    return every


def _file(scores: str) -> AnyPath:
    path = local_path("block_scores", scores)
    return path / FILE if path.is_dir() else path
