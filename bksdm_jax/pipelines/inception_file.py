"""Reads the FID Inception from the file that pytorch-fid or torch-fidelity downloads, or from its safetensors twin."""

import dataclasses
from typing import Any

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256
from bksdm_jax.base.paths import local_path
from bksdm_jax.formats.names import torch_shapes
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.torch_file import index_torch
from bksdm_jax.formats.weights import read_tensors
from bksdm_jax.models.inception import OUTPUTS, inception_parameter_shapes

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
"""Where pytorch-fid gets the weights."""
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of that file, and of torch-fidelity's, which is a copy."""
_KEY = "inception"
_BIAS = "fc.bias"  # left out: scores use logits without it
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class LoadedInception:
    """Parameters (nested by Flax names, in the file's dtypes), the file as the user named it, and its checksum."""

    params: dict[str, Any]
    path: str
    sha256: str


def load_inception(path: str) -> LoadedInception:
    """Reads a `.safetensors` file, or one in any other name as a PyTorch checkpoint, whose pickle isn't executed.

    Raises:
        InputError: no path, no such file, a damaged one, or another network's.
    """
    advice = f"download {URL} and set {_KEY} to its path"
    if not path:
        raise InputError(f"{_KEY}: not set, but a metric needs the FID Inception's weights; {advice}")
    file = local_path(_KEY, path)
    if not file.exists():
        raise InputError(f"{_KEY}: {path}: no such file; {advice}")
    index = index_safetensors if file.suffix == ".safetensors" else index_torch
    stored = {name: tensor for name, tensor in index(file).items() if name.rpartition(".")[2] != _COUNTER}
    shapes = inception_parameter_shapes()
    expected = torch_shapes(shapes) | {_BIAS: (OUTPUTS,)}
    try:
        trees.require_same(str(file), {name: tensor.shape for name, tensor in stored.items()}, expected)
    except InputError as error:
        raise InputError(f"{error}; it is another network than the FID Inception; {advice}") from error
    del stored[_BIAS]
    return LoadedInception(read_tensors(str(file), stored, shapes), path, file_sha256(file))
