"""What a compiled program's text says of it: collectives, and what custom calls read and write."""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # others end in theirs: f32, s8
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)(?:e\w+)?\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, (?:frontend_attributes|metadata|backend_config)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How often a collective runs in one update, and the bytes of its results on one device."""

    count: int
    bytes: int


def array_bytes(text: str) -> int:
    """Bytes of all arrays whose shapes stand in a text such as `(f32[2,3]{1,0}, bf16[4])`."""
    total = 0
    for kind, dimensions in _ARRAY.findall(text):
        bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
    return total


def collectives(text: str) -> dict[str, Traffic]:
    """Collectives of a compiled program by kind; those inside loops count as often as the loop turns.

    Args:
        text: `compiled.as_text()`.
    """
    times = _times(text)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for computation, instructions in _computations(text).items():
        for shape, name, _ in instructions:
            kind = name.removesuffix("-start")
            if kind in COLLECTIVES:
                counts[kind] += times[computation]
                sizes[kind] += times[computation] * _result_bytes(shape, name)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def custom_call_bytes(text: str) -> int:
    """Bytes that a program's own kernels read and write, which XLA's cost analysis leaves out."""
    times = _times(text)
    return sum(
        times[computation] * (array_bytes(shape) + array_bytes(_OPERANDS.search(rest)[1]))
        for computation, instructions in _computations(text).items()
        for shape, name, rest in instructions
        if name == "custom-call" and 'custom_call_target="tpu_custom_call"' in rest
    )


def _result_bytes(shape: str, name: str) -> int:
    """An asynchronous one's result is a tuple of operands, results and, on some devices, more."""
    if name.endswith("-start") and shape.startswith("("):
        arrays = [array_bytes(match[0]) for match in re.finditer(_ARRAY, shape)]
        return max(arrays, default=0)
    return array_bytes(shape)


def _computations(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """Computation -> its instructions: shape of the result, name, the rest of the line."""
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    current = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[1]
            found[current] = []
        elif current and (instruction := _INSTRUCTION.match(line)):
            found[current].append(instruction.groups())
    return found


def _times(text: str) -> Mapping[str, int]:
    """How often each computation runs in one run of the program."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, instructions in _computations(text).items():
        for _, name, rest in instructions:
            trips = _TRIPS.search(rest)
            turns = int(trips[1]) if name == "while" and trips else 1
            called = [*_CALLED.findall(rest)]
            called += [part.strip().lstrip("%") for group in _BRANCHES.findall(rest) for part in group.split(",")]
            for one in called:
                callers[one].append((computation, turns))
    known: dict[str, int] = {}

    def times(computation: str) -> int:
        if computation not in known:
            known[computation] = 1  # an entry; and no program calls itself
            above = callers.get(computation)
            if above:
                known[computation] = sum(times(caller) * turns for caller, turns in above)
        return known[computation]

    return {computation: times(computation) for computation in _computations(text)}
