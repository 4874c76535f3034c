"""The scores of a teacher's blocks in a file, as `launch.analyse` writes it."""

from bksdm_jax.base.errors import InputError, finite_number, listed
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import local_path
from bksdm_jax.cost.counts import Cost, block_costs, unet_cost
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.pruning.criteria import chosen
from bksdm_jax.pruning.removal import removed_blocks
from bksdm_jax.pruning.targets import Target, missing_scores, read_target

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
    return chosen(read_scores(teacher, target, scores), block_costs(teacher, size), whole, target)


def read_scores(teacher: UNetConfig, target: Target, scores: str) -> dict[str, float]:
    """Block -> its score by the target's criterion.

    Raises `InputError` if there is no such file, or it doesn't have a number for each block of the teacher.
    """
    if not scores:
        raise missing_scores(target.text)
    path = local_path("block_scores", scores)
    path = path / FILE if path.is_dir() else path
    found = read_json(path).get("scores")
    if not isinstance(found, dict) or not isinstance(found.get(target.criterion), dict):
        known = listed(sorted(found)) if isinstance(found, dict) and found else "none"
        raise InputError(f"{path}: no scores by {target.criterion}; it has: {known}")
    each = found[target.criterion]
    blocks = replaceable(teacher)
    if each.keys() != set(blocks):
        odd = sorted(each.keys() ^ set(blocks))[0]
        raise InputError(f"{path}: the scores are of another U-Net than the teacher's: {odd} is in one alone")
    return {block: finite_number(str(path), block, each[block]) for block in blocks}
