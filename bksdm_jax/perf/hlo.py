"""What stands in a compiled program's HLO text: its instructions, how often they run, and its collectives."""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # other names end in it: f32, s8
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)(?:e\w+)?\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LAYOUT = re.compile(r"\{[^}]*\}")
_ELEMENT = re.compile(r"\([^()]*\)|[^(),]+\[[\d,]*\]")  # of a tuple without layouts: a tuple or an array
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")  # {{0,1},{2,3}}, or [2,2]<=[4]
# Kind -> (bytes of the result on one device, participating devices) -> bytes that a device sends in a ring.
_SENT: dict[str, Callable[[int, int], int]] = {
    "all-reduce": lambda size, among: 2 * size * (among - 1) // among,
    "all-gather": lambda size, among: size * (among - 1) // among,
    "reduce-scatter": lambda size, among: size * (among - 1),
    "all-to-all": lambda size, among: size * (among - 1) // among,
    "collective-permute": lambda size, among: size,
}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in an update.

    Attributes:
        count: number of runs.
        bytes: of their results on one device.
        sent: bytes that a device sends, assuming rings.
    """

    count: int
    bytes: int
    sent: int


def array_bytes(text: str) -> int:
    """Bytes of all arrays in a shape such as `(f32[2,3]{1,0}, bf16[4])`."""
    total = 0
    for kind, dimensions in _ARRAY.findall(text):
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits_of(kind) // 8
    return total


def bits_of(kind: str) -> int:
    """Of an element of HLO's type `bf16`, `f32`, `pred` ..."""
    return _BITS.get(kind) or int(re.sub(r"\D", "", kind))


class Instruction(NamedTuple):
    """`%name = shape kind(rest`."""

    name: str
    shape: str
    kind: str
    rest: str


class CompiledProgram:
    """A compiled program; instructions inside loops are counted once per iteration."""

    def __init__(self, text: str, devices: int) -> None:
        """Parses `compiled.as_text()` of a program for `devices` devices."""
        self._devices = devices
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = current = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = header[2]
                self._computations[current] = []
                self._entry = current if header[1] else self._entry
            elif current and (instruction := _INSTRUCTION.match(line)):
                self._computations[current].append(Instruction(*instruction.groups()))
        self._times = self._count_runs()

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction with its computation's name."""
        return ((name, instruction) for name, several in self._computations.items() for instruction in several)

    def computation(self, name: str) -> Sequence[Instruction]:
        """Its instructions; none if there is no such computation."""
        return self._computations.get(name, ())

    def collectives(self) -> dict[str, Traffic]:
        """Collectives by kind."""
        found: dict[str, Traffic] = {}
        for computation, instruction in self.instructions():
            kind = instruction.kind.removesuffix("-start")
            if kind in _SENT:
                times, size = self._times[computation], _result_bytes(instruction)
                sent = _SENT[kind](size, self._group_size(instruction))
                former = found.get(kind, Traffic(0, 0, 0))
                found[kind] = Traffic(former.count + times, former.bytes + times * size, former.sent + times * sent)
        return {kind: found[kind] for kind in _SENT if kind in found}

    def parameter_bytes(self) -> int:
        """Bytes of the program's arguments, without a device's padding."""
        instructions = self._computations.get(self._entry, ())
        return sum(array_bytes(one.shape) for one in instructions if one.kind == "parameter")

    def _group_size(self, instruction: Instruction) -> int:
        """Devices in each replica group of a collective; all if it names no groups."""
        found = _GROUPS.search(instruction.rest)
        if not found:
            return self._devices
        return len(found[1].split(",")) if found[1] else int(found[2])

    def runs(self, computation: str) -> int:
        """How often a computation runs in one run of the program."""
        return self._times[computation]

    def sequences(self) -> list[str]:
        """The computations that aren't fused: the entry, loop bodies, branches, calls."""
        found = [self._entry]
        for computation in found:
            for instruction in self._computations.get(computation, ()):
                if instruction.kind in ("while", "conditional", "call"):
                    found += [name for name in _called(instruction.rest) if name not in found]
        return found

    def _iterations(self, instruction: Instruction) -> int:
        """Of a loop: XLA's known trip count or, for TPUs, the bound in the loop's condition."""
        if instruction.kind != "while":
            return 1
        if trips := _TRIPS.search(instruction.rest):
            return int(trips[1])
        condition = _CONDITION.search(instruction.rest)
        inner = self._computations.get(condition[1], ()) if condition else ()
        bounds = [int(found[0]) for one in inner if one.kind == "constant" and (found := re.match(r"\d+", one.rest))]
        counts = any("direction=LT" in one.rest for one in inner)
        return bounds[0] if counts and len(bounds) == 1 else 1

    def _count_runs(self) -> Mapping[str, int]:
        """Number of times that each computation runs in one run of the program."""
        callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for computation, instruction in self.instructions():
            for called in _called(instruction.rest):
                callers[called].append((computation, self._iterations(instruction)))

        @functools.cache
        def times(computation: str) -> int:
            if computation not in callers:  # the entry; HLO has no recursion
                return 1
            return sum(times(caller) * iterations for caller, iterations in callers[computation])

        return {computation: times(computation) for computation in self._computations}


def _called(rest: str) -> list[str]:
    branches = [part.strip().lstrip("%") for group in _BRANCHES.findall(rest) for part in group.split(",")]
    return _CALLED.findall(rest) + branches


def _result_bytes(instruction: Instruction) -> int:
    """Of a collective; asynchronous ones but all-reduce return a tuple of operands, results and context."""
    shape = instruction.shape
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start" and shape.startswith("("):
        return array_bytes(_ELEMENT.findall(_LAYOUT.sub("", shape)[1:-1])[1])
    return array_bytes(shape)
