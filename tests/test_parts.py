"""A pipeline with another autoencoder, skipped text layers and textual inversion, against PyTorch Diffusers."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.parts import PartsConfig, with_parts
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.pipelines.tokenizer import write_tokenizer
from bksdm_jax.sampling.generate import make_generate, starting_noise
from bksdm_jax.sampling.text_to_image import SamplerConfig
from tests import tiny
from tests.arrays import require_close

TOKEN = "<cat-toy>"
CAPTIONS = [
    f"a photo of {TOKEN}",
    f"{TOKEN},{TOKEN} red x{TOKEN}y",
    "a " * 73 + TOKEN,  # with three vectors the last is cut off
    "",
]
OTHER_VAE = tiny.MICRO_VAE | {"layers_per_block": 2, "scaling_factor": 0.5}
TINY_VAE = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (16, 16),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
}
TOKENIZERS = ["tokenizer.json", "vocab.json", "added_tokens_decoder"]


def write_teacher(folder: Path, tokenizer: str = TOKENIZERS[0]) -> Path:
    """A tokenizer whose ids have no gaps, as CLIP's, in one of its forms, and a text encoder of as many tokens."""
    words = folder / "words"
    write_tokenizer(words, tiny.WORDS)
    text = tiny.text_encoder(layers=3)
    text.resize_token_embeddings(len(CLIPTokenizer.from_pretrained(words)))
    tiny.write_torch_pipeline(folder, tiny.MICRO, vae=tiny.MICRO_VAE, text=text)
    shutil.rmtree(folder / "tokenizer")
    if tokenizer == "tokenizer.json":
        CLIPTokenizer.from_pretrained(words).save_pretrained(folder / "tokenizer")
    else:
        shutil.copytree(words, folder / "tokenizer")
    if tokenizer == "added_tokens_decoder":
        file = folder / "tokenizer" / "tokenizer_config.json"
        added = CLIPTokenizer.from_pretrained(words).added_tokens_decoder
        settings = json.loads(file.read_text())
        settings["added_tokens_decoder"] = {index: token.__getstate__() for index, token in added.items()}
        file.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("parts") / "teacher")


@pytest.fixture(scope="module")
def pipeline(teacher: Path) -> Pipeline:
    return load_pipeline(teacher)


def theirs(folder: Path, **components: Any) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **components)
    # Where `clip_skip` looks for the final norm, as in Transformers 4; not as a module, which would hold itself.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


def text_states(pipeline: Pipeline, captions: list[str]) -> np.ndarray:
    networks, inputs = pipeline.architectures, pipeline.caption_inputs(captions)
    return np.asarray(networks.condition(pipeline.params, jnp.float32, inputs)["context"])


def their_states(pipeline: StableDiffusionPipeline, captions: list[str], **options: Any) -> np.ndarray:
    with torch.no_grad():
        return pipeline.encode_prompt(captions, "cpu", 1, False, **options)[0].numpy()


