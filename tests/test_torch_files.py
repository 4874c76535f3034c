"""PyTorch checkpoints of every age and origin are read as `torch.load` reads them."""

import collections
import io
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.torch_file import index_torch
from bksdm_jax.formats.weights import INDEXERS, read_weights
from tests.torch_checkpoints import BESIDE, OLD_TENSORS, TENSORS, Stored, dumped, fake_classes, old, tensor

SAVERS: dict[str, dict[str, Any]] = {
    f"{name}, protocol {protocol}": {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}
    for name, new in (("zip", True), ("old", False))
    for protocol in (2, 3, 4, 5)
}


def require_as_loaded(path: Path, found: dict[str, Any] | None = None, under: str = "", **options: Any) -> None:
    """Every tensor as `torch.load` reads it, to the bit."""
    table = torch.load(path, **{"weights_only": True, **options})
    table = table[under] if under else table
    found = index_torch(path) if found is None else found
    assert list(found) == [name for name, value in table.items() if isinstance(value, torch.Tensor)]
    for name, ours in found.items():
        array, theirs = ours.read(), table[name].detach()
        assert (f"torch.{array.dtype}", array.shape) == (str(theirs.dtype), tuple(theirs.shape)), name
        assert array.tobytes() == theirs.contiguous().flatten().view(torch.uint8).numpy().tobytes(), name


@pytest.mark.parametrize("options", SAVERS.values(), ids=SAVERS)
def test_every_tensor_is_read_as_pytorch_reads_it(tmp_path: Path, options: dict[str, Any]) -> None:
    table = TENSORS if options["_use_new_zipfile_serialization"] else OLD_TENSORS
    torch.save(collections.OrderedDict(table), tmp_path / "a.bin", **options)
    require_as_loaded(tmp_path / "a.bin", weights_only=options["pickle_protocol"] == 2)


