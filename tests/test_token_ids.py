"""Token ids of odd captions: those of Transformers' tokenizer, and of CLIP's published algorithm written out here."""

import functools
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from transformers import CLIPTokenizer

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS, Tokenizer, load_tokenizer
from tests import tiny
from tests.odd_captions import CAPTIONS

START, END = "<|startoftext|>", "<|endoftext|>"
MARKS = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
LENGTH = 77
MERGES = 1000
FOLDERS = ("trained", "trained, padded by !", "bundled", "tiny")


def byte_letters() -> list[str]:
    """The letter of each byte: itself if it is printable, else the next one from 256 on, as in GPT-2's vocabulary."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


LETTERS = byte_letters()


def lower(text: str) -> str:
    """Each letter by itself: `str.lower` would look at the end of a word for sigma."""
    return "".join(letter.lower() for letter in text)


def trained_merges() -> list[tuple[str, str]]:
    """Merges that byte-pair encoding learns from every other caption, too few for whole words everywhere."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=3000, min_frequency=1, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    words = [word for text in CAPTIONS[::2] for word in WORDS.findall(lower(unicodedata.normalize("NFC", text[:200])))]
    # The trainer knows no bytes: its words are in the letters of bytes already.
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.train_from_iterator([" ".join(map(spelled, words))], trainer)
    return [tuple(merge) for merge in json.loads(model.to_str())["model"]["merges"][:MERGES]]


def spelled(word: str) -> str:
    """A word in the letters of its bytes."""
    return "".join(LETTERS[byte] for byte in word.encode())


def write_trained(folder: Path, pad: str) -> Path:
    """A tokenizer laid out as CLIP's: bytes, bytes that end a word, merges, start and end."""
    merges = trained_merges()
    assert len(merges) == MERGES
    tokens = dict.fromkeys([*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *map("".join, merges), START, END])
    folder.mkdir()
    table = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


class Published:
    """CLIP's tokenizer, from a folder's vocabulary and merges."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
        self.ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(filter(None, lines))}
        self.pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
        self.special = regex.compile("|".join(map(regex.escape, sorted({START, END, self.pad}))))

    def __call__(self, caption: str) -> list[int]:
        """The ids of a caption, `LENGTH` of them."""
        ids: list[int] = []
        position = 0
        for found in [*self.special.finditer(caption), None]:
            plain = caption[position : found.start() if found else None]
            text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", plain))
            for piece in MARKS.split(lower(text)):  # in upper case they are spelled out, by themselves
                ids += itertools.chain.from_iterable(self.word(spelled(word)) for word in WORDS.findall(piece))
            if found:
                ids.append(self.vocabulary[found[0]])
                position = found.end()
        start, end, pad = (self.vocabulary[token] for token in (START, END, self.pad))
        ids = [start, *ids[: LENGTH - 2], end]
        return ids + [pad] * (LENGTH - len(ids))

    @functools.cache  # noqa: B019
    def word(self, letters: str) -> list[int]:
        """Merges the pair of the lowest rank, everywhere from left to right, until none is left."""
        parts = [*letters[:-1], f"{letters[-1]}</w>"]
        while known := {pair for pair in itertools.pairwise(parts) if pair in self.ranks}:
            best = min(known, key=self.ranks.__getitem__)
            merged, position = [], 0
            while position < len(parts):
                width = 2 if tuple(parts[position : position + 2]) == best else 1
                merged.append("".join(parts[position : position + width]))
                position += width
            parts = merged
        return [self.vocabulary[part] for part in parts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of each kind."""
    place = tmp_path_factory.mktemp("tokenizers")
    tiny.write_tokenizer(place / "tiny")
    return {
        "trained": write_trained(place / "trained", END),
        "trained, padded by !": write_trained(place / "trained_2", "!"),
        "bundled": teacher_folder() / "tokenizer",
        "tiny": place / "tiny",
    }


@functools.cache
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, LENGTH)


def require_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Fails with the captions that differ."""
    assert found.shape == expected.shape == (len(CAPTIONS), LENGTH)
    different = [CAPTIONS[row][:60] for row in np.flatnonzero((found != expected).any(axis=1))]
    assert not different


def test_the_captions_are_many_and_odd(folders: dict[str, Path]) -> None:
    assert len(CAPTIONS) >= 200
    tokens = json.loads((folders["trained"] / "vocab.json").read_text(encoding="utf-8"))
    used = set(np.unique(ours(folders["trained"])(CAPTIONS)))
    merged = [token for token, index in tokens.items() if index in used and len(token.removesuffix("</w>")) > 1]
    assert len(merged) > 500
    assert sum(not token.endswith("</w>") for token in merged) > 200


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    theirs = CLIPTokenizer.from_pretrained(folders[name])
    # As Diffusers' pipelines call it.
    expected = theirs(
        CAPTIONS, padding="max_length", max_length=theirs.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids.numpy()
    assert theirs.model_max_length == LENGTH
    require_same(ours(folders[name])(CAPTIONS), expected)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_the_published_algorithm(folders: dict[str, Path], name: str) -> None:
    published = Published(folders[name])
    require_same(ours(folders[name])(CAPTIONS), np.array([published(text) for text in CAPTIONS]))


def test_a_caption_does_not_depend_on_its_neighbours(folders: dict[str, Path]) -> None:
    together = ours(folders["trained"])(CAPTIONS)
    for row in range(0, len(CAPTIONS), 7):
        np.testing.assert_array_equal(ours(folders["trained"])([CAPTIONS[row]])[0], together[row])


def test_longer_captions_are_refused(folders: dict[str, Path]) -> None:
    tokenizer = ours(folders["trained"])
    longest = "猫 " * (MOST_LETTERS // 2)
    assert tokenizer([longest]).shape == (1, LENGTH)
    with pytest.raises(InputError, match=f"{MOST_LETTERS + 1} .*{MOST_LETTERS}"):
        tokenizer(["a cat", f"{longest}!"])