def their_tokens(pipeline: StableDiffusionPipeline, captions: list[str]) -> np.ndarray:
    captions = pipeline.maybe_convert_prompt(captions, pipeline.tokenizer)
    return np.array(pipeline.tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_skipped_layers_are_those_of_diffusers(pipeline: Pipeline, teacher: Path, skip: int) -> None:
    ours = text_states(with_parts(pipeline, PartsConfig(clip_skip=skip)), CAPTIONS)
    require_close(ours, their_states(theirs(teacher), CAPTIONS, clip_skip=skip))


def vectors(count: int, width: int = tiny.CONTEXT) -> torch.Tensor:
    """Embeddings [count, width], or [width] if `count` is 0."""
    noise = torch.randn(max(count, 1), width, generator=torch.Generator().manual_seed(count))
    return noise if count else noise[0]


def of_diffusers(path: Path, tensor: torch.Tensor) -> Path:
    save_file({TOKEN: tensor}, path)
    return path


def of_diffusers_in_pytorch(path: Path, tensor: torch.Tensor) -> Path:
    torch.save({TOKEN: tensor.half()}, path.with_suffix(".bin"))
    return path.with_suffix(".bin")


def of_a_webui(path: Path, tensor: torch.Tensor, **others: Any) -> Path:
    table = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(tensor)},
        "name": TOKEN,
        "step": 499,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "v1-5",
    }
    torch.save(table | others, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def without_token(path: Path, tensor: torch.Tensor) -> Path:
    path = path.with_name(f"{TOKEN}.safetensors")
    save_file({"emb_params": tensor}, path)
    return path


FORMS = [of_diffusers, of_diffusers_in_pytorch, of_a_webui, without_token]


@pytest.mark.parametrize(
    ("form", "count"), [*((form, 3) for form in FORMS), (of_diffusers, 0), (of_a_webui, 1), (without_token, 1)]
)
def test_embeddings_are_those_of_diffusers(
    pipeline: Pipeline, teacher: Path, tmp_path: Path, form: Callable[[Path, torch.Tensor], Path], count: int
) -> None:
    path = form(tmp_path / "file.safetensors", vectors(count))
    pytorchs = theirs(teacher)
    pytorchs.load_textual_inversion(str(path), token=TOKEN if form is without_token else None)
    ours = with_parts(pipeline, PartsConfig(embeddings=(str(path),)))
    np.testing.assert_array_equal(ours.caption_inputs(CAPTIONS)["tokens"], their_tokens(pytorchs, CAPTIONS))
    require_close(text_states(ours, CAPTIONS), their_states(pytorchs, CAPTIONS))
    assert np.abs(text_states(ours, CAPTIONS) - text_states(pipeline, CAPTIONS))[:3].max() > 0.1


def test_tokens_may_be_named_and_several(pipeline: Pipeline, teacher: Path, tmp_path: Path) -> None:
    first, second = of_diffusers(tmp_path / "a=b.safetensors", vectors(2)), of_a_webui(tmp_path / "c", vectors(1))
    pytorchs = theirs(teacher)
    pytorchs.load_textual_inversion(str(first))
    pytorchs.load_textual_inversion(str(second), token="mystyle")
    ours = with_parts(pipeline, PartsConfig(embeddings=(str(first), f"mystyle={second}")))
    captions = [*CAPTIONS, f"mystyle of {TOKEN}"]
    np.testing.assert_array_equal(ours.caption_inputs(captions)["tokens"], their_tokens(pytorchs, captions))
    require_close(text_states(ours, captions), their_states(pytorchs, captions))


def test_every_vector_is_used_whatever_the_case(pipeline: Pipeline, tmp_path: Path) -> None:
    """Diffusers with Transformers 5 would use the first vector only: it looks for the token in lower-case captions."""
    path = of_diffusers(tmp_path / "file.safetensors", vectors(2))
    ours, first = (
        with_parts(pipeline, PartsConfig(embeddings=(f"EasyNegative={path}",))),
        len(pipeline.tokenizers["tokenizer"]),
    )
    for caption in ("EasyNegative", "easynegative"):
        np.testing.assert_array_equal(ours.caption_inputs([caption])["tokens"][0, 1:3], [first, first + 1])


@pytest.mark.parametrize("form", TOKENIZERS)
def test_diffusers_reads_what_is_saved(tmp_path: Path, form: str) -> None:
    path = of_diffusers(tmp_path / "file.safetensors", vectors(3))
    ours = load_pipeline(write_teacher(tmp_path / "teacher", form))
    ours = with_parts(ours, PartsConfig(embeddings=(str(path),), clip_skip=1))
    saved = write_pipeline(tmp_path / "saved", ours, SaveConfig())
    require_close(text_states(ours, CAPTIONS), their_states(theirs(saved), CAPTIONS))
    if form == "tokenizer.json":  # which readers other than Transformers take alone
        file = str(saved / "tokenizer" / form)
        assert tokenizers.Tokenizer.from_file(file).token_to_id(f"{TOKEN}_2") == len(ours.tokenizers["tokenizer"]) - 1
    again, before = load_pipeline(saved).identity(), ours.identity()
    assert {name: again[name] for name in ("tokenizer", "text_encoder", "unet", "vae")}.items() <= before.items()


def test_parts_change_the_identity(pipeline: Pipeline, teacher: Path, tmp_path: Path) -> None:
    path = of_diffusers(tmp_path / "file.safetensors", vectors(1))
    tiny.randomize(AutoencoderKL(**OTHER_VAE), 5).save_pretrained(tmp_path / "vae")
    was = pipeline.identity()
    for parts, changed in (
        (PartsConfig(), set()),
        (PartsConfig(vae=str(teacher)), set()),
        (PartsConfig(vae=str(tmp_path / "vae")), {"vae"}),
        (PartsConfig(clip_skip=1), {"text_encoder"}),
        (PartsConfig(embeddings=(str(path),)), {"text_encoder", "tokenizer"}),
        (PartsConfig(embeddings=(f"other={path}",)), {"text_encoder", "tokenizer"}),
    ):
        found = with_parts(pipeline, parts)
        assert {name for name, value in found.identity().items() if value != was[name]} == changed
    again = pickle.loads(pickle.dumps(found.caption_inputs))(["an other cat"])
    np.testing.assert_array_equal(again["tokens"], found.caption_inputs(["an other cat"])["tokens"])
    assert pipeline.identity() == was


VAES = [
    pytest.param(AutoencoderKL(**OTHER_VAE), id="kl", marks=pytest.mark.slow),
    pytest.param(AutoencoderTiny(**TINY_VAE), id="tiny"),
]


@pytest.mark.parametrize("vae", VAES)
def test_images_with_all_parts_match_pytorch(pipeline: Pipeline, teacher: Path, tmp_path: Path, vae: Any) -> None:
    tiny.randomize(vae, 7).save_pretrained(tmp_path / "vae")
    path = of_a_webui(tmp_path / "file", vectors(2))
    parts = PartsConfig(vae=str(tmp_path / "vae"), clip_skip=1, embeddings=(str(path),))
    ours = with_parts(pipeline, parts)
    config = SamplerConfig(steps=3, guidance_scale=3.0, resolution=16, seed=1)
    noise = np.array(starting_noise(1, jnp.arange(2, dtype=jnp.uint32), (8, 8, 4)))
    generate = jax.jit(make_generate(ours.architectures, config))
    images, _ = generate(ours.params, ours.caption_inputs(CAPTIONS[:2]), ours.caption_inputs([""]), noise)
    pytorchs = theirs(teacher, vae=vae)
    pytorchs.set_progress_bar_config(disable=True)
    pytorchs.load_textual_inversion(str(path))
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2))
    # Unlike WebUIs, Diffusers skips no layers for the negative prompt.
    negative = torch.from_numpy(their_states(pytorchs, ["", ""], clip_skip=1))
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "clip_skip": 1, "output_type": "np"}
    options |= {"negative_prompt_embeds": negative}
    expected = pytorchs(CAPTIONS[:2], latents=latents, **options).images
    assert expected.std() > 0.04
    assert np.abs(np.asarray(images) / 255.0 - expected).max() <= 1.5 / 255