def test_float8_is_read_from_an_old_file(tmp_path: Path) -> None:
    """PyTorch 2.13 writes such a file but can't read it."""
    torch.save(TENSORS, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    found = index_torch(tmp_path / "a.bin")
    for name in TENSORS.keys() - OLD_TENSORS.keys():
        array = found[name].read()
        assert str(array.dtype) == name
        np.testing.assert_array_equal(array.astype(np.float32), TENSORS[name].float().numpy())


@pytest.mark.parametrize("options", SAVERS.values(), ids=SAVERS)
def test_what_stands_beside_the_tensors_is_passed_over(
    tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**BESIDE, "state_dict": OLD_TENSORS}, tmp_path / "a.ckpt", **options)
    require_as_loaded(tmp_path / "a.ckpt", under="state_dict", weights_only=False)
    assert not caplog.messages


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_what_is_no_tensor_among_tensors_is_named_once(
    tmp_path: Path, new: bool, caplog: pytest.LogCaptureFixture
) -> None:
    table = {"__step__": 3, **OLD_TENSORS, 5: "a key", **BESIDE}
    torch.save({"state_dict": table}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    require_as_loaded(tmp_path / "a.pt", under="state_dict", weights_only=False)
    (message,) = caplog.messages
    assert all(fact in message for fact in ("a.pt", "'__step__'", "'epoch'", f" {len(BESIDE) - 1} more"))


def test_an_original_checkpoint_of_stable_diffusion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As PyTorch Lightning 1.4 wrote `sd-v1-4.ckpt`, with the settings of later training programs."""
    table = {f"model.diffusion_model.{name}": value for name, value in OLD_TENSORS.items()}
    names = ("callbacks.model_checkpoint.ModelCheckpoint", "utilities.parsing.AttributeDict")
    settings = ("dictconfig.DictConfig", "base.ContainerMetadata", "nodes.AnyNode")
    with fake_classes(
        *(f"pytorch_lightning.{name}" for name in names), *(f"omegaconf.{name}" for name in settings)
    ) as c:
        config, node = c["DictConfig"](), c["AnyNode"]()
        metadata = c["ContainerMetadata"]()
        metadata.__dict__.update(ref_type=Any, object_type=dict, key_type=Any, optional=True)
        node.__dict__.update(_val=1, _parent=config)
        config.__dict__.update(_metadata=metadata, _content={"a": node}, _parent=None)
        checkpoint = {
            "epoch": 0,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "callbacks": {
                c["ModelCheckpoint"]: {
                    "monitor": "val/loss_simple_ema",
                    "best_model_score": torch.tensor(0.1),
                    "current_score": np.float64(0.5),
                    "dirpath": None,
                }
            },
            "optimizer_states": BESIDE["optimizer_states"],
            "lr_schedulers": [{"base_lrs": [np.float64(1e-4)], "_last_lr": [1e-4], "lr_lambdas": [None]}],
            "loops": {"fit_loop": {"state_dict": {}}},
            "hparams_name": "kwargs",
            "hyper_parameters": {"config": config, "other": c["AttributeDict"]()},
            "state_dict": table,
        }
        for new in (True, False):
            torch.save(checkpoint, tmp_path / f"{new}.ckpt", _use_new_zipfile_serialization=new)
            require_as_loaded(tmp_path / f"{new}.ckpt", under="state_dict", weights_only=False)
    assert not caplog.messages


def text(value: str) -> bytes:
    """Python 2's text in a pickle."""
    return b"U" + bytes([len(value)]) + value.encode()


def test_a_checkpoint_of_python_2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`OrderedDict` from a list of pairs with attributes, byte strings, large numbers, old-style classes."""
    ordered, empty = b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n]\x85R"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu") + b"\x8a\x01\x06NtQ"
    weight = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x03K\x02\x86K\x02K\x01\x86\x89" + empty + b"tR"
    )
    bias = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x04K\x02\x85K\x01\x85tR"
    pairs = b"](](" + text("weight") + weight + b"e](" + text("bias") + bias + b"ee"
    table = ordered + pairs + b"\x85R}" + text("_metadata") + empty + b"sb"
    beside = b"".join(
        text(name) + value
        for name, value in {
            "step": b"I12345678901\n",
            "text": b"T\x03\x00\x00\x00abc",
            "long": b"L123456789012345678901\n",
            "set": b"c__builtin__\nset\n](K\x01K\x02e\x85R",
            "list": b"(K\x01l",
            "dropped": b"(K\x0100(K\x011K\x022\x86",
            "table": b"(" + text("a") + b"K\x01d",
            "object": b"(cargparse\nNamespace\no}" + text("a") + b"I01\nsb",
        }.items()
    )
    pickled = b"\x80\x02}(" + beside + text("state_dict") + table + b"u."
    numbers = np.arange(6, dtype=np.float32)
    require_as_loaded(
        old(tmp_path / "a.pth", pickled, {"1": (6, numbers.tobytes())}), under="state_dict", weights_only=False
    )
    np.testing.assert_array_equal(index_torch(tmp_path / "a.pth")["bias"].read(), [4, 5])
    assert not caplog.messages


def test_views_of_storages(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32)
    whole, part = ("7", torch.FloatStorage, 12), ("8", 3, 6)
    table = {
        "part": tensor(Stored(*whole, part), 1, (2, 2), (2, 1)),
        "whole": tensor(Stored(*whole, None), 2, (5,), (2,)),
    }
    path = old(tmp_path / "a.bin", dumped(table), {"7": (12, data.tobytes())})
    require_as_loaded(path)
    np.testing.assert_array_equal(index_torch(path)["part"].read(), [[4, 5], [6, 7]])
    for view, offset in ((("8", 3, 6), 3), (("8", 7, 6), 0), (("8", -1, 6), 0), (("8", 0), 0)):
        table = {"part": tensor(Stored(*whole, view), offset, (2, 2), (2, 1))}
        with pytest.raises(InputError, match=r"a\.bin: "):
            index_torch(old(tmp_path / "a.bin", dumped(table), {"7": (12, data.tobytes())}))


def test_a_large_old_file_is_located_without_reading_it(tmp_path: Path) -> None:
    count = 2**30
    table = {
        "large": tensor(Stored("1", torch.FloatStorage, count, None), 0, (2**15, 2**15), (2**15, 1)),
        "end": tensor(Stored("2", torch.FloatStorage, 2, None), 0, (2,), (1,)),
    }
    path = old(tmp_path / "a.ckpt", dumped(table), {"1": (count, b""), "2": (0, b"")})
    with path.open("r+b") as file:
        file.seek(-8, io.SEEK_END)
        file.seek(4 * count, io.SEEK_CUR)
        file.write(struct.pack("<qff", 2, 3.5, 4.5))
    before = bytes_read()
    found = index_torch(path)
    assert bytes_read() - before < 2**24
    np.testing.assert_array_equal(found["end"].read(), np.float32([3.5, 4.5]))
    assert found["large"].span() == 2**32
    with path.open("r+b") as file:
        file.truncate(2**32)
    with pytest.raises(InputError, match=r"a\.ckpt: .*'1'"):
        index_torch(path)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("suffix", [suffix for suffix, index in INDEXERS.items() if index is index_torch])
def test_expanded_weights_are_read_into_a_network(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    table = {"conv.weight": torch.randn(3, 1, 1, 1).expand(3, 2, 1, 1), "conv.bias": torch.full((1,), 0.5).expand(3)}
    torch.save(table, path)
    expected = {"conv": {"kernel": jax.ShapeDtypeStruct((1, 1, 2, 3), "float32")}}
    expected["conv"]["bias"] = jax.ShapeDtypeStruct((3,), "float32")
    found = read_weights([path], expected)["conv"]
    np.testing.assert_array_equal(found["kernel"].transpose(3, 2, 0, 1), table["conv.weight"].numpy())
    np.testing.assert_array_equal(found["bias"], table["conv.bias"].numpy())
    torch.save({**table, "conv.bias": torch.zeros(1).expand(2**29)}, path)
    with pytest.raises(InputError, match=r"conv\.bias is \(536870912,\)"):
        read_weights([path], expected)


def test_little_bytes_are_not_made_much(tmp_path: Path) -> None:
    torch.save({"kernel": torch.zeros(1).expand(2**29)}, tmp_path / "a.bin")
    assert index_torch(tmp_path / "a.bin")["kernel"].shape == (2**29,)
    for shape in ((2**29 + 1,), (2**15, 2**15), (0, 2**40)):
        torch.save({"kernel": torch.zeros(()).expand(shape)}, tmp_path / "a.bin")
        with pytest.raises(InputError, match=rf"a\.bin: 'kernel' .*{2**31}"):
            index_torch(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({}, "state_dict"),
        ({"model": {"a": torch.ones(2)}, "epoch": 3}, "'model', 'epoch'"),
        ({"state_dict": {"epoch": 3}, "a": torch.ones(2)}, "'epoch'"),
        ({3: torch.ones(2)}, "text"),
        ([torch.ones(2)], "table"),
        (torch.ones(2), "table"),
        (collections.Counter("ab"), "table"),
    ],
)
def test_a_file_without_tensors_is_refused(tmp_path: Path, value: Any, names: str) -> None:
    torch.save(value, tmp_path / "a.bin")
    with pytest.raises(InputError, match=rf"a\.bin: .*{names}"):
        index_torch(tmp_path / "a.bin")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """A small checkpoint with much beside its tensors, in both formats."""
    path, files = tmp_path_factory.mktemp("originals") / "a.ckpt", {}
    for new in (True, False):
        torch.save({**BESIDE, "state_dict": {**TENSORS, "step": 1}}, path, _use_new_zipfile_serialization=new)
        files[new] = path.read_bytes()
    return files


PLACES = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), max_size=4)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(places=PLACES, end=st.floats(0.5, 1.5))
def test_a_mutant_is_read_or_refused(
    originals: dict[bool, bytes], tmp_path: Path, new: bool, places: list[tuple[float, bytes, int]], end: float
) -> None:
    """Bytes are replaced, put in or taken out, or the end is cut off."""
    path, data = tmp_path / "a.ckpt", originals[new]
    for place, piece, taken in places:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + taken :]
    path.write_bytes(data[: int(end * len(data))])
    try:
        for found in index_torch(path).values():
            if found.span() + np.prod(found.shape) < 2**20:
                found.read()
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
