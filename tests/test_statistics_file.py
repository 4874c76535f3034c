"""Reference statistics in files: ours and other tools', and files that must not be believed."""

import io
import json
import logging
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.statistics_file import RECORD, Statistics, read_statistics, write_statistics

FACTS = {"extractor": "inception", "resize": "pytorch_fid", "images": 50, "weights": "ab12"}
WANTED = {"extractor": "inception", "resize": "pytorch_fid"}


def statistics() -> Statistics:
    features = np.random.default_rng(0).normal(size=(50, 4))
    return Statistics(features.mean(axis=0), np.cov(features, rowvar=False), FACTS)


def test_statistics_come_back(tmp_path: Path, caplog) -> None:
    path, wanted = tmp_path / "statistics.npz", statistics()
    with caplog.at_level(logging.WARNING, logger="absl"):
        write_statistics(path, wanted)
        found = read_statistics(path, 4, WANTED)
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.covariance, wanted.covariance)
    assert found.facts == FACTS
    assert not caplog.records
    with np.load(path) as file:  # as other tools do
        np.testing.assert_array_equal(file["mu"], wanted.mean)
        np.testing.assert_array_equal(file["sigma"], wanted.covariance)
        assert json.loads(file[RECORD].item()) == FACTS
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_files_of_other_tools_are_read_with_a_warning(dtype: str, tmp_path: Path, caplog) -> None:
    path, wanted = tmp_path / "statistics.npz", statistics()
    sigma = np.asfortranarray(wanted.covariance.astype(dtype))
    np.savez_compressed(path, mu=wanted.mean.astype(dtype), sigma=sigma, arr_0=np.zeros((9, 9), np.uint8))
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = read_statistics(path, 4, WANTED)
    np.testing.assert_array_equal(found.mean, wanted.mean.astype(dtype))
    np.testing.assert_array_equal(found.covariance, sigma)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert len(caplog.records) == 1
    assert all(word in caplog.text for word in (path.name, *WANTED))


@pytest.mark.parametrize(("key", "value"), [("resize", "clean"), ("extractor", "dinov2")])
def test_statistics_of_something_else_are_refused(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    write_statistics(path, statistics())
    with pytest.raises(InputError, match=f"{path.name}.*{key}.*{FACTS[key]}.*{value}"):
        read_statistics(path, 4, {**WANTED, key: value})
    with pytest.raises(InputError, match=rf"{path.name}.*mu.*\[4\].*\[5\]"):
        read_statistics(path, 5, WANTED)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def damaged() -> dict[str, tuple[dict, str]]:
    """Arrays by mistake, and what the error names."""
    good = statistics()
    mean, covariance = good.mean, good.covariance
    infinite, skew = covariance.copy(), covariance.copy()
    infinite[1, 2] = infinite[2, 1] = np.inf
    skew[0, 3] += 1
    return {
        "no sigma": ({"mu": mean}, "sigma.*mu"),
        "no array": ({}, "mu"),
        "whole numbers": ({"mu": mean.astype(int), "sigma": covariance}, "mu.*int64"),
        "half": ({"mu": mean, "sigma": covariance.astype(np.float16)}, "sigma.*float16"),
        "fields": ({"mu": np.zeros(4, "f4,f4"), "sigma": covariance}, "mu"),
        "huge items": ({"mu": np.zeros(4, "V100"), "sigma": covariance}, "mu"),
        "flat": ({"mu": mean, "sigma": covariance.ravel()}, r"sigma.*\[16\].*\[4, 4\]"),
        "nan": ({"mu": mean * np.nan, "sigma": covariance}, r"mu\[0\].*nan"),
        "infinite": ({"mu": mean, "sigma": infinite}, r"sigma\[1, 2\].*inf"),
        "skew": ({"mu": mean, "sigma": skew}, "sigma.*symmetric"),
        "no object": ({"mu": mean, "sigma": covariance, RECORD: np.array("[1]")}, RECORD),
        "no text": ({"mu": mean, "sigma": covariance, RECORD: np.array(1.0)}, RECORD),
        "long record": ({"mu": mean, "sigma": covariance, RECORD: np.array("x" * 70_000)}, RECORD),
    }


@pytest.mark.parametrize("mistake", damaged())
def test_arrays_that_are_no_statistics_are_refused(mistake: str, tmp_path: Path) -> None:
    arrays, named = damaged()[mistake]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=f"bad.npz: .*{named}"):
        read_statistics(tmp_path / "bad.npz", 4, {})


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "bad.npz"
    for name in ("mu", "sigma", RECORD):
        good = statistics()
        arrays = {"mu": good.mean, "sigma": good.covariance, RECORD: np.array("{}")}
        np.savez(path, **{**arrays, name: np.array([Harmful(canary)] * 4, dtype=object)})
        with pytest.raises(InputError, match=f"bad.npz: {name}.*pickled"):
            read_statistics(path, 4, {})
    path.write_bytes(pickle.dumps(Harmful(canary)))
    with pytest.raises(InputError, match=r"bad\.npz"):
        read_statistics(path, 4, {})
    assert not canary.exists()
    with pytest.raises(InputError, match=r"none\.npz"):
        read_statistics(tmp_path / "none.npz", 4, {})


def write_members(path: Path, compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("mistake", ["bomb", "long header", "huge shape", "lzma", "cut"])
def test_sizes_are_bounded_before_memory_is_taken(mistake: str, tmp_path: Path) -> None:
    path, good = tmp_path / "bad.npz", statistics()
    mean, sigma, compression = npy(good.mean), npy(good.covariance), zipfile.ZIP_DEFLATED
    if mistake == "bomb":
        mean += bytes(2**27)
    elif mistake == "long header":
        mean = b"\x93NUMPY\2\0" + (2**27).to_bytes(4, "little") + b" " * 2**27
    elif mistake == "huge shape":
        mean = mean.replace(b"(4,), }       ", b"(4000000000,),}")
        assert b"4000000000" in mean
    elif mistake == "lzma":
        compression = zipfile.ZIP_LZMA
    write_members(path, compression, mu=mean, sigma=sigma)
    if mistake == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bad\.npz"):
        read_statistics(path, 4, {})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23  # of 2**27


def test_damage_to_any_byte_is_told_or_harmless(tmp_path: Path) -> None:
    path, rng = tmp_path / "statistics.npz", np.random.default_rng(0)
    write_statistics(path, statistics())
    whole = path.read_bytes()
    for position in rng.integers(len(whole), size=300):
        data = bytearray(whole)
        data[position] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            found = read_statistics(path, 4, {})
        except InputError:
            continue
        np.testing.assert_array_equal(found.covariance, statistics().covariance)
