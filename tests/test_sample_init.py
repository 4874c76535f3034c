"""Images that sampling begins from, and the calls that hold a run's images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.tables import Prompt
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.sampling.jobs import Init, Job, calls, find_inits, images_per_call, list_jobs
from bksdm_jax.sampling.run import sample
from tests.sampling_runs import PROMPTS, pixels, quick, table, use_one_device

one_device = pytest.fixture(use_one_device, autouse=True)


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


@pytest.mark.slow
def test_images_begin_from_images_at_their_own_sizes(micro_teacher: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.png").write_bytes((pictures / "a.png").read_bytes())
    (folder / os.fsdecode(b"b\xff.png")).write_bytes((pictures / "b.png").read_bytes())
    config = quick(micro_teacher, init=str(folder), strength=0.5, images_per_prompt=2)
    assert sample(config, tmp_path / "out") == 4
    assert [row["source"] for row in table(tmp_path / "out")] == ["a.png", "a.png", "b?.png", "b?.png"]
    assert [pixels(tmp_path / "out", i).shape[:2] for i in range(4)] == [(16, 16), (16, 16), (16, 34), (16, 34)]
    assert not np.array_equal(pixels(tmp_path / "out", 0), pixels(tmp_path / "out", 1))
    (folder / "a.png").write_bytes((pictures / "d.png").read_bytes())
    with pytest.raises(InputError, match=r"config\.json: .*a\.png"):
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


def test_each_image_has_its_prompt_if_there_are_as_many(micro_teacher: Path, pictures: Path, tmp_path: Path) -> None:
    networks = find_model(micro_teacher).architectures
    config = quick(micro_teacher, init=str(pictures), images_per_prompt=2)
    texts = [*(Prompt(text) for text in PROMPTS), Prompt("space", "space.jpg")]
    jobs = list_jobs(config, texts, networks)
    assert [job.index for job in jobs] == list(range(8))
    assert [(job.prompt.text, job.source) for job in jobs[4::2]] == [("a cup", "c.png"), ("space", "space.jpg")]
    assert {job.prompt.text for job in list_jobs(config, [Prompt("a cat")], networks)} == {"a cat"}
    three = tmp_path / "prompts.txt"
    three.write_text("\n".join(PROMPTS))
    with pytest.raises(InputError, match=r"^init: 4 image.* 3 prompts"):
        sample(quick(micro_teacher, prompts=str(three), init=str(pictures)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=60), batch=st.integers(1, 9), machines=st.integers(1, 4))
def test_calls_hold_every_image_once_and_one_size(sizes: list[int], batch: int, machines: int) -> None:
    jobs = [Job(i, Prompt(""), (8 * size, 8)) for i, size in enumerate(sizes)]
    count = images_per_call(jobs, batch, 2, machines)
    made = calls(jobs, count)
    assert sorted(job.index for call in made for job in call) == list(range(len(jobs)))
    assert all(len({job.size for job in call}) == 1 and len(call) <= count <= 2 * batch for call in made)
