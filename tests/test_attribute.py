"""Words and their tokens, how alike maps are, and the program from settings to its page."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from bksdm_jax.analysis.attribute import attribute
from bksdm_jax.analysis.attribution import make_attribute
from bksdm_jax.analysis.attribution_config import AttributionConfig, require_attribution
from bksdm_jax.analysis.likeness import Likeness, by_word, likeness, likeness_lines, mean_likeness
from bksdm_jax.analysis.words import Word, word_maps, words_of
from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.tokenizer import Tokenizer, load_tokenizer
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.text_to_image import text_to_image
from tests import pages, tiny
from tests.binaries import fail, settings, succeed


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    tiny.write_tokenizer(folder)
    return load_tokenizer(folder, 77)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of the cat", [("a", 1), ("photo", 1), ("of", 1), ("the", 1), ("cat", 1)]),
        ("  A\tRED   rocket ", [("A", 1), ("RED", 1), ("rocket", 1)]),
        ("red, zebra!", [("red,", 2), ("zebra!", 6)]),  # words that aren't in the vocabulary are letters
        ("the cat's café 🚀", [("the", 1), ("cat's", 3), ("café", 4), ("🚀", 4)]),
        ("", []),
    ],
)
def test_words_have_their_tokens(tokenizer: Tokenizer, caption: str, expected: list[tuple[str, int]]) -> None:
    words, left = words_of(tokenizer, caption)
    assert [(word.text, word.last - word.first) for word in words] == expected
    assert left == ()
    row = tokenizer([caption])[0]
    for word in words:
        own = tokenizer([word.text])[0]
        assert row[word.first : word.last].tolist() == own[1 : 1 + word.last - word.first].tolist()
    assert row[words[-1].last if words else 1] == 599


def test_words_beyond_the_last_token_have_no_map(tokenizer: Tokenizer) -> None:
    words, left = words_of(tokenizer, "cat " * 74 + "red, rocket")  # 75 fit; the comma doesn't
    assert len(words) == 74
    assert left == ("red,", "rocket")
    words, left = words_of(tokenizer, "cat " * 75)
    assert (len(words), words[-1].last, left) == (75, 76, ())
    with pytest.raises(InputError, match=r"a\\x1cb.* tokens that aren't"):
        words_of(tokenizer, "a\x1cb")  # a space for Python alone


def test_words_of_the_shapes_world_are_tokens() -> None:
    words, _ = words_of(load_tokenizer(teacher_folder() / "tokenizer", 77), "a large cyan star in the centre")
    assert [word.last - word.first for word in words] == [1] * 7


def test_a_words_map_is_the_mean_of_its_tokens() -> None:
    maps = np.random.default_rng(0).random((3, 4, 6), np.float32)
    found = word_maps(maps, (Word("a", 1, 2), Word("motorcycle", 2, 5)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [maps[..., 1], maps[..., 2:5].mean(-1)], rtol=1e-6)


def test_likeness_of_maps() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 9, 9), np.float32)
    assert likeness(first, first, 0.4) == pytest.approx((1, 1))
    assert likeness(first, 5 * first, 0.4) == pytest.approx((1, 1))
    for threshold in (0.1, 0.4, 0.9):
        found = likeness(first, second, threshold)
        assert found.correlation == pytest.approx(stats.pearsonr(first.ravel(), second.ravel()).statistic)
        marked = [set(np.flatnonzero(one >= threshold * one.max())) for one in (first, second)]
        assert found.iou == pytest.approx(len(marked[0] & marked[1]) / len(marked[0] | marked[1]))
    left = np.zeros((4, 4))
    left[:, :2] = 1
    assert likeness(left, 1 - left, 0.4) == pytest.approx((-1, 0))
    for constant in (np.zeros((4, 4)), np.full((4, 4), 0.3), np.full((4, 4), 0.3) + 1e-9 * left):
        assert likeness(constant, left, 0.4) == likeness(left, constant, 0.4) == (None, None)


def test_means_of_likeness_are_over_words() -> None:
    undefined = Likeness(None, None)
    prompts = [
        [("A", Likeness(0.2, 0.4)), ("cat,", Likeness(0.6, 0.8))],
        [("a", Likeness(1.0, 0.6)), ("...", undefined)],
        [("cat", undefined)],
    ]
    found = mean_likeness(prompts)
    assert found["words"] == 3
    assert found["correlation"]["value"] == pytest.approx(0.6)
    assert found["correlation"]["low"] == pytest.approx(0.4)
    assert found["correlation"]["high"] == pytest.approx(1.0)
    assert found["iou"]["value"] == pytest.approx(0.6)
    words = by_word(prompts)
    assert list(words) == ["a", "cat", "..."]
    assert words["a"] == pytest.approx({"correlation": 0.6, "iou": 0.5, "count": 2})
    assert words["..."] == {"correlation": None, "iou": None, "count": 1}
    assert mean_likeness([[("a", undefined)]])["iou"]["value"] is None


PROMPTS = ("a photo of a cat", "<b>red</b> & blue", "")


@pytest.fixture(scope="module")
def student(pico_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "student"
    succeed("prune", settings("prune.py", folder, teacher=pico_teacher, student=tiny.PICO_STUDENT))
    return folder


def small(teacher: Path, *students: Path | str, **values: Any) -> AttributionConfig:
    given = {"texts": PROMPTS, "steps": 2, "guidance_scale": 2.0, "resolution": 16, "sampler": "ddim", "batch_size": 1}
    return AttributionConfig(teacher=str(teacher), models=tuple(map(str, students)), **given | values)


@pytest.mark.slow
def test_a_teacher_beside_students(pico_teacher: Path, student: Path, tmp_path: Path) -> None:
    config = small(pico_teacher, student, pico_teacher)
    page = attribute(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "attribution.json").read_text())
    assert [prompt["text"] for prompt in found["prompts"]] == list(PROMPTS)
    assert [word["word"] for word in found["prompts"][1]["words"]] == ["<b>red</b>", "&", "blue"]
    assert found["prompts"][2]["words"] == []
    own, same = (found["mean"][f"student_{number}"] for number in (1, 2))
    assert own["words"] == same["words"] == 8
    assert same["correlation"]["value"] == pytest.approx(1)
    assert same["iou"]["value"] == 1
    assert -1 <= own["correlation"]["low"] <= own["correlation"]["value"] <= own["correlation"]["high"] < 1
    maps = np.load(tmp_path / "run" / "teacher" / "maps" / "000000.npy", allow_pickle=False)
    assert (maps.shape, maps.dtype) == ((5, 8, 8), np.float32)
    assert np.asarray(Image.open(tmp_path / "run" / "student_1" / "images" / "000001.png")).shape == (16, 16, 3)
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;red&lt;/b&gt;" in text
    assert "<b>red</b>" not in text
    assert not list(tmp_path.rglob("*.partial"))
    assert len(likeness_lines(tmp_path / "run" / "attribution.json")) == 3

    pipeline = load_pipeline(student)  # the maps are those of the functions
    sampler = SamplerConfig(steps=2, guidance_scale=2.0, resolution=16, sampler="ddim")
    inputs = pipeline.caption_inputs(PROMPTS[:1]), pipeline.caption_inputs([""])
    program = jax.jit(make_attribute(text_to_image(pipeline.architectures, sampler)))
    _, _, alone = program(pipeline.params, *inputs, image_keys(0, np.arange(1, dtype=np.uint32)))
    expected = np.asarray(alone)[0, ..., 1:6].transpose(2, 0, 1)
    np.testing.assert_allclose(np.load(tmp_path / "run/student_1/maps/000000.npy"), expected, atol=1e-5)

    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    stamp = (tmp_path / "run/teacher/images/000000.png").stat().st_mtime_ns
    (tmp_path / "run/student_1/maps/000001.npy").unlink()
    page.unlink()
    attribute(config, tmp_path / "run")
    assert (tmp_path / "run/teacher/images/000000.png").stat().st_mtime_ns == stamp
    assert {path: path.read_bytes() for path in files} == files
    attribute(dataclasses.replace(config, threshold=0.9), tmp_path / "run")  # nothing is made again
    assert (tmp_path / "run/teacher/images/000000.png").stat().st_mtime_ns == stamp
    other = json.loads((tmp_path / "run" / "attribution.json").read_text())["mean"]["student_1"]
    assert other["correlation"] == own["correlation"]
    assert other["iou"] != own["iou"]
    with pytest.raises(InputError, match="seed is 0"):
        attribute(dataclasses.replace(config, seed=1), tmp_path / "run")
    (tmp_path / "run/student_1/maps/000001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"student_1/maps/000001\.npy"):
        attribute(config, tmp_path / "run")


@pytest.fixture(scope="module")
def flags(pico_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of the smallest run."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red cat\nthe cup\n")
    values = {"teacher": pico_teacher, "models": f"('{pico_teacher}',)", "prompts": prompts}
    return values | {"steps": 1, "guidance_scale": 1, "resolution": 16, "sampler": "ddim", "images": 1}


@pytest.fixture(scope="module")
def page(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program writes."""
    folder = tmp_path_factory.mktemp("made")
    printed = succeed("attribute", settings("attribute.py", folder, **flags)).splitlines()
    assert printed[-1] == str(folder / "attribution.html")
    assert printed[1].split() == ["student_1", "3", "1.00", "1.00"]
    assert len(list((folder / "teacher" / "images").iterdir())) == 1
    return folder / "attribution.html"


