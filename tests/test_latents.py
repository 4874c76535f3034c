"""Cached latents: the same draws as from the images, refused where they don't fit, sharded and resumed."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.images import to_unit
from bksdm_jax.data.latents import IDENTITY, latent_identity, require_identity
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.prepare import latents
from bksdm_jax.data.prepare.config import LatentConfig, PrepareConfig
from bksdm_jax.data.prepare.latents import prepare_latents
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.prepare.shards import ShardWriters, pair_features
from bksdm_jax.data.prepare.tfds_folder import write_set
from bksdm_jax.data.sources import open_examples
from bksdm_jax.models.vae import VAE, sample_latents
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.tasks.distill.config import DistillConfig, LossWeights, ValidationConfig
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import SampleGridConfig

RESOLUTION = 16


@pytest.fixture(scope="module")
def images(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs as a set with two captions each."""
    source = shutil.copytree(photographs, tmp_path_factory.mktemp("latents") / "source")
    rows = [{"file_name": path.name, "text": [path.stem, "a photo"]} for path in sorted(source.glob("*.png"))]
    (source / "metadata.csv").unlink()
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return prepare(PrepareConfig(str(source), workers=1, validation=0.3), source.parent / "images")


@pytest.fixture(scope="module")
def cached(images: Path, micro_teacher: Path) -> Path:
    return prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, images.parent / "latents")


def config(teacher: Path, **changes: Any) -> LatentConfig:
    return LatentConfig(str(teacher), batch_size=1, **changes)


def contents(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    return {
        split: [(example.name, example.moments(True).tobytes()) for example in open_examples(folder, split)]
        for split in ("train", "validation")
    }


@pytest.fixture(scope="module")
def pipeline(micro_teacher: Path) -> Pipeline:
    return load_pipeline(micro_teacher)


def batches(folder: Path, pipeline: Pipeline, **changes: Any) -> Iterator[dict[str, Any]]:
    loader = LoaderConfig(RESOLUTION, 4, 2, flip=True, seed=5)
    return training_batches(open_examples(folder), pipeline.caption_inputs, dataclasses.replace(loader, **changes))


@pytest.fixture(scope="module")
def encode(pipeline: Pipeline) -> Callable[[np.ndarray], jax.Array]:
    """uint8 [4, H, W, 3] -> mean and log-variance, float32 [4, 2, h, w, C]."""
    vae = pipeline.networks["vae"]

    def moments(pictures: jax.Array) -> jax.Array:
        pair = VAE(vae.config).apply({"params": vae.params}, to_unit(pictures), method="encode")
        return jnp.stack(pair, axis=1)

    return jax.jit(moments)


def unpacked(moments: np.ndarray) -> np.ndarray:
    """[A, M, ...] bits of bfloat16 -> float32 [A * M, ...]."""
    return moments.view(ml_dtypes.bfloat16).astype(np.float32).reshape(-1, *moments.shape[2:])


def test_batches_have_the_latents_of_the_images_that_a_run_without_cache_sees(
    images: Path, cached: Path, pipeline: Pipeline, encode: Callable[[np.ndarray], jax.Array]
) -> None:
    from_images, from_cache = (batches(folder, pipeline) for folder in (images, cached))
    for _ in range(5):
        theirs, ours = next(from_images), next(from_cache)
        np.testing.assert_array_equal(ours["captions"]["tokens"], theirs["captions"]["tokens"])
        expected = encode(theirs["images"].reshape(4, RESOLUTION, RESOLUTION, 3))
        np.testing.assert_allclose(unpacked(ours["moments"]), expected, rtol=2**-8, atol=1e-6)  # bfloat16: eight bits


def test_draws_have_the_distribution_of_the_encoder(
    images: Path, cached: Path, pipeline: Pipeline, encode: Callable[[np.ndarray], jax.Array]
) -> None:
    pictures = next(batches(images, pipeline))["images"].reshape(4, RESOLUTION, RESOLUTION, 3)
    exact, stored = encode(pictures)[0], jnp.asarray(unpacked(next(batches(cached, pipeline))["moments"])[0])
    count, draws = 4000, []
    for seed, (mean, log_variance) in enumerate((exact, stored)):
        noise = jax.random.normal(jax.random.key(seed), (count, *mean.shape))
        scale = pipeline.architectures.scaling_factor
        draws.append(np.asarray(sample_latents(mean[None], log_variance[None], noise, scale)))
    error = np.sqrt(sum(np.var(draw, axis=0) for draw in draws) / count)
    rounding = 2**-8 * np.abs(draws[0].mean(axis=0))
    assert (np.abs(draws[0].mean(axis=0) - draws[1].mean(axis=0)) < 5 * error + rounding).all()
    np.testing.assert_allclose(draws[0].std(axis=0), draws[1].std(axis=0), rtol=0.15)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": 32}, "resolution 16.*32"),
        ({"crop": "random"}, "crop 'centre'.*'random'"),
        ({"vae_sha256": "0" * 64}, "vae_sha256"),
        ({"scaling_factor": 0.5}, "scaling_factor"),
        ({"tokens_sha256": ""}, "tokens_sha256"),
    ],
)
def test_latents_that_do_not_fit_the_run_are_refused(
    cached: Path, pipeline: Pipeline, changes: dict[str, Any], said: str
) -> None:
    identity = latent_identity(pipeline, RESOLUTION, flip=True)
    require_identity(cached, identity)
    require_identity(cached, dataclasses.replace(identity, flip=False))
    with pytest.raises(InputError, match=said) as error:
        require_identity(cached, dataclasses.replace(identity, **changes))
    assert str(error.value).startswith(str(cached / IDENTITY))


