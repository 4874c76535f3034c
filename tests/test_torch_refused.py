"""PyTorch checkpoints that are damaged, hostile or of unsupported content are refused, and none is ever run."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.torch_file import index_torch
from tests.torch_checkpoints import FACTS, Call, Stored, dumped, old, tensor, zipped

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "int8": (lambda: torch.zeros(2, dtype=torch.int8), "CharStorage"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "ComplexFloatStorage"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
    "other float8": (lambda: torch.zeros(2).to(torch.float8_e5m2fnuz), "float8_e5m2fnuz"),
    "uint16": (lambda: torch.zeros(2, dtype=torch.uint16), "uint16"),
    "negated": (lambda: torch._neg_view(torch.ones(2)), "negates"),
    "sparse": (lambda: torch.ones(2).to_sparse(), "_rebuild_sparse_tensor"),
    "without data": (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
    "a module": (lambda: torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize(("value", "name"), REFUSED.values(), ids=REFUSED)
def test_other_objects_of_pytorch_are_refused_by_name(tmp_path: Path, value: Callable[[], Any], name: str) -> None:
    torch.save({"a": torch.ones(2), "b": value()}, tmp_path / "a.bin")
    with pytest.raises(InputError, match=rf"a\.bin: .*{name}"):
        index_torch(tmp_path / "a.bin")


class Hostile:
    """What makes an unpickler call something."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("write", [zipped, old])
def test_a_pickle_is_never_run(tmp_path: Path, write: Callable[..., Path]) -> None:
    trap = tmp_path / "sprung"
    for protocol in range(6):
        for value in ({"weight": Hostile(trap)}, {"state_dict": {}, "beside": [Hostile(trap)]}):
            with pytest.raises(InputError, match=r"a\.bin: "):
                index_torch(write(tmp_path / "a.bin", pickle.dumps(value, protocol)))
            assert not trap.exists()
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(InputError, match=r"a\.bin: "):
        index_torch(tmp_path / "a.bin")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.exists()  # so it would have been


@pytest.mark.parametrize("name", ["os system", "builtins eval", "builtins getattr", "omegaconfig a", "torch load"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_names_are_refused(tmp_path: Path, name: str, protocol: int) -> None:
    module, attribute = name.split()
    call = f"c{module}\n{attribute}\n".encode()
    if protocol == 4:
        call = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"
    for place in (b"%b)R.", b"}X\x01\x00\x00\x00a%bs.", b"(%bo.", b"]%ba.", b"%b.", b"%b)}\x92."):
        with pytest.raises(InputError, match=rf"a\.bin: .*{module}\.{attribute}"):
            index_torch(zipped(tmp_path / "a.bin", b"\x80\x02" + place % call))


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TENSOR_CALL = b"ctorch._utils\n_rebuild_tensor_v2\n"
ODD_PICKLES = {
    "a number": b"\x80\x02K\x01.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "two values": b"\x80\x02}}.",
    "a stack that is empty": b"\x80\x02R.",
    "text that is not there": b"\x80\x02}X\xff\xff\xff\x7fa.",
    "a tensor without storage": b"\x80\x02" + TENSOR_CALL + b"(K\x01K\x01K\x01K\x01tR.",
    "a key that takes for ever": b"\x80\x02}(" + b")" + b"q\x01h\x01\x86" * 200 + b"K\x01u.",
    "a value that takes for ever": b"\x80\x02}" + word("a") + b")" + b"q\x01h\x01\x86" * 200 + b"s.",
    "a far place of the memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a shape from the memo": b"\x80\x02("
    + b"K\x01" * 2**18
    + b"tq\x00"
    + (TENSOR_CALL + b"(Nh\x00h\x00h\x00tR0") * 9**4,
    "arguments from the memo": b"\x80\x02(" + word("storage") + b"K\x01" * 2**18 + b"tq\x000" + b"h\x00Q0" * 2**17,
    "a table of itself": b"\x80\x02}q\x00" + word("state_dict") + b"h\x00s.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "lists in lists": b"\x80\x02}" + word("a") + b"]" * 2**17 + b"a" * (2**17 - 1) + b"s.",
    "tuples in tuples": b"\x80\x02}" + word("a") + b")" + b"\x85" * 2**17 + b"s.",
    "tuples in a key": b"\x80\x02}" + b")" + b"\x85" * 2**17 + b"Ns.",
    "the same table over and over": b"\x80\x02]("
    + b"K\x01K\x02\x86" * 2**16
    + b"e\x85q\x010ccollections\nOrderedDict\nq\x02"
    + b"h\x01Rh\x02" * 2**17,
    "an endless name": b"\x80\x02X\x00\x00\x10\x00"
    + b"omegaconf"
    + b"a" * (2**20 - 9)
    + b"q\x00"
    + b"h\x00h\x00\x930" * 2**17,
    "an endless key": b"\x80\x02X\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"q\x000"
    + (b"(" + word("storage") + b"ctorch\nFloatStorage\nh\x00NK\x01tQ0") * 2**14,
    "an endless number": b"\x80\x02}" + word("a") + b"L" + b"9" * 2**20 + b"\ns.",
    "a parameter of nothing": dumped({"a": Call(torch._utils._rebuild_parameter, None, True, None)}),
    "a subclass": b"\x80\x02}" + word("a") + b"ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtRs.",
    "a storage called": b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.",
    "a persistent id of text": b"\x80\x02" + word("a") + b"Q.",
    "a module": b"\x80\x02(" + word("module") + b"NNNNtQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer outside": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("pickled", ODD_PICKLES.values(), ids=ODD_PICKLES)
