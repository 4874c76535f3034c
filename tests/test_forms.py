"""Every form in which people have images with captions: each caption is of its image, in preparation and training."""

import dataclasses
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.forms.open import open_source
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.prepare.prepare import SUMMARY, prepare
from bksdm_jax.data.sources import open_examples
from tests.pairs_on_disk import config, rejects

COUNT = 40


def colour(index: int) -> tuple[int, int, int]:
    return 6 * index, 255 - 6 * index, 90


def image(index: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour(index)).save(buffer, file_format)
    return buffer.getvalue()


def text(index: int) -> str:
    return f"picture {index}"


def seen(picture: Image.Image) -> int:
    """Which picture it is, by its colour; JPEG changes that a little."""
    return round(float(np.asarray(picture)[..., 0].mean()) / 6)


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def table(folder: Path, ending: str, delimiter: str) -> Path:
    rows = [f"file_name{delimiter}text", *(f"{i:02d}.png{delimiter}{text(i)}" for i in range(COUNT))]
    for index in range(COUNT):
        write(folder / f"{index:02d}.png", image(index))
    write(folder / f"metadata{ending}", "\n".join(rows))
    return folder


def jsonl(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"a/{index:02d}.png", image(index))
    rows = [json.dumps({"file_name": f"a/{i:02d}.png", "text": [text(i)]}) for i in range(COUNT)]
    write(folder / "metadata.jsonl", "\n".join(rows))
    return folder


def beside(folder: Path, ending: str = ".txt", image_ending: str = ".png") -> Path:
    for index in range(COUNT):
        place = folder / ("one" if index % 2 else "two/three")
        write(place / f"img.{index:02d}{image_ending}", image(index, "JPEG" if image_ending == ".jfif" else "PNG"))
        write(place / f"img.{index:02d}{ending}", text(index))
    return folder


def avif(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"{index:02d}.avif", image(index, "AVIF"))
        write(folder / f"{index:02d}.txt", text(index))
    return folder


def kohya(folder: Path) -> Path:
    for index in range(COUNT):
        place = folder / ("1_sks dog" if index < 30 else "3_cat")
        write(place / f"{index:02d}.png", image(index))
        write(place / f"{index:02d}.caption", text(index))
    return folder


def img2dataset_files(folder: Path) -> Path:
    for index in range(COUNT):
        place = folder / f"{index // 20:05d}"
        write(place / f"{index:09d}.jpg", image(index, "JPEG"))
        write(place / f"{index:09d}.txt", text(index))
        write(place / f"{index:09d}.json", json.dumps({"caption": text(index), "status": "success"}))
    pyarrow.parquet.write_table(pa.table({"url": ["x"], "caption": ["y"]}), folder / "00000.parquet")
    write(folder / "00000_stats.json", "{}")
    return folder


def coco(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"val2014/{index:012d}.jpg", image(index, "JPEG"))
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(COUNT)]
    annotations = [{"id": i, "image_id": i, "caption": text(i)} for i in range(COUNT)]
    path = folder / "annotations/captions_val2014.json"
    write(path, json.dumps({"images": images, "annotations": annotations}))
    return path


def coco_folder(folder: Path) -> Path:
    coco(folder)
    return folder


def imagefolder(folder: Path) -> Path:
    for split, numbers in (("train", range(30)), ("validation", range(30, COUNT))):
        rows = ["file_name,text", *(f"{i:02d}.png,{text(i)}" for i in numbers)]
        for index in numbers:
            write(folder / f"{split}/{index:02d}.png", image(index))
        write(folder / f"{split}/metadata.csv", "\n".join(rows))
    return folder


def one_table_of_splits(folder: Path) -> Path:
    names = [f"{'train' if i < 30 else 'val'}/{i:02d}.png" for i in range(COUNT)]
    for index, name in enumerate(names):
        write(folder / name, image(index))
    write(folder / "metadata.csv", "\n".join(["file_name,text", *(f"{n},{text(i)}" for i, n in enumerate(names))]))
    return folder


