"""Textual inversion: files with embeddings of new tokens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.base.paths import local_path
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.stored import FLOATS, StoredTensor
from bksdm_jax.formats.torch_file import index_torch_table
from bksdm_jax.formats.weights import tell_non_finite
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.pipelines.pipeline import Network
from bksdm_jax.pipelines.tokenizer import Tokenizer

_TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
_WEBUI_TABLE, _WEBUI_NAME = "string_to_param", "name"
_NAMELESS = ("emb_params", "*")  # of the WebUIs, for which the file's name is the token
_MOST_NAME = 256  # characters of a token
_TABLE = "text_model/embeddings/token_embedding/embedding"


@dataclasses.dataclass(frozen=True)
class StoredEmbedding:
    """A file with the vectors of one token: `tensor` is [width] or [vectors, width]."""

    path: Path
    token: str
    tensor: StoredTensor

    def vectors(self, encoder: CLIPTextConfig, dtype: np.dtype, allow_non_finite: bool = False) -> np.ndarray:
        """[vectors, width] in `dtype`; raises `InputError` if they don't fit the text encoder or aren't finite."""
        shape = self.tensor.shape
        if len(shape) not in (1, 2) or self.tensor.dtype not in FLOATS.values():
            raise InputError(
                f"{self.path}: the embedding of {shown(self.token)} is {self.tensor.dtype} {shape}; "
                "expected floats [vectors, width]"
            )
        if shape[-1] != encoder.width:
            raise InputError(
                f"{self.path}: the vectors of {shown(self.token)} have {shape[-1]} numbers, the text encoder's "
                f"hidden_size is {encoder.width}; expected an embedding made for this model's generation"
            )
        if len(shape) == 2 and not 1 <= shape[0] <= encoder.max_length:
            raise InputError(
                f"{self.path}: {shown(self.token)} has {shape[0]} vectors; "
                f"expected 1 to {encoder.max_length}, the tokens of a caption"
            )
        vectors = self.tensor.read().reshape(-1, encoder.width)
        with np.errstate(over="ignore"):
            cast = vectors.astype(dtype)
        if count := count_non_finite(vectors):
            bad = {f"the embedding of {shown(self.token)}": (self.tensor, count)}
            tell_non_finite(str(self.path), bad, allow_non_finite)
        elif count_non_finite(cast):
            raise InputError(
                f"{self.path}: vectors of {shown(self.token)} are out of range of {dtype}, the dtype of the text "
                "encoder's weights; use weights in float32"
            )
        return cast


def find_embedding(name: str) -> StoredEmbedding:
    """Finds the embedding in a file of textual inversion.

    The file is in safetensors or PyTorch's format and has one tensor: by its token (Diffusers), under
    `string_to_param` beside its `name` (AUTOMATIC1111), or as `emb_params`.

    Args:
        name: `FILE` or `TOKEN=FILE`. Without `TOKEN` it is the one in the file, or if there is none, the name of the
            file without suffix.

    Raises:
        InputError: the file can't be read or holds something else, or the token can't be one.
    """
    if not isinstance(name, str):
        raise InputError(f"embeddings: {shown(name)}; expected FILE or TOKEN=FILE")
    token, path = "", local_path("embeddings", name)
    if not path.is_file() and "=" in name:
        token, _, file = name.partition("=")
        path = local_path("embeddings", file)
    if not path.is_file():
        raise InputError(f"embeddings: {name!r}: no such file; expected FILE or TOKEN=FILE")
    if path.suffix.lower() == ".safetensors":
        tensors, texts = index_safetensors(path), {}
    elif path.suffix.lower() in _TORCH_FILES:
        tensors, texts = index_torch_table(path, _WEBUI_TABLE)
    else:
        raise InputError(
            f"{path}: a file of unknown format; expected .safetensors, {', '.join(_TORCH_FILES)} of textual inversion"
        )
    if len(tensors) != 1:
        some = ", ".join(f"{key[:80]} {tensor.shape}" for key, tensor in list(tensors.items())[:3])
        raise InputError(f"{path}: {len(tensors)} tensors ({some}); expected one, the embedding of a token")
    (key, tensor), *_ = tensors.items()
    token = token or (texts.get(_WEBUI_NAME) or path.stem if key in _NAMELESS else key)
    if not token.strip() or not token.isprintable() or len(token) > _MOST_NAME:
        raise InputError(f"{path}: {shown(token)} can't be a token; give another as TOKEN=FILE")
    return StoredEmbedding(path, token, tensor)


def with_embeddings(
    encoder: Network, tokenizer: Tokenizer, names: Sequence[str], allow_non_finite: bool = False
) -> tuple[Network, Tokenizer]:
    """A CLIP text encoder and its tokenizer with the tokens of textual inversion files; as Diffusers makes them.

    A token of several vectors becomes `TOKEN`, `TOKEN_1`, ...: in captions, `TOKEN` stands for all of them.

    Args:
        encoder, tokenizer: what the tokens are added to.
        names: as `find_embedding` takes them.
        allow_non_finite: as in `ModelSource`.

    Raises:
        InputError: as `find_embedding`; or vectors don't fit the text encoder or aren't finite, or a token exists
            already.
    """
    flat = trees.flatten(encoder.params)
    table = np.asarray(flat[_TABLE])[: len(tokenizer)]
    known, added, rows = tokenizer.vocabulary(), [], []
    for stored in map(find_embedding, names):
        vectors = stored.vectors(encoder.config, table.dtype, allow_non_finite)
        tokens = [stored.token, *(f"{stored.token}_{i}" for i in range(1, len(vectors)))]
        for token in (*tokens, f"{stored.token}_1"):  # the last would be taken for one of its vectors
            if token in known:
                raise InputError(f"{stored.path}: the token {shown(token)} exists already; give another as TOKEN=FILE")
        known.update(tokens)
        added += tokens
        rows.append(vectors)
    flat[_TABLE] = np.concatenate([table, *rows])
    size = len(flat[_TABLE])
    config = dataclasses.replace(encoder.config, vocab_size=size)
    json = changed_json(encoder.json, vocab_size=size)
    return Network(config, trees.unflatten(flat), json), tokenizer.with_tokens(added)


def changed_json(json: dict[str, Any], **keys: int) -> dict[str, Any]:
    """A text encoder's `config.json` with other values, in the `text_config` of a `CLIPModel`'s."""
    if json.get("model_type") == "clip" and isinstance(json.get("text_config"), dict):
        return json | {"text_config": json["text_config"] | keys}
    return json | keys
