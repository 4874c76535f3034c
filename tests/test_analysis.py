"""Measuring a teacher's blocks on a calibration set, and the file that it gives."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bksdm_jax
from bksdm_jax.analysis.agreement import rank_correlation
from bksdm_jax.analysis.analyse import analyse
from bksdm_jax.analysis.calibration import Calibration
from bksdm_jax.analysis.config import AnalyseConfig, SensitivityConfig, require_analysis
from bksdm_jax.analysis.sensitivity import removals
from bksdm_jax.analysis.table import block_lines
from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.models.unet import UNet
from bksdm_jax.models.unet_table import replaceable
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pruning.criteria import taylor
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.pruning.weights import copy_weights
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.engine import Batch, Engine
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.objective import Problem, make_batch_loss
from bksdm_jax.tasks.noise import noise_latents
from bksdm_jax.training.sharding import make_mesh
from tests import micro

COUNT, SIZE, SEED = 3, 8, 5
NETWORKS = micro.networks()
UNET = NETWORKS.denoiser
PROBLEM = Problem(plan_removal(UNET, ()), NETWORKS, LossWeights(output=0.0, feature=0.0))


def batches() -> Iterator[dict[str, Any]]:
    whole = micro.batch(COUNT * SIZE)
    for first in range(0, COUNT * SIZE, SIZE):
        yield jax.tree.map(lambda value: value[None, first : first + SIZE], whole)  # noqa: B023


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return micro.encoders() | {"unet": micro.params(UNET, 7)}


@pytest.fixture(scope="module")
def calibration(params: dict[str, Any]) -> Calibration:
    return Calibration(NETWORKS, params, batches, COUNT, SEED, jnp.float32, make_mesh())


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(jnp.arange(COUNT * SIZE))


@pytest.mark.slow
def test_the_gradient_is_that_of_the_mean_over_all_images(
    calibration: Calibration, params: dict[str, Any], keys: jax.Array
) -> None:
    whole, frozen = micro.batch(COUNT * SIZE), micro.encoders()
    at_once = jax.jit(jax.value_and_grad(make_batch_loss(PROBLEM), has_aux=True))
    (value, _), slopes = at_once(params["unet"], {}, frozen, whole, keys)
    ours, loss = calibration.gradient()
    assert loss == pytest.approx(float(value), rel=1e-5)
    found, expected = (taylor(UNET, params["unet"], tree) for tree in (ours, slopes))
    for block, score in expected.items():
        assert found[block] == pytest.approx(score, rel=1e-4), block
    assert all(leaf.dtype == np.float32 for leaf in trees.flatten(ours).values())


@pytest.mark.slow
def test_gradients_of_half_precision_weights_are_not_rounded(params: dict[str, Any]) -> None:
    """Their smallest entries would be zero in float16."""
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    whole = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    ours, expected = (
        Calibration(NETWORKS, tree, batches, 1, SEED, jnp.float32, make_mesh()).gradient()[0] for tree in (half, whole)
    )
    for path, leaf in trees.flatten(ours).items():
        np.testing.assert_array_equal(leaf, trees.flatten(expected)[path])


@pytest.mark.slow
def test_output_errors_are_those_of_networks_without_the_blocks(
    calibration: Calibration, params: dict[str, Any], keys: jax.Array
) -> None:
    removals = [(), ("mid_block.attentions.0",), ("up_blocks.0.resnets.1", "up_blocks.1.attentions.1")]
    found = calibration.output_errors(removals)
    whole, frozen = micro.batch(COUNT * SIZE), micro.encoders()
    moments = NETWORKS.encode(frozen, jnp.float32, whole["images"].astype(np.float32) / 127.5 - 1)
    noisy = noise_latents(PROBLEM.networks, jnp.float32, frozen, *moments, whole["captions"], keys)
    inputs = (noisy.noisy, noisy.timesteps, noisy.conditioning)
    out = UNet(UNET).apply({"params": params["unet"]}, *inputs)
    for removal, error in zip(removals, found, strict=True):
        plan = plan_removal(UNET, tuple(f"{name}:interpolate" if "resnets" in name else name for name in removal))
        other = UNet(plan.student).apply({"params": copy_weights(plan, params["unet"])}, *inputs)
        assert error == pytest.approx(float(jnp.mean(jnp.square(other - out))), rel=1e-4, abs=1e-10)
    assert found[0] == 0 < found[1] < found[2]


def settings(teacher: Path, data: Path | str, **values: Any) -> AnalyseConfig:
    given = {"teacher": str(teacher), "data": str(data), "images": 5, "batch_size": 1, "resolution": 16}
    return AnalyseConfig(**given | values)


@pytest.mark.slow
def test_an_analysis_goes_on_with_more_criteria(pico_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    first = analyse(settings(pico_teacher, photographs, criteria=("magnitude",)), tmp_path / "run")
    before = json.loads(first.read_text())
    assert before["scores"].keys() == {"magnitude"}
    path = analyse(settings(pico_teacher, photographs, criteria=("output_error", "taylor")), tmp_path / "run")
    found = json.loads(path.read_text())
    assert path == first == tmp_path / "run" / "blocks.json"
    assert found["scores"].keys() == {"magnitude", "output_error", "taylor"}
    assert found["scores"]["magnitude"] == before["scores"]["magnitude"]
    blocks = found["blocks"]
    for scores in found["scores"].values():
        assert scores.keys() == blocks.keys()
        assert all(np.isfinite(score) and score > 0 for score in scores.values())
    assert [name for name in blocks if blocks[name]["interpolated"]] == [
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
    ]
    lines = block_lines(path)
    assert [line.split()[0].rstrip("*") in blocks for line in lines if line].count(True) == len(blocks)
    assert any(line.startswith("up_blocks.0.resnets.0*") for line in lines)
    with pytest.raises(InputError, match="images is 5"):
        analyse(settings(pico_teacher, photographs, images=6), tmp_path / "run")
    assert [blocks[name]["number"] for name in replaceable(find_model(pico_teacher).architectures.denoiser)] == [
        *range(len(blocks))
    ]


def test_weights_need_no_data(pico_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    analyse(AnalyseConfig(teacher=str(pico_teacher), criteria=("magnitude",)), tmp_path / "run")
    path = analyse(settings(pico_teacher, photographs, criteria=("output_error",)), tmp_path / "run")
    assert json.loads(path.read_text())["scores"].keys() == {"magnitude", "output_error"}


def test_scores_that_are_not_finite_are_not_written(pico_teacher: Path, tmp_path: Path) -> None:
    teacher = load_pipeline(pico_teacher)
    kernel = teacher.denoiser.params["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    kernel[0, 0, 0, 0] = np.nan
    write_pipeline(tmp_path / "nan", dataclasses.replace(teacher, allow_non_finite=True), SaveConfig())
    config = AnalyseConfig(teacher=str(tmp_path / "nan"), criteria=("magnitude",), allow_non_finite=True)
    with pytest.raises(InputError, match=r"magnitude of down_blocks\.0\.resnets\.0 is nan"):
        analyse(config, tmp_path / "run")
    assert not (tmp_path / "run" / "blocks.json").exists()


def test_removals_are_blocks_pairs_the_mid_block_and_skips() -> None:
    zeroed = {one.name: one.skips for one in removals(UNET) if one.skips}
    assert zeroed["skip of up_blocks.0.resnets.1"] == ("up_blocks.0.resnets.1",)
    assert zeroed["skips of up_blocks.1"] == tuple(f"up_blocks.1.resnets.{j}" for j in range(3))
    assert len(zeroed) == 6 + 2
    found = {one.name: one.blocks for one in removals(UNET, skips=False)}
    assert found == {one.name: one.blocks for one in removals(UNET) if not one.skips}
    single = [blocks for name, blocks in found.items() if len(blocks) == 1 and name == blocks[0]]
    assert [blocks[0] for blocks in single] == list(replaceable(UNET))
    assert found["nothing"] == ()
    assert found["up_blocks.1.resnets.2+attentions.2"] == ("up_blocks.1.resnets.2", "up_blocks.1.attentions.2")
    assert found["mid_block"] == ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    assert len(found) == 1 + 18 + 6 + 1


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_images_without_blocks_are_those_of_a_student_without_them(micro_teacher: Path, guidance: float) -> None:
    teacher = bksdm_jax.load(micro_teacher)
    blocks = replaceable(teacher.denoiser.config)
    config = SamplerConfig(steps=3, guidance_scale=guidance, resolution=16, sampler="ddim")
    missing = [(), ("down_blocks.1.resnets.0",), ("up_blocks.1.attentions.1", "up_blocks.0.resnets.2")]
    kept = np.array([[block not in some for block in blocks] for some in missing])
    prompts = ("a red cat",) * 3
    batch = Batch((0, 0, 0), prompts, masks={"kept": kept})
    (made,) = Engine(teacher, config).make([batch])
    for some, image in zip(missing, made.images, strict=True):
        names = ",".join(f"{name}:interpolate" if "resnets" in name else name for name in some)
        student = bksdm_jax.prune(teacher, names or "sd")
        (alone,) = Engine(student, config).make([Batch((0,), prompts[:1])])
        assert np.abs(image.astype(int) - alone.images[0]).max() <= 1, some
    assert np.abs(made.images[0].astype(int) - made.images[1]).max() > 5


def sampled(teacher: Path, data: Path) -> AnalyseConfig:
    own = SensitivityConfig(
        metrics=("clip_score_shapes", "fd_clip_shapes"),
        reference="shapes",
        reference_count=20,
        images=3,
        resolution=64,  # that of the shapes' CLIP
        steps=1,
        guidance_scale=1.0,
        sampler="ddim",
    )
    return settings(teacher, data, criteria=("output_error", "clip", "frechet"), sensitivity=own)


@pytest.mark.slow
def test_images_without_each_block_are_scored_once(pico_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    analyse(settings(pico_teacher, photographs, criteria=("magnitude",)), tmp_path / "run")
    config = sampled(pico_teacher, photographs)
    path = analyse(config, tmp_path / "run")
    found = json.loads(path.read_text())
    blocks = set(found["blocks"])
    assert {name for name, one in found["removals"].items() if len(one["blocks"]) == 1} == blocks
    without = [(len(one["blocks"]), len(one["skips"])) for one in found["removals"].values()]
    assert sum(not gone and zeroed == 1 for gone, zeroed in without) > 1 == without.count((0, 0))
    with Image.open(tmp_path / "run" / "images" / "mid_block" / "000002.png") as image:
        assert image.size == (64, 64)
    page = (tmp_path / "run" / "blocks.html").read_text()
    assert page.count("<svg") == 0 < page.count("data:image/svg+xml")
    assert all(f">{name}<" in page or f">{name}*<" in page for name in found["removals"])
    assert found["scores"].keys() == {"magnitude", "output_error", "clip", "frechet"}
    whole = found["removals"]["nothing"]["scores"]
    for block in blocks:
        alone = found["removals"][block]["scores"]
        clip, distance = (alone[name]["value"] - whole[name]["value"] for name in whole)
        assert found["scores"]["clip"][block] == pytest.approx(-clip)
        assert found["scores"]["frechet"][block] == pytest.approx(distance)
    assert any(score != 0 for score in found["scores"]["clip"].values())
    assert len(found["agreement"]) == 6
    assert any(line.startswith("rank correlation of output_error, clip: ") for line in block_lines(path))

    gone = found["removals"].pop("mid_block")
    path.write_text(json.dumps(found))
    again = json.loads(analyse(config, tmp_path / "run").read_text())
    assert again["removals"].pop("mid_block")["scores"] == gone["scores"]
    assert again == found
    with pytest.raises(InputError, match="dtype is 'float32'"):
        analyse(settings(pico_teacher, photographs, criteria=("magnitude",), dtype="bfloat16"), tmp_path / "run")
    other = dataclasses.replace(config.sensitivity, steps=2)
    with pytest.raises(InputError, match=r"sensitivity\.steps is 1"):
        analyse(dataclasses.replace(config, sensitivity=other), tmp_path / "run")


def test_rank_correlations() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal(30)
    same, turned = rank_correlation(first, np.exp(first)), rank_correlation(first, -first)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    assert (turned.value, turned.high) == pytest.approx((-1, -1))
    noisy = first + generator.standard_normal(30)
    found = rank_correlation(first, noisy)
    order = [np.argsort(np.argsort(values)) for values in (first, noisy)]
    assert found.value == pytest.approx(np.corrcoef(*order)[0, 1])  # Pearson's of the ranks
    assert -1 <= found.low < found.value < found.high <= 1
    assert np.isnan(rank_correlation(first, np.zeros(30)).value)


def test_blocks_are_those_that_can_be_removed() -> None:
    assert len(replaceable(UNET)) == 18
    assert {name.split(".")[-2] for name in replaceable(UNET)} == {"resnets", "attentions"}


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"criteria": ("tailor",)}, ("'tailor'", "'taylor'")),
        ({"criteria": ()}, ("criteria",)),
        ({"data": ""}, ("data", "taylor")),
        ({"images": 0}, ("images", "0")),
        ({"criteria": ("clip",)}, ("metrics",)),
        ({"criteria": ("clip",), "sensitivity": SensitivityConfig(metrics=("cmmd",))}, ("clip", "clip_score")),
        (
            {"criteria": ("frechet",), "sensitivity": SensitivityConfig(metrics=("fd_dinov2",))},
            ("sensitivity.reference", "fd_dinov2"),
        ),
        (
            {"criteria": ("clip",), "data": "", "sensitivity": SensitivityConfig(metrics=("clip_score",))},
            ("sensitivity.prompts",),
        ),
        (
            {"criteria": ("clip",), "sensitivity": SensitivityConfig(metrics=("clip_score",), sampler="ddmi")},
            ("sensitivity.sampler", "'ddmi'"),
        ),
        ({"batch_size": -1}, ("batch_size", "-1")),
        ({"dtype": "float16"}, ("dtype", "float16")),
        ({"resolution": -8}, ("resolution", "-8")),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        require_analysis(AnalyseConfig(**{"teacher": "shapes_teacher", "data": "photos"} | change))
    assert all(fact in str(error.value) for fact in facts), error.value


def test_images_without_captions_do_not_calibrate(pico_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in photographs.glob("*.png"):
        (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="bare") as error:
        analyse(settings(pico_teacher, bare), tmp_path / "run")
    assert "caption" in str(error.value)
    assert not (tmp_path / "run").exists()
