"""`import bksdm_jax`: the same files as the binaries write, PyTorch's images, and nothing compiled twice."""

import dataclasses
import gc
import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import bksdm_jax
from bksdm_jax import api
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pruning import prune as pruning
from bksdm_jax.sampling.engine import Batch, Engine
from bksdm_jax.sampling.generate import starting_noise
from bksdm_jax.sampling.text_to_image import SamplerConfig
from tests import tiny

PROMPTS = ["a photo of a cat", "the red rocket 🚀", "a cup"]
SETTINGS = {"steps": 4, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def teacher(micro_teacher: Path) -> bksdm_jax.Pipeline:
    return bksdm_jax.load(micro_teacher)


@pytest.fixture(scope="module")
def student(teacher: bksdm_jax.Pipeline) -> bksdm_jax.Student:
    return bksdm_jax.prune(teacher, tiny.MICRO_SMALL)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differ(ours: np.ndarray, others: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - others).max())


def compiled(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What JAX says that it compiled."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "compil" in message.lower()]


def test_from_teacher_to_saved_student(
    teacher: bksdm_jax.Pipeline, micro_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = bksdm_jax.prune(teacher, tiny.MICRO_SMALL)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        images = bksdm_jax.generate(student, PROMPTS, **SETTINGS, seed=1)
        assert compiled(caplog)  # so they are counted
        caplog.clear()
        again = bksdm_jax.generate(student, PROMPTS[:2], **SETTINGS, seed=1)
        others = bksdm_jax.generate(student, "space", **SETTINGS, seed=2, negative_prompt="blue")
        assert not compiled(caplog)
    assert (images.arrays.shape, images.arrays.dtype, images.prompts) == ((3, 16, 16, 3), np.uint8, tuple(PROMPTS))
    assert images.arrays.std() > 10
    np.testing.assert_array_equal(again.arrays, images.arrays[:2])
    assert differ(others.arrays, images.arrays[:1]) > 5

    path = bksdm_jax.save(student, tmp_path / "student")
    loaded = bksdm_jax.load(path)
    np.testing.assert_array_equal(bksdm_jax.generate(loaded, PROMPTS, **SETTINGS, seed=1).arrays, images.arrays)
    pruning.prune(pruning.PruneConfig(teacher=str(micro_teacher), student=tiny.MICRO_SMALL), tmp_path / "binary")
    assert files(path) == files(tmp_path / "binary")


def test_images_are_those_of_pytorch(student: bksdm_jax.Student, tmp_path: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(bksdm_jax.save(student, tmp_path / "student"), safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = np.array(starting_noise(1, jnp.arange(3, dtype=jnp.uint32), (12, 8, 4)))
    expected = theirs(
        PROMPTS,
        negative_prompt=["blue"] * 3,
        num_inference_steps=4,
        guidance_scale=3.0,
        height=24,
        width=16,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)),
        output_type="np",
    ).images
    ours = bksdm_jax.generate(student, PROMPTS, **SETTINGS, seed=1, negative_prompt="blue", height=24)
    assert np.abs(ours.arrays / 255.0 - expected).max() <= 1.5 / 255


@pytest.mark.slow
def test_images_begin_from_others(teacher: bksdm_jax.Pipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 17, 27, 3), np.uint8)
    pillow = [Image.fromarray(array) for array in pixels]
    settings = SETTINGS | {"strength": 0.5, "sampler": "ddim"}
    ours = bksdm_jax.generate(teacher, PROMPTS[:2], **settings, init=pillow, height=18, seed=4)
    init = np.stack([np.asarray(image.resize((26, 18), Image.Resampling.LANCZOS)) for image in pillow])
    config = SamplerConfig(steps=4, guidance_scale=3.0, sampler="ddim", resolution=16, seed=4)
    (expected,) = Engine(teacher, config, strength=0.5).make([Batch((0, 1), tuple(PROMPTS[:2]), init)])
    np.testing.assert_array_equal(ours.arrays, expected.images)
    arrays = bksdm_jax.generate(teacher, PROMPTS[:2], **settings, init=pixels, height=18, seed=4)
    np.testing.assert_array_equal(arrays.arrays, ours.arrays)
    shared = bksdm_jax.generate(teacher, PROMPTS[:2], **settings, init=pillow[0].convert("RGBA"), height=18, seed=4)
    np.testing.assert_array_equal(shared.arrays[0], ours.arrays[0])
    assert differ(shared.arrays[1], ours.arrays[1]) > 5


@pytest.mark.slow
def test_a_teacher_begins(teacher: bksdm_jax.Pipeline, student: bksdm_jax.Student) -> None:
    settings = SETTINGS | {"sampler": "ddim", "seed": 1}
    teachers, students = (bksdm_jax.generate(one, PROMPTS[0], **settings).arrays for one in (teacher, student))
    made = bksdm_jax.generate(student, PROMPTS[0], **settings, teacher=teacher, switch_at=3).arrays
    assert 1 < differ(made, teachers) < differ(students, teachers)
    assert made.std() > 10


def test_engines_are_few_and_go_with_their_pipeline(micro_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(pipeline: bksdm_jax.Pipeline, steps: int) -> Engine:
        config = SamplerConfig(steps=steps, resolution=16, sampler="ddim")
        return api._engine(pipeline, config, "float32", 1, None, None)

    monkeypatch.setattr(api, "_REMEMBERED", 2)
    pipeline, gone = bksdm_jax.load(micro_teacher), bksdm_jax.load(micro_teacher)
    first, _ = engine(pipeline, 1), engine(gone, 1)
    assert engine(pipeline, 1) is first
    owner = id(gone)
    del gone
    gc.collect()
    assert not [key for key in api._ENGINES if owner in key[:2]]
    engine(pipeline, 2)
    assert engine(pipeline, 1) is first
    engine(pipeline, 3)
    assert len(api._ENGINES) == 2
    assert engine(pipeline, 1) is first  # the one that was used before 2


def test_images_are_shown_as_a_grid() -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    images = bksdm_jax.Images(arrays, tuple("abcde"))
    assert len(images) == 5
    for image, array in zip(images.pil(), arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(image), array)
    shown = np.asarray(Image.open(io.BytesIO(images._repr_png_())))
    np.testing.assert_array_equal(shown, np.asarray(images.grid(3)))
    assert shown.shape == (4 + 2 * 10, 4 + 3 * 11, 3)
    np.testing.assert_array_equal(shown[14:20, 15:22], arrays[4])
    assert (shown[14:20, 26:33] == 255).all()
    assert images.grid(9).size == (4 + 5 * 11, 10 + 4)


def test_parts_replace_those_of_the_model(micro_teacher: Path, teacher: bksdm_jax.Pipeline) -> None:
    skipped = bksdm_jax.load(str(micro_teacher), clip_skip=1)
    assert skipped.networks["text_encoder"].config.layers == teacher.networks["text_encoder"].config.layers - 1
    assert skipped.identity()["unet"] == teacher.identity()["unet"]


def test_a_trained_student_gets_no_card_that_says_otherwise(student: bksdm_jax.Student, tmp_path: Path) -> None:
    trained = student.with_denoiser(student.denoiser.config, student.denoiser.params)
    assert not isinstance(trained, bksdm_jax.Student)
    written = files(bksdm_jax.save(trained, tmp_path / "trained", dtype="float16"))
    assert {"README.md", "removal_plan.json"}.isdisjoint(written)
    assert load_pipeline(tmp_path / "trained").denoiser.params["conv_in"]["kernel"].dtype == np.float16


@pytest.mark.parametrize(
    ("path", "name"), [("/x/models--owner--small/snapshots/0f", "owner/small"), ("/x/my_model", "my_model")]
)
def test_the_card_names_the_teacher(teacher: bksdm_jax.Pipeline, path: str, name: str) -> None:
    student = bksdm_jax.prune(dataclasses.replace(teacher, path=Path(path)), tiny.MICRO_SMALL)
    assert student.facts.parent == name


def test_the_bundled_teacher_is_found_by_its_name() -> None:
    student = bksdm_jax.prune(bksdm_jax.load("shapes_teacher"))
    assert (student.facts.parent, student.facts.preset) == ("shapes_teacher", "bk_small")


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, bksdm_jax; before = set(sys.modules); names = set(dir(bksdm_jax));"
        "assert set(bksdm_jax.__all__) <= names and '__version__' in names;"
        "assert not {'jax', 'numpy', 'bksdm_jax.api'} & before;"
        "assert bksdm_jax.InputError.__doc__ and 'jax' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_public_names_are_explained() -> None:
    assert set(bksdm_jax.__all__) == set(api.__all__)
    for name in bksdm_jax.__all__:
        assert getattr(bksdm_jax, name).__doc__
    with pytest.raises(AttributeError, match="sample_images"):
        bksdm_jax.sample_images  # noqa: B018


ARRAY = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"prompts": []}, ("prompts",)),
        ({"prompts": ["a", 3]}, ("prompts", "3")),
        ({"prompts": "a" * 70_000}, ("70000", "65536")),
        ({"negative_prompt": None}, ("negative_prompt", "None")),
        ({"negative_prompt": "a" * 70_000}, ("70000", "65536")),
        ({"seed": -1}, ("seed", "-1")),
        ({"seed": 2**32}, ("seed", str(2**32))),
        ({"batch_size": -1}, ("batch_size", "-1")),
        ({"dtype": "float16"}, ("dtype", "float16", "bfloat16")),
        ({"height": 17}, ("height", "17", "multiple of 2")),
        ({"width": 16.0}, ("width", "16.0")),
        ({"height": -16}, ("height", "-16")),
        ({"steps": [4]}, ("steps", "[4]")),
        ({"sampler": "dddim"}, ("sampler", "dddim", "ddim")),
        ({"guidance_scale": float("nan")}, ("guidance_scale", "nan")),
        ({"switch_at": 2}, ("switch_at", "2", "teacher")),
        ({"decode": "tile"}, ("decode", "tile", "tiles")),
        ({"init": ARRAY, "strength": 2.0}, ("strength", "2")),
        ({"init": ARRAY, "height": 9}, ("init", "height", "9")),
        ({"init": ARRAY.astype(np.float32)}, ("init", "float32", "uint8")),
        ({"init": ARRAY[None, None]}, ("init", "[1, 1, 16, 16, 3]")),
        ({"init": ARRAY[:1]}, ("init", "height", "0")),
        ({"init": ARRAY[:0]}, ("init", "[0, 16, 3]")),
        ({"init": []}, ("init", "0 image")),
        ({"init": np.stack([ARRAY] * 2)}, ("init", "2 image", "1 prompt")),
        ({"init": ["photo.png"]}, ("init", "photo.png")),
        ({"init": Image.new("F", (16, 16))}, ("init", "F")),
        ({"init": [Image.new("L", (16, size)) for size in (16, 32)], "prompts": ["a", "b"]}, ("init", "2 sizes")),
    ],
)
def test_what_cannot_be_generated_is_refused(
    teacher: bksdm_jax.Pipeline, change: dict[str, Any], facts: tuple[str, ...]
) -> None:
    with pytest.raises(bksdm_jax.InputError) as error:
        bksdm_jax.generate(teacher, **{"prompts": "a cat"} | SETTINGS | change)
    message = str(error.value)
    assert all(fact in message for fact in facts), message
    assert "\n" not in message


