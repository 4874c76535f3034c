"""What a compiled program's text says of it: collectives, and what custom calls read and write."""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # others end in theirs: f32, s8
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)(?:e\w+)?\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\((.*)$")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, (?:frontend_attributes|metadata|backend_config)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")  # {{0,1},{2,3}}, or [2,2]<=[4]
# Kind -> (bytes of its result on one device, devices that take part) -> bytes that a device sends in a ring.
_SENT: dict[str, Callable[[int, int], int]] = {
    "all-reduce": lambda size, among: 2 * size * (among - 1) // among,
    "all-gather": lambda size, among: size * (among - 1) // among,
    "reduce-scatter": lambda size, among: size * (among - 1),
    "all-to-all": lambda size, among: size * (among - 1) // among,
    "collective-permute": lambda size, among: size,
}
COLLECTIVES = tuple(_SENT)
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """A collective, in one update.

    Attributes:
        count: how often it runs.
        bytes: of its results, on one device.
        sent: bytes that a device sends in it, where rings are used.
    """

    count: int
    bytes: int
    sent: int


def array_bytes(text: str) -> int:
    """Bytes of all arrays whose shapes stand in a text such as `(f32[2,3]{1,0}, bf16[4])`."""
    total = 0
    for kind, dimensions in _ARRAY.findall(text):
        bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
    return total


class _Instruction(NamedTuple):
    """`%name = shape kind(rest`."""

    name: str
    shape: str
    kind: str
    rest: str


class CompiledProgram:
    """A compiled program; what is inside its loops counts as often as they turn."""

    def __init__(self, text: str, devices: int) -> None:
        """Reads `compiled.as_text()` of a program for so many devices."""
        self._devices = devices
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = current = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = header[2]
                self._computations[current] = []
                self._entry = current if header[1] else self._entry
            elif current and (instruction := _INSTRUCTION.match(line)):
                self._computations[current].append(_Instruction(*instruction.groups()))
        self._times = self._count_runs()

    def collectives(self) -> dict[str, Traffic]:
        """Collectives by kind."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        sent: Counter[str] = Counter()
        for computation, instructions in self._computations.items():
            for instruction in instructions:
                kind = instruction.kind.removesuffix("-start")
                if kind in COLLECTIVES:
                    times, size = self._times[computation], _result_bytes(instruction)
                    counts[kind] += times
                    sizes[kind] += times * size
                    sent[kind] += times * _SENT[kind](size, self._among(instruction))
        return {kind: Traffic(counts[kind], sizes[kind], sent[kind]) for kind in COLLECTIVES if counts[kind]}

    def parameter_bytes(self) -> int:
        """Bytes of the program's arguments, without the padding that a device may add."""
        instructions = self._computations.get(self._entry, ())
        return sum(array_bytes(one.shape) for one in instructions if one.kind == "parameter")

    def _among(self, instruction: _Instruction) -> int:
        """How many devices take part in each group of a collective; all where it doesn't say."""
        found = _GROUPS.search(instruction.rest)
        if not found:
            return self._devices
        return len(found[1].split(",")) if found[1] else int(found[2])

    def custom_call_bytes(self) -> int:
        """Bytes that the program's own kernels read and write, which XLA's cost analysis leaves out."""
        return sum(
            self._times[computation] * (array_bytes(shape) + array_bytes(_OPERANDS.search(rest)[1]))
            for computation, instructions in self._computations.items()
            for _, shape, kind, rest in instructions
            if kind == "custom-call" and 'custom_call_target="tpu_custom_call"' in rest
        )

    def loop_factor(self) -> float:
        """Bytes of the whole program in parts of those that XLA's cost analysis tells: it counts a loop's turn once."""
        once = whole = 0
        for computation in self._sequences():
            size = self._bytes_of(computation)
            once += size
            whole += size * self._times[computation]
        return whole / once if once else 1.0

    def _sequences(self) -> list[str]:
        """The computations whose instructions run one after the other: the entry, loops' bodies, branches, calls."""
        found = [self._entry]
        for computation in found:
            for instruction in self._computations.get(computation, ()):
                if instruction.kind in ("while", "conditional", "call"):
                    found += [name for name in _called(instruction.rest) if name not in found]
        return found

    def _bytes_of(self, computation: str) -> int:
        """Results and operands of its instructions, fusions as wholes."""
        instructions = self._computations.get(computation, ())
        sizes = {instruction.name: array_bytes(instruction.shape) for instruction in instructions}
        total = 0
        for name, _, kind, rest in instructions:
            if kind not in _NO_TRAFFIC:
                operands = _REFERENCE.findall(rest.split(")", 1)[0])
                total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        return total

    def _turns(self, instruction: _Instruction) -> int:
        """Of a loop: as XLA notes it or, for TPUs, the bound that its condition compares its counter with."""
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
        """How often each computation runs in one run of the program."""
        callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for computation, instructions in self._computations.items():
            for instruction in instructions:
                for called in _called(instruction.rest):
                    callers[called].append((computation, self._turns(instruction)))
        known: dict[str, int] = {}

        def times(computation: str) -> int:
            if computation not in known:
                known[computation] = 1  # an entry; and no program calls itself
                above = callers.get(computation)
                if above:
                    known[computation] = sum(times(caller) * turns for caller, turns in above)
            return known[computation]

        return {computation: times(computation) for computation in self._computations}


def _called(rest: str) -> list[str]:
    branches = [part.strip().lstrip("%") for group in _BRANCHES.findall(rest) for part in group.split(",")]
    return _CALLED.findall(rest) + branches


def _result_bytes(instruction: _Instruction) -> int:
    """Of a collective; that of an asynchronous one but all-reduce is a tuple of operands, results and context."""
    shape = instruction.shape
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start" and shape.startswith("("):
        return array_bytes(_elements(shape)[1])
    return array_bytes(shape)


def _elements(shape: str) -> list[str]:
    """Those of a tuple: `((f32[2], s8[3]), f32[4])` has two."""
    depth, found = 0, [""]
    for character in shape[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found
