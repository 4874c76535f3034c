"""One adapter as files have it: in PyTorch's layouts, whatever the model."""

import dataclasses
import math

import numpy as np

from bksdm_jax.models.lora import Adapter


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The adapter of one module, float32: the kernel W becomes W + scale * up @ down.

    Attributes:
        down: [r, in], of a convolution [r, in, h, w].
        up: [out, r].
        scale: alpha / r.
        magnitude: of DoRA: the norms of the changed kernel in its layout, 1 along the axes over which they are taken,
            as in [out, 1] or [1, in, 1, 1]. None: LoRA.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that it changes, [out, in] or [out, in, h, w]."""
        return self.up.shape[0], *self.down.shape[1:]

    def squared_norm(self) -> float:
        """The sum of the squares of the update, without forming it."""
        up, down = self.up.astype(np.float64), self.down.reshape(self.rank, -1).astype(np.float64)
        return self.scale**2 * float(((up.T @ up) * (down @ down.T)).sum())

    def fitted(self, shape: tuple[int, ...]) -> "LowRank | None":
        """As of a kernel of this shape in PyTorch's layout; 1x1 convolutions and dense kernels fit each other.

        None: it is of another shape.
        """
        short, wanted = _without_ones(self.shape), _without_ones(shape)
        if short != wanted:
            return None
        down = self.down.reshape(self.rank, *shape[1:])
        if self.magnitude is None:
            return dataclasses.replace(self, down=down)
        ends = self.magnitude.shape[:2] + (1,) * (len(shape) - 2)
        return dataclasses.replace(self, down=down, magnitude=self.magnitude.reshape(ends))

    def adapter(self) -> Adapter:
        """The same in Flax's layouts."""
        magnitude = None if self.magnitude is None else _to_flax(self.magnitude)
        return Adapter(_to_flax(self.down), np.ascontiguousarray(self.up.T), magnitude, self.scale)


def from_adapter(adapter: Adapter) -> LowRank:
    """An adapter of ours as files have it."""
    magnitude = None if adapter.magnitude is None else _to_torch(np.asarray(adapter.magnitude, np.float32))
    up = np.ascontiguousarray(np.asarray(adapter.up, np.float32).T)
    return LowRank(_to_torch(np.asarray(adapter.down, np.float32)), up, adapter.scale, magnitude)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def _to_flax(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose((1, 0) if array.ndim == 2 else (2, 3, 1, 0)))


def _to_torch(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose((1, 0) if array.ndim == 2 else (3, 2, 0, 1)))
