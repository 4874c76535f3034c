"""The shapes teacher from scratch, as one call."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file
from bksdm_jax.base.finite import find_non_finite
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.images import to_unit
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.progress import Progress
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.scheduler_json import schedule_to_diffusers
from bksdm_jax.models.clip_pair import CLIP, CLIPConfig
from bksdm_jax.models.unet import UNet, example_inputs
from bksdm_jax.models.vae import VAE
from bksdm_jax.pipelines.clip_folder import write_clip
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.embedded import write_checksums
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pipelines.tokenizer import Tokenizer, load_tokenizer, write_tokenizer
from bksdm_jax.shapes.scenes import words
from bksdm_jax.shapes.world import build
from bksdm_jax.shapes_teacher import contrastive, denoiser
from bksdm_jax.shapes_teacher.autoencoder import VAE_CONFIG, autoencoder_loss, object_crops, whole_images
from bksdm_jax.shapes_teacher.config import TeacherConfig, require_settings
from bksdm_jax.shapes_teacher.phase import shuffled, train_phase

_ENCODER_BATCH = 250


@one_run()
def make_teacher(config: TeacherConfig, workdir: Path) -> Path | None:
    """Trains autoencoder, CLIP and U-Net, continuing where an earlier call was interrupted.

    Returns:
        the folder with `teacher/` (a pipeline folder) and `clip/`, or None if interrupted.

    Raises:
        InputError: a setting can't be used, or the workdir is another run's.
    """
    require_settings(config)
    record = dataclasses.asdict(config)
    require_same(workdir, record, ())
    claim(workdir, record)
    images, captions = _examples(build(workdir / "data", config.dataset))
    with atomic_folder(workdir / "tokenizer") as folder:
        write_tokenizer(folder, words())
    tokenizer = load_tokenizer(workdir / "tokenizer", 77)
    vae = _autoencoder(config, workdir / "vae", images[: config.vae_images], captions)
    if vae is None:
        return None
    clip_config = contrastive.clip_config(len(tokenizer))
    clip = _clip(config, workdir / "clip", clip_config, captions[: config.clip_groups], tokenizer)
    if clip is None:
        return None
    moments = _moments(workdir / "moments.npz", vae, images)
    vae_config = dataclasses.replace(VAE_CONFIG, scaling_factor=_scaling_factor(moments))
    unet_config = denoiser.unet_config(clip_config.text.width)
    configs = {"unet": unet_config, "vae": vae_config, "text_encoder": clip_config.text}
    networks = Architectures(configs, ScheduleConfig())
    tokens = tokenizer(captions), tokenizer([""])[0]
    unet = _unet(config, workdir / "unet", networks, clip["text_model"], moments, tokens)
    if unet is None:
        return None
    params = {"unet": unet, "vae": vae, "text_encoder": {"text_model": clip["text_model"]}}
    teacher = Pipeline(
        path=workdir,
        networks={
            name: Network(configs[name], _half(params[name]), kind.to_json(configs[name]))
            for name, kind in networks.kind.networks.items()
        },
        tokenizers={"tokenizer": tokenizer},
        schedule=networks.schedule,
        scheduler=schedule_to_diffusers(networks.schedule),
    )
    with atomic_folder(workdir / "made") as made:
        write_pipeline(made / "teacher", teacher, SaveConfig("flax"))
        write_clip(made / "clip", clip_config, _half(clip), workdir / "tokenizer")
        write_checksums(made)
    return workdir / "made"


def _half(params: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf.astype(np.float16), params)


def _examples(folder: Path) -> tuple[np.ndarray, list[str]]:
    source = tfds.builder_from_directory(folder).as_data_source(split="train")
    records = list(grain.MapDataset.source(source))
    return np.stack([record["image"] for record in records]), [record["text"].decode() for record in records]


def _autoencoder(config: TeacherConfig, workdir: Path, images: np.ndarray, captions: list[str]) -> Any | None:
    """First on crops, then on whole images, whose statistics differ (normalisation is over all pixels)."""
    example = jnp.zeros((1, *images.shape[1:]))
    params = jax.jit(VAE(VAE_CONFIG).init)(jax.random.key(config.seed), example)["params"]
    loss = autoencoder_loss(VAE_CONFIG)
    crops = functools.partial(object_crops, images, captions, config.vae_crops.batch_size, config.seed)
    params = train_phase(workdir / "crops", config.vae_crops, params, {}, loss, crops, config.seed)
    if params is None:
        return None
    batches = functools.partial(whole_images, images, config.vae.batch_size, config.seed)
    return train_phase(workdir / "whole", config.vae, params, {}, loss, batches, config.seed + 1)


def _clip(
    config: TeacherConfig, workdir: Path, architecture: CLIPConfig, captions: list[str], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    pairs = contrastive.groups(captions, tokenizer, config.seed)
    one = {name: jnp.asarray(value[0, :1]) for name, value in pairs.items()}
    full = jnp.zeros((1, architecture.text.max_length), jnp.int32)  # positions for captions of any length
    init = jax.jit(CLIP(architecture).init)
    params = init(jax.random.key(config.seed), full, one["ends"], to_unit(one["images"]))["params"]
    loss = contrastive.contrastive_loss(architecture)

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        return contrastive.flattened(shuffled(pairs, config.clip.batch_size, config.seed, first))

    return train_phase(workdir, config.clip, params, {}, loss, batches, config.seed)


def _moments(path: Path, params: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and log-variance of every image, cached in a file, since encoding takes minutes."""
    if not path.is_file():
        encode = jax.jit(lambda p, x: VAE(VAE_CONFIG).apply({"params": p}, to_unit(x), method="encode"))
        encoded = []
        with Progress("encoding", len(images)) as progress:
            for start in range(0, len(images), _ENCODER_BATCH):
                batch = images[start : start + _ENCODER_BATCH]
                encoded.append(jax.tree.map(np.asarray, encode(params, batch)))
                progress.advance(len(batch))
        mean, log_variance = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
        for name, count in find_non_finite({"mean": mean, "log_variance": log_variance}):
            raise InputError(f"{path}: not written, since {count:,} numbers of {name} aren't finite")
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=mean, log_variance=log_variance)
    with np.load(path, allow_pickle=False) as file:
        return {"mean": file["mean"], "log_variance": file["log_variance"]}


def _scaling_factor(moments: dict[str, np.ndarray]) -> float:
    """One over the standard deviation of the latents (Rombach et al. 2022, section G)."""
    variance = np.var(moments["mean"], dtype=np.float64) + np.mean(np.exp(moments["log_variance"]), dtype=np.float64)
    return round(float(variance) ** -0.5, 5)


def _unet(
    config: TeacherConfig,
    workdir: Path,
    networks: Architectures,
    text_model: dict[str, Any],
    moments: dict[str, np.ndarray],
    tokens: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any] | None:
    """`tokens`: of the captions [N, T], and of the empty caption [T]."""
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), example_inputs(networks.denoiser, size=8))
    params = jax.jit(UNet(networks.denoiser).init)(jax.random.key(config.seed), *inputs)["params"]
    loss = denoiser.denoising_loss(networks, {"tokens": tokens[1]})
    batches = functools.partial(shuffled, moments | {"tokens": tokens[0]}, config.unet.batch_size, config.seed)
    frozen = {"text_encoder": {"text_model": text_model}}
    return train_phase(workdir, config.unet, params, frozen, loss, batches, config.seed)
