"""A sampling run: which images it makes, from what, and which files it leaves."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.numpy import save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.data.tables import Prompt
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.sampling import protocols
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.given_latents import read_latents
from bksdm_jax.sampling.jobs import Init, Job, calls, find_inits, images_per_call, list_jobs
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import starting_noise
from tests import tiny

PROMPTS = ("a photo of a cat", "the red rocket", "a cup")


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call has as many images as `batch_size`; what several devices do is in `test_sample_processes`."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    for name in ("local_device_count", "device_count"):
        monkeypatch.setattr(jax, name, lambda: 1)


def quick(model: Path, **changes: Any) -> SampleConfig:
    """Settings of a run of seconds at 16 pixels."""
    given = {} if {"prompt", "prompts"} & changes.keys() else {"prompt": "a cat"}
    return SampleConfig(model=str(model), **{"steps": 2, "batch_size": 2, "guidance_scale": 3.0} | given | changes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(workdir: Path, index: int = 0) -> np.ndarray:
    (path,) = (workdir / "images").glob(f"{index:06d}.*")
    return np.asarray(Image.open(path)).astype(int)


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the micro teacher with another U-Net."""
    unet = tiny.MICRO | {"layers_per_block": 1}
    return tiny.write_torch_pipeline(tmp_path_factory.mktemp("pipelines") / "other", unet, vae=tiny.MICRO_VAE)


