"""Students by a target of size, such as `taylor:482M`; nothing here imports JAX."""

import dataclasses
import re
from decimal import Decimal

from bksdm_jax.base.errors import InputError, known_name, shown

CRITERIA = {
    "magnitude": "mean sum of |W| of an output neuron",
    "taylor": "mean sum of |dL/dW * W| of an output neuron",
    "output_error": "squared error of the U-Net's output without the block",
    "clip": "drop of the images' CLIP score without the block",
    "frechet": "rise of the images' Frechet distance without the block",
}
"""Criterion -> what the score of a block is; blocks with the lowest scores go first."""
RANDOM = "random"
_RANDOM = re.compile(rf"{RANDOM}(\d{{1,9}})")
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,12})?)([A-Z])")
_UNITS = {"M": ("parameters", 10**6, "parameters"), "G": ("macs", 10**9, "multiply-adds")}


@dataclasses.dataclass(frozen=True)
class Target:
    """A student of a given size by a criterion.

    Attributes:
        text: as the user wrote it.
        criterion: a key of `CRITERIA`, or `RANDOM`.
        of: `parameters`, or `macs`: of one U-Net call for the teacher's own size of images.
        amount: the most of them.
        seed: of `RANDOM`.
    """

    text: str
    criterion: str
    of: str
    amount: int
    seed: int = 0

    def shown(self, amount: int) -> str:
        """An amount as in a target, in words."""
        _, unit, noun = next(row for row in _UNITS.values() if row[0] == self.of)
        letter = next(letter for letter, row in _UNITS.items() if row[0] == self.of)
        return f"{amount / unit:.4g}{letter} {noun}"


def read_target(student: str) -> Target | None:
    """`taylor:482M` (million parameters) or `taylor:217G` (billion multiply-adds); None: a preset or a list of blocks.

    `random7:482M` takes the blocks in a random order that follows from the seed 7. Raises `InputError` for an unknown
    criterion or unit.
    """
    criterion, colon, size = student.strip().partition(":")
    if not colon or "." in criterion or "," in student or size == "interpolate":
        return None
    by_chance = _RANDOM.fullmatch(criterion)
    if not by_chance:
        known_name("student", "criterion", criterion, (*CRITERIA, f"{RANDOM}0"))
    found = _SIZE.fullmatch(size)
    if not found or found[2] not in _UNITS or not Decimal(found[1]):
        raise InputError(
            f"student: {shown(size)} isn't a size; expected one such as 482M (parameters) or 217G (multiply-adds)"
        )
    of, unit, _ = _UNITS[found[2]]
    amount = int(Decimal(found[1]) * unit)
    if by_chance:
        return Target(student.strip(), RANDOM, of, amount, int(by_chance[1]))
    return Target(student.strip(), criterion, of, amount)


def missing_scores(student: str) -> InputError:
    """The error for a target without the scores that it needs."""
    return InputError(
        f"student: {student} needs the scores of the teacher's blocks: run launch.analyse, and give its workdir as "
        "--config.block_scores=DIR"
    )
