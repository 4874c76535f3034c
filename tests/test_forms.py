"""Every form in which people have images with captions: each caption is of its image, in preparation and training."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.prepare.prepare import SUMMARY, prepare
from bksdm_jax.data.sources import open_examples
from tests.forms import COUNT, FORMS, WITH_SPLITS, image, kohya, read, seen, table, write
from tests.pairs_on_disk import config, rejects


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", FORMS)
def test_each_caption_is_of_its_image(tmp_path: Path, form: str) -> None:
    make, settings = FORMS[form]
    source = make(tmp_path / "source")
    made = prepare(config(source, chunk=7, **settings), tmp_path / "set")
    splits = ("train", "validation") if form in WITH_SPLITS else ("train",)
    prepared = {split: read(open_examples(made, split)) for split in splits}
    direct = {split: read(open_examples(source, split, SourceOptions(**settings))) for split in splits}
    assert prepared == direct
    assert sorted(number for numbers in prepared.values() for number in numbers) == list(range(COUNT))
    if form in WITH_SPLITS:
        assert sorted(prepared["validation"]) == list(range(30, COUNT))
    assert rejects(made) == {}
    again = {split: read(open_examples(source, split, SourceOptions(**settings))) for split in splits}
    assert again == direct  # from the cache, where there is one


def test_repeats_are_counted_and_stay_in_one_split(tmp_path: Path) -> None:
    source = kohya(tmp_path / "source")
    (source / "3_cat/39.caption").unlink()
    made = prepare(config(source, validation=0.5), tmp_path / "set")
    assert json.loads((made / SUMMARY).read_text())["examples"].keys() == {"train", "validation"}
    counts = {
        split: Counter(seen(example.image()) for example in open_examples(made, split))
        for split in ("train", "validation")
    }
    assert not counts["train"].keys() & counts["validation"].keys()
    assert counts["train"] + counts["validation"] == Counter({i: 1 if i < 30 else 3 for i in range(COUNT)})
    direct = open_examples(source)
    assert Counter(seen(example.image()) for example in direct) == counts["train"] + counts["validation"]
    assert [example.texts for example in direct if seen(example.image()) == 39] == [("cat",)] * 3


def test_one_caption_for_all(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for index in range(3):
        write(source / f"{index}.png", image(index))
    write(source / "2.txt", "its own")
    options = {"caption": "a photo of sks dog"}
    made = prepare(config(source, **options), tmp_path / "set")
    for examples in (open_examples(made), open_examples(source, "train", SourceOptions(**options))):
        assert [list(example.texts) for example in examples] == [["a photo of sks dog"]] * 2 + [["its own"]]
    (source / "2.txt").unlink()
    with pytest.raises(InputError, match=r"3 images without captions.*--config\.caption"):
        open_examples(source)


def test_rows_of_one_image_are_its_captions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for index in range(2):
        write(source / f"{index}.png", image(index))
    write(source / "metadata.csv", "file_name,text\n0.png,a\n1.png,b\n./0.png,c\n0.png,a\n0.png,\n")
    made = prepare(config(source, chunk=1), tmp_path / "set")
    for examples in (open_examples(made), open_examples(source)):
        assert [list(example.texts) for example in examples] == [["a", "c"], ["b"]]
    assert rejects(made) == {}


def test_images_that_no_row_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = table(tmp_path / "source", ".csv", ",")
    for index in range(5):
        write(source / f"more/{index}.jpg", image(index, "JPEG"))
    write(source / "more/6.heic", "of a phone")
    made = prepare(config(source), tmp_path / "set")
    open_examples(source)
    assert caplog.text.count("6 images in") == 2
    assert "6 images" in json.loads((made / SUMMARY).read_text())["notes"][0]


def test_what_gives_no_pair_is_a_reject(tmp_path: Path) -> None:
    """Archives: extra files of a pair are its own, but no group of members vanishes."""
    path = tmp_path / "source/0.tar"
    path.parent.mkdir()
    members = {
        **{"0.jpg": image(0, "JPEG"), "0.txt": b"picture 0", "0.depth.png": image(9), "0.cls": b"3"},
        **{"a.b.jpg": image(1, "JPEG"), "a.b.json": b'{"caption": "picture 1", "blip": "new"}'},
        **{"alone.1.jpg": image(2, "JPEG"), "2.heic": b"of a phone", "2.txt": b"x", "3.txt": b"no image"},
    }
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    made = prepare(config(path.parent), tmp_path / "set")
    assert sorted(read(open_examples(made))) == [0, 1]
    found = rejects(made)
    assert found.keys() == {"0.tar/alone.1", "0.tar/2", "0.tar/3"}
    assert "no images" in found["0.tar/3"]
    named = prepare(config(path.parent, text_column="blip"), tmp_path / "named")
    assert [list(e.texts) for e in open_examples(named)] == [["picture 0"], ["new"]]


def test_a_column_that_was_named_wins(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, data in {"1.jpg": image(1, "JPEG"), "1.txt": "old", "1.json": '{"blip": "new", "caption": "x"}'}.items():
        write(source / name, data)
    for options, expected in (({"text_column": "blip"}, "new"), ({}, "old")):
        (example,) = open_examples(source, "train", SourceOptions(**options))
        assert example.texts == (expected,)


def test_a_source_that_has_changed_is_told(tmp_path: Path) -> None:
    source = table(tmp_path / "source", ".csv", ",")
    (source / "03.png").rename(tmp_path / "03.png")
    prepare(config(source), tmp_path / "set")
    assert list(rejects(tmp_path / "set")) == ["03.png"]
    (tmp_path / "03.png").rename(source / "03.png")
    with pytest.raises(InputError, match=r"1 file more"):
        prepare(config(source), tmp_path / "set")
    write(source / "04.png", image(5))
    with pytest.raises(InputError, match="changed"):
        prepare(config(source), tmp_path / "set")


def test_a_prepared_set_keeps_its_splits(tmp_path: Path) -> None:
    first = prepare(config(table(tmp_path / "source", ".csv", ","), validation=0.3), tmp_path / "first")
    second = prepare(config(first), tmp_path / "second")
    for split in ("train", "validation"):
        assert [e.name for e in open_examples(first, split)] == [e.name for e in open_examples(second, split)]
    with pytest.raises(InputError, match="text_column: 'caption'"):
        open_examples(first, "train", SourceOptions(text_column="caption"))
    held = prepare(config(first, split="validation"), tmp_path / "held")
    assert len(open_examples(held)) == len(open_examples(first, "validation"))


def test_a_folder_for_training_alone_is_no_split(tmp_path: Path) -> None:
    table(tmp_path / "source/train", ".csv", ",")
    made = prepare(config(tmp_path / "source", validation=0.3), tmp_path / "set")
    counts = {split: len(open_examples(made, split)) for split in ("train", "validation")}
    assert counts["validation"] > 0
    assert sum(counts.values()) == COUNT == len(open_examples(tmp_path / "source"))
