"""Sets made of what people have on disk: what comes out, what is rejected, and what a kill leaves."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bksdm_jax.data.sources import open_examples
from bksdm_jax.errors import InputError
from bksdm_jax.preparation import bench, folders
from bksdm_jax.preparation import prepare as preparing
from bksdm_jax.preparation.pairs import share
from bksdm_jax.preparation.prepare import REJECTS, SHEET, SUMMARY, PrepareConfig, prepare
from bksdm_jax.preparation.shards import record_path
from tests.conftest import ROOT


def picture(seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def folder_of(path: Path, rows: list[tuple[str, str]], files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    with (path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return path


def many(path: Path, count: int) -> Path:
    return folder_of(
        path,
        [(f"{index:03d}.png", f"number {index}") for index in range(count)],
        {f"{index:03d}.png": encoded(picture(index)) for index in range(count)},
    )


def config(folder: Path, **changes: Any) -> PrepareConfig:
    return PrepareConfig(**({"source": str(folder), "workers": 1, "most_rejects": 1.0, "validation": 0.0} | changes))


def rejects(folder: Path) -> dict[str, str]:
    with (folder / REJECTS).open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def names(folder: Path, split: str = "train") -> list[str]:
    return [example.name for example in open_examples(folder, split)]


def test_a_folder_becomes_a_set_in_its_order(tmp_path: Path) -> None:
    source = many(tmp_path / "source", 25)
    made = prepare(config(source, chunk=10, validation=0.3), tmp_path / "set")
    assert made == tmp_path / "set"
    kept_out = [f"{index:03d}.png" for index in range(25) if share(f"{index:03d}.png") < 0.3]
    assert 0 < len(kept_out) < 25
    assert names(made, "validation") == kept_out
    assert names(made) == [f"{index:03d}.png" for index in range(25) if f"{index:03d}.png" not in kept_out]
    for example in open_examples(made):
        number = int(example.name[:3])
        assert list(example.texts) == [f"number {number}"]
        np.testing.assert_array_equal(np.asarray(example.image()), np.asarray(picture(number)))
    assert json.loads((made / SUMMARY).read_text())["examples"] == {
        "train": 25 - len(kept_out),
        "validation": len(kept_out),
    }
    assert Image.open(made / SHEET).width > 1000
    assert not list(made.glob("parts")) + list(made.glob(".*"))
    plain = tfds.builder_from_directory(made).as_data_source("train")[0]  # as others read it
    assert plain["image"].shape == (16, 20, 3)


def test_the_split_of_an_example_stays_when_the_set_grows(tmp_path: Path) -> None:
    small = prepare(config(many(tmp_path / "a", 20), validation=0.5), tmp_path / "small")
    large = prepare(config(many(tmp_path / "b", 40), validation=0.5), tmp_path / "large")
    assert set(names(small)) <= set(names(large))
    assert set(names(small, "validation")) <= set(names(large, "validation"))


def test_colours_and_depths_come_out_as_they_are_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "rgb.jpg": encoded(picture(), "JPEG"),
        "cmyk.jpg": encoded(picture(mode="CMYK"), "JPEG"),
        "grey.png": encoded(picture(mode="L")),
        "palette.png": encoded(picture(mode="P")),
        "alpha.png": encoded(picture(mode="RGBA")),
        "deep.png": encoded(Image.fromarray(np.full((16, 20), 0x8000, np.uint16))),
        "turned.jpg": encoded(picture(), "JPEG", exif=exif),
        "really_a_png.jpg": encoded(picture(), "PNG"),
        "web.webp": encoded(picture(), "WEBP"),
    }
    source = folder_of(tmp_path / "source", [(name, name) for name in files], files)
    made = prepare(config(source), tmp_path / "set")
    assert rejects(made) == {}
    found = {example.name: example for example in open_examples(made)}
    assert found.keys() == files.keys()
    for name, example in found.items():
        size = (16, 20) if name == "turned.jpg" else (20, 16)
        assert example.image().size == size, name
    for name in ("cmyk.jpg", "grey.png", "palette.png", "alpha.png"):
        expected = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(found[name].image()), expected)
    assert np.asarray(found["deep.png"].image()).min() == 128


def test_large_images_are_shrunk_on_request(tmp_path: Path) -> None:
    files = {"large.png": encoded(picture(size=(100, 60))), "small.png": encoded(picture(size=(30, 20)))}
    source = folder_of(tmp_path / "source", [(name, name) for name in files], files)
    made = prepare(config(source, resolution=30), tmp_path / "set")
    assert [example.image().size for example in open_examples(made)] == [(50, 30), (30, 20)]


BAD = {
    "zero.png": (b"", "an empty file"),
    "cut.png": (encoded(picture(size=(99, 99)))[:5000], "damaged"),
    "noise.jpg": (b"noise" * 99, "no image that can be read"),
    "bomb.png": (encoded(Image.new("1", (12_000, 12_000))), "a decompression bomb?"),
    "moving.gif": (encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)]), "2 pictures in one file"),
    "program.eps": (encoded(picture(), "EPS"), "no image that can be read"),
    "narrow.png": (encoded(picture(size=(900, 10))), "too narrow"),
    "float.tiff": (encoded(Image.new("F", (9, 9)), "TIFF"), "32-bit pixels"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path: Path) -> None:
    captions = {"blank.png": " \n", "nul.png": "a\0b", "endless.png": "x" * 70_000}
    files = {name: data for name, (data, _) in BAD.items()} | dict.fromkeys(captions, encoded(picture()))
    odd = 'a "quoted", \U0001f408\ncaption' + "y" * 10_000
    rows = [("good.png", odd), *((name, "fine") for name in BAD), *captions.items()]
    rows += [("good.png", "again"), ("missing.png", "x"), ("../secret.png", "x"), ("/etc/hostname", "x"), ("sub", "x")]
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    source = folder_of(
        tmp_path / "source", rows, files | {"good.png": encoded(picture()), "sub/x.png": encoded(picture())}
    )
    made = prepare(config(source), tmp_path / "set")
    (kept,) = open_examples(made)
    assert list(kept.texts) == [odd]
    found = rejects(made)
    for name, (_, reason) in BAD.items():
        assert reason in found.pop(name), name
    assert "no caption" in found.pop("blank.png")
    assert "NUL" in found.pop("nul.png")
    assert "70000 letters" in found.pop("endless.png")
    assert found.pop("good.png") == "listed before"
    assert found.pop("missing.png") == "no such file"
    assert "no file, but a folder" in found.pop("sub")
    assert all("names no file in the folder" in reason for reason in found.values())
    assert len(found) == 2


def test_too_many_rejects_end_it_and_leave_no_set(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "source", [("a.png", "a"), ("b.png", "b")], {"a.png": encoded(picture()), "b.png": b""}
    )
    with pytest.raises(InputError, match=r"1 of 2 pairs can't be used, for the reasons in .*rejects\.csv; to go on"):
        prepare(config(source, most_rejects=0.1), tmp_path / "set")
    assert rejects(tmp_path / "set") == {"b.png": "an empty file"}
    with pytest.raises(InputError, match=r"metadata\.csv: can't be read"):  # it is no set
        open_examples(tmp_path / "set")
    assert prepare(config(source, most_rejects=0.5), tmp_path / "set") == tmp_path / "set"  # the same work goes on


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
    (source / "metadata.jsonl").write_text("\n".join(rows))
    made = prepare(config(source, image_column="image", text_column="said"), tmp_path / "set")
    (example,) = open_examples(made)
    assert list(example.texts) == ["one", "two"]
    assert rejects(made) == {
        "line 2 of metadata.jsonl": "no JSON",
        "line 4 of metadata.jsonl": "image 3 names no file in the folder",
        "line 5 of metadata.jsonl": "list; expected an object",
        "b.png": "the caption is int, not text",
        "line 7 of metadata.jsonl": "image '\\ud800.png' names no file in the folder",
        "./a.png": "listed before",
        "c.png": "half of a surrogate pair in the caption",
    }


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"", "no column 'file_name'; its first line has nothing"),
        (b"file,text\na.png,x\n", "no column 'file_name' (did you mean 'file'?)"),
        (b"file_name,text\n", "no rows"),
        (b"file_name,text\na.png,\xff\xfe\n", "not UTF-8"),
        (b'file_name,text\na.png,"cat\n', "not a readable CSV"),
        (b"file_name,text\na.png,b,c\n", "no pair of image and caption"),
        (b"x" * 2**23, "more than 4194304 letters"),
        (None, "neither metadata.csv nor metadata.jsonl, nor .tar files, nor a TFDS set"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, table: bytes | None, said: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if table is not None:
        (source / "metadata.csv").write_bytes(table)
    with pytest.raises(InputError) as error:
        prepare(config(source), tmp_path / "set")
    assert said in str(error.value)
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
            ("a/010.txt", b"once more"),
        ],
    )
    made = prepare(config(source), tmp_path / "set")
    found = [(example.name, list(example.texts)) for example in open_examples(made)]
    assert found == [
        ("00000.tar/000", ["zero"]),
        ("00001.tar/a/010", ["one", "two"]),
        ("00001.tar/caf\\udce9", ["coffee"]),
        ("00001.tar/../../014", ["outside"]),  # a name, of which no file is made
    ]
    assert rejects(made) == {
        "00001.tar/a/010": "a name that was there before",
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
        assert "no whole archive" in found[name], name
    assert "limit is" in found["claims.tar/0"]
    assert "negative size" in found["back.tar"]
    assert "more after its end mark" in found["joined.tar"]
    assert "claims too much" in found["header.tar"]
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
    with pytest.raises(InputError, match=r"no feature 'text'; it has image, captions|no feature 'text'.*captions"):
        prepare(config(source), tmp_path / "other")
    with pytest.raises(InputError, match="split: unknown name 'test'"):
        prepare(config(source, split="test", text_column="captions/text"), tmp_path / "other")


def test_a_kill_loses_no_chunk_that_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = many(tmp_path / "source", 25)
    expected = prepare(config(source, chunk=4, validation=0.3), tmp_path / "undisturbed")
    read, calls = folders.FolderChunk.read, []

    def dies(self: folders.FolderChunk) -> Any:
        calls.append(self.rows[0][0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(folders.FolderChunk, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    assert [record_path(tmp_path / "set" / "parts", index).exists() for index in range(4)] == [True] * 3 + [False]
    with pytest.raises(InputError, match=r"metadata\.csv: can't be read"):  # it is no set yet
        open_examples(tmp_path / "set")
    placed = []

    def full(*args: Any, **options: Any) -> None:
        placed.append(args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:  # the disk is full at the very end
        context.setattr(tfds.folder_dataset, "write_metadata", full)
        with pytest.raises(InputError, match=r"can't be written \(No space left on device\)"):
            prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    made = prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    assert calls == [f"{index:03d}.png" for index in (0, 4, 8, 12, 12, 16, 20, 24)]
    for split in ("train", "validation"):
        assert names(made, split) == names(expected, split)
    assert prepare(config(source, chunk=4, validation=0.3), tmp_path / "set") == made  # done already
    with pytest.raises(InputError, match="this workdir's run has chunk 4, not 5"):
        prepare(config(source, chunk=5, validation=0.3), tmp_path / "set")


def test_processes_and_an_interruption(tmp_path: Path) -> None:
    """The binary with two workers: stopped by SIGINT, continued, and the same as one process makes."""
    source = many(tmp_path / "source", 60)
    expected = prepare(config(source, chunk=2), tmp_path / "expected")
    command = [sys.executable, "-m", "launch.prepare", "--config=configs/prepare.py", f"--config.source={source}"]
    command += [f"--workdir={tmp_path / 'set'}", "--config.workers=2", "--config.chunk=2", "--config.validation=0.0"]
    parts = tmp_path / "set" / "parts"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as first:
        while first.poll() is None and not list(parts.glob("*.json")):
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGINT)
        said = first.communicate()[1]
    assert "interrupted; the same command continues" in said or first.returncode == 0
    assert not [path for path in parts.glob(".*") if path.suffix == ".partial"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "60 examples of train" in done.stdout
    assert names(tmp_path / "set") == names(expected)


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    source = many(tmp_path / "source", 2)
    for changes, said in (
        ({"kind": "tar"}, "kind: unknown name 'tar'"),
        ({"validation": 1.5}, "validation is 1.5"),
        ({"chunk": 0}, "chunk is 0"),
        ({"most_pixels": 10**9}, "most_pixels is 1000000000; expected a whole number in [1, 89478485]"),
        ({"source": str(tmp_path / "nowhere")}, "no such folder"),
        ({"kind": "tars"}, "no .tar files"),
        ({"kind": "tfds"}, "TFDS can't open this set"),
    ):
        with pytest.raises(InputError) as error:
            prepare(config(source, **changes), tmp_path / "set")
        assert said in str(error.value)
        assert not (tmp_path / "set").exists()
    (source / "metadata.jsonl").touch()
    with pytest.raises(InputError, match=r"both metadata\.csv and metadata\.jsonl; move one away"):
        prepare(config(source), tmp_path / "set")


def test_too_many_rejects_are_seen_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_ENOUGH", 4)
    rows = [(f"{index}.png", "x") for index in range(20)]
    source = folder_of(tmp_path / "source", rows, {name: b"" for name, _ in rows})
    with pytest.raises(InputError, match="4 of 4 pairs can't be used"):
        prepare(config(source, chunk=2, most_rejects=0.5), tmp_path / "set")
    assert len(list((tmp_path / "set" / "parts").glob("*.json"))) == 2


@pytest.mark.slow
def test_the_benchmark_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_FILES": 64, "_LATENTS": 64, "_FEW": 20, "_MANY": 40, "_ORDERED": 320}.items():
        monkeypatch.setattr(bench, name, value)
    said = bench.bench_data(64, 1)
    for line in (
        r"decoding JPEG, 64x64, one core: \d+ images/s",
        r"  Pillow's open, resize, crop on one core: \d+ \(\d+\.\d\dx\)",
        r"  training's stream, \d+ workers: \d+ \(\d+ a core\)",
        r"reading cached latents, 8x8x4, on \d+ cores: \d+ images/s",
        r"preparing 20 and 40 images: \d+ and \d+ MiB resident at the most",
    ):
        assert re.search(f"^{line}$", said, re.MULTILINE), line
    assert said.count("order of 320 examples, ") == said.count(": the same") == 6
