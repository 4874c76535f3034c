"""The CLIP tokenizer of a pipeline folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from bksdm_jax.errors import InputError
from bksdm_jax.files import read_text


class Tokenizer:
    """Captions to token ids, padded and cut to the text encoder's length as Diffusers does."""

    def __init__(self, tokenizer: CLIPTokenizer, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> int32 [len(captions), max_length]."""
        encoded = self._tokenizer(list(captions), padding="max_length", max_length=self._max_length, truncation=True)
        return np.asarray(encoded["input_ids"], np.int32)

    def __len__(self) -> int:
        return len(self._tokenizer)


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """Reads `tokenizer/` of a pipeline folder.

    Raises:
        InputError: Transformers can't read it.
    """
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise InputError(f"{folder}: no {name}; a tokenizer is vocab.json and merges.txt, or tokenizer.json")
        if len(read_text(folder / "merges.txt").split()) < 2:
            raise InputError(f"{folder / 'merges.txt'}: empty; expected the merges of the CLIP tokenizer")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Transformers raises whatever its parsers do
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: Transformers can't read this tokenizer ({reason})") from error
    return Tokenizer(tokenizer, max_length)