@pytest.mark.parametrize("write", [zipped, old])
def test_odd_pickles_are_refused(tmp_path: Path, pickled: bytes, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "a.bin", pickled)
    with pytest.raises(InputError) as error:
        index_torch(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", ["omegaconf." + "a" * 300, "omegaconf.\n"])
def test_names_of_odd_letters_or_length_are_refused(tmp_path: Path, module: str) -> None:
    with pytest.raises(InputError, match=r"a\.bin: .*a call of 'omegaconf"):
        index_torch(zipped(tmp_path / "a.bin", b"\x80\x04}" + word("a") + word(module) + word("b") + b"\x93s."))


ODD_TENSORS: dict[str, tuple[Stored, int, tuple[Any, ...], tuple[Any, ...]]] = {
    "too far": (Stored("0", torch.FloatStorage, 4), 3, (2,), (1,)),
    "a negative offset": (Stored("0", torch.FloatStorage, 4), -1, (2,), (1,)),
    "a negative size": (Stored("0", torch.FloatStorage, 4), 0, (-1,), (1,)),
    "negative strides": (Stored("0", torch.FloatStorage, 4), 3, (2,), (-1,)),
    "true as size": (Stored("0", torch.FloatStorage, 4), 0, (True,), (1,)),
    "many axes": (Stored("0", torch.FloatStorage, 4), 0, (1,) * 9, (1,) * 9),
    "no strides": (Stored("0", torch.FloatStorage, 4), 0, (1,), ()),
    "a large storage": (Stored("0", torch.FloatStorage, 2**80), 0, (1,), (1,)),
    "a storage of another type": (Stored("0", torch.DoubleStorage, 4), 0, (1,), (1,)),
    "a long key": (Stored("0" * 257, torch.FloatStorage, 4), 0, (1,), (1,)),
}


@pytest.mark.parametrize("arguments", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_odd_tensors_are_refused(tmp_path: Path, arguments: tuple[Stored, int, Any, Any]) -> None:
    data, right = struct.pack("<4f", 1, 2, 3, 4), (Stored("0", torch.FloatStorage, 4), 1, (3,), (1,))
    for place, refused in ((right, False), (arguments, True)):
        key = place[0].saved[2]
        for path in (
            zipped(tmp_path / "new.bin", dumped({"a": tensor(*place)}), {key: data}),
            old(tmp_path / "old.bin", dumped({"a": tensor(*place)}), {key: (4, data)}),
        ):
            if refused:
                with pytest.raises(InputError, match=path.name):
                    index_torch(path)
            else:
                np.testing.assert_array_equal(index_torch(path)["a"].read(), [2, 3, 4])


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_a_tensor_whose_data_are_set_afterwards_is_refused(tmp_path: Path, count: int) -> None:
    state = b"(" + b"N" * count + b"tb"
    with pytest.raises(InputError, match=r"a\.bin: .*afterwards"):
        index_torch(zipped(tmp_path / "a.bin", one()[:-2] + state + b"s.", {"0": DATA}))
    index_torch(zipped(tmp_path / "a.bin", one()[:-2] + b"(NNNtbs.", {"0": DATA}))


def one(count: int = 2, **others: Any) -> bytes:
    """The pickle of a table of one tensor."""
    return dumped({"a": tensor(Stored("0", torch.FloatStorage, count), 0, (count,), (1,)), **others})


DATA = struct.pack("<ff", 1, 2)
ODD_OLD_FILES: dict[str, dict[str, Any]] = {
    "another magic number": {"magic": 5},
    "another protocol": {"protocol": 1002},
    "no facts": {"facts": 5},
    "facts without byte order": {"facts": {}},
    "big-endian": {"facts": {**FACTS, "little_endian": False}},
    "fewer elements": {"storages": {"0": (1, DATA)}},
    "more elements": {"storages": {"0": (2**60, DATA)}},
    "a negative number of elements": {"storages": {"0": (-2, DATA)}},
    "no storage": {"storages": {}},
    "a storage without tensor": {"storages": {"0": (2, DATA), "1": (2, DATA)}},
    "data that end": {"storages": {"0": (2, DATA[:-1])}},
    "data that are missing": {"pickled": one(2**40), "storages": {"0": (2**40, DATA)}},
    "two sizes": {"pickled": one(b=tensor(Stored("0", torch.FloatStorage, 1), 0, (1,), (1,)))},
    "two types": {"pickled": one(b=tensor(Stored("0", torch.IntStorage, 2), 0, (1,), (1,)))},
    "a large pickle": {"pickled": one(b="a" * 2**21)},
}


@pytest.mark.parametrize("change", ODD_OLD_FILES.values(), ids=ODD_OLD_FILES)
def test_odd_old_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    right: dict[str, Any] = {"pickled": one(), "storages": {"0": (2, DATA)}}
    np.testing.assert_array_equal(index_torch(old(tmp_path / "a.bin", **right))["a"].read(), [1, 2])
    with pytest.raises(InputError, match=r"a\.bin: "):
        index_torch(old(tmp_path / "a.bin", **{**right, **change}))


@pytest.mark.parametrize(
    "keys", [b"N.", b"](]e.", b"](X\x01\x00\x00\x000q\x00h\x00e.", b"](K\x01e.", b"}X\x01\x00\x00\x000Ns."]
)
def test_odd_lists_of_storages_are_refused(tmp_path: Path, keys: bytes) -> None:
    path = old(tmp_path / "a.bin", one(), {})
    elements = struct.pack("<q", 2) + DATA
    path.write_bytes(path.read_bytes().removesuffix(pickle.dumps([], 2)) + b"\x80\x02" + keys + elements * 2)
    with pytest.raises(InputError, match=r"a\.bin: "):
        index_torch(path)


def test_the_format_of_pytorch_0_1_is_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pth", "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(InputError, match=r"a\.pth: .*tar"):
        index_torch(tmp_path / "a.pth")


def changed_zip(path: Path, place: int, value: bytes) -> None:
    """Overwrites a field of the last entry in the zip's directory."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2") + place
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_odd_zips_are_refused(tmp_path: Path) -> None:
    path, storages = tmp_path / "a.bin", {"0": DATA}
    np.testing.assert_array_equal(index_torch(zipped(path, one(), storages, byteorder=b"little"))["a"].read(), [1, 2])

    def refused(fact: str = "") -> None:
        with pytest.raises(InputError, match=rf"a\.bin: .*{fact}"):
            index_torch(path)

    zipped(path, one(), storages, byteorder=b"big")
    refused("big-endian")
    zipped(path, one(3), storages)
    refused("'0'")
    zipped(path, one())
    refused("data/0")
    zipped(path, one(b="a" * 2**21), storages)
    refused("data.pkl")
    zipped(path, one(), storages, **{"more/data.pkl": b"", "data.pkl.pkl": b""})
    index_torch(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", one())
    refused("2 data.pkl")
    zipped(path, one(), storages)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", DATA[::-1])
    refused("one name")
    for compressed in ("data.pkl", "data/0"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (("data.pkl", one()), ("data/0", DATA)):
                archive.writestr(name, content, zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED)
        refused()
    zipped(path, one(), storages)
    changed_zip(path, 24, struct.pack("<I", 2**31))
    refused("'0'")
    zipped(path, one(2**29), storages)
    changed_zip(path, 24, struct.pack("<I", 2**31))
    refused("ends after the file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/0", DATA)
        archive.writestr("data.pkl", one())
    changed_zip(path, 20, struct.pack("<I", 2**31))
    refused("bytes of directory or pickle")


def test_a_large_directory_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("data.pkl", dumped({"a": 1}))
        for index in range(65):
            info = zipfile.ZipInfo(f"data/{index}")
            info.comment = bytes(2**16 - 1)
            archive.writestr(info, b"")
    with pytest.raises(InputError, match=r"a\.bin: .*directory"):
        index_torch(tmp_path / "a.bin")
