"""Which tokens of a caption are which word's."""

from typing import NamedTuple

import numpy as np

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.pipelines.tokenizer import Tokenizer


class Word(NamedTuple):
    """A word, and the positions of its tokens among the caption's: `first` to `last` - 1; 0 is the start token."""

    text: str
    first: int
    last: int


def words_of(tokenizer: Tokenizer, caption: str) -> tuple[tuple[Word, ...], tuple[str, ...]]:
    """The words of a caption, split at spaces, and those of which a token is beyond what the text encoder reads.

    Words without tokens are in neither.

    Raises `InputError` if the caption's tokens aren't its words'.
    """
    texts = caption.split()
    whole, *own = tokenizer.pieces([caption, *texts])
    if whole != [index for ids in own for index in ids]:
        raise InputError(f"prompts: {shown(caption)} has tokens that aren't those of its words; write it otherwise")
    ends = 1 + np.cumsum([len(ids) for ids in own], dtype=int)
    words = [Word(text, int(end) - len(ids), int(end)) for text, ids, end in zip(texts, own, ends, strict=True) if ids]
    read = tuple(word for word in words if word.last < tokenizer.max_length)  # the last position is the end token's
    return read, tuple(word.text for word in words[len(read) :])


def word_maps(maps: np.ndarray, words: tuple[Word, ...]) -> np.ndarray:
    """Maps of tokens [h, w, T] -> the means of each word's, float32 [W, h, w]."""
    own = [maps[..., word.first : word.last].mean(axis=-1, dtype=np.float64) for word in words]
    return np.stack(own).astype(np.float32) if own else np.zeros((0, *maps.shape[:2]), np.float32)