def test_what_cannot_be_loaded_pruned_or_saved_is_refused(
    teacher: bksdm_jax.Pipeline, student: bksdm_jax.Student, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for call, facts in (
        (lambda: bksdm_jax.load(tmp_path / "missing"), ("missing",)),
        (lambda: bksdm_jax.load(teacher.path, variant="fp16"), ("fp16",)),
        (lambda: bksdm_jax.load(teacher.path, prediction="epsilon"), ("prediction",)),
        (lambda: bksdm_jax.load(teacher.path, vae=str(tmp_path / "missing")), ("missing",)),
        (lambda: bksdm_jax.load(teacher.path, embeddings=str(tmp_path / "a.pt")), ("a.pt",)),
        (lambda: bksdm_jax.load(teacher.path, clip_skip=2), ("clip_skip", "2")),
        (lambda: bksdm_jax.prune(teacher, "bk_tiniest"), ("bk_tiniest", "bk_tiny")),
        (lambda: bksdm_jax.prune(teacher, "bk_tiny"), ("down_blocks.1.attentions.1",)),
        (lambda: bksdm_jax.prune(teacher, tiny.MICRO_SMALL, init="randm"), ("student_init", "randm", "random")),
        (lambda: bksdm_jax.prune(teacher, tiny.MICRO_SMALL, init=str(teacher.path)), ("student_init",)),
        (lambda: bksdm_jax.prune(teacher, tiny.MICRO_SMALL, init="random", seed=-1), ("seed", "-1")),
        (lambda: bksdm_jax.prune(student, "mid_block"), ("student", "teacher")),
        (lambda: bksdm_jax.save(student, tmp_path / "used"), ("used",)),
        (lambda: bksdm_jax.save(student, tmp_path / "new", format="ckpt"), ("format", "ckpt", "safetensors")),
        (lambda: bksdm_jax.save(student, tmp_path / "new", dtype="int8"), ("dtype", "int8", "bfloat16")),
    ):
        with pytest.raises(bksdm_jax.InputError) as error:
            call()
        assert all(fact in str(error.value) for fact in facts), error.value
    assert files(tmp_path) == {"used/notes.txt": b"mine"}
