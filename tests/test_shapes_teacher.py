"""What the shapes teacher is trained with: losses against PyTorch's, batches, and what a phase ends in."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_from_transformers
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import VAE, VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.tokenizer import load_tokenizer, write_tokenizer
from bksdm_jax.shapes.scenes import caption, parse_caption, words
from bksdm_jax.shapes.world import example
from bksdm_jax.shapes_teacher.autoencoder import CROP, KL_WEIGHT, OBJECT_WEIGHT, autoencoder_loss, object_crops
from bksdm_jax.shapes_teacher.contrastive import GROUP, contrastive_loss, flattened, groups
from bksdm_jax.shapes_teacher.denoiser import denoising_loss, unet_config
from bksdm_jax.shapes_teacher.phase import Phase, shuffled, train_phase
from tests import micro, tiny


def test_autoencoder_loss_matches_its_parts() -> None:
    config = VAEConfig(widths=(8, 8), layers_per_block=1, norm_groups=4)
    images = np.stack([example("train", index)[0][:16, :16] for index in range(3)])
    variables = {"params": tiny.random_tree(vae_parameter_shapes(config), 0)}
    keys = jax.random.split(jax.random.key(1), 3)
    background = np.array([[16, 16, 16], [242, 242, 242], [128, 128, 128]], np.uint8)
    batch = {"images": images, "background": background}
    total, terms = jax.jit(autoencoder_loss(config))(variables["params"], {}, {}, batch, keys)

    unit = images.astype(np.float32) / 127.5 - 1
    mean, log_variance = jax.jit(functools.partial(VAE(config).apply, method="encode"))(variables, unit)
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    decode = jax.jit(functools.partial(VAE(config).apply, method="decode"))
    decoded = decode(variables, mean + np.exp(0.5 * log_variance) * noise)
    differs = np.abs(images.astype(int) - background[:, None, None]).max(axis=-1, keepdims=True) > 0.1 * 127.5
    weight = np.where(differs, OBJECT_WEIGHT, 1.0)
    absolute = (weight * np.abs(decoded - unit)).mean()
    squared = (weight * np.square(decoded - unit)).mean()
    moments = torch.from_numpy(np.concatenate([mean, log_variance], axis=-1).transpose(0, 3, 1, 2).copy())
    divergence = DiagonalGaussianDistribution(moments).kl().numpy().sum() / mean.size
    assert float(terms["loss_kl"]) == pytest.approx(divergence, rel=1e-4)
    assert float(total) == pytest.approx(absolute + squared + KL_WEIGHT * divergence, rel=1e-4)


def test_contrastive_loss_is_clips() -> None:
    theirs = tiny.clip(int(np.random.default_rng().integers(2**31)))
    generator = np.random.default_rng()
    tokens = generator.integers(0, 590, (4, 12), np.int32)
    tokens[:, 9:] = 599
    images = generator.integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = {"tokens": tokens, "ends": np.full(4, 9, np.int32), "images": images}
    loss = contrastive_loss(clip_from_transformers(theirs.config.to_dict()))
    ours, _ = jax.jit(loss)(tiny.clip_params(theirs), {}, {}, batch, jax.random.split(jax.random.key(0), 4))
    pixels = torch.from_numpy((images / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        wanted = theirs(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels, return_loss=True).loss
    assert float(ours) == pytest.approx(float(wanted), rel=1e-4)


def test_groups_hold_a_caption_and_its_neighbours(tmp_path) -> None:
    write_tokenizer(tmp_path, words())
    tokenizer = load_tokenizer(tmp_path, 77)
    for word in words():
        assert tokenizer.ends(tokenizer([word])) == [2], word  # one token between start and end
    captions = [example("train", index)[1] for index in range(6)]
    pairs = groups(captions, tokenizer, seed=0)
    assert pairs["images"].shape == (6, GROUP, 64, 64, 3)
    first = tokenizer(captions)
    length = pairs["tokens"].shape[-1]
    np.testing.assert_array_equal(pairs["tokens"][:, 0], first[:, :length])
    assert (pairs["tokens"][:, 0] != pairs["tokens"][:, 1]).any(axis=1).all()
    assert tokenizer([caption(parse_caption(captions[0]))]).max() == len(tokenizer) - 1
    batch = next(flattened(shuffled(pairs, 2, 0)))
    assert batch["tokens"].shape == (2 * GROUP, length)


def test_crops_show_an_object_on_its_background() -> None:
    pairs = [example("train", index) for index in range(40)]
    images, captions = np.stack([picture for picture, _ in pairs]), [text for _, text in pairs]
    batches = object_crops(images, captions, 8, seed=0)
    for batch in itertools.islice(batches, 10):
        assert batch["images"].shape == (8, CROP, CROP, 3)
        apart = np.abs(batch["images"].astype(int) - batch["background"][:, None, None]).max(axis=-1) > 20
        assert (apart.mean(axis=(1, 2)) > 0.03).all()


def test_an_epoch_shows_everything_once() -> None:
    batches = shuffled({"index": np.arange(12)}, 4, seed=0)
    epochs = [np.concatenate([next(batches)["index"] for _ in range(3)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])


def test_a_phase_ends_in_its_moving_average(tmp_path) -> None:
    """How it is interrupted and continued is the trainer's, whose tests show it."""
    examples = {"x": np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)}
    wanted = np.array([1.0, -2.0, 3.0], np.float32)

    def loss(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        del ema, keys
        total = jnp.mean(jnp.square(params["w"] - frozen["wanted"]["w"])) + 0.0 * batch["x"].mean()
        return total, {"loss": total}

    def run(steps: int) -> Any:
        def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
            return shuffled(examples, 8, 0, first)

        phase = Phase(steps, batch_size=8, learning_rate=0.1, warmup=0, checkpoint_every=2)
        return train_phase(tmp_path / "run", phase, {"w": np.zeros(3, np.float32)}, frozen, loss, batches, 0)

    frozen = {"wanted": {"w": wanted}}
    made = run(6)
    assert isinstance(made["w"], np.ndarray)
    assert (np.sign(made["w"]) == np.sign(wanted)).all()
    np.testing.assert_array_equal(run(6)["w"], made["w"])  # nothing is left to do
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["6"]
    with pytest.raises(InputError, match=r"steps: 5.* 6$"):
        run(5)


def test_a_batch_has_no_more_than_all_examples() -> None:
    with pytest.raises(InputError, match=r"batch_size: 13.* 12 "):
        next(shuffled({"x": np.zeros((12, 2))}, 13, 0))


def test_the_denoiser_learns_the_task_alone() -> None:
    """Its loss is the distillation's, without a teacher."""
    networks, batch = micro.networks(), micro.batch(8)
    mean, log_variance = micro.moments(8)
    examples = {"mean": mean, "log_variance": log_variance, "tokens": batch["captions"]["tokens"]}
    empty = {"tokens": np.zeros(micro.TOKENS, np.int32)}
    loss = denoising_loss(networks, empty)
    params = parameter_shapes(networks.denoiser)
    total, terms = jax.eval_shape(loss, params, params, micro.encoders(), examples, micro.keys(8))
    assert (total.shape, total.dtype) == ((), jnp.float32)
    assert set(terms) == {"loss", "loss_task"}


def test_the_unet_has_sd_v1s_topology() -> None:
    config = unet_config(64)
    assert [stage.pairs for stage in config.down] == [("RA", "RA")] * 3 + [("R", "R")]
    assert [stage.pairs for stage in config.up] == [("R", "R", "R")] + [("RA", "RA", "RA")] * 3
    assert config.mid.pairs == ("RA", "R")
    assert config.norm_groups == 32
