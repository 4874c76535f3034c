"""Sets made of what people have on disk: what comes out, what is rejected, and what a kill leaves."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.forms import tables
from bksdm_jax.data.forms.pairs import share
from bksdm_jax.data.prepare import prepare as preparing
from bksdm_jax.data.prepare.prepare import SHEET, SUMMARY, prepare
from bksdm_jax.data.prepare.shards import record_path
from bksdm_jax.data.sources import open_examples
from bksdm_jax.perf import data_bench as bench
from tests.conftest import ROOT
from tests.pairs_on_disk import config, encoded, folder_of, many, names, picture, rejects


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
    "zero.png": (b"", "empty"),
    "cut.png": (encoded(picture(size=(99, 99)))[:5000], "damaged"),
    "noise.jpg": (b"noise" * 99, "format"),
    "bomb.png": (encoded(Image.new("1", (12_000, 12_000))), "a decompression bomb?"),
    "moving.gif": (
        encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)]),
        "several pictures",
    ),
    "program.eps": (encoded(picture(), "EPS"), "format"),
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
    assert list(kept.texts) == [odd, "again"]
    found = rejects(made)
    for name, (_, reason) in BAD.items():
        assert reason in found.pop(name), name
    assert "no caption" in found.pop("blank.png")
    assert "NUL" in found.pop("nul.png")
    assert "70000" in found.pop("endless.png")
    assert "no such file" in found.pop("missing.png")
    assert "folder" in found.pop("sub")
    assert [name in reason for name, reason in zip(("../secret.png", "/etc/hostname"), found.values(), strict=True)]


def test_too_many_rejects_end_it_and_leave_no_set(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "source", [("a.png", "a"), ("b.png", "b")], {"a.png": encoded(picture()), "b.png": b""}
    )
    with pytest.raises(InputError, match=r"1 of 2 .*rejects\.csv.* most_rejects above 0\.1"):
        prepare(config(source, most_rejects=0.1), tmp_path / "set")
    assert rejects(tmp_path / "set") == {"b.png": "the file is empty"}
    with pytest.raises(InputError, match=r"dataset_info\.json"):  # it is no set
        open_examples(tmp_path / "set")
    assert prepare(config(source, most_rejects=0.5), tmp_path / "set") == tmp_path / "set"  # the same work goes on


def test_a_kill_loses_no_chunk_that_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = many(tmp_path / "source", 25)
    expected = prepare(config(source, chunk=4, validation=0.3), tmp_path / "undisturbed")
    read, calls = tables.TableChunk.read, []

    def dies(self: tables.TableChunk, scratch: Path) -> Any:
        calls.append(self.rows[0][0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, scratch)

    monkeypatch.setattr(tables.TableChunk, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    assert [record_path(tmp_path / "set" / "parts", index).exists() for index in range(4)] == [True] * 3 + [False]
    with pytest.raises(InputError, match=r"dataset_info\.json"):  # it is no set yet
        open_examples(tmp_path / "set")
    placed = []

    def full(*args: Any, **options: Any) -> None:
        placed.append(args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:  # the disk is full at the very end
        context.setattr(tfds.folder_dataset, "write_metadata", full)
        with pytest.raises(InputError, match=r"No space left on device"):
            prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    made = prepare(config(source, chunk=4, validation=0.3), tmp_path / "set")
    assert calls == [f"{index:03d}.png" for index in (0, 4, 8, 12, 12, 16, 20, 24)]
    for split in ("train", "validation"):
        assert names(made, split) == names(expected, split)
    assert prepare(config(source, chunk=4, validation=0.3), tmp_path / "set") == made  # done already
    with pytest.raises(InputError, match=r"chunk is 4 .* 5"):
        prepare(config(source, chunk=5, validation=0.3), tmp_path / "set")


def test_workers_and_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, told to stop as by a Ctrl-C, which goes to all processes; the next call continues."""
    source = many(tmp_path / "source", 30)
    expected = prepare(config(source, chunk=2), tmp_path / "expected")

    class Stops(Progress):
        def advance(self, *args: Any) -> None:
            super().advance(*args)
            if self._done == 2:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(preparing, "Progress", Stops)
        assert prepare(config(source, chunk=2, workers=2), tmp_path / "set") is None
    parts = tmp_path / "set" / "parts"
    assert 1 <= len(list(parts.glob("*.json"))) < 15
    assert not list(parts.glob(".*.partial"))
    made = prepare(config(source, chunk=2), tmp_path / "set")
    assert names(made) == names(expected)


@pytest.mark.slow
def test_processes_and_an_interruption(tmp_path: Path) -> None:
    """The binary with two workers: interrupted, continued, and the same as one process makes."""
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
        ({"kind": "tar"}, "kind: "),
        ({"validation": 1.5}, "validation is 1.5"),
        ({"chunk": 0}, "chunk is 0"),
        ({"most_pixels": 10**9}, "most_pixels is 1000000000"),
        ({"source": str(tmp_path / "nowhere")}, "nowhere"),
        ({"kind": "tars"}, ".tar"),
        ({"kind": "tfds"}, "TFDS"),
    ):
        with pytest.raises(InputError) as error:
            prepare(config(source, **changes), tmp_path / "set")
        assert said in str(error.value)
        assert not (tmp_path / "set").exists()
    (source / "metadata.jsonl").touch()
    with pytest.raises(InputError, match=r"metadata\.csv and metadata\.jsonl"):
        prepare(config(source), tmp_path / "set")


def test_too_many_rejects_are_seen_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_ENOUGH", 4)
    rows = [(f"{index}.png", "x") for index in range(20)]
    source = folder_of(tmp_path / "source", rows, {name: b"" for name, _ in rows})
    with pytest.raises(InputError, match="4 of 4"):
        prepare(config(source, chunk=2, most_rejects=0.5), tmp_path / "set")
    assert len(list((tmp_path / "set" / "parts").glob("*.json"))) == 2


@pytest.mark.slow
def test_the_benchmark_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_FILES": 64, "_LATENTS": 64, "_FEW": 20, "_MANY": 40}.items():
        monkeypatch.setattr(bench, name, value)
    said = bench.bench_data(64, 1)
    for line in (
        r"decoding JPEG, 64x64, one core: \d+ images/s",
        r"  Pillow's open, resize, crop on one core: \d+ \(\d+\.\d\dx\)",
        r"  training stream, \d+ workers: \d+ \(\d+ per core\)",
        r"reading cached latents, 8x8x4, on \d+ cores: \d+ images/s",
        r"preparing 20 and 40 images: peak resident memory \d+ and \d+ MiB",
    ):
        assert re.search(f"^{line}$", said, re.MULTILINE), line
