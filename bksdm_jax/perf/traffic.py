"""What a compiled program reads from a device's memory and writes to it, by kind of kernel.

XLA's own count of bytes accessed includes what a TPU's kernels read from memory on the chip, and counts what is
brought there three times.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bksdm_jax.perf.hlo import CompiledProgram, Instruction, bits_of
from bksdm_jax.perf.kernels import KINDS, KernelKinds

_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)(?:e\w+)?\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")  # of memory, with TPUs: 0 or nothing is the device's, others are on the chip
_REFERENCE = re.compile(r"%([\w.\-]+)")
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_NUMBER = re.compile(r"(\d+)")
_SAME = ("bitcast", "copy-done", "slice-done", "get-tuple-element")
_NOTHING = {*_SAME, "parameter", "constant", "tuple", "while", "conditional", "call", "after-all", "partition-id"}
_MOVES = ("copy-start", "slice-start")
_PARTS = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes that kernels of one kind read and write.

    Attributes:
        kernels: runs of them.
        bytes: of the device's memory.
        padding: how many of these only fill up tiles.
    """

    kernels: int = 0
    bytes: float = 0.0
    padding: float = 0.0


class _Array(NamedTuple):
    size: float  # bytes
    padding: float
    on_chip: bool


def memory_traffic(text: str) -> dict[str, Moved]:
    """The optimised HLO of one device's program -> what is moved in one run, by kind (`KINDS`), in their order.

    A kernel reads its operands and writes its results once, or the parts of them that it slices or updates. What is
    brought to memory on the chip, or back, counts once, for the kind of kernel that uses it or has made it. Loops count
    with their iterations, and of a branch each side.
    """
    program, kinds = CompiledProgram(text, 1), KernelKinds(text)
    found: dict[str, Moved] = {}
    for computation in program.sequences():
        for kind, moved in _of_sequence(program, program.computation(computation), kinds):
            former, times = found.get(kind, Moved()), program.runs(computation)
            found[kind] = Moved(
                former.kernels + times * moved.kernels,
                former.bytes + times * moved.bytes,
                former.padding + times * moved.padding,
            )
    return {kind: found[kind] for kind in KINDS if kind in found}


def total(traffic: Mapping[str, Moved]) -> Moved:
    """The sum over all kinds."""
    parts = [(moved.kernels, moved.bytes, moved.padding) for moved in traffic.values()]
    return Moved(*(sum(part) for part in zip(*parts, strict=True))) if parts else Moved()


def _of_sequence(
    program: CompiledProgram, instructions: Sequence[Instruction], kinds: KernelKinds
) -> Iterable[tuple[str, Moved]]:
    by_name = {one.name: one for one in instructions}
    arrays = {one.name: _arrays(one.shape) for one in instructions}
    users: dict[str, str] = {}  # a value that was brought to the chip -> the first kernel that uses it
    for one in instructions:
        if one.kind not in (*_NOTHING, *_MOVES) and not _is_view(one):
            for operand in _operands(one):
                users |= {origin: one.name for origin in _origins(operand, by_name) if origin not in users}
    for one in instructions:
        if one.kind in _NOTHING or one.kind.endswith("-done") or _is_view(one):
            continue
        operands = [arrays.get(name, []) for name in _operands(one)]
        if one.kind in _MOVES:
            brought = arrays[one.name][1 if one.kind == "slice-start" else 0]
            moved = [brought] * [each.on_chip for each in (operands[0][0], brought)].count(False)
            served = users.get(one.name, "") if brought.on_chip else _origins(_operands(one)[0], by_name)[0]
            kind = (kinds.of(served) if served else None) or "copy"
            yield kind, _sum((each._replace(on_chip=False) for each in moved), kernels=0)
            continue
        kind = kinds.of(one.name) or "other"
        if one.kind == "fusion":
            yield kind, _sum(_of_fusion(program, one, operands, arrays[one.name]))
        elif one.kind in _PARTS:
            yield kind, _sum(2 * arrays[one.name])
        elif one.kind == "dynamic-update-slice":
            yield kind, _sum(2 * operands[1])
        else:
            results = arrays[one.name]
            if one.kind.endswith("-start") and len(results) > 1:  # a collective's: operands, results and context
                results = results[len(operands) : 2 * len(operands)]
            yield kind, _sum([*(array for each in operands for array in each), *results])


def _of_fusion(
    program: CompiledProgram, fusion: Instruction, operands: list[list[_Array]], results: list[_Array]
) -> list[_Array]:
    """Its operands and results, or the parts of them that it slices or updates."""
    inside = program.computation(found[1]) if (found := _FUSED.search(fusion.rest)) else ()
    users: dict[str, list[Instruction]] = {}
    for one in inside:
        for name in _operands(one):
            users.setdefault(name, []).append(one)
    moved: list[_Array] = []
    in_place = inside[-1] if inside and inside[-1].kind == "dynamic-update-slice" else None
    sizes = {one.name: _arrays(one.shape) for one in inside}
    for one in inside:
        if one.kind != "parameter":
            continue
        number = int(_NUMBER.match(one.rest)[1])
        using = users.get(one.name, [])
        if using and all(user.kind in _PARTS and _operands(user)[0] == one.name for user in using):
            smaller = [array for user in using for array in sizes[user.name]]
            moved += min(smaller, operands[number], key=lambda each: sum(array.size for array in each))
        elif not (in_place and using == [in_place] and _operands(in_place)[0] == one.name):
            moved += operands[number]
    return moved + (sizes.get(_operands(in_place)[1], results) if in_place else results)


def _operands(instruction: Instruction) -> list[str]:
    return _REFERENCE.findall(instruction.rest.split(")", 1)[0])


def _is_view(instruction: Instruction) -> bool:
    """Whether it has its operands' memory: of a TPU also slices that were brought to lie side by side."""
    joined = instruction.kind == "custom-call" and 'custom_call_target="ConcatBitcast"' in instruction.rest
    return joined or instruction.kind in _SAME


def _origins(name: str, by_name: Mapping[str, Instruction]) -> list[str]:
    """The instructions whose values make up that of `name`; of an asynchronous one its start."""
    one = by_name.get(name)
    if one is None or not _is_view(one) or not _operands(one):
        return [name]
    return [origin for operand in _operands(one) for origin in _origins(operand, by_name)]


def _arrays(shape: str) -> list[_Array]:
    """All arrays in a shape, a minor dimension of a TPU's filled up to its tile."""
    found = []
    for kind, dimensions, order, layout in _ARRAY.findall(shape):
        sizes = [int(size) for size in dimensions.split(",") if size]
        stored = [sizes[int(axis)] for axis in order.split(",") if axis] or sizes[::-1]  # the fastest first
        if tile := _TILE.search(layout):
            for axis, block in enumerate(reversed(tile[1].split(","))):
                if axis < len(stored):
                    stored[axis] = -(-stored[axis] // int(block)) * int(block)
        size, plain = (math.prod(each) * bits_of(kind) / 8 for each in (stored, sizes))
        space = _SPACE.search(layout)
        found.append(_Array(size, size - plain, bool(space) and space[1] != "0"))
    return found


def _sum(arrays: Iterable[_Array], kernels: int = 1) -> Moved:
    moved = [array for array in arrays if not array.on_chip]
    return Moved(kernels, sum(array.size for array in moved), sum(array.padding for array in moved))