def test_latents_without_mirror_images_are_for_runs_without_them(
    images: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    made = prepare_latents(str(images), config(pipeline.path, flip=False), RESOLUTION, 9, tmp_path / "plain")
    require_identity(made, latent_identity(pipeline, RESOLUTION, flip=False))
    with pytest.raises(InputError, match=r"flip False.*True"):
        require_identity(made, latent_identity(pipeline, RESOLUTION, flip=True))


def test_other_weights_are_another_identity(pipeline: Pipeline) -> None:
    vae = pipeline.networks["vae"]
    bias = vae.params["quant_conv"]["bias"].copy()
    bias[0] += 1e-3
    changed = dataclasses.replace(vae, params=vae.params | {"quant_conv": vae.params["quant_conv"] | {"bias": bias}})
    other = dataclasses.replace(pipeline, networks=pipeline.networks | {"vae": changed})
    before, after = (latent_identity(one, RESOLUTION, flip=True) for one in (pipeline, other))
    assert before.vae_sha256 != after.vae_sha256


def test_a_kill_and_two_processes_make_the_same_set(
    images: Path, cached: Path, micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(cached)
    assert sum(map(len, expected.values())) == len(open_examples(images)) + len(open_examples(images, "validation"))
    written, write = [], latents.write_json

    def dies(*args: Any) -> None:
        written.append(args)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as context:
        context.setattr(latents, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, tmp_path / "killed")
    assert contents(prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, tmp_path / "killed")) == expected

    process = 0

    def other_process(name: str) -> None:
        """The second process starts and ends while the first waits for it for the first time."""
        nonlocal process
        if name == "latents claimed" and not process:
            process = 1
            made = prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, tmp_path / "shared")
            assert not (made / "dataset_info.json").exists()
            process = 0

    monkeypatch.setattr(latents, "barrier", other_process)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert contents(prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, tmp_path / "shared")) == expected


