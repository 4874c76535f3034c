"""Locates the tensors of a PyTorch checkpoint (`.bin`, `.ckpt`, `.pt`, `.pth`) without executing its pickle."""

import math
from pathlib import Path

from absl import logging

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.formats.stored import StoredTensor, require_weights_file
from bksdm_jax.formats.torch_storages import Contents, read_legacy, read_zip
from bksdm_jax.formats.torch_values import Tensor, Unsupported

_MOST_EXPANDED = 2**31  # bytes; the largest weights of text-to-image models (embeddings of T5-XXL) take 2**29
_SHOWN = 3
_ADVICE = (
    "if you trust it, convert it with PyTorch: safetensors.torch.save_file(torch.load(PATH, weights_only=True), NEW)"
)


def index_torch(path: Path) -> dict[str, StoredTensor]:
    """Every tensor by its name, of the table in the file or of the one under `state_dict`; as `index_torch_table`."""
    return index_torch_table(path, "state_dict")[0]


def index_torch_table(path: Path, inner: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a table, and the texts of the table in the file.

    What isn't a tensor in this table is passed over with one warning; what stands beside an inner one, without.

    Args:
        path: the file.
        inner: the key of an inner table, which is read instead if it is there.

    Returns:
        every tensor by its name, and the outer table's entries that are text.

    Raises:
        InputError: the file is damaged, holds no tensors, or its pickle holds what is neither a tensor nor usual
            beside tensors.
    """
    require_weights_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head[257:262] == b"ustar":
                raise InputError(
                    f"{path}: in the tar format of PyTorch 0.1; if you trust it, save it anew with PyTorch"
                )
            contents = read_zip(path, file) if head.startswith(b"PK") else read_legacy(file)
            tensors = _tensors(path, contents, inner)
            located = {name: _located(path, contents, name, tensor) for name, tensor in tensors.items()}
            return located, {key: value for key, value in contents.value.items() if isinstance(value, str)}
    except InputError:
        raise
    except Unsupported as error:
        raise InputError(f"{path}: it holds {error}; pickles are never executed here; {_ADVICE}") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # zipfile and pickletools raise many types on damaged files
        raise InputError(
            f"{path}: damaged or not a PyTorch checkpoint ({in_short(error)}); download it again"
        ) from error


def _tensors(path: Path, contents: Contents, inner: str) -> dict[str, Tensor]:
    """The tensors of the table."""
    table = contents.value
    if isinstance(table, dict) and isinstance(table.get(inner), dict):
        table = table[inner]
    if not isinstance(table, dict):
        raise InputError(f"{path}: its pickle holds no table of tensors; {_ADVICE}")
    tensors = {name: value for name, value in table.items() if isinstance(value, Tensor)}
    others = [f"{name[:80]!r}" for name in table if name not in tensors]
    listed = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    if not tensors:
        raise InputError(f"{path}: no tensors, but {listed or 'nothing'}; expected them by name, or under {inner!r}")
    if others:
        logging.warning("%s: not tensors and passed over: %s", path, listed)
    return tensors


def _located(path: Path, contents: Contents, name: str, tensor: Tensor) -> StoredTensor:
    """The position of `tensor` in the file."""
    storage, width = tensor.storage, tensor.dtype.itemsize
    start = contents.start(storage) + storage.offset * storage.dtype.itemsize
    size, offset = storage.length * storage.dtype.itemsize, tensor.offset * width
    needed = math.prod(max(length, 1) for length in tensor.shape) * width
    if needed > max(size, _MOST_EXPANDED):  # strides of 0 would expand a small file without limit
        raise InputError(
            f"{path}: {name[:80]!r} has shape {tensor.shape}, {needed} bytes, from a storage of {size}; "
            f"expected at most {_MOST_EXPANDED}; {_ADVICE}"
        )
    c_order = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    strides = None if tensor.strides == c_order or math.prod(tensor.shape) <= 1 else tensor.strides
    found = StoredTensor(path, start + offset, tensor.shape, tensor.dtype, strides)
    if offset + found.span() > size:
        raise ValueError(f"{name[:80]!r} ends after its storage")
    return found
