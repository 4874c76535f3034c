"""Images with captions that are damaged, hostile or ambiguous: rejected or refused in one line, never lost."""

import dataclasses
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.forms.open import open_source
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.prepare.prepare import SUMMARY, prepare
from bksdm_jax.data.sources import open_examples
from tests.forms import (
    COUNT,
    beside,
    image,
    imagefolder,
    one_table_of_splits,
    parquet,
    parquet_file,
    read,
    seen,
    table,
    tar,
    text,
    write,
)
from tests.pairs_on_disk import config, rejects


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


@pytest.mark.parametrize(
    "setting", [{"background": "white"}, {"least_side": 9}, {"caption": "a dog"}, {"text_column": "words"}]
)
def test_settings_that_a_prepared_set_would_ignore_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    made = prepare(config(table(tmp_path / "source", ".csv", ",")), tmp_path / "set")
    with pytest.raises(InputError, match=rf"^{next(iter(setting))}: .*launch\.prepare"):
        open_examples(made, "train", SourceOptions(**setting))
    assert len(open_examples(made, "train", SourceOptions(text_column="text"))) == COUNT
