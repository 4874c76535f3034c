"""Images, captions and prompts as people have them, and the stream of batches."""

import codecs
import collections
import itertools
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.forms.pairs import StoredFile
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.pair_examples import PairExample
from bksdm_jax.data.skipping import Skipping, skipped
from bksdm_jax.data.sources import open_examples, square_image
from bksdm_jax.data.tables import read_prompts
from tests import tiny


def example_of(path: Path) -> PairExample:
    return PairExample(path.name, ("a caption",), StoredFile(path), SourceOptions())


def test_photographs_are_read(photographs: Path) -> None:
    examples = open_examples(photographs)
    assert [example.texts[0] for example in examples] == list(tiny.PHOTOGRAPHS.values())
    image = square_image(examples[0], 64)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (64, 64), (20, 33), (641, 427)])
def test_transform_is_the_references(tmp_path: Path, size: tuple[int, int]) -> None:
    """Resize of the short side and centre crop as torchvision does them on a Pillow image (its rules, redone)."""
    generator = np.random.default_rng()
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))
    image.save(tmp_path / "image.png")
    width, height = size
    new = (64, int(64 * height / width)) if width <= height else (int(64 * width / height), 64)
    resized = image.resize(new, Image.Resampling.BILINEAR)
    left, top = round((new[0] - 64) / 2.0), round((new[1] - 64) / 2.0)
    expected = np.asarray(resized.crop((left, top, left + 64, top + 64)))
    np.testing.assert_array_equal(square_image(example_of(tmp_path / "image.png"), 64), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30))
    else:
        image = Image.new(mode, (30, 30))
    image.save(tmp_path / "image.tiff")
    assert square_image(example_of(tmp_path / "image.tiff"), 16).shape == (16, 16, 3)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :20] = 255
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    image.save(tmp_path / "image.png", exif=exif)
    upright = square_image(example_of(tmp_path / "image.png"), 20)
    assert upright[:8].mean() > 200
    assert upright[-8:].mean() < 50


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_images_name_their_file(tmp_path: Path, photographs: Path, content: bytes | None) -> None:
    if content is None:
        whole = (photographs / "coffee.png").read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png"):
        square_image(example_of(tmp_path / "bad.png"), 64)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")  # within twice Pillow's limit, where it only warns
    with pytest.raises(InputError, match=r"bomb\.png.*12000 x 12000.*89478485"):
        square_image(example_of(tmp_path / "bomb.png"), 64)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="bomb"):
        square_image(example_of(tmp_path / "bomb.png"), 64)
    Image.new("RGB", (90_000, 1)).save(tmp_path / "thread.png")
    with pytest.raises(InputError, match=r"thread\.png.*90000 x 1 .*narrow"):
        square_image(example_of(tmp_path / "thread.png"), 64)


