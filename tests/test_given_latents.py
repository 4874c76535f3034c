"""Starting noise from files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.sampling.given_latents import read_latents


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)


def test_latents_are_read_in_both_layouts_and_formats(tmp_path: Path) -> None:
    latents = noise()
    for number, (layout, dtype) in enumerate(((latents, "<f4"), (latents.transpose(0, 3, 1, 2), ">f2"))):
        path, tensors = tmp_path / f"{number}.npy", tmp_path / f"{number}.safetensors"
        np.save(path, layout.astype(dtype))
        save_file({"latents": np.ascontiguousarray(layout, dtype.replace(">", "<"))}, tensors)
        for file in (path, tensors):
            found = read_latents(file, 3, (8, 8, 4))
            assert found.dtype == np.float32
            assert np.array_equal(found, latents.astype(dtype).astype(np.float32))


def spoilt(value: float) -> np.ndarray:
    latents = np.zeros((3, 8, 8, 4), np.float32)
    latents[1, 2, 3, 0] = value
    return latents


@pytest.mark.parametrize(
    ("array", "shape", "fact"),
    [
        (np.zeros((2, 8, 8, 4), np.float32), (8, 8, 4), r"\[2, 8, 8, 4\]"),
        (np.zeros((3, 8, 6, 4), np.float32), (8, 8, 4), r"\[3, 8, 6, 4\]"),
        (np.zeros((8, 8, 4), np.float32), (8, 8, 4), r"\[8, 8, 4\]"),
        (np.zeros((3, 4, 4, 4), np.float32), (4, 4, 4), "choose another resolution"),
        (np.zeros((3, 8, 8, 4), np.int32), (8, 8, 4), "int32"),
        (np.zeros((3, 8, 8, 4), np.float64), (8, 8, 4), "float64"),
        (spoilt(np.nan), (8, 8, 4), r"\[1, 2, 3, 0\] is nan"),
        (spoilt(-np.inf), (8, 8, 4), r"\[1, 2, 3, 0\] is -inf"),
        (np.array([{}, []], object), (8, 8, 4), "not a readable"),
        (np.zeros(3, [("a", "<f4")]), (8, 8, 4), "expected float32 or float16"),
    ],
)
def test_latents_that_cannot_be_used_are_one_line(
    tmp_path: Path, array: np.ndarray, shape: tuple[int, int, int], fact: str
) -> None:
    path = tmp_path / "noise.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*{fact}"):
        read_latents(path, 3, shape)


def test_files_that_hold_no_latents_are_one_line(tmp_path: Path) -> None:
    huge = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 10000000, 10000000, 4), }"
    np.savez(tmp_path / "zip.npz", noise())
    contents = {
        "huge.npy": huge.ljust(127) + b"\n",
        "text.npy": b"not numpy",
        "zip.npy": (tmp_path / "zip.npz").read_bytes(),
        "text.safetensors": b"not safetensors",
        "noise.pt": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    save_file({"a": noise(), "b": noise()}, tmp_path / "two.safetensors")
    for name in (*contents, "two.safetensors", "none.npy"):
        with pytest.raises(InputError, match=rf"^{tmp_path / name}: [^\n]*$"):
            read_latents(tmp_path / name, 3, (8, 8, 4))