def test_embeddings_that_do_not_fit_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    def refused(said: str, *names: Any) -> None:
        with pytest.raises(InputError, match=said) as error:
            with_parts(pipeline, PartsConfig(embeddings=tuple(map(str, names))))
        assert "\n" not in str(error.value)

    good = of_diffusers(tmp_path / "good.safetensors", vectors(2))
    wide = of_diffusers(tmp_path / "wide.safetensors", vectors(1, 48))
    refused(r"wide\.safetensors: .*<cat-toy>.*48.*hidden_size is 32", wide)
    refused(r"good\.safetensors: .*'<cat-toy>' exists", good, good)
    refused(r"good\.safetensors: .*'cat</w>' exists", f"cat</w>={good}")
    refused(r"good\.safetensors: .*'<c>_1' exists", f"<c>_1={good}", f"<c>={good}")
    refused(r"good\.safetensors: ' '", f" ={good}")
    refused(r"nothing\.pt", f"token={tmp_path / 'nothing.pt'}")
    refused(r"long\.safetensors: .*78 vectors", of_diffusers(tmp_path / "long.safetensors", vectors(78)))
    refused(r"deep\.safetensors: .*\(1, 2, 32\)", of_diffusers(tmp_path / "deep.safetensors", vectors(2)[None]))
    refused(
        r"ints\.safetensors: .*int64", of_diffusers(tmp_path / "ints.safetensors", torch.zeros(32, dtype=torch.int64))
    )
    save_file({"clip_l": vectors(1), "clip_g": vectors(2)}, tmp_path / "xl.safetensors")
    refused(r"xl\.safetensors: 2 tensors .*clip_g \(2, 32\)", tmp_path / "xl.safetensors")
    torch.save({"a": 1}, tmp_path / "none.pt")
    refused(r"none\.pt: no tensors, but 'a'", tmp_path / "none.pt")
    torch.save({"string_to_param": {"*": print}}, tmp_path / "call.pt")
    refused(r"call\.pt: .*print", tmp_path / "call.pt")
    (tmp_path / "picture.png").write_bytes(b"")
    refused(r"picture\.png: .*\.safetensors", tmp_path / "picture.png")


def test_a_webuis_name_may_be_missing(pipeline: Pipeline, tmp_path: Path) -> None:
    path = of_a_webui(tmp_path / "my-style", vectors(1), name=None)
    tokens = with_parts(pipeline, PartsConfig(embeddings=(str(path),))).caption_inputs(["my-style"])["tokens"]
    assert tokens[0, 1] == len(pipeline.tokenizers["tokenizer"])


def test_other_settings_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    for skip in (-1, 3, 1.5):
        with pytest.raises(InputError, match=rf"clip_skip is {skip}.*\[0, 2\]"):
            with_parts(pipeline, PartsConfig(clip_skip=skip))
    for key, value in (("latent_channels", 16), ("out_channels", 1)):
        AutoencoderKL(**tiny.MICRO_VAE | {key: value}).save_pretrained(tmp_path / key)
        with pytest.raises(InputError, match=rf"vae: .*{key} is {value}"):
            with_parts(pipeline, PartsConfig(vae=str(tmp_path / key)))
    AutoencoderTiny(**TINY_VAE).save_pretrained(tmp_path / "tiny")
    with pytest.raises(InputError, match=r"format: .*AutoencoderTiny"):
        write_pipeline(tmp_path / "saved", with_parts(pipeline, PartsConfig(vae=str(tmp_path / "tiny"))), SaveConfig())
