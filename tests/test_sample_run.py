"""A sampling run: which images it makes, from what, and which files it leaves."""

import csv
import dataclasses
import errno
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.diffusion.schedule import ScheduleConfig, SolverOptions
from bksdm_jax.sampling import protocols, run
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.engine import Batch
from bksdm_jax.sampling.generate import starting_noise
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.webui import parameters, sampler_name
from tests import tiny
from tests.sampling_runs import PROMPTS, pixels, quick, table, use_one_device

one_device = pytest.fixture(use_one_device, autouse=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    pico_teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    make = run.Engine.make
    monkeypatch.setattr(run.Engine, "make", lambda engine, batches: make(engine, noted(batches)))

    def noted(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            made.append(batch.indices)
            yield batch

    config = quick(pico_teacher, prompts=str(prompts), images_per_prompt=8, batch_size=8)
    assert sample(config, tmp_path / "out") == 24
    images = tmp_path / "out" / "images"
    before, listed = files(images), (tmp_path / "out" / "metadata.csv").read_bytes()
    assert len(set(before.values())) == 24
    times = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    lost = {"000001.png", "000003.png", "000017.png"}
    for name in lost:
        (images / name).unlink()
    made.clear()
    (images / ".000001.png.partial").write_bytes(b"of a killed run")
    assert sample(config, tmp_path / "out") == 24
    assert made == [tuple(range(8)), tuple(range(16, 24))]
    assert files(images) == before
    assert (tmp_path / "out" / "metadata.csv").read_bytes() == listed
    assert {path.name for path in images.iterdir() if path.stat().st_mtime_ns != times[path.name]} == lost
    timing = read_json(tmp_path / "out" / "timing.json")
    assert timing["first_call_seconds"] > timing["seconds_per_image"] > 0
    assert (timing["batch_size"], timing["devices"]) == (8, 1)


def test_images_per_prompt_have_the_prompts_text_and_noise_of_their_own(
    pico_teacher: Path, prompts: Path, tmp_path: Path
) -> None:
    sample(quick(pico_teacher, prompts=str(prompts), images_per_prompt=2), tmp_path / "two")
    assert [row["text"] for row in table(tmp_path / "two")] == [text for text in PROMPTS for _ in range(2)]
    assert not np.array_equal(pixels(tmp_path / "two", 0), pixels(tmp_path / "two", 1))
    repeated = tmp_path / "repeated.txt"
    repeated.write_text("\n".join(text for text in PROMPTS for _ in range(2)))
    sample(quick(pico_teacher, prompts=str(repeated), batch_size=3), tmp_path / "one")
    for index in range(6):
        assert np.abs(pixels(tmp_path / "two", index) - pixels(tmp_path / "one", index)).max() <= 1


def test_a_protocol_makes_the_files_that_the_evaluation_makes(
    pico_teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocols.PROTOCOLS["bk_sdm"]
    assert protocol.settings | {"steps": 25, "guidance_scale": 7.5, "sampler": "pndm"} == protocol.settings
    assert [protocol.settings[key] for key in ("resolution", "height", "width")] == [512] * 3
    assert (protocol.settings["format"], protocol.resized) == ("jpeg", 256)
    small = dict(protocol.settings) | {"steps": 2} | dict.fromkeys(("resolution", "height", "width"), 32)
    monkeypatch.setitem(protocols.PROTOCOLS, "bk_sdm", protocols.Protocol(small, 16))
    config = SampleConfig(model=str(pico_teacher), prompts=str(prompts), protocol="bk_sdm")
    out = tmp_path / "out"
    sample(config, out)
    assert [row["file_name"] for row in table(out)] == [f"images/{i:06d}.jpg" for i in range(3)]
    explicit = quick(pico_teacher, prompts=str(prompts), sampler="pndm", guidance_scale=7.5, resolution=32)
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
def test_given_latents_are_the_starting_noise(pico_teacher: Path, prompts: Path, tmp_path: Path, count: int) -> None:
    noise = np.asarray(starting_noise(7, jnp.arange(count, dtype=jnp.uint32), (8, 8, 4)))
    path = tmp_path / "noise.npy"
    np.save(path, noise.transpose(0, 3, 1, 2))
    config = quick(pico_teacher, prompts=str(prompts), sampler="ddim")
    sample(dataclasses.replace(config, seed=7), tmp_path / "drawn")
    sample(dataclasses.replace(config, latents=str(path)), tmp_path / "given")
    assert np.abs(pixels(tmp_path / "drawn", 0) - pixels(tmp_path / "given", 0)).max() <= 1
    differ = np.abs(pixels(tmp_path / "drawn", 2) - pixels(tmp_path / "given", 2)).max() > 1
    assert differ == (count == 1)  # a single one is shared by all images
    np.save(path, noise * 2)
    with pytest.raises(InputError, match=r"config\.json: .*noise"):
        sample(dataclasses.replace(config, latents=str(path)), tmp_path / "given")


@pytest.mark.slow
def test_models_beside_each_other_share_noise_and_sheets(
    pico_teacher: Path, other_model: Path, prompts: Path, tmp_path: Path
) -> None:
    config = quick(pico_teacher, prompts=str(prompts), images_per_prompt=3)
    sample(dataclasses.replace(config, beside=(str(other_model), str(pico_teacher))), tmp_path / "out")
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


@pytest.mark.slow
def test_the_same_teacher_changes_nothing_and_another_does(
    pico_teacher: Path, other_model: Path, tmp_path: Path
) -> None:
    config = quick(pico_teacher, sampler="ddim", steps=3)
    sample(config, tmp_path / "alone")
    for name, teacher in (("same", pico_teacher), ("other", other_model)):
        sample(dataclasses.replace(config, teacher=str(teacher), switch_at=1), tmp_path / name)
    assert np.abs(pixels(tmp_path / "alone") - pixels(tmp_path / "same")).max() <= 1
    assert np.abs(pixels(tmp_path / "alone") - pixels(tmp_path / "other")).max() > 1


def test_a_full_disk_is_one_line(pico_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.endswith("000001.png.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"^[^\n]*images/000001\.png: [^\n]*No space left"):
            sample(quick(pico_teacher, images_per_prompt=4), tmp_path / "out")
    assert not (tmp_path / "out" / "metadata.csv").exists()
    sample(quick(pico_teacher, images_per_prompt=4), tmp_path / "out")


@pytest.mark.parametrize(
    ("sampler", "options", "name"),
    [
        ("pndm", {}, "PLMS"),
        ("euler_ancestral", {}, "Euler a"),
        ("unipc_karras", {}, "unipc_karras"),
        ("scheduler", {"sampler": "pndm"}, "PLMS"),
        ("scheduler", {"sampler": "ddim"}, "DDIM"),
        ("scheduler", {"sampler": "dpmpp", "sigma_spacing": "karras"}, "DPM++ 2M Karras"),
        ("scheduler", {"sampler": "dpmpp", "solver_order": 3}, "dpmpp"),
    ],
)
def test_samplers_have_the_names_that_webuis_know(sampler: str, options: dict[str, Any], name: str) -> None:
    solver = SolverOptions(**{key: value for key, value in options.items() if key != "sampler"})
    schedule = ScheduleConfig(sampler=options.get("sampler", "pndm"), solver=solver)
    assert sampler_name(sampler, schedule) == name


def test_names_that_read_as_several_values_are_quoted() -> None:
    config = SampleConfig(model="m", prompt="a cat", init="x", clip_skip=1)
    model = {"Model hash": "0123456789", "Model": 'a "b", Seed: 7\n\udcff'}
    said = parameters(config, "PLMS", model, "a cat", 3, (512, 768)).split("\n")
    assert said == [
        "a cat",
        "Steps: 25, Sampler: PLMS, CFG scale: 7.5, Seed: 0, Size: 768x512, Model hash: 0123456789, "
        r'Model: "a \"b\", Seed: 7\n?", Denoising strength: 0.8, Clip skip: 2, Image: 3',
    ]


def test_png_files_say_how_they_were_made(pico_teacher: Path, tmp_path: Path) -> None:
    text = "a cat, 猫 🐱\nsecond line\x07\x00\x85"
    config = quick(pico_teacher, prompt=text, negative_prompt="blurry", seed=5, images_per_prompt=2, sampler="pndm")
    sample(config, tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / "000001.png") as image:
        found = image.text["parameters"]
    assert found.startswith(
        "a cat, 猫 🐱\nsecond line\x07\ufffd\x85\nNegative prompt: blurry\nSteps: 2, Sampler: PLMS, "
    )
    assert found.endswith(f", Model: {pico_teacher.name}, Image: 1")
    assert "CFG scale: 3, Seed: 5, Size: 16x16, Model hash: " in found


def test_jpeg_files_say_nothing(pico_teacher: Path, tmp_path: Path) -> None:
    sample(quick(pico_teacher, format="jpeg"), tmp_path / "out")
    assert b"cat" not in (tmp_path / "out" / "images" / "000000.jpg").read_bytes()


def test_prompts_that_are_cut_are_told_by_the_number_of_their_image(
    pico_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    path = tmp_path / "prompts.txt"
    fitting = " ".join(["cat"] * 75)
    path.write_text(f"{fitting}\na cat\n{fitting} cat\n")
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    sample(quick(pico_teacher, prompts=str(path), images_per_prompt=2), tmp_path / "out")
    assert [line.split(":")[0] for line in told if "cut" in line] == ["image 4"]
    assert [row["text"] for row in table(tmp_path / "out")][5] == f"{fitting} cat"


def test_an_empty_text_in_a_table_is_a_prompt(pico_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("file_name,text\na.jpg,\nb.jpg,a cat\n")
    sample(quick(pico_teacher, prompts=str(path)), tmp_path / "out")
    assert [row["text"] for row in table(tmp_path / "out")] == ["", "a cat"]


def test_hostile_names_and_texts_stay_inside_the_workdir(pico_teacher: Path, tmp_path: Path) -> None:
    hostile = ["../up", "/etc/passwd", "..\\..\\up", "x" * 300, "CON", "aux.png", "~/home", "a/../../b", "%2e%2e/", "."]
    letters = [chr(code) for code in range(1, 500) if chr(code) not in "\r\n"]
    names = [f"{hostile[i % 10]}{letters[i % len(letters)]}" for i in range(500)]
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        writer.writerows((name, name[::-1]) for name in names)
    outside = set(tmp_path.rglob("*"))
    sample(quick(pico_teacher, prompts=str(path), steps=1, guidance_scale=1.0, batch_size=100), tmp_path / "out")
    assert {path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)} == outside
    assert sorted(files(tmp_path / "out" / "images")) == [f"{i:06d}.png" for i in range(500)]
    assert [(row["source"], row["text"]) for row in table(tmp_path / "out")] == [(name, name[::-1]) for name in names]
    for index in range(0, 500, 37):
        with Image.open(tmp_path / "out" / "images" / f"{index:06d}.png") as image:
            assert image.text["parameters"].startswith(f"{names[index][::-1]}\nSteps: 1, ")


def test_previews_are_the_estimates_on_the_way(
    pico_teacher: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = pico_teacher / "vae"
    config = quick(pico_teacher, prompts=str(prompts), steps=3, sampler="ddim", previews=2, preview_vae=str(vae))
    sample(config, tmp_path / "out")
    previews = tmp_path / "out" / "previews"
    assert {path.name for path in previews.iterdir()} == {f"{index:06d}_001.png" for index in range(3)}
    lost = previews / "000001_001.png"
    before = lost.read_bytes()
    assert np.abs(np.asarray(Image.open(lost)).astype(int) - pixels(tmp_path / "out", 1)).max() > 1
    lost.unlink()
    sample(config, tmp_path / "out")
    assert lost.read_bytes() == before
    own = run.load_autoencoder
    changed = lambda name, _: dataclasses.replace(own(name), params={"decoder": {"bias": np.ones(3)}})  # noqa: E731
    monkeypatch.setattr(run, "load_autoencoder", changed)
    with pytest.raises(InputError, match="preview vae has changed"):
        sample(config, tmp_path / "out")
    with pytest.raises(InputError, match=r"preview_vae: .*previews"):
        sample(quick(pico_teacher, preview_vae=str(vae)), tmp_path / "other")