def tar(path: Path, numbers: range, compress: bool = False, apart: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"img.{i:03d}.jpg", image(i, "JPEG")) for i in numbers]
    texts = [(f"img.{i:03d}.txt", text(i).encode()) for i in numbers]
    if apart:
        members += texts
    else:
        members = [member for pair in zip(members, texts, strict=True) for member in pair]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
    return path


def tars(folder: Path) -> Path:
    tar(folder / "a/0.tar", range(20))
    tar(folder / "b/0.tar", range(20, COUNT), apart=True)
    return folder


def tars_gz(folder: Path) -> Path:
    tar(folder / "0.tar.gz", range(20), compress=True)
    tar(folder / "1.tar", range(20, COUNT), compress=True)  # gzip, whatever its name says
    return folder


def parquet(folder: Path, whole: bool = True) -> Path:
    folder = folder / "data"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(30)), ("validation", range(30, COUNT))):
        images: list[Any] = [{"bytes": image(i), "path": f"{i}.png"} if whole else image(i) for i in numbers]
        rows = pa.table({"image": images, "text": [text(i) for i in numbers]})
        pyarrow.parquet.write_table(rows, folder / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return folder.parent


def parquet_file(folder: Path) -> Path:
    folder.mkdir()
    rows = pa.table({"jpg": [image(i) for i in range(COUNT)], "caption": [[text(i)] for i in range(COUNT)]})
    pyarrow.parquet.write_table(rows, folder / "00000.parquet")
    return folder / "00000.parquet"


FORMS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "csv": (lambda folder: table(folder, ".csv", ","), {}),
    "semicolons": (lambda folder: table(folder, ".csv", ";"), {}),
    "tabs": (lambda folder: table(folder, ".tsv", "\t"), {}),
    "the table itself": (lambda folder: table(folder, ".csv", ",") / "metadata.csv", {}),
    "jsonl": (jsonl, {}),
    "txt": (beside, {}),
    "caption": (lambda folder: beside(folder, ".caption"), {}),
    "jfif": (lambda folder: beside(folder, ".txt", ".jfif"), {}),
    "avif": (avif, {}),
    "kohya": (kohya, {"repeats": False}),
    "img2dataset files": (img2dataset_files, {}),
    "coco": (coco, {}),
    "coco, its folder": (coco_folder, {}),
    "imagefolder": (imagefolder, {}),
    "one table of splits": (one_table_of_splits, {}),
    "tars in sub-folders": (tars, {}),
    "one tar": (lambda folder: tar(folder / "one.tar", range(COUNT)), {}),
    "one tar.gz": (lambda folder: tar(folder / "one.tgz", range(COUNT), compress=True), {}),
    "tars by gzip": (tars_gz, {}),
    "parquet of the hub": (parquet, {}),
    "parquet of bytes": (lambda folder: parquet(folder, whole=False), {}),
    "one parquet": (parquet_file, {"image_column": "jpg", "text_column": "caption"}),
}
WITH_SPLITS = ("imagefolder", "one table of splits", "parquet of the hub", "parquet of bytes")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(examples: Any) -> list[int]:
    """The numbers of the examples' pictures, when each has its own caption."""
    found = []
    for example in examples:
        found.append(seen(example.image()))
        assert list(example.texts) == [text(found[-1])], example.name
    return found


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


