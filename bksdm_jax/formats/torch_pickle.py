"""Interprets the pickle of a PyTorch checkpoint as data: no object is created, no name resolved, nothing called.

The pickle is disassembled with `pickletools` and run by a stack machine that supports what `torch.save` writes
(protocols 2 to 5, under Python 2 and 3) for tables of tensors and for what usually stands beside them. A name is only
compared with `torch_names`. Nothing here recurses into values, and nothing but text and whole numbers is hashed.
"""

import pickletools
from collections.abc import Callable
from typing import Any

from bksdm_jax.formats import torch_names
from bksdm_jax.formats.torch_values import INERT, MOST_TEXT, Name, Storage, Tensor, Unsupported, storage_of, tensor_of

MOST_PICKLE = 2**21  # bytes; a U-Net's takes about 100 KiB
OTHER_KEYS = "(keys that aren't text)"
"""Stands for all such keys of a dictionary, with the value None."""

_MARK = object()


class Machine:
    """The pickle machine's stack and memo.

    Attributes:
        storages: by key, as first referred to.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self._copied = 0

    def run(self, pickle: bytes) -> tuple[Any, int]:
        """The value of the pickle at the start of `pickle`, and the bytes it takes.

        Tensors are `Tensor`; dictionaries have only their entries with text as keys, and `OTHER_KEYS` for the rest;
        most other objects are `INERT`.

        Raises:
            Unsupported: it holds something else.
            Exception: it is damaged; `pickletools` raises many types.
        """
        for opcode, argument, position in pickletools.genops(pickle):
            if opcode.name == "STOP":
                (value,) = self.stack
                return value, (position or 0) + 1
            if opcode.name not in _OPCODES:
                raise Unsupported(f"opcode {opcode.name}")
            _OPCODES[opcode.name](self, argument)
        raise ValueError("a pickle without end")

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def keep(self, index: int) -> None:
        """Writes the value on the stack to the memo."""
        self.memo[index] = self.stack[-1]

    def name(self, name: str) -> None:
        """Pushes a global by its module and name, separated by a blank."""
        if len(name) > MOST_TEXT or not name.isprintable() or not torch_names.is_known(name):
            raise Unsupported(f"a call of {name[:80].replace(' ', '.')!r}")
        self.push(Name(name))

    def stack_name(self) -> None:
        """Pushes the global whose module and name are on the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise Unsupported("a call of something without name")
        self.name(f"{module[:MOST_TEXT]} {name[:MOST_TEXT]}")

    def marked(self) -> list[Any]:
        """Pops the items above the last mark, and the mark."""
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        items, self.stack[at:] = self.stack[at + 1 :], []
        return items

    def tuple_of(self, count: int) -> None:
        """Replaces the last `count` items by a tuple of them."""
        if count > len(self.stack):
            raise Unsupported("an empty stack")
        items, self.stack[len(self.stack) - count :] = tuple(self.stack[len(self.stack) - count :]), []
        self.push(items)

    def set_items(self, items: list[Any]) -> None:
        """Sets keys and values, in turn, of the dictionary on the stack."""
        table = self.stack[-1]
        if table is INERT:
            return
        if not isinstance(table, dict):
            raise Unsupported("items without a table")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                table[key] = value
            else:  # hashing a nested tuple could take forever
                table[OTHER_KEYS] = None

    def append(self, items: list[Any]) -> None:
        """Appends to the list on the stack."""
        if self.stack[-1] is INERT:
            return
        if not isinstance(self.stack[-1], list):
            raise Unsupported("items without a list")
        self.stack[-1].extend(items)

    def storage(self) -> None:
        """Replaces a persistent id by the storage it describes."""
        found = storage_of(self.stack.pop())
        first = self.storages.setdefault(found.key, found)
        if (first.dtype, first.count) != (found.dtype, found.count) and (first.count or found.count):
            raise Unsupported(f"storage {found.key!r} with two types or sizes")
        self.push(found)

    def call(self, arguments: Any) -> None:
        """Replaces a function by what stands for its result."""
        function = self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Unsupported("a call of something without name or arguments")
        name = function.name
        if name in torch_names.TABLES:
            self.table(arguments)
        elif name in torch_names.TENSORS:
            self.push(tensor_of(function, arguments))
        elif name in torch_names.PARAMETERS and isinstance(next(iter(arguments), None), Tensor):
            self.push(arguments[0])
        elif name == torch_names.WITH_ATTRIBUTES and len(arguments) == 4:
            inner, kind, arguments, _ = arguments
            if not isinstance(inner, Name) or inner.name not in torch_names.TENSORS or kind != Name("torch Tensor"):
                raise Unsupported("a tensor of a class of its own")
            self.push(tensor_of(inner, arguments))
        elif name == torch_names.SIZE and len(arguments) == 1:
            self.push(arguments[0])
        elif torch_names.is_inert(name):
            self.push(INERT)
        else:
            raise Unsupported(f"a call of {function} with unexpected arguments")

    def table(self, arguments: tuple[Any, ...]) -> None:
        """Pushes a dictionary; Python 2 passes an `OrderedDict` its items, in a list of pairs."""
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self._copied += len(pairs)
        if self._copied > MOST_PICKLE:  # the same list from the memo, over and over
            raise Unsupported("more items than bytes")
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise Unsupported("a table without keys and values")
        self.push({})
        self.set_items([part for pair in pairs for part in pair])

    def build(self) -> None:
        """Passes over an object's attributes."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Tensor) and isinstance(state, tuple) and len(state) != 3:
            raise Unsupported("a tensor whose data are set afterwards")


def _inert(machine: Machine, _: Any) -> None:
    machine.push(INERT)


def _frozen_set(machine: Machine, _: Any) -> None:
    machine.marked()
    machine.push(INERT)


def _dictionary(machine: Machine, _: Any) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


def _call_with_names(machine: Machine, _: Any) -> None:
    machine.stack.pop()
    machine.call(machine.stack.pop())


def _call_marked(machine: Machine, _: Any) -> None:
    function, *arguments = machine.marked()
    machine.push(function)
    machine.call(tuple(arguments))


_OPCODES: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), Machine.push),  # Python 2's text
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_SET"), _inert),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Machine.keep),
    "MEMOIZE": lambda machine, _: machine.keep(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _dictionary,
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.marked(),
    "FROZENSET": _frozen_set,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "BINPERSID": lambda machine, _: machine.storage(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call(machine.stack.pop())),
    "NEWOBJ_EX": _call_with_names,
    "OBJ": _call_marked,
    "BUILD": lambda machine, _: machine.build(),
}