def test_the_page_stands_on_its_own(page: Path) -> None:
    named = re.findall(r'(?:src|href)="([^"]*)"', page.read_text(encoding="utf-8"))
    assert len(named) == 2 + 2 * 4  # an icon, the scale, and of both models an image and three words
    assert all(name.startswith("data:") for name in named)


def test_the_page_is_whole_in_a_browser(page: Path) -> None:
    with pages.chromium() as browser:
        for width, scheme in itertools.product(pages.WIDTHS, pages.SCHEMES):
            with pages.opened(browser, page, width, scheme) as shown:
                assert shown.locator(".maps tbody tr").count() == 2


def test_a_mistake_leaves_no_workdir(flags: dict[str, Any], tmp_path: Path) -> None:
    assert "images" in fail("attribute", settings("attribute.py", tmp_path / "out", **flags | {"images": 0}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"models": ()}, ("models", "1 to 8")),
        ({"models": ("",)}, ("models", "''")),
        ({"texts": ()}, ("prompts", "texts")),
        ({"prompts": "file.txt"}, ("prompts", "either")),
        ({"texts": ("a" * 70000,)}, ("texts", "70000")),
        ({"images": 0}, ("images", "0")),
        ({"steps": 0}, ("steps", "0")),
        ({"threshold": 1.5}, ("threshold", "1.5")),
        ({"sampler": "ddmi"}, ("sampler", "'ddmi'")),
        ({"dtype": "float16"}, ("dtype", "float16")),
        ({"guidance_scale": float("nan")}, ("guidance_scale", "nan")),
        ({"resolution": 9999}, ("resolution", "9999")),
        ({"seed": -1}, ("seed", "-1")),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change: dict[str, Any], facts: tuple[str, ...]) -> None:
    config = AttributionConfig(**{"teacher": "shapes_teacher", "models": ("a",), "texts": ("a cat",)} | change)
    with pytest.raises(InputError) as error:
        require_attribution(config)
    assert all(fact in str(error.value) for fact in facts), error.value