@pytest.mark.parametrize(
    ("table_text", "facts"),
    [
        ("file_name,text\n/x/00.png,a\n", ("absolute path",)),
        ("file_name,text\nC:\\x\\00.png,a\n", ("absolute path",)),
        ("file_name,text\nx\\00.png,a\n", ("backslashes", "/")),
        ("file_name,text\n../00.png,a\n", ("'../00.png'",)),
        ("file_name,text\n00.png,\n", ("no caption", "00.png")),
        ("name,text\n00.png,a\n", ("'file_name'", "--config.image_column")),
        ("file_name;caption\n00.png;a\n", ("'text'", "file_name, caption", "--config.text_column")),
        ("file_name,text,text\n00.png,a,b\n", ("metadata.csv", "two columns 'text'")),
        ("file_name,caption\n00.png,a\n", ("'text'", "--config.text_column")),
        ('file_name,text\n00.png,a\n00.png,"b\nc\n', ("line 3", "quote", "closed")),
        ('file_name,text\n00.png,"a" b\n', ("line 2", "quote", '""')),
        ("file_name,text\n00.png,a, b\n", ("line 2", "3 fields", "quotes")),
    ],
)
def test_a_bad_row_says_where_and_what_to_do(tmp_path: Path, table_text: str, facts: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    write(source / "00.png", image(0))
    write(source / "metadata.csv", table_text)
    for call in (
        lambda: prepare(config(source, most_rejects=0.1), tmp_path / "set"),
        lambda: open_examples(source),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)
        for fact in facts:
            assert fact in str(error.value)


def test_the_commonest_reasons_are_told(tmp_path: Path) -> None:
    source = table(tmp_path / "source", ".csv", ",")
    for index in range(10):
        (source / f"{index:02d}.png").unlink()
    for index in range(10, 15):
        write(source / f"{index:02d}.png", "")
    for index in range(15, 18):
        write(source / f"{index:02d}.png", "no image")
    with pytest.raises(InputError) as error:
        prepare(config(source, most_rejects=0.1), tmp_path / "set")
    for fact in ("18 of 40", "10 like 00.png: no such file", "5 like 10.png: the file is empty", "3 like 15.png"):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({}, ("metadata.csv", ".txt", ".tar", "Parquet", "dataset_info.json")),
        ({"0.jpg": image(0, "JPEG"), "0.tar": b""}, ("--config.kind",)),
        ({"in/metadata.csv": b"file_name,text\n"}, ("/in",)),
        ({"annotations/captions_a.json": b"{}", "annotations/captions_b.json": b"{}"}, ("captions_a.json", "source")),
        ({"a.tar.zip": b""}, ("metadata.csv",)),
        ({"a.parquet": b"no parquet"}, ("a.parquet", "Parquet")),
    ],
)
def test_a_folder_of_no_known_form(tmp_path: Path, files: dict[str, bytes], facts: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in files.items():
        write(source / name, data)
    with pytest.raises(InputError) as error:
        open_examples(source)
    assert all(fact.lower() in str(error.value).lower() for fact in (str(source), *facts))


def test_archives_of_other_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    tar(source / "0.tar", range(2))
    write(source / "1.tar", b"BZh91AY")
    write(source / "2.tar.gz", gzip.compress(bytes(2**20)))
    write(source / "3.tar.gz", gzip.compress(bytes(2**22)))
    monkeypatch.setattr("bksdm_jax.data.forms.tars._SPARE", 2**20)
    made = prepare(config(source), tmp_path / "set")
    found = rejects(made)
    assert "bzip2" in found["1.tar"]
    assert "no images" in found["2.tar.gz"]
    assert "bomb" in found["3.tar.gz"]
    assert not list((tmp_path / "set").glob("parts"))


def test_damaged_parquet_is_a_reject(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "source")
    data = bytearray(path.read_bytes())
    data[200:260] = b"\xff" * 60
    path.write_bytes(data)
    made_from = config(path, image_column="jpg", text_column="caption", most_rejects=0.1)
    with pytest.raises(InputError, match=r"00000\.parquet/"):
        prepare(made_from, tmp_path / "set")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    source = beside(tmp_path / "source")
    (source / "one/again").symlink_to(source)
    assert len(open_examples(source)) == COUNT


def both(tmp_path: Path, source: Path, **settings: Any) -> list[str]:
    """The one-line errors of preparation and of training for a source."""
    found = []
    for call in (
        lambda: prepare(config(source, most_rejects=0.0, **settings), tmp_path / "set"),
        lambda: open_examples(source, "train", SourceOptions(**settings)),
    ):
        with pytest.raises(InputError) as error:
            call()
        found.append(str(error.value))
        assert found[-1].isprintable()
    return found


def test_names_with_line_breaks_make_one_line(tmp_path: Path) -> None:
    write(tmp_path / "source/a\nb\x1b[31m.png", image(0))
    write(tmp_path / "source/c.txt", "x")
    write(tmp_path / "source/c.png", image(0))
    assert all("a?b" in said for said in both(tmp_path, tmp_path / "source"))
    write(tmp_path / "source/a\nb\x1b[31m.txt", "x")
    write(tmp_path / "source/a\nb\x1b[31m.png", "no image")
    (damaged, _) = open_examples(tmp_path / "source")
    with pytest.raises(InputError) as error:
        damaged.image()
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["metadata.csv", "0.tar", "0.parquet"])
def test_pipes_do_not_hang(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / name)
    assert all(name in said and "regular" in said for said in both(tmp_path, source))