def test_a_call_of_which_an_image_is_missing_is_made_again_and_nothing_else_is_touched(
    micro_teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    config = quick(micro_teacher, prompts=str(prompts), images_per_prompt=8, batch_size=8)
    assert sample(config, tmp_path / "out") == 24
    images = tmp_path / "out" / "images"
    before, listed = files(images), (tmp_path / "out" / "metadata.csv").read_bytes()
    assert len(set(before.values())) == 24
    times = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    lost = {"000001.png", "000003.png", "000017.png"}
    for name in lost:
        (images / name).unlink()
    (images / ".000001.png.partial").write_bytes(b"of a killed run")
    assert sample(config, tmp_path / "out") == 24
    assert files(images) == before
    assert (tmp_path / "out" / "metadata.csv").read_bytes() == listed
    assert {path.name for path in images.iterdir() if path.stat().st_mtime_ns != times[path.name]} == lost
    timing = read_json(tmp_path / "out" / "timing.json")
    assert timing["first_call_seconds"] > timing["seconds_per_image"] > 0
    assert (timing["batch_size"], timing["devices"]) == (8, 1)


def test_images_per_prompt_have_the_prompts_text_and_noise_of_their_own(
    micro_teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    sample(quick(micro_teacher, prompts=str(prompts), images_per_prompt=2), tmp_path / "two")
    assert [row["text"] for row in table(tmp_path / "two")] == [text for text in PROMPTS for _ in range(2)]
    assert not np.array_equal(pixels(tmp_path / "two", 0), pixels(tmp_path / "two", 1))
    repeated = tmp_path / "repeated.txt"
    repeated.write_text("\n".join(text for text in PROMPTS for _ in range(2)))
    sample(quick(micro_teacher, prompts=str(repeated), batch_size=3), tmp_path / "one")
    for index in range(6):
        assert np.abs(pixels(tmp_path / "two", index) - pixels(tmp_path / "one", index)).max() <= 1


def test_a_protocol_makes_the_files_that_the_evaluation_makes(
    micro_teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocols.PROTOCOLS["bk_sdm"]
    assert protocol.settings | {"steps": 25, "guidance_scale": 7.5, "sampler": "pndm"} == protocol.settings
    assert [protocol.settings[key] for key in ("resolution", "height", "width")] == [512] * 3
    assert (protocol.settings["format"], protocol.resized) == ("jpeg", 256)
    small = dict(protocol.settings) | {"steps": 2} | dict.fromkeys(("resolution", "height", "width"), 32)
    monkeypatch.setitem(protocols.PROTOCOLS, "bk_sdm", protocols.Protocol(small, 16))
    config = SampleConfig(model=str(micro_teacher), prompts=str(prompts), protocol="bk_sdm")
    out = tmp_path / "out"
    sample(config, out)
    assert [row["file_name"] for row in table(out)] == [f"images/{i:06d}.jpg" for i in range(3)]
    explicit = quick(micro_teacher, prompts=str(prompts), sampler="pndm", guidance_scale=7.5, resolution=32)
    sample(explicit, tmp_path / "png")
    for index in range(3):
        path = out / "images" / f"{index:06d}.jpg"
        first, second = io.BytesIO(), io.BytesIO()
        Image.open(tmp_path / "png" / "images" / f"{index:06d}.png").save(first, "JPEG")
        assert path.read_bytes() == first.getvalue()
        Image.open(path).resize((16, 16)).save(second, "JPEG")
        assert (out / "images_16" / path.name).read_bytes() == second.getvalue()
    before = files(out / "images_16")
    (out / "images_16" / "000001.jpg").unlink()
    sample(config, out)
    assert files(out / "images_16") == before
    with pytest.raises(InputError, match=r"^guidance_scale: 3\.0 .*bk_sdm.* 7\.5"):
        sample(dataclasses.replace(config, guidance_scale=3.0), tmp_path / "none")
    with pytest.raises(InputError, match=r"^config: protocol.*bk_sd3"):
        sample(dataclasses.replace(config, protocol="bk_sd3"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_given_latents_are_the_starting_noise(micro_teacher: Path, prompts: Path, tmp_path: Path, count: int) -> None:
    noise, path = drawn(count), tmp_path / "noise.npy"
    np.save(path, noise.transpose(0, 3, 1, 2))
    config = quick(micro_teacher, prompts=str(prompts), sampler="ddim")
    sample(dataclasses.replace(config, seed=7), tmp_path / "drawn")
    sample(dataclasses.replace(config, latents=str(path)), tmp_path / "given")
    assert np.abs(pixels(tmp_path / "drawn", 0) - pixels(tmp_path / "given", 0)).max() <= 1
    differ = np.abs(pixels(tmp_path / "drawn", 2) - pixels(tmp_path / "given", 2)).max() > 1
    assert differ == (count == 1)  # a single one is shared by all images
    np.save(path, noise * 2)
    with pytest.raises(InputError, match=r"config\.json: .*noise"):
        sample(dataclasses.replace(config, latents=str(path)), tmp_path / "given")


def drawn(count: int) -> np.ndarray:
    return np.asarray(starting_noise(7, jnp.arange(count, dtype=jnp.uint32), (8, 8, 4)))


def test_latents_are_read_in_both_layouts_and_formats(tmp_path: Path) -> None:
    noise = drawn(3)
    for number, (layout, dtype) in enumerate(((noise, "<f4"), (noise.transpose(0, 3, 1, 2), ">f2"))):
        path, tensors = tmp_path / f"{number}.npy", tmp_path / f"{number}.safetensors"
        np.save(path, layout.astype(dtype))
        save_file({"latents": np.ascontiguousarray(layout, dtype.replace(">", "<"))}, tensors)
        for file in (path, tensors):
            found = read_latents(file, 3, (8, 8, 4))
            assert found.dtype == np.float32
            assert np.array_equal(found, noise.astype(dtype).astype(np.float32))


def spoilt(noise: np.ndarray, value: float) -> np.ndarray:
    noise[1, 2, 3, 0] = value
    return noise


@pytest.mark.parametrize(
    ("array", "shape", "fact"),
    [
        (np.zeros((2, 8, 8, 4), np.float32), (8, 8, 4), r"\[2, 8, 8, 4\]"),
        (np.zeros((3, 8, 6, 4), np.float32), (8, 8, 4), r"\[3, 8, 6, 4\]"),
        (np.zeros((8, 8, 4), np.float32), (8, 8, 4), r"\[8, 8, 4\]"),
        (np.zeros((3, 4, 4, 4), np.float32), (4, 4, 4), "choose another resolution"),
        (np.zeros((3, 8, 8, 4), np.int32), (8, 8, 4), "int32"),
        (np.zeros((3, 8, 8, 4), np.float64), (8, 8, 4), "float64"),
        (spoilt(drawn(3), np.nan), (8, 8, 4), r"\[1, 2, 3, 0\] is nan"),
        (spoilt(drawn(3), -np.inf), (8, 8, 4), r"\[1, 2, 3, 0\] is -inf"),
        (np.array([{}, []], object), (8, 8, 4), "not a readable"),
        (np.zeros(3, [("a", "<f4")]), (8, 8, 4), "expected float32 or float16"),
    ],
)
def test_latents_that_cannot_be_used_are_one_line(
    tmp_path: Path, array: np.ndarray, shape: tuple[int, int, int], fact: str
) -> None:
    path = tmp_path / "noise.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*{fact}"):
        read_latents(path, 3, shape)


def test_files_that_hold_no_latents_are_one_line(tmp_path: Path) -> None:
    huge = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 10000000, 10000000, 4), }"
    np.savez(tmp_path / "zip.npz", drawn(3))
    contents = {
        "huge.npy": huge.ljust(127) + b"\n",
        "text.npy": b"not numpy",
        "zip.npy": (tmp_path / "zip.npz").read_bytes(),
        "text.safetensors": b"not safetensors",
        "noise.pt": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    save_file({"a": drawn(3), "b": drawn(3)}, tmp_path / "two.safetensors")
    for name in (*contents, "two.safetensors", "none.npy"):
        with pytest.raises(InputError, match=rf"^{tmp_path / name}: [^\n]*$"):
            read_latents(tmp_path / name, 3, (8, 8, 4))


def test_models_beside_each_other_share_noise_and_sheets(
    micro_teacher: Path, other_model: Path, prompts: Path, tmp_path: Path
) -> None:
    config = quick(micro_teacher, prompts=str(prompts), images_per_prompt=3)
    sample(dataclasses.replace(config, beside=(str(other_model), str(micro_teacher))), tmp_path / "out")
    sample(dataclasses.replace(config, model=str(other_model)), tmp_path / "alone")
    out = tmp_path / "out"
    assert files(out / "beside_1" / "images").keys() == files(tmp_path / "alone" / "images").keys()
    for index in range(9):
        assert np.array_equal(pixels(out / "beside_1", index), pixels(tmp_path / "alone", index))
        assert np.array_equal(pixels(out / "beside_2", index), pixels(out, index))
    for folder in (out / "beside_1", out / "beside_2"):
        assert table(folder) == table(out)
        assert read_json(folder / "timing.json")["seconds_per_image"] is not None
    first, second = (np.asarray(Image.open(out / f"sheet_{number:03d}.png")) for number in range(2))
    assert first.shape == (4 + 3 * 20, 4 + 8 * 20, 3)
    assert second.shape == (4 + 3 * 20, 4 + 20, 3)
    for row, folder in enumerate((out, out / "beside_1", out / "beside_2")):
        assert np.array_equal(first[4 + 20 * row :][:16, 64:80], pixels(folder, 3))
        assert np.array_equal(second[4 + 20 * row :][:16, 4:20], pixels(folder, 8))


def test_the_same_teacher_changes_nothing_and_another_does(
    micro_teacher: Path, other_model: Path, tmp_path: Path
) -> None:
    config = quick(micro_teacher, sampler="ddim", steps=3)
    sample(config, tmp_path / "alone")
    for name, teacher in (("same", micro_teacher), ("other", other_model)):
        sample(dataclasses.replace(config, teacher=str(teacher), switch_at=1), tmp_path / name)
    assert np.abs(pixels(tmp_path / "alone") - pixels(tmp_path / "same")).max() <= 1
    assert np.abs(pixels(tmp_path / "alone") - pixels(tmp_path / "other")).max() > 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, one of them on its side by its EXIF, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, height, width in (("b.png", 17, 35), ("a.png", 16, 16), ("d.png", 19, 16)):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(generator.integers(0, 256, (16, 32, 3), np.uint8)).save(folder / "c.png", exif=turned)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_images_begin_from_images_at_their_own_sizes(micro_teacher: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    config = quick(micro_teacher, init=str(folder), strength=0.5, images_per_prompt=2)
    assert sample(config, tmp_path / "out") == 4
    assert [row["source"] for row in table(tmp_path / "out")] == ["a.png", "a.png", "b.png", "b.png"]
    assert [pixels(tmp_path / "out", i).shape[:2] for i in range(4)] == [(16, 16), (16, 16), (16, 34), (16, 34)]
    assert not np.array_equal(pixels(tmp_path / "out", 0), pixels(tmp_path / "out", 1))
    (folder / "b.png").write_bytes((pictures / "d.png").read_bytes())
    with pytest.raises(InputError, match=r"config\.json: .*b\.png"):
        sample(config, tmp_path / "out")


def inits(model: Path, pictures: Path, **changes: Any) -> list[Init]:
    return find_inits(quick(model, init=str(pictures), **changes), find_model(model).architectures)


def test_images_to_begin_from_are_resized_as_diffusers_does(micro_teacher: Path, pictures: Path) -> None:
    theirs = VaeImageProcessor(vae_scale_factor=2)
    found, wide = inits(micro_teacher, pictures), inits(micro_teacher, pictures, width=24)
    assert [one.path.name for one in found] == ["a.png", "b.png", "c.png", "d.png"]
    assert [one.size for one in found] == [(16, 16), (16, 34), (32, 16), (18, 16)]
    assert [one.size for one in wide] == [(16, 24), (16, 24), (32, 24), (18, 24)]
    for one, width in [*((one, None) for one in found), *((one, 24) for one in wide)]:
        image = ImageOps.exif_transpose(Image.open(one.path))
        wanted = (theirs.preprocess(image, width=width)[0].numpy().transpose(1, 2, 0) + 1) * 127.5
        assert np.array_equal(one.pixels(), np.round(wanted))


def test_each_image_has_its_prompt_if_there_are_as_many(
    micro_teacher: Path, pictures: Path, prompts: Path, tmp_path: Path
) -> None:
    networks = find_model(micro_teacher).architectures
    config = quick(micro_teacher, init=str(pictures), images_per_prompt=2)
    texts = [*(Prompt(text) for text in PROMPTS), Prompt("space", "space.jpg")]
    jobs = list_jobs(config, texts, networks)
    assert [job.index for job in jobs] == list(range(8))
    assert [(job.prompt.text, job.source) for job in jobs[4::2]] == [("a cup", "c.png"), ("space", "space.jpg")]
    assert {job.prompt.text for job in list_jobs(config, [Prompt("a cat")], networks)} == {"a cat"}
    with pytest.raises(InputError, match=r"^init: 4 image.* 3 prompts"):
        sample(quick(micro_teacher, prompts=str(prompts), init=str(pictures)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=60), batch=st.integers(1, 9), machines=st.integers(1, 4))
def test_calls_hold_every_image_once_and_one_size(sizes: list[int], batch: int, machines: int) -> None:
    jobs = [Job(i, Prompt(""), (8 * size, 8)) for i, size in enumerate(sizes)]
    count = images_per_call(jobs, batch, 2, machines)
    made = calls(jobs, count)
    assert sorted(job.index for call in made for job in call) == list(range(len(jobs)))
    assert all(len({job.size for job in call}) == 1 and len(call) <= count <= 2 * batch for call in made)


def test_png_files_say_how_they_were_made(micro_teacher: Path, tmp_path: Path) -> None:
    text = "a cat, 猫 🐱\nsecond line\x07\x00\x85"
    config = quick(micro_teacher, prompt=text, negative_prompt="blurry", seed=5, images_per_prompt=2, sampler="pndm")
    sample(config, tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / "000001.png") as image:
        found = image.text["parameters"]
    assert found.startswith(
        "a cat, 猫 🐱\nsecond line\x07\ufffd\x85\nNegative prompt: blurry\nSteps: 2, Sampler: PLMS, "
    )
    assert found.endswith(f", Model: {micro_teacher.name}, Image: 1")
    assert "CFG scale: 3, Seed: 5, Size: 16x16, Model hash: " in found


def test_jpeg_files_say_nothing(micro_teacher: Path, tmp_path: Path) -> None:
    sample(quick(micro_teacher, format="jpeg"), tmp_path / "out")
    assert b"cat" not in (tmp_path / "out" / "images" / "000000.jpg").read_bytes()


def test_prompts_that_are_cut_are_told_by_the_number_of_their_image(
    micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    path = tmp_path / "prompts.txt"
    fitting = " ".join(["cat"] * 75)
    path.write_text(f"{fitting}\na cat\n{fitting} cat\n")
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    sample(quick(micro_teacher, prompts=str(path), images_per_prompt=2), tmp_path / "out")
    assert [line.split(":")[0] for line in told if "cut" in line] == ["image 4"]
    assert [row["text"] for row in table(tmp_path / "out")][5] == f"{fitting} cat"


def test_an_empty_text_in_a_table_is_a_prompt(micro_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("file_name,text\na.jpg,\nb.jpg,a cat\n")
    sample(quick(micro_teacher, prompts=str(path)), tmp_path / "out")
    assert [row["text"] for row in table(tmp_path / "out")] == ["", "a cat"]


def test_hostile_names_and_texts_stay_inside_the_workdir(micro_teacher: Path, tmp_path: Path) -> None:
    hostile = ["../up", "/etc/passwd", "..\\..\\up", "x" * 300, "CON", "aux.png", "~/home", "a/../../b", "%2e%2e/", "."]
    letters = [chr(code) for code in range(1, 500) if chr(code) not in "\r\n"]
    names = [f"{hostile[i % 10]}{letters[i % len(letters)]}" for i in range(1000)]
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        writer.writerows((name, name[::-1]) for name in names)
    outside = set(tmp_path.rglob("*"))
    sample(quick(micro_teacher, prompts=str(path), steps=1, guidance_scale=1.0, batch_size=200), tmp_path / "out")
    assert {path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)} == outside
    assert sorted(files(tmp_path / "out" / "images")) == [f"{i:06d}.png" for i in range(1000)]
    assert [(row["source"], row["text"]) for row in table(tmp_path / "out")] == [(name, name[::-1]) for name in names]
    for index in range(0, 1000, 37):
        with Image.open(tmp_path / "out" / "images" / f"{index:06d}.png") as image:
            assert image.text["parameters"].startswith(f"{names[index][::-1]}\nSteps: 1, ")
