"""The teacher and the CLIP that come with the package: what they weigh, what they can do, and that others read them."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel, StableDiffusionPipeline

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.images import save_png
from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.evaluation.score import score
from bksdm_jax.experiments.comparison import ComparisonConfig
from bksdm_jax.metrics.attributes import attribute_scores
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.sampling.generate import generate_images, make_generate, starting_noise
from bksdm_jax.sampling.text_to_image import SamplerConfig
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.scenes import parse_caption
from bksdm_jax.shapes.world import example
from launch import experiment

MOST_BYTES = 24 * 2**20
ONE_OBJECT = [text for text in (example("heldout", index)[1] for index in range(80)) if " and " not in text][:40]
FEW, STEPS, GUIDANCE = 12, 8, 1.5


@functools.cache
def drawn(count: int, steps: int) -> np.ndarray:
    """The teacher's pictures of the first of `ONE_OBJECT`, by PNDM: uint8 [count, 64, 64, 3]."""
    pipeline, sampler = (
        load_pipeline("shapes_teacher"),
        SamplerConfig(steps=steps, guidance_scale=GUIDANCE, resolution=64, seed=1),
    )
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), pipeline.params)
    generate = jax.jit(make_generate(pipeline.architectures, sampler))
    prompts = list(enumerate(ONE_OBJECT[:count]))
    made = generate_images(generate, params, pipeline.caption_inputs, sampler, prompts, FEW)
    return np.stack([picture for _, picture in made])


def test_files_are_small_and_half_precision() -> None:
    folder = teacher_folder().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    pipeline = load_pipeline("shapes_teacher")
    for network in pipeline.networks.values():
        assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype(np.float16)}
    unet, vae = pipeline.networks["unet"].config, pipeline.networks["vae"].config
    assert [len(stage.pairs) for stage in (*unet.down, unet.mid, *unet.up)] == [2, 2, 2, 2, 2, 3, 3, 3, 3]
    assert (vae.factor, vae.latent_channels) == (8, 4)


def test_diffusers_flax_classes_read_the_teacher() -> None:
    pipeline = load_pipeline("shapes_teacher")
    for cls, network in ((FlaxUNet2DConditionModel, "unet"), (FlaxAutoencoderKL, "vae")):
        with jax.numpy_dtype_promotion("standard"):
            _, params = cls.from_pretrained(teacher_folder() / network, dtype=np.float16)
        jax.tree.map(np.testing.assert_array_equal, params, pipeline.networks[network].params)
    index = json.loads((teacher_folder() / "model_index.json").read_text())
    assert index["_class_name"] == "FlaxStableDiffusionPipeline"


@pytest.mark.slow
def test_pytorch_draws_the_same_pictures(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "torch", load_pipeline("shapes_teacher"), SaveConfig())
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "torch", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = np.array(starting_noise(1, np.arange(2, dtype=np.uint32), (8, 8, 4))).transpose(0, 3, 1, 2)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    wanted = theirs(ONE_OBJECT[:2], latents=torch.from_numpy(noise.copy()), **options).images
    np.testing.assert_allclose(drawn(FEW, STEPS)[:2], wanted * 255, atol=1.5)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "steps"), [(FEW, STEPS), pytest.param(40, 12, marks=pytest.mark.slow)])
def test_teacher_shows_what_it_is_told(count: int, steps: int) -> None:
    scenes = [parse_caption(text) for text in ONE_OBJECT[:count]]
    shown = attribute_scores(scenes, [read_scene(picture) for picture in drawn(count, steps)])
    assert shown["one object"].value >= 0.85


def test_score_knows_right_pictures_from_others(tmp_path: Path) -> None:
    pairs = [example("heldout", index) for index in range(600, 664)]
    captions = [text for _, text in pairs]
    scores = {}
    for name, texts in (("right", captions), ("others", captions[5:] + captions[:5])):
        (tmp_path / name).mkdir()
        for number, (picture, _) in enumerate(pairs):
            save_png(tmp_path / name / f"{number}.png", picture)
        table = [(f"{number}.png", text) for number, text in enumerate(texts)]
        write_table(tmp_path / name / "metadata.csv", ("file_name", "text"), table)
        config = ScoreConfig(
            images=str(tmp_path / name),
            metrics=("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes"),
            reference="shapes",
            reference_count=400,
            cache=str(tmp_path / "cache"),
        )
        score(config, tmp_path / f"{name}_scores")
        scores[name] = json.loads((tmp_path / f"{name}_scores" / "scores.json").read_text())
    assert scores["right"]["images"] == 64
    right, others = scores["right"]["scores"], scores["others"]["scores"]
    assert right["attribute_accuracy"]["value"] >= 0.99
    assert right["clip_score_shapes"]["low"] > others["clip_score_shapes"]["high"]
    assert right["fd_clip_shapes"] == others["fd_clip_shapes"]  # captions don't count there
    assert others["attribute_accuracy"]["value"] < 0.6


def test_a_refused_demo_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"guidance_scale.*-1\.0"):
        experiment.main("demo", ComparisonConfig(guidance_scale=-1.0), tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
