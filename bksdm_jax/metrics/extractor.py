"""A feature extractor: a network that turns images into features, with its preprocessing."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import waiting

_THREADS = os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its parameters and preprocessing.

    Attributes:
        prepare: uint8 [H, W, 3] -> the program's input for one image, uint8 or float32 [h, w, 3]; on the host.
        params: of the network, arrays.
        program: jitted; (params, inputs [B, h, w, 3], text or None) -> features by name, each [B, ...].
        text: captions -> the program's text input, arrays [B, ...].
        dtype: of the network's computations.
        facts: what a score says of it, plain data: `weights`, `sha256`, `resize`, `dtype`.
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    params: Any
    program: Callable[[Any, np.ndarray, Any], dict[str, jax.Array]]
    text: Callable[[Sequence[str]], Any] = lambda captions: None
    dtype: str = "float32"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self, images: Sequence[np.ndarray], captions: Sequence[str] | None = None, batch_size: int = 64
    ) -> dict[str, np.ndarray]:
        """Features by name, each [N, ...].

        Args:
            images: uint8 [H, W, 3], all of one size unless `prepare` makes them so.
            captions: one per image; None: features that need text are left out.
            batch_size: images per program call and device; the last call is padded with the last image.

        Raises:
            InputError: images of a size that the extractor doesn't take.
        """
        each, count, found = images_per_call(batch_size), len(images), []
        with exact_products(self.dtype), concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, count, each):
                chosen = np.arange(start, start + each).clip(max=count - 1)
                prepared = list(pool.map(self.prepare, images[start : start + each]))
                _require_one_size(prepared)
                own = np.stack(prepared)[chosen - start]
                text = None if captions is None else self.text([captions[i] for i in chosen])
                inputs = jax.device_put((own, text), _sharding("data"))
                with self._compiling(inputs):
                    features = self.program(self._params, *inputs)
                found.append({name: rows[: count - start] for name, rows in features.items()})
        return {name: np.concatenate([np.asarray(part[name]) for part in found]) for name in found[0]}

    def _compiling(self, inputs: Any) -> contextlib.AbstractContextManager[None]:
        """Announces the first call with inputs of these shapes, in which the program is compiled."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(inputs))
        if shapes in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(shapes)
        return waiting("compiling a scoring network")

    @functools.cached_property
    def _compiled(self) -> set[tuple[tuple[int, ...], ...]]:
        return set()

    @functools.cached_property
    def _params(self) -> Any:
        return jax.device_put(self.params, _sharding())


def images_per_call(batch_size: int) -> int:
    """Images of a program call with `batch_size` of them on each of this process's devices."""
    return batch_size * jax.local_device_count()


def _require_one_size(images: Sequence[np.ndarray]) -> None:
    sizes = sorted({image.shape[1::-1] for image in images})
    if len(sizes) > 1:
        (width, height), (other, another) = sizes[:2]
        raise InputError(
            f"images: {len(sizes)} sizes, such as {width} x {height} and {other} x {another} pixels; this extractor "
            "takes one: make them the same first, as launch.reference does"
        )


@functools.cache
def mesh() -> Mesh:
    """The devices of this process: each computes its own images."""
    return Mesh(np.array(jax.local_devices()), ("data",))


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(mesh(), PartitionSpec(*axes))


def exact(image: np.ndarray, size: int) -> np.ndarray:
    """The image, uint8 [size, size, 3]; raises `InputError` if it has another size."""
    height, width = image.shape[:2]
    if (height, width) != (size, size):
        raise InputError(f"images: {width} x {height} pixels; this extractor takes {size} x {size}")
    return image
