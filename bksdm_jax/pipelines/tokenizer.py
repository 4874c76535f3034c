"""The CLIP tokenizer of a pipeline folder."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bksdm_jax.base.errors import InputError, in_short, whole_number
from bksdm_jax.base.files import read_json, read_text, write_json
from bksdm_jax.base.paths import read_bytes

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MOST_LETTERS = 2**16
"""Characters of a caption; tokenizers take minutes and gigabytes for one of ten million."""
_ENDLESS = 1e9  # Transformers writes 1e30 for "no limit"
_MOST_FILE = 2**24
"""Bytes of a file of a tokenizer, several times CLIP's."""
_PROBE = "a photo"
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", _CONFIG, _SPECIAL, "added_tokens.json")
"""The files of a CLIP tokenizer of Transformers."""


class Tokenizer:
    """Captions to token ids, padded and truncated to the text encoder's length like Diffusers.

    Args:
        tokenizer: of Transformers.
        max_length: token ids per caption.
        files: name -> content of the files that `write` writes.
    """

    def __init__(self, tokenizer: "CLIPTokenizer", max_length: int, files: Mapping[str, bytes]) -> None:
        self._tokenizer, self._max_length, self._files = tokenizer, max_length, files

    def write(self, folder: Path) -> None:
        """Writes its files to a new folder."""
        folder.mkdir()
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> int32 [len(captions), max_length]; raises `InputError` for one of more than `MOST_LETTERS`."""
        longest = max(captions, key=len, default="")
        if len(longest) > MOST_LETTERS:
            raise InputError(f"caption {longest[:40]!r}...: {len(longest)} characters; the limit is {MOST_LETTERS}")
        encoded = self._tokenizer(list(captions), padding="max_length", max_length=self._max_length, truncation=True)
        return np.asarray(encoded["input_ids"], np.int32)

    def sha256(self) -> str:
        """Of its vocabulary, merges and settings, however they are laid out in the files, and the number of tokens."""
        digest = hashlib.sha256(str(self._max_length).encode())
        for name, content in sorted(self._files.items()):
            digest.update(name.encode() + hashlib.sha256(_canonical(name, content)).digest())
        return digest.hexdigest()

    def ends(self, tokens: np.ndarray) -> np.ndarray:
        """Position of the first end-of-text token in each row of token ids [B, T]: int32 [B]."""
        return np.argmax(tokens == self._tokenizer.eos_token_id, axis=1).astype(np.int32)

    def __len__(self) -> int:
        """The smallest size of a vocabulary that has all its ids."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1


def caption_length(folder: Path, positions: int) -> int:
    """Tokens of a caption: the `model_max_length` in a tokenizer's folder, or `positions` if it has none.

    Raises `InputError` if it is no whole number in [2, positions], the text encoder's position embeddings.
    """
    file = folder / _CONFIG
    value = read_json(file).get("model_max_length") if file.is_file() else None
    if value is None or (isinstance(value, (int, float)) and value >= _ENDLESS):
        return positions
    return whole_number(str(file), "model_max_length", value, 2, positions)


def load_tokenizer(folder: Path, max_length: int, pad: str = "") -> Tokenizer:
    """Reads a folder with the files of a CLIP tokenizer.

    Args:
        folder: `tokenizer/` of a pipeline folder; raises `InputError` if Transformers can't read it.
        max_length: token ids per caption.
        pad: the padding token; empty: the one in the files.
    """
    # Takes a second, which commands without captions or with a mistake shouldn't wait for.
    from transformers import CLIPTokenizer  # noqa: PLC0415

    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: no {name}; expected vocab.json and merges.txt, or tokenizer.json")
        if len(read_text(folder / "merges.txt", _MOST_FILE).split()) < 2:
            raise InputError(f"{folder / 'merges.txt'}: empty; expected the merges of the CLIP tokenizer")
    # Kept in memory, so that they are still there at the end of a long run.
    files = {name: read_bytes(folder / name, _MOST_FILE) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if pad:
        for name in {_CONFIG} | files.keys() & {_SPECIAL}:
            table = (read_json(folder / name) if name in files else {}) | {"pad_token": pad}
            files[name] = json.dumps(table, indent=2).encode()
    try:
        options = {"pad_token": pad} if pad else {}
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **options)
        loaded = Tokenizer(tokenizer, max_length, files)
        ids, end = loaded([_PROBE]), tokenizer.eos_token_id
    except Exception as error:  # Transformers' parsers raise many types
        raise InputError(f"{folder}: Transformers can't read this tokenizer ({in_short(error)})") from error
    if ids.shape != (1, max_length) or end not in ids:
        raise InputError(f"{folder}: doesn't end a caption by its eos_token; expected the files of a CLIP tokenizer")
    return loaded


def _canonical(name: str, content: bytes) -> bytes:
    """The content of a file, of JSON however it is laid out."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(json.loads(content), sort_keys=True).encode() if name.endswith(".json") else content
    return content


START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """Writes the files of a CLIP tokenizer with all bytes and one token for each of `words` (lower-case ASCII).

    The last two ids are start and end of text; the end token is also the padding.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # The other bytes map to 256 and up, as in GPT-2's tokenizer.
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        while len(parts := _merged([*word[:-1], f"{word[-1]}</w>"], merges)) > 1:
            merges[parts[0], parts[1]] = len(merges)  # a later rank than all before, so earlier words stay one token
            if parts[0] + parts[1] not in vocabulary:
                vocabulary.append(parts[0] + parts[1])
    table = {token: index for index, token in enumerate([*vocabulary, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    write_json(folder / _CONFIG, settings)


def _merged(parts: list[str], merges: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of a word: merges the pair of the lowest rank until none is left."""
    while known := [pair for pair in itertools.pairwise(parts) if pair in merges]:
        best = min(known, key=merges.__getitem__)
        joined: list[str] = []
        while parts:
            width = 2 if tuple(parts[:2]) == best else 1
            joined.append("".join(parts[:width]))
            parts = parts[width:]
        parts = joined
    return parts
