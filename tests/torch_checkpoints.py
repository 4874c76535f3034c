"""What PyTorch checkpoints hold, and writers of those that `torch.save` of today doesn't write."""

import argparse
import collections
import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

SHARED = torch.randn(6, 4)
PARAMETER = torch.nn.Parameter(torch.randn(2))
PARAMETER.note = "an attribute"
ATTRIBUTED = torch.randn(3)
ATTRIBUTED.note = "an attribute"
TENSORS = {
    "float32": torch.randn(3, 5),
    "float16": torch.randn(2, 2, 3).half(),
    "bfloat16": torch.randn(7).bfloat16(),
    "float64": torch.randn(2, 2).double(),
    "positions": torch.arange(4)[None],
    "int32": torch.arange(3, dtype=torch.int32),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "float8_e4m3fn": torch.randn(4, 2).to(torch.float8_e4m3fn).t(),
    "float8_e5m2": torch.randn(9).to(torch.float8_e5m2)[2:],
    "turned": torch.randn(4, 3).t(),
    "part": torch.randn(10)[2:9:3],
    "rows": SHARED[1:3],
    "column": SHARED[:, 2],
    "the same": SHARED,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(torch.randn(2)),
    "noted parameter": PARAMETER,
    "noted tensor": ATTRIBUTED,
    "one for all": torch.full((1,), 0.5).expand(4),
    "one for more": torch.randn(4, 1).expand(4, 3),
    "scalar for all": torch.tensor(1.5).expand(2, 3),
    "overlapping": torch.randn(6).as_strided((4, 3), (1, 1)),
}
OLD_TENSORS = {name: value for name, value in TENSORS.items() if "float8" not in name}
"""Those that PyTorch reads from the format before 1.6."""

BESIDE = {
    "epoch": 7,
    "global_step": 2**40,
    "large": [2**3000, -(2**70), 1.5, True, None],
    "pytorch-lightning_version": "1.4.2",
    "sets": [{1, 2}, frozenset("ab"), set()],
    "bytes": [b"", b"ab", bytes(300), bytearray(b"c")],
    "nested": {"a": [({"b": (1, 2, 3, 4)},)], 3: "c", (1, 2): "d"},
    "classes": [int, str, dict, collections.OrderedDict, torch.float16, torch.device("cpu"), torch.Size([1, 2])],
    "tables": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1])],
    "others": [slice(1, 2), range(3), 1j, argparse.Namespace(a=1)],
    "numpy": [np.float64(1.5), np.arange(3), np.dtype("f4"), np.float32],
    "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.randn(3)}}, "param_groups": [{"params": [0]}]}],
}

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
FACTS = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Stored:
    """A storage that a pickle refers to."""

    def __init__(self, key: str, kind: type, count: int, *view: Any) -> None:
        self.saved = ("storage", kind, key, "cpu", count, *view)


class Call:
    """A pickled call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def dumped(value: Any, protocol: int = 2) -> bytes:
    """A pickle in which `Stored` become persistent ids."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.persistent_id = lambda value: value.saved if isinstance(value, Stored) else None
    pickler.dump(value)
    return file.getvalue()


def tensor(storage: Stored, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> Call:
    """A tensor as PyTorch 0.1 to 0.3 pickled it."""
    return Call(torch._utils._rebuild_tensor, storage, offset, shape, strides)


def zipped(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> Path:
    """A checkpoint in the zip format."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {**others, **{f"data/{key}": data for key, data in (storages or {}).items()}}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def old(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    magic: int = MAGIC,
    protocol: int = PROTOCOL,
    facts: Any = FACTS,
) -> Path:
    """A checkpoint in the format before PyTorch 1.6; `storages`: key -> number of elements, data."""
    storages = storages or {}
    head = b"".join(pickle.dumps(value, 2) for value in (magic, protocol, facts))
    data = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    path.write_bytes(head + pickled + pickle.dumps(list(storages), 2) + data)
    return path


@contextmanager
def fake_classes(*names: str) -> Iterator[dict[str, type]]:
    """Empty classes by their full names, in modules that exist meanwhile."""
    modules, classes = {}, {}
    for full in names:
        module, _, name = full.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        classes[name] = type(name, (), {"__module__": module})
        setattr(modules[module], name, classes[name])
    with mock.patch.dict(sys.modules, modules):
        yield classes