def test_pipes_among_files_are_rejects(tmp_path: Path) -> None:
    write(tmp_path / "source/0.png", image(0))
    for name in ("0.txt", "1.png"):
        os.mkfifo(tmp_path / "source" / name)
    assert all("0.png" in said for said in both(tmp_path, tmp_path / "source"))


def test_what_is_beside_folders_of_splits_is_told(tmp_path: Path) -> None:
    source = imagefolder(tmp_path / "source")
    made = prepare(config(source), tmp_path / "without")
    assert json.loads((made / SUMMARY).read_text())["notes"] == []
    write(source / "extra/0.png", image(0))
    write(source / "1.png", image(0))
    write(source / "README.md", "x")
    made = prepare(config(source), tmp_path / "set")
    (note,) = json.loads((made / SUMMARY).read_text())["notes"]
    assert all(fact in note for fact in ("beside train, validation", "1.png, extra"))


def test_rows_that_name_no_file_of_a_split(tmp_path: Path) -> None:
    source = one_table_of_splits(tmp_path / "source")
    with (source / "metadata.csv").open("a") as file:
        file.write("\n.,dot")
    made = prepare(config(source), tmp_path / "set")
    assert list(rejects(made)) == ["."]


def test_a_row_without_end_is_told_by_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bksdm_jax.data.forms.rows._MOST_LINE", 1000)
    for number, cell in enumerate(('"' + "x\n" * 2000, '"x\n",' * 2000)):
        source = tmp_path / f"source{number}"
        write(source / "00.png", image(0))
        write(source / "metadata.csv", f"file_name,text\n00.png,a\n00.png,{cell}")
        assert all("line 3" in said and "1000" in said and "quote" in said for said in both(tmp_path, source))


def test_lists_of_captions_count_by_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lines = [{"file_name": "0.png", "text": ["a", "b"]}, {"file_name": "0.png", "text": ["c"]}]
    write(source / "0.png", image(0))
    write(source / "metadata.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert open_source(str(source), SourceOptions()).total == 1


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    dotted = pa.table({"a.image": [image(1)], "a.text": [text(1)]})
    pyarrow.parquet.write_table(dotted, source / "dotted.parquet")
    options = {"image_column": "a.image", "text_column": "a.text"}
    assert read(open_examples(source / "dotted.parquet", "train", SourceOptions(**options))) == [1]
    for name, captions in (("one", {"text": text(1)}), ("several", [{"text": text(1)}, {"text": "more"}])):
        path = source / f"{name}.parquet"
        pyarrow.parquet.write_table(pa.table({"image": [{"file": image(1)}], "captions": [captions]}), path)
        options = {"image_column": "image/file", "text_column": "captions/text"}
        (example,) = open_examples(path, "train", SourceOptions(**options))
        assert seen(example.image()) == 1
        assert example.texts == ((text(1),) if name == "one" else (text(1), "more"))
        for wrong in ({"text_column": "captions/txt"}, {"image_column": "image/text"}, {"image_column": "image"}):
            said = both(tmp_path, path, **(options | wrong))
            assert all(str(path) in one and next(iter(wrong.values())) in one for one in said)


def test_splits_of_parquet_that_cannot_be_kept_are_told(tmp_path: Path) -> None:
    source = parquet(tmp_path / "source")
    pyarrow.parquet.write_table(pa.table({"image": [image(0)], "text": ["x"]}), source / "data/more.parquet")
    made = prepare(config(source), tmp_path / "set")
    (note,) = json.loads((made / SUMMARY).read_text())["notes"]
    assert "more.parquet" in note
    assert "validation" in note
    assert len(open_examples(made)) == COUNT + 1


def test_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    source = parquet_file(tmp_path / "source")
    source = source.rename(source.with_name("caf\udce9.parquet"))
    made = prepare(config(source, image_column="jpg", text_column="caption"), tmp_path / "set")
    assert len(open_examples(made)) == COUNT
    archive = tar(tmp_path / "tars/caf\udce9.tar.gz", range(3), compress=True)
    assert read(open_examples(prepare(config(archive), tmp_path / "of_tar"))) == [0, 1, 2]


def test_truncated_archives_keep_their_whole_pairs(tmp_path: Path) -> None:
    path = tar(tmp_path / "source/0.tar", range(3))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"picture 2") + 4])  # inside a caption
    made = prepare(config(path), tmp_path / "cut")
    assert read(open_examples(made)) == [0, 1]
    assert "inside its .txt" in rejects(made)["0.tar/img.002"]
    members = [
        (f"{i}.{end}", data)
        for i in range(4)
        for end, data in (("jpg", image(i, "JPEG") + os.urandom(5000)), ("txt", b"x"))
    ]
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) * 4 // 5])
    assert len(open_examples(prepare(config(path), tmp_path / "cut_gz"))) == 3