def test_the_u_net_is_not_needed(images: Path, cached: Path, micro_teacher: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(micro_teacher, tmp_path / "teacher")
    for name in ("unet", "text_encoder"):
        next((teacher / name).glob("*.msgpack")).unlink()
    with_variant = config(teacher, variant="non_ema")  # which is the U-Net's alone
    assert contents(prepare_latents(str(images), with_variant, RESOLUTION, 2, tmp_path / "latents")) == contents(cached)


def test_a_full_disk_is_told_before_any_work(
    images: Path, micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"0 MiB free on its disk, .* needed"):
        prepare_latents(str(images), config(micro_teacher), RESOLUTION, 2, tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "photographs"}, "photographs: .*launch.prepare"),
        ({"source": "cached"}, "latents: already"),
        ({"resolution": 17}, "resolution: 17 .*multiple of 2"),
        ({"dtype": "fp16"}, "dtype: .*'fp16'"),
    ],
)
def test_bad_settings_are_one_line(
    request: pytest.FixtureRequest, micro_teacher: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    source = request.getfixturevalue(changes.get("source", "images"))
    dtype = changes.get("dtype", "float32")
    with pytest.raises(InputError, match=said):
        prepare_latents(
            str(source), config(micro_teacher, dtype=dtype), changes.get("resolution", 16), 2, tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()


def test_an_unreadable_image_is_one_line(micro_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "broken" / "parts").mkdir(parents=True)
    row = pair_features().serialize_example({"name": "a", "image": b"noise", "text": ["x"]})
    with ShardWriters(tmp_path / "broken" / "parts", 0) as writers:
        writers.write("train", row)
    records = [{"splits": {"train": [1, len(row)]}}]
    write_set(tmp_path / "broken", "pairs", "", pair_features(), records, ("train",))
    with pytest.raises(InputError, match=r"broken.*'train'.*example 0") as error:
        prepare_latents(str(tmp_path / "broken"), config(micro_teacher), RESOLUTION, 2, tmp_path / "latents")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "latents" / "dataset_info.json").exists()


@pytest.mark.slow
def test_a_run_trains_on_them(cached: Path, micro_teacher: Path, tmp_path: Path) -> None:
    settings = DistillConfig(
        str(micro_teacher),
        "mid_block",
        str(cached),
        resolution=RESOLUTION,
        steps=3,
        batch_size=8,
        accumulation=1,
        dtype="float32",
        checkpoint_every=0,
        sheets=SampleGridConfig(steps=0),
    )
    with pytest.raises(InputError, match=r"crop 'centre'.*'random'"):
        distill(dataclasses.replace(settings, random_crop=True), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    validation = ValidationConfig(every=1, images=8)
    whole = dataclasses.replace(settings, loss=LossWeights(feature=0.5), validation=validation, profile_step=1)
    assert distill(whole, tmp_path / "run") == tmp_path / "run" / "model"
    with (tmp_path / "run" / "validation.csv").open(newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert first["loss"] == first["raw/loss"]  # after one update the moving average is the weights
    assert last["loss"] != last["raw/loss"]
    task, output, feature = (float(last[f"loss_{term}"]) for term in ("task", "output", "feature"))
    assert float(last["loss"]) == pytest.approx(task + output + 0.5 * feature, rel=1e-5)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    again = dataclasses.replace(whole, profile_step=0, save_weights="raw")
    assert distill(again, tmp_path / "again") == tmp_path / "again" / "model"
    texts, cards = (
        [(tmp_path / name / path).read_text() for name in ("run", "again")]
        for path in ("validation.csv", "model/README.md")
    )
    assert texts[0] == texts[1]
    assert "| `weights` | the moving average |" in cards[0]
    assert "| `weights` | those of the last update |" in cards[1]
    average, raw = (
        find_model(tmp_path / name / "model").read_denoiser().params["conv_in"]["kernel"] for name in ("run", "again")
    )
    assert not np.array_equal(average, raw)
    with pytest.raises(InputError, match=r"examples: 99, but .* has"):
        distill(dataclasses.replace(settings, examples=99), tmp_path / "other")
    with pytest.raises(InputError, match=r"split: unknown name 'test'"):
        distill(dataclasses.replace(settings, validation=ValidationConfig(split="test")), tmp_path / "other")