@pytest.fixture(scope="module")
def misfits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Students that can't be beside the teacher."""
    folder = tmp_path_factory.mktemp("misfits")
    plain = tiny.PICO | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    tiny.write_torch_pipeline(folder / "without_attention", plain, vae=tiny.MICRO_VAE)
    tiny.write_torch_pipeline(
        folder / "larger_latents",
        tiny.PICO,
        vae=tiny.MICRO_VAE | {key: one[:1] for key, one in tiny.MICRO_VAE.items() if isinstance(one, tuple)},
    )
    tiny.write_torch_pipeline(folder / "other_tokens", tiny.PICO, vae=tiny.MICRO_VAE)
    merges = folder / "other_tokens" / "tokenizer" / "merges.txt"
    merges.write_text(merges.read_text().replace("c a\n", ""))
    (folder / "other_tokens" / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    shutil.copytree(folder / "other_tokens", folder / "fewer_tokens")
    file = folder / "fewer_tokens" / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 20}))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("without_attention", {}, ("models", "without_attention", "cross-attention")),
        ("larger_latents", {}, ("models", "larger_latents", "(16, 16, 4)", "(8, 8, 4)")),
        ("other_tokens", {}, ("models", "other_tokens", "tokenizer")),
        ("fewer_tokens", {}, ("models", "fewer_tokens", "20", "77")),
        ("missing", {}, ("missing",)),
        ("teacher", {"texts": ("", " ")}, ("prompts", "no words")),
        ("teacher", {"resolution": 17}, ("resolution", "17")),
        ("teacher", {"texts": (), "prompts": "missing.txt"}, ("missing.txt",)),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    pico_teacher: Path, misfits: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any], facts: tuple[str]
) -> None:
    other = pico_teacher if name == "teacher" else misfits.get(name, tmp_path / name)
    with pytest.raises(InputError) as error:
        attribute(small(pico_teacher, other, **change), tmp_path / "run")
    assert all(fact in str(error.value) for fact in facts), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