def test_what_has_more_than_one_picture_or_runs_is_no_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"moving\.gif.*several pictures"):
        example_of(tmp_path / "moving.gif").image()
    whole = (tmp_path / "moving.gif").read_bytes()
    (tmp_path / "moving.gif").write_bytes(whole[: whole.rindex(b",") + 1])
    with pytest.raises(InputError, match=r"moving\.gif"):
        example_of(tmp_path / "moving.gif").image()
    frames[0].save(tmp_path / "program.eps")
    with pytest.raises(InputError, match=r"program\.eps"):
        example_of(tmp_path / "program.eps").image()


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x7FFF, 0xFFFF]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(example_of(tmp_path / "deep.png").image())[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize(
    ("table", "facts"),
    [
        ("", ("'file_name'",)),
        ("file_name,text\n", ("no rows",)),
        ("file,text\na.png,cat\n", ("'file_name'", "'file'")),
        ("file_name,text\n../secret.png,cat\n", ("line 2", "'../secret.png'")),
        ("file_name,text\na.png\n", ("line 2", "1 fields")),
        ("file_name,text\na.png,a red, shiny cat\n", ("line 2", "3 fields", "2")),
        ("file_name,text\n/etc/passwd,cat\n", ("line 2", "'/etc/passwd'")),
        ("file_name,text\na\0.png,cat\n", ()),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, table: str, facts: tuple[str, ...]) -> None:
    (tmp_path / "secret.png").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").touch()
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(InputError) as error:
        open_examples(folder)
    assert str(error.value).startswith(str(folder))
    assert all(fact in str(error.value) for fact in facts)
    assert "\n" not in str(error.value)


def test_a_folder_of_links_is_read(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "cat.png").symlink_to(photographs / "chelsea.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat.png,a cat\n")
    assert open_examples(tmp_path)[0].stored.path == tmp_path / "cat.png"


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*no such"):
        open_examples(tmp_path / "nowhere")


def test_tables_with_marks_quotes_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a b.png").touch()
    text = 'file_name,text\r\na b.png,"a ""red"" cat,\nété 🐱"\r\n'
    (tmp_path / "metadata.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert open_examples(tmp_path)[0].texts[0] == 'a "red" cat,\nété 🐱'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_prompts_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("a cat\r\n\r\n  été 🐱\u2028猫 \n\n".encode(encoding))
    assert [prompt.text for prompt in read_prompts(path)] == ["a cat", "été 🐱\u2028猫"]


def test_prompts_from_csv_keep_their_file_names(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("file_name,text\ncoco/1.jpg,a cat\n../2.jpg,\n")
    assert [(prompt.source, prompt.text) for prompt in read_prompts(path)] == [
        ("coco/1.jpg", "a cat"),
        ("../2.jpg", ""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "no prompts"),
        ("blank.txt", b"\n \r\n", "no prompts"),
        ("latin.txt", "a cat\nété\n".encode("latin-1"), "line 2"),
        ("prompts.json", b"[]", ".txt"),
        ("empty.csv", b"", "file_name"),
        ("wide.txt", "a cat\n".encode("utf-16-le"), "line 1"),
        ("odd16.txt", codecs.BOM_UTF16_LE + b"a", "utf-16"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_prompts(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert said in str(error.value)


def first(photographs: Path, steps: int, start: int = 0, rows: range | None = None, **changes: int) -> list:
    settings = {"resolution": 16, "batch_size": 4, "accumulation": 2, "flip": True, "seed": 3} | changes
    batches = training_batches(
        open_examples(photographs),
        lambda captions: {"tokens": np.array([[len(caption)] for caption in captions], np.int32)},
        LoaderConfig(**settings),
        start,
        rows,
    )
    return [next(batches) for _ in range(steps)]


def test_stream_follows_from_seed_and_step(photographs: Path) -> None:
    whole = first(photographs, 6)
    assert whole[0]["images"].shape == (2, 2, 16, 16, 3)
    assert whole[0]["captions"]["tokens"].shape == (2, 2, 1)
    for batch, again in zip(whole[4:], first(photographs, 2, start=4), strict=True):
        np.testing.assert_array_equal(batch["images"], again["images"])
        np.testing.assert_array_equal(batch["captions"]["tokens"], again["captions"]["tokens"])
    other = first(photographs, 1, seed=4)[0]
    assert not np.array_equal(whole[0]["images"], other["images"])


def test_an_epoch_shows_every_image_once_and_flips_half(photographs: Path) -> None:
    batches = first(photographs, 90, batch_size=2, accumulation=1)
    for epoch in range(30):
        lengths = np.concatenate([batch["captions"]["tokens"].ravel() for batch in batches[3 * epoch : 3 * epoch + 3]])
        assert sorted(lengths) == sorted(len(caption) for caption in tiny.PHOTOGRAPHS.values())
    plain = {len(e.texts[0]): square_image(e, 16) for e in open_examples(photographs)}
    flipped = [
        not np.array_equal(image, plain[int(tokens[0])])
        for batch in batches
        for image, tokens in zip(batch["images"][0], batch["captions"]["tokens"][0], strict=True)
    ]
    assert 60 < sum(flipped) < 120


@pytest.mark.parametrize(
    ("workers", "start", "steps"),
    [(2, 3, 4), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((1, 0, 4), (3, 0, 4), (3, 4, 5)))],
)
def test_workers_change_nothing(photographs: Path, workers: int, start: int, steps: int) -> None:
    """Captions' lengths name the examples; epochs and batches don't divide, and the beginning is anywhere."""
    expected = first(photographs, start + steps)[start:]
    for batch, other in zip(expected, first(photographs, steps, start=start, workers=workers), strict=True):
        np.testing.assert_array_equal(batch["captions"]["tokens"], other["captions"]["tokens"])
        np.testing.assert_array_equal(batch["images"], other["images"])


def test_what_a_worker_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "metadata.csv").write_text("file_name,text\nbad.png,a cat\n")
    with pytest.raises(InputError, match=r"^/.*bad\.png") as error:
        first(tmp_path, 1, workers=1)
    assert "\n" not in str(error.value)


def require_worker_ends(batches: Iterator[Any]) -> None:
    """Its workers outlive a SIGTERM, which schedulers send to all processes; a killed one ends it in one line."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for _ in range(20):
        next(batches)
    workers[0].kill()
    with pytest.raises(InputError, match=r"^workers: .*-9"):
        collections.deque(itertools.islice(batches, 500), maxlen=0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skipped_images_are_listed_and_keep_the_others_batches(photographs: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    config = LoaderConfig(16, 4, 1, flip=False, seed=3, workers=workers)

    def lengths(captions: list[str]) -> dict[str, np.ndarray]:
        return {"tokens": np.array([[len(caption)] for caption in captions], np.int32)}

    examples = open_examples(folder)
    whole = training_batches(examples, lengths, config)
    before = [next(whole) for _ in range(4)]
    if workers:
        require_worker_ends(whole)
    (folder / examples[1].name).write_bytes(b"damaged")
    stream = training_batches(Skipping(examples, tmp_path / "skipped.csv"), lengths, config)
    bad, following = (len(examples[index].texts[0]) for index in (1, 2))
    for batch in before:
        found, tokens = next(stream)["captions"]["tokens"], batch["captions"]["tokens"]
        np.testing.assert_array_equal(found, np.where(tokens == bad, following, tokens))
    assert skipped(tmp_path / "skipped.csv") == 1
    assert examples[1].name in (tmp_path / "skipped.csv").read_text()
    for example in examples:
        (folder / example.name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="none of the"):
        next(training_batches(Skipping(open_examples(folder), tmp_path / "all.csv"), lengths, config))


def test_a_random_crop_moves_along_the_long_side(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)).save(
        tmp_path / "ramp.png"
    )
    (tmp_path / "metadata.csv").write_text("file_name,text\nramp.png,a ramp\n")
    batches = first(tmp_path, 16, random_crop=True, flip=False)
    lefts = np.concatenate([batch["images"][..., 0, 0, 0].ravel() for batch in batches])
    assert len(set(lefts)) > 30
    assert lefts.min() < 40
    assert lefts.max() > 200
    assert set(first(tmp_path, 1, flip=False)[0]["images"][..., 0, 0, 0].ravel()) == {120}


def test_processes_share_each_micro_batch(photographs: Path) -> None:
    whole = first(photographs, 3)
    parts = [first(photographs, 3, rows=range(index, index + 1)) for index in range(2)]
    for step, batch in enumerate(whole):
        together = np.concatenate([part[step]["images"] for part in parts], axis=1)
        np.testing.assert_array_equal(batch["images"], together)


def test_batches_must_divide(photographs: Path) -> None:
    with pytest.raises(InputError, match=r"batch_size: 4 .*accumulation 3"):
        first(photographs, 1, accumulation=3)
