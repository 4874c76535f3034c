"""Decoding in parts, for less memory: a batch one image at a time, and large images in overlapping tiles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Decode = Callable[[jax.Array], jax.Array]
"""Latents [B, h, w, C] -> images [B, h * factor, w * factor, 3]."""
_OVERLAP = 4  # tiles share a quarter of their height and width with the next


def decode_in_slices(decode: Decode, latents: jax.Array) -> jax.Array:
    """Decodes one image at a time."""
    return jax.lax.map(lambda one: decode(one[None])[0], latents)


def decode_in_tiles(decode: Decode, latents: jax.Array, tile: int) -> jax.Array:
    """Decodes tiles of `tile` by `tile` latent positions one at a time, as Diffusers' `AutoencoderKL.enable_tiling`.

    Each tile begins three quarters of a tile after the last; where they overlap, one fades linearly into the next.
    Diffusers' tiles are the size of the images that the autoencoder was trained on. Latents that fit into one tile are
    decoded at once. Colours may differ between tiles, since each is normalised by itself.

    Raises `ValueError` unless `tile` is a positive multiple of 4.
    """
    if tile < 1 or tile % _OVERLAP:
        raise ValueError(f"a tile of {tile} latent positions; expected a positive multiple of {_OVERLAP}")
    if max(latents.shape[1:3]) <= tile:
        return decode(latents)
    step = tile - tile // _OVERLAP
    corners = [[(y, x) for x in range(0, latents.shape[2], step)] for y in range(0, latents.shape[1], step)]
    images = _decode_tiles(decode, latents, [corner for line in corners for corner in line], tile)
    above: list[jax.Array] = []
    rows = []
    for line in corners:
        blended: list[jax.Array] = []
        for i, corner in enumerate(line):
            image = images[corner]
            factor = image.shape[1] // min(tile, latents.shape[1] - corner[0])
            fade = tile // _OVERLAP * factor
            image = _faded(above[i], image, fade, axis=1) if above else image
            blended.append(_faded(blended[-1], image, fade, axis=2) if blended else image)
        above = blended
        rows.append(jnp.concatenate([image[:, : step * factor, : step * factor] for image in blended], axis=2))
    return jnp.concatenate(rows, axis=1)


def _decode_tiles(
    decode: Decode, latents: jax.Array, corners: list[tuple[int, int]], tile: int
) -> dict[tuple[int, int], jax.Array]:
    """(y, x) -> the decoded tile that begins there; those of one shape are decoded in one loop."""
    tiles = {(y, x): latents[:, y : y + tile, x : x + tile] for y, x in corners}
    images = {}
    for shape in {part.shape: None for part in tiles.values()}:
        same = [corner for corner in corners if tiles[corner].shape == shape]
        decoded = jax.lax.map(decode, jnp.stack([tiles[corner] for corner in same]))
        images |= dict(zip(same, decoded, strict=True))
    return images


def _faded(before: jax.Array, image: jax.Array, extent: int, axis: int) -> jax.Array:
    """`image` with its first `extent` rows or columns faded in over the last ones of the tile before it."""
    extent = min(before.shape[axis], image.shape[axis], extent)
    weights = jnp.arange(extent, dtype=image.dtype) / jnp.asarray(extent, image.dtype)
    weights = weights.reshape(-1, *[1] * (image.ndim - 1 - axis))
    end = jax.lax.slice_in_dim(before, before.shape[axis] - extent, before.shape[axis], axis=axis)
    start, rest = jnp.split(image, [extent], axis=axis)
    return jnp.concatenate([end * (1 - weights) + start * weights, rest], axis=axis)
