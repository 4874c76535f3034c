"""What is random about a micro-batch: each image's own, and captions and noise as the options want them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.images import to_unit
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.tasks.noise import Augmentation, NoisyBatch, noise_latents
from tests import micro


def draw(count: int, seed: int = 0, **options: Any) -> NoisyBatch:
    """Of latents, without the autoencoder."""
    captions = micro.batch(count)["captions"]

    def noisy(frozen: Any, *arguments: Any) -> NoisyBatch:
        return noise_latents(micro.problem().networks, jnp.float32, frozen, *arguments, Augmentation(**options))

    arguments = micro.moments(count), captions, micro.keys(count, seed)
    return jax.jit(lambda frozen, m, *rest: noisy(frozen, *m, *rest))(micro.encoders(), *arguments)


def test_key_of_an_image_is_its_own() -> None:
    batch, keys, problem = micro.batch(4), micro.keys(4), micro.problem()
    batch["images"][:2] = batch["images"][0]  # equal images, other noise

    @jax.jit
    def draw_images(images: Any, captions: Any, keys: Any) -> NoisyBatch:
        moments = problem.networks.encode(micro.encoders(), jnp.float32, to_unit(images))
        return noise_latents(problem.networks, jnp.float32, micro.encoders(), *moments, captions, keys)

    whole = draw_images(*batch.values(), keys)
    part = draw_images(*jax.tree.map(lambda x: x[[3, 0, 2, 1]], tuple(batch.values())), keys[jnp.array([3, 0, 2, 1])])
    assert whole.noisy.shape == (4, 8, 8, 4)
    for ours, theirs in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs)[[3, 0, 2, 1]], atol=1e-5)
    assert not np.allclose(whole.noisy[0], whole.noisy[1], atol=0.1)


def test_timesteps_cover_all_noise_levels() -> None:
    problem = micro.problem()
    latents = (jnp.zeros((1, 1, 4)), jnp.zeros((1, 1, 4)))
    nothing = Unconditioned(**vars(problem.networks))

    @jax.jit
    @jax.vmap
    def timestep(key: jax.Array) -> NoisyBatch:
        return noise_latents(nothing, jnp.float32, {}, *(x[None] for x in latents), {}, key[None])

    drawn = timestep(jax.random.split(jax.random.key(1), 4000))
    counts, _ = np.histogram(drawn.timesteps, bins=10, range=(0, 1000))
    assert counts.sum() == 4000
    assert (abs(counts - 400) < 100).all()
    expected = problem.networks.schedule.alphas_cumprod()[np.asarray(drawn.timesteps)]
    np.testing.assert_allclose(drawn.alpha_bar, expected, rtol=1e-5)


class Unconditioned(Architectures):
    """The same networks without the text encoder."""

    def condition(self, params: Any, dtype: Any, inputs: Any) -> dict[str, Any]:
        return {}


def test_captions_are_dropped_and_noise_is_offset() -> None:
    empty = {"tokens": np.arange(micro.TOKENS, dtype=np.int32)}
    plain, all_dropped = draw(8), draw(8, caption_dropout=1.0, empty_inputs=empty)
    some = draw(8, caption_dropout=0.5, empty_inputs=empty)
    np.testing.assert_array_equal(plain.noisy, all_dropped.noisy)  # nothing else changes
    kept, gone, mixed = (np.asarray(one.conditioning["context"]) for one in (plain, all_dropped, some))
    np.testing.assert_array_equal(gone, np.broadcast_to(gone[:1], kept.shape))
    is_gone, is_kept = (np.isclose(mixed, other, atol=1e-5).all(axis=(1, 2)) for other in (gone, kept))
    assert (is_gone != is_kept).all()
    assert 0 < is_gone.sum() < 8
    offset = np.asarray(draw(8, noise_offset=0.5).target - plain.target)  # the target is the noise
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-6)
    assert 0.3 < offset[:, 0, 0].std() < 0.75
    assert len(np.unique(np.round(offset[:, 0, 0], 6))) == offset[:, 0, 0].size
