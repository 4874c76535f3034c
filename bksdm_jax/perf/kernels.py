"""What kind of work a kernel of a traced program does.

A kernel's HLO instruction says it best: the operation, a custom call's target, or what a fusion holds. Kernels without
one in the program's text, such as copies by the driver, are known by their names.
"""

import re
from collections.abc import Iterator

from bksdm_jax.perf.hlo import CompiledProgram, Instruction

_STARTED = ("start", "update", "done")  # of an asynchronous operation
_OPERATIONS = {
    "collective": "all-reduce all-gather reduce-scatter all-to-all ragged-all-to-all collective-permute "
    "collective-broadcast send recv",
    "convolution": "convolution",
    "product": "dot ragged-dot scaled-dot",
    "reduction": "reduce reduce-window select-and-scatter",
    "other": "sort scatter fft cholesky triangular-solve rng rng-bit-generator infeed outfeed topk",
    "layout": "transpose",
    "conversion": "convert",
    "copy": "copy concatenate slice dynamic-slice dynamic-update-slice pad broadcast iota gather reverse reshape",
    "nothing": "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id",
    "control": "while conditional call",
}
_CALLS = {
    "__cudnn$conv": "convolution",
    "__cudnn$fmha": "attention",
    "__cublas$": "product",
    "tpu_custom_call": "attention",  # the only kernel for TPUs here
    "__gpu$xla.gpu.triton": "reduction",  # likewise, for GPUs: `norm_kernels`
    "ConcatBitcast": "copy",  # a TPU's: slices that lie side by side
}
_NAMES = {
    "collective": r"all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|collective|nccl",
    "attention": r"fmha|flash|sdpa|attention|_mha",
    "layout": r"transpose|nchwtonhwc|nhwctonchw|data formatting",
    "convolution": r"conv(?!ert)|fprop|dgrad|wgrad",
    "product": r"gemm|nvjet|matmul|cublas|cutlass|(^|_)dot",
    "reduction": r"reduc",
    "copy": r"memcpy|memset|copy|concatenate|slice|broadcast|gather|iota|fill|(^|_)pad",
    "elementwise": r"fusion|wrapped_|elementwise|convert",
}
KIND_OF: dict[str, str] = {name: kind for kind, names in _OPERATIONS.items() for name in names.split()}
"""HLO operation -> kind; operations that aren't here are elementwise."""
KINDS = ("convolution", "product", "attention", "reduction", "elementwise", "layout", "copy", "collective", "other")
"""In the order of a table. Attention is fused kernels only; otherwise its parts are products and so on."""
# A fusion is of the first of these kinds that it holds. A converting transposition is one of layout, as a weight's; a
# conversion alone is elementwise, and a copy's index arithmetic counts only if there is nothing else.
_PRECEDENCE = ("collective", "attention", "convolution", "product", "reduction", "other", "elementwise", "layout")
_PRECEDENCE += ("conversion", "copy", "scalar", "nothing")
_SHOWN_AS = {"conversion": "elementwise", "scalar": "elementwise", "nothing": "copy"}
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_SOURCE = re.compile(r'op_name="[^"]*?(\w+)"')
_ORDER = re.compile(r"\{([\d,]+)")  # of an array's dimensions in memory


class KernelKinds:
    """The kinds of a program's kernels."""

    def __init__(self, text: str = "") -> None:
        """Takes the optimised HLO, `compiled.as_text()`; without it, kernels are known by their names."""
        self._program = CompiledProgram(text, 1)
        self._found: dict[str, tuple[str, Instruction]] = {}
        for computation, instruction in self._program.instructions():
            self._found[_as_kernel(instruction.name)] = computation, instruction

    def of(self, name: str, operation: str = "", category: str = "") -> str | None:
        """The kind of a kernel, one of `KINDS`; None: it is a loop or a branch, whose own kernels are traced too.

        Args:
            name: of the kernel; XLA names its own after the instruction.
            operation: the HLO instruction's name, if the trace has it; for a CUDA graph it is that of the graph.
            category: what a TPU's trace says of the instruction.
        """
        name = name.partition(" = ")[0].lstrip("%")  # a TPU's is the whole instruction
        for key in dict.fromkeys((operation, name)):
            if found := self._found.get(_as_kernel(key)):
                kind = self._of_instruction(*found)
                if kind != "control":
                    return _SHOWN_AS.get(kind, kind)
                if key == name:
                    return None
        if _base(_as_kernel(name)) in ("while", "conditional", "call"):
            return None
        return next((kind for text in (category, name) if (kind := _by_name(text))), "other")

    def _of_instruction(self, computation: str, instruction: Instruction) -> str:
        return min(self._inside(computation, instruction), key=_rank, default="nothing")

    def _inside(self, computation: str, instruction: Instruction) -> Iterator[str]:
        """Kinds of the operations in an instruction."""
        operation = instruction.kind
        base, _, ending = operation.rpartition("-")
        operation = base if ending in _STARTED else operation
        if operation in ("fusion", "async"):
            for called in _FUSED.findall(instruction.rest):
                for inner in self._program.computation(called):
                    yield from self._inside(called, inner)
            return
        if operation == "custom-call":
            target = found[1] if (found := _TARGET.search(instruction.rest)) else ""
            yield next((kind for begin, kind in _CALLS.items() if target.startswith(begin)), "other")
            return
        kind = KIND_OF.get(operation, "elementwise")
        if kind in ("convolution", "product"):  # TPUs have products as convolutions, and a 1x1 convolution is a product
            source = found[1] if (found := _SOURCE.search(instruction.rest)) else ""
            kind = {"dot_general": "product", "conv_general_dilated": "convolution"}.get(source, kind)
        elif operation == "copy" and self._moves(computation, instruction):
            kind = "layout"
        elif kind == "elementwise" and "[]" in instruction.shape:
            kind = "scalar"
        yield kind

    def _moves(self, computation: str, copy: Instruction) -> bool:
        """Whether a copy changes the order of dimensions in memory."""
        operand = found[1] if (found := _OPERAND.search(copy.rest)) else ""
        _, source = self._found.get(_as_kernel(operand), (computation, copy))
        return _ORDER.findall(source.shape)[:1] != _ORDER.findall(copy.shape)[:1]


def _rank(kind: str) -> int:
    return -1 if kind == "control" else _PRECEDENCE.index(kind)


def _as_kernel(instruction: str) -> str:
    """The name that XLA gives the kernel of an instruction."""
    return re.sub(r"[.\-]", "_", instruction)


def _base(name: str) -> str:
    """The name without its number."""
    return re.sub(r"(_\d+)+$", "", name)


def _by_name(text: str) -> str:
    return next((kind for kind, pattern in _NAMES.items() if re.search(pattern, text.lower())), "")
