"""Attribution maps against plain PyTorch with hooks, words and their tokens, and how alike maps are."""

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from scipy import stats

from bksdm_jax.analysis.attribute import attribute
from bksdm_jax.analysis.attribution import heat_maps, make_attribute, traced_layers
from bksdm_jax.analysis.attribution_config import AttributionConfig, require_attribution
from bksdm_jax.analysis.likeness import Likeness, by_word, likeness, likeness_lines, mean_likeness
from bksdm_jax.analysis.words import Word, word_maps, words_of
from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models import attention
from bksdm_jax.models.attention import CROSS_ATTENTION
from bksdm_jax.models.choices import REMAT
from bksdm_jax.models.unet import UNet, attention_weights, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.tokenizer import Tokenizer, load_tokenizer
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import make_generate
from bksdm_jax.sampling.text_to_image import text_to_image
from tests import micro, pages, tiny
from tests.binaries import fail, settings, succeed

V1 = tiny.MICRO | {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
V2 = V1 | {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
DEEP = V2 | {"transformer_layers_per_block": [1, 2]}  # as in SDXL
SIZE, TOKENS = 8, 7


class Hooks:
    """The weights of every cross-attention of a Diffusers U-Net, from the outputs of `to_q` and `to_k`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        for name, module in unet.named_modules():
            if name.endswith(".attn2"):
                module.to_q.register_forward_hook(self._keep(name, "q"))
                module.to_k.register_forward_hook(self._keep(name, "k"))
                module.register_forward_hook(self._weigh(name, module.heads))
        self._seen: dict[tuple[str, str], torch.Tensor] = {}

    def _keep(self, name: str, what: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._seen.__setitem__((name, what), output)

    def _weigh(self, name: str, heads: int) -> Callable[..., None]:
        def weigh(*_: Any) -> None:
            query, key = (
                self._seen[name, what].unflatten(-1, (heads, -1)).transpose(1, 2) for what in ("q", "k")
            )  # [B, heads, N, D]
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            self.weights[name] = scores.softmax(-1)

        return weigh


def maps_by_torch(weights: dict[str, torch.Tensor], size: int) -> np.ndarray:
    """[B, size, size, T]: the mean over all heads of all layers but the mid block's."""
    every = []
    for name, own in weights.items():  # [B, heads, N, T]
        if not name.startswith("mid_block"):
            side = round(own.shape[2] ** 0.5)
            mean = own.mean(1).transpose(1, 2).unflatten(-1, (side, side))  # [B, T, h, w]
            large = torch.nn.functional.interpolate(mean, size=(size, size), mode="bicubic").clamp(min=0)
            every += [large] * own.shape[1]
    return torch.stack(every).mean(0).permute(0, 2, 3, 1).numpy()


def require_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.max() <= 1e-4


def network(options: dict[str, Any], seed: int) -> tuple[UNet2DConditionModel, UNetConfig, dict[str, Any]]:
    module = tiny.randomize(UNet2DConditionModel(**options), seed).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.mul_(3)  # else all weights are nearly alike
    config = unet_from_diffusers(module.config)
    return module, config, tiny.flax_params(module, parameter_shapes(config))


def inputs(config: UNetConfig, count: int = 2) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    generator = np.random.default_rng(4)
    latents = generator.standard_normal((count, SIZE, SIZE, 4)).astype(np.float32)
    context = generator.standard_normal((count, TOKENS, config.context_width)).astype(np.float32)
    return latents, np.linspace(10, 700, count, dtype=np.float32), {"context": context}


@pytest.mark.parametrize("options", [V1, V2, DEEP], ids=["v1", "v2", "deep"])
def test_maps_of_a_call_are_pytorchs(options: dict[str, Any]) -> None:
    module, config, params = network(options, 3)
    hooks, (latents, timesteps, conditioning) = Hooks(module), inputs(config)
    with torch.no_grad():
        out = module(
            torch.from_numpy(latents.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            torch.from_numpy(conditioning["context"]),
        ).sample

    @jax.jit
    def ours(params: Any) -> Any:
        out, sown = UNet(config).apply({"params": params}, latents, timesteps, conditioning, mutable=[CROSS_ATTENTION])
        weights = attention_weights(sown)
        return out, weights, heat_maps(config, weights, (SIZE, SIZE))

    found, weights, maps = jax.tree.map(np.asarray, ours(params))
    assert weights.keys() == hooks.weights.keys()
    assert list(traced_layers(config)) == [name for name in hooks.weights if "mid_block" not in name]
    for name, own in hooks.weights.items():
        np.testing.assert_allclose(weights[name], own.mean(1).numpy(), atol=5e-5)
        np.testing.assert_allclose(weights[name].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found, out.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    require_close(maps, maps_by_torch(hooks.weights, SIZE))
    assert maps.std(axis=(1, 2)).max() > 0.01  # they aren't flat


def test_latents_need_not_be_square() -> None:
    config = unet_from_diffusers(V1)
    layers = traced_layers(config)
    assert {row.level for row in layers.values()} == {0, 1}
    generator = np.random.default_rng(0)
    weights = {name: generator.random((1, 35 if row.level == 0 else 12, 3), np.float32) for name, row in layers.items()}
    maps = heat_maps(config, weights, (5, 7))  # 3 x 4 one level below
    expected = [
        torch.nn.functional.interpolate(
            torch.from_numpy(own).transpose(1, 2).unflatten(-1, (5, 7) if own.shape[1] == 35 else (3, 4)),
            size=(5, 7),
            mode="bicubic",
        ).clamp(min=0)
        for own in weights.values()
    ]
    require_close(np.asarray(maps), torch.stack(expected).mean(0).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_recomputing_changes_no_weights(remat: str) -> None:
    _, config, params = network(tiny.PICO, 3)

    def weights(name: str) -> dict[str, jax.Array]:
        unet = UNet(config, remat=name)
        sown = jax.jit(lambda: unet.apply({"params": params}, *inputs(config), mutable=[CROSS_ATTENTION])[1])()
        return attention_weights(sown)

    plain, again = weights("none"), weights(remat)
    assert len(plain) == 4
    assert plain.keys() == again.keys()
    for name, own in plain.items():
        np.testing.assert_allclose(own, again[name], atol=1e-6)


@pytest.mark.parametrize(("dtype", "upcast"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_weights_that_nobody_asks_for_cost_nothing(dtype: Any, upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config, params = network(tiny.PICO | {"upcast_attention": upcast}, 3)
    unet, given = UNet(config, dtype), inputs(config)

    def off(params: Any) -> jax.Array:
        return unet.apply({"params": params}, *given)

    out, sown = jax.jit(lambda: unet.apply({"params": params}, *given, mutable=[CROSS_ATTENTION]))()
    assert all(weights.dtype == jnp.float32 for weights in attention_weights(sown).values())
    bound = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(jax.jit(off)(params), np.float32), atol=bound)
    others = jax.eval_shape(lambda: unet.apply({"params": params}, *given, mutable=["features"])[1])
    assert others
    assert attention_weights(others) == {}
    assert CROSS_ATTENTION not in jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))
    program = str(jax.make_jaxpr(off)(params))
    monkeypatch.setattr(attention, "attend_with_weights", None)
    monkeypatch.setattr(attention.Attention, "is_mutable_collection", lambda *_: False)
    assert str(jax.make_jaxpr(off)(params)) == program


def test_a_unet_without_text_has_no_maps() -> None:
    config = unet_from_diffusers(micro.UNET)
    assert traced_layers(config)
    assert traced_layers(UNetConfig(**vars(config) | {"context_width": None})) == {}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_maps_over_ddim_are_those_of_a_loop_in_pytorch(micro_torch_teacher: Path, guidance: float) -> None:
    pipeline = load_pipeline(micro_torch_teacher)
    config = SamplerConfig(steps=3, guidance_scale=guidance, resolution=16, sampler="ddim")
    parts = text_to_image(pipeline.architectures, config)
    captions, empty = pipeline.caption_inputs(["a photo of a cat", "the red rocket"]), pipeline.caption_inputs([""])
    noise = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, 4)).astype(np.float32)
    images, finite, maps = map(np.asarray, jax.jit(make_attribute(parts))(pipeline.params, captions, empty, noise))
    assert finite.all()
    if guidance > 1:  # the images are those of sampling without maps
        plain, _ = jax.jit(make_generate(pipeline.architectures, config))(pipeline.params, captions, empty, noise)
        assert np.abs(images.astype(int) - np.asarray(plain)).max() <= 1

    unet = UNet2DConditionModel.from_pretrained(micro_torch_teacher / "unet").train(False)
    states, without = (
        torch.from_numpy(np.array(parts.condition(pipeline.params, tokens)["context"])) for tokens in (captions, empty)
    )
    hooks, sums = Hooks(unet), {}
    scheduler = DDIMScheduler.from_pretrained(micro_torch_teacher / "scheduler")
    scheduler.set_timesteps(config.steps)
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = unet(x, t, states).sample
            for name, own in hooks.weights.items():
                sums[name] = sums.get(name, 0) + own / config.steps
            if guidance > 1:
                plain = unet(x, t, without.expand_as(states)).sample
                out = plain + guidance * (out - plain)
            x = scheduler.step(out, t, x).prev_sample
    require_close(maps, maps_by_torch(sums, SIZE))


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