def test_damaged_archives_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(tmp_path / "source/0.tar.gz", range(20), compress=True)
    packed = bytearray(archive.read_bytes())
    packed[10:] = b"\xff" * (len(packed) - 10)  # zlib's own error
    archive.write_bytes(packed)
    write(tmp_path / "source/1.tar.gz", gzip.compress(bytes(2**22)))
    monkeypatch.setattr("bksdm_jax.data.forms.tars._SPARE", 2**20)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    chunks = list(open_source(str(tmp_path / "source"), SourceOptions()).chunks())
    found = [reject for chunk in chunks for reject in chunk.read(scratch)]
    assert [reject.name for reject in found] == ["0.tar.gz", "1.tar.gz"]
    assert list(scratch.iterdir()) == []


def test_a_full_disk_is_no_damaged_archive(tmp_path: Path) -> None:
    archive = tar(tmp_path / "0.tar.gz", range(3), compress=True)
    (chunk,) = open_source(str(archive), SourceOptions()).chunks()
    with pytest.raises(InputError, match=r"0\.tar\.gz.* not stored in .*gone"):
        list(chunk.read(tmp_path / "gone"))


def test_what_is_unpacked_depends_on_the_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Run(SourceOptions):
        steps: int = 1

    archive = tar(tmp_path / "0.tar.gz", range(3), compress=True)
    cache = tmp_path / "cache/bksdm_jax/images"
    for options in (SourceOptions(), Run(steps=1), Run(steps=2, least_side=5)):
        assert read(open_examples(archive, "train", options)) == [0, 1, 2]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("bksdm_jax.data.unpacked._stored", mock.Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        open_examples(archive, "train", SourceOptions(text_column="x"))
    assert sum(path.name == "images.bin" for path in cache.glob("*/*")) == 1  # nothing half-written


def test_parquet_that_would_fill_the_memory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = {"image": [image(0)], "text": pa.array([[None] * 10**6], pa.list_(pa.string()))}
    pyarrow.parquet.write_table(pa.table(rows), source / "0.parquet")
    assert all("0.parquet/0" in said and "1000000" in said for said in both(tmp_path, source))
    large = image(1) + bytes(2**22)
    rows = {"image": [large] * 16, "text": [text(1)] * 16, "embedding": [[0.0] * 2000] * 16}
    pyarrow.parquet.write_table(pa.table(rows), source / "0.parquet", use_dictionary=True, compression="zstd")
    (chunk,) = open_source(str(source), SourceOptions()).chunks()
    before = pa.total_allocated_bytes()
    count = 0
    for _ in chunk.read(tmp_path):
        assert pa.total_allocated_bytes() - before < 6 * len(large)
        count += 1
    assert count == 16
