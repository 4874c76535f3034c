"""Tables, archives and TFDS sets as sources of a set: what is read of them, and what of damaged and hostile ones."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.sources import open_examples
from tests.pairs_on_disk import config, encoded, folder_of, names, picture, rejects


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_unicode_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    source = folder_of(tmp_path / "source", [], {"é.png": encoded(picture())})
    (source / "metadata.csv").write_bytes(end.join(["file_name,text", 'é.png,"a\ncafé"', ""]).encode(encoding))
    (example,) = open_examples(prepare(config(source), tmp_path / "set"))
    assert (example.name, list(example.texts)) == ("é.png", ["a\ncafé"])


def test_jsonl_with_several_captions_and_other_columns(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", [], {"a.png": encoded(picture()), "b.png": encoded(picture())})
    (source / "metadata.csv").unlink()
    rows = ['{"image": "a.png", "said": ["one", "two", ""]}', "no json", "", '{"image": 3, "said": "x"}', "[]"]
    rows += ['{"image": "b.png", "said": 5}', '{"image": "\\ud800.png", "said": "x"}']
    rows += ['{"image": "./a.png", "said": "again"}', '{"image": "c.png", "said": "half \\ud83d"}']
    rows += ['{"image": "d.png", "said": null}']
    (source / "metadata.jsonl").write_text("\n".join(rows))
    made = prepare(config(source, image_column="image", text_column="said"), tmp_path / "set")
    (example,) = open_examples(made)
    assert list(example.texts) == ["one", "two", "again"]
    assert rejects(made) == {
        "line 2 of metadata.jsonl": "not valid JSON",
        "line 4 of metadata.jsonl": "image 3 isn't the name of a file",
        "line 5 of metadata.jsonl": "not a JSON object",
        "b.png": "the caption isn't text but a number",
        "line 7 of metadata.jsonl": "image '\\ud800.png' isn't the name of a file in the folder",
        "c.png": "unpaired surrogate in the caption",
        "d.png": "no caption (null)",
    }


@pytest.mark.parametrize(
    ("table", "facts"),
    [
        (b"", ("metadata.csv", "'file_name'")),
        (b"file,text\na.png,x\n", ("metadata.csv", "'file_name'", "'file'")),
        (b"file_name,text\n", ("metadata.csv", "no rows")),
        (b"file_name,text\na.png,ok\nb.png,\xff\xfe\n", ("metadata.csv", "line 3", "UTF-8")),
        ("file_name,text\n".encode("utf-16") + b"\x00\xd8a", ("metadata.csv", "UTF-16")),
        (b'file_name,text\na.png,"cat\n', ("metadata.csv", "line 2", "quote")),
        (b"file_name,text\na.png,b,c\n", ("rejects.csv",)),
        (b"x" * 2**23, ("metadata.csv", "4194304")),
        (None, ("metadata.csv", ".jsonl", ".tar", "dataset_info.json")),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, table: bytes | None, facts: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if table is not None:
        (source / "metadata.csv").write_bytes(table)
    with pytest.raises(InputError) as error:
        prepare(config(source), tmp_path / "set")
    assert all(fact in str(error.value) for fact in (str(tmp_path), *facts))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set" / "dataset_info.json").exists()


Change = Callable[[tarfile.TarInfo], None]


def tar_of(path: Path, members: list[tuple[str, bytes]], change: Change | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)


def test_webdataset_archives(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = encoded(picture(), "JPEG")
    tar_of(source / "00000.tar", [("000.jpg", image), ("000.txt", b"zero"), ("000.json", b'{"caption": "other"}')])
    tar_of(
        source / "00001.tar",
        [
            ("a/010.jpg", image),
            ("a/010.json", b'{"caption": ["one", "two"]}'),
            ("a/011.JPG", image),
            ("a/012.txt", b"alone"),
            ("a/013.jpg", image),
            ("a/013.png", image),
            ("a/013.txt", b"twice"),
            ("a/._013.jpg", b"of a Mac"),
            ("a/013.cls", b"7"),
            ("caf\udce9.jpg", image),  # a name in Latin-1
            ("caf\udce9.txt", b"coffee"),
            ("../../014.jpg", image),
            ("../../014.txt", b"outside"),
            ("a/010.txt", b"once more"),  # apart from its image
            ("a/013.0.txt", b"x"),
            ("a/013.0.txt", b"y"),
        ],
    )
    made = prepare(config(source), tmp_path / "set")
    found = [(example.name, list(example.texts)) for example in open_examples(made)]
    assert found == [
        ("00000.tar/000", ["zero"]),
        ("00001.tar/a/010", ["once more"]),
        ("00001.tar/caf\\udce9", ["coffee"]),
        ("00001.tar/../../014", ["outside"]),  # a name, of which no file is made
    ]
    assert rejects(made) == {
        "00001.tar/a/013.0": "two .txt files of this name",
        "00001.tar/a/011": "neither .txt nor .json with a caption",
        "00001.tar/a/012": "no images of this name",
        "00001.tar/a/013": "2 images of this name",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "source"]


def test_hostile_and_damaged_archives(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = encoded(picture(size=(99, 99)))
    pairs = [(f"{index}.{ending}", data) for index in range(3) for ending, data in (("png", image), ("txt", b"x"))]

    def link(info: tarfile.TarInfo) -> None:
        if info.name == "1.png":
            info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/hostname", 0
        if info.name == "2.png":
            info.type, info.size = tarfile.CHRTYPE, 0

    tar_of(source / "links.tar", pairs, link)
    tar_of(source / "whole.tar", pairs)
    whole = (source / "whole.tar").read_bytes()
    (source / "whole.tar").rename(source / "zz.tar")
    (source / "cut_in_image.tar").write_bytes(whole[: len(whole) // 2])
    (source / "cut_between.tar").write_bytes(whole[: 2 * 512 + (len(image) + 511) // 512 * 512 + 512])
    (source / "empty.tar").write_bytes(b"")
    (source / "noise.tar").write_bytes(b"noise" * 1000)
    claims = tarfile.TarInfo("0.png")
    claims.size = 2**40
    (source / "claims.tar").write_bytes(claims.tobuf(tarfile.GNU_FORMAT))
    back = tarfile.TarInfo("0.bin")
    back.size = -512
    (source / "back.tar").write_bytes(back.tobuf(tarfile.GNU_FORMAT) * 2)
    (source / "joined.tar").write_bytes(whole + whole)
    header = tarfile.TarInfo("0.png")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    (source / "header.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"1" * 2**20)
    made = prepare(config(source), tmp_path / "set")
    assert [name.split("/")[0] for name in names(made)] == [
        *("cut_between.tar", "cut_in_image.tar"),
        *["joined.tar"] * 3,
        "links.tar",
        *["zz.tar"] * 3,
    ]
    found = rejects(made)
    for name in ("links.tar/1", "links.tar/2"):
        assert found[name] == "its .png is a link, device or sparse file"
    assert "no end mark" in found["cut_between.tar"]
    for name in ("cut_in_image.tar", "empty.tar", "noise.tar"):
        assert "not a tar file" in found[name], name
    assert "limit is" in found["claims.tar/0"]
    assert "negative size" in found["back.tar"]
    assert "after the end mark" in found["joined.tar"]
    assert "claims too many" in found["header.tar"]
    assert found.keys() == {
        *("links.tar/1", "links.tar/2", "claims.tar/0", "claims.tar", "back.tar", "joined.tar", "header.tar"),
        *("empty.tar", "noise.tar", "cut_between.tar", "cut_in_image.tar", "cut_in_image.tar/1"),
    }


def write_tfds(folder: Path, file_format: str) -> Path:
    class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            captions = tfds.features.Sequence({"text": tfds.features.Text()})
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "captions": captions})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for index in range(6):
                captions = [{"text": f"{index}"}, {"text": "two"}] if index else []
                yield index, {"image": np.asarray(picture(index)), "captions": captions}

    builder = Captions(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_any_tfds_set(tmp_path: Path, file_format: str) -> None:
    source = write_tfds(tmp_path / "tfds", file_format)
    made = prepare(config(source, text_column="captions/text"), tmp_path / "set")
    examples = list(open_examples(made))
    assert len(examples) == 5
    for example in examples:
        np.testing.assert_array_equal(np.asarray(example.image()), np.asarray(picture(int(example.texts[0]))))
        assert example.texts[1] == "two"
    assert list(rejects(made).values()) == ["no caption"]
    file = next(source.glob("*record*"))
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 2])
    prepare_again = config(source, text_column="captions/text", most_rejects=0.5)
    with pytest.raises(InputError, match="of 6 pairs"):  # each that the file is to have counts
        prepare(prepare_again, tmp_path / "damaged")
    with pytest.raises(InputError, match=r"'text'.*captions"):
        prepare(config(source), tmp_path / "other")
    with pytest.raises(InputError, match=r"split: .*'test'"):
        prepare(config(source, split="test", text_column="captions/text"), tmp_path / "other")
