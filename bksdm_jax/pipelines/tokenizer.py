"""The CLIP tokenizer of a pipeline folder."""

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bksdm_jax.base.errors import InputError, in_short, shown, whole_number
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
_FAST, _ADDED = "tokenizer.json", "added_tokens.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", _FAST, _CONFIG, _SPECIAL, _ADDED)
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
        self._vectors = _vectors(tokenizer.added_tokens_encoder)

    def write(self, folder: Path) -> None:
        """Writes its files to a new folder."""
        folder.mkdir()
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> int32 [len(captions), max_length]; raises `InputError` for one of more than `MOST_LETTERS`.

        Of added tokens `TOKEN`, `TOKEN_1`, `TOKEN_2`, ... the first stands for all of them.
        """
        longest = max(captions, key=len, default="")
        if len(longest) > MOST_LETTERS:
            raise InputError(f"caption {longest[:40]!r}...: {len(longest)} characters; the limit is {MOST_LETTERS}")
        length = {"max_length": self._max_length, "truncation": True}
        if self._vectors and captions:
            encoded = self._tokenizer(list(captions), **length)
            return np.asarray([self._expanded(ids) for ids in encoded["input_ids"]], np.int32)
        encoded = self._tokenizer(list(captions), padding="max_length", **length)
        return np.asarray(encoded["input_ids"], np.int32)

    def _expanded(self, ids: Sequence[int]) -> list[int]:
        """A caption's ids with all vectors of its tokens, padded and truncated."""
        every = itertools.chain.from_iterable(self._vectors.get(index, (index,)) for index in ids)
        found = list(itertools.islice(every, self._max_length + 1))
        if len(found) > self._max_length:
            found = [*found[: self._max_length - 1], self._tokenizer.eos_token_id]
        return found + [self._tokenizer.pad_token_id] * (self._max_length - len(found))

    def cuts(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption has more tokens than a caption can, so that its end is left out."""
        every = self._tokenizer(list(captions), verbose=False)["input_ids"] if captions else []
        return [sum(len(self._vectors.get(index, (index,))) for index in ids) > self._max_length for ids in every]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, however many, without those of start, end and padding."""
        every = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [[one for index in ids for one in self._vectors.get(index, (index,))] for ids in every]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens with these ids, those at the ends of words without their mark `</w>`."""
        return [token.removesuffix("</w>") for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    @property
    def max_length(self) -> int:
        """Token ids per caption, those of start and end included."""
        return self._max_length

    def vocabulary(self) -> set[str]:
        """All tokens."""
        return set(self._tokenizer.get_vocab())

    def with_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """A copy that knows new tokens too, wherever they stand in a caption, in any case; their ids follow the others.

        Raises `InputError` if Transformers doesn't take them.
        """
        ids = {token: len(self) + i for i, token in enumerate(tokens)}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "tokenizer"
            try:
                Tokenizer(self._tokenizer, self._max_length, _with_added(self._files, ids)).write(folder)
                new = load_tokenizer(folder, self._max_length)
            except (InputError, OSError, TypeError, ValueError) as error:  # of JSON of another form too
                raise InputError(f"tokenizer: can't take the tokens {shown(list(tokens))} ({error})") from error
        found = new._tokenizer.get_vocab()
        for token, index in ids.items():
            if found.get(token) != index:
                raise InputError(f"tokenizer: {shown(token)} gets id {found.get(token)}; expected {index}")
        return new

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

    if not (folder / _FAST).is_file():
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


def _vectors(added: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
    """The id of each token `TOKEN` that has `TOKEN_1`, ... -> the ids of all of them."""
    found = {}
    for token, index in added.items():
        names = itertools.takewhile(added.__contains__, (f"{token}_{i}" for i in itertools.count(1)))
        if more := tuple(added[name] for name in names):
            found[index] = (index, *more)
    return found


def _with_added(files: Mapping[str, bytes], ids: Mapping[str, int]) -> dict[str, bytes]:
    """A tokenizer's files with more tokens, in each place where Transformers 4 or 5 looks for them."""
    files = dict(files)
    plain = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
    table = json.loads(files.get(_ADDED, b"{}")) | ids
    files[_ADDED] = json.dumps(table, indent=2).encode()
    config = json.loads(files.get(_CONFIG, b"{}"))
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(index): {"content": token} | plain for token, index in ids.items()}
        files[_CONFIG] = json.dumps(config, indent=2).encode()
    if _FAST in files:
        fast = json.loads(files[_FAST])
        entries = [{"id": index, "content": token} | plain for token, index in ids.items()]
        fast["added_tokens"] = [*(fast.get("added_tokens") or ()), *entries]
        files[_FAST] = json.dumps(fast, ensure_ascii=False).encode()
    return files


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
