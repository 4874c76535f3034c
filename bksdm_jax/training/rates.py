"""Throughput of updates."""

import time
from collections.abc import Iterator

from bksdm_jax.training.train_step import Batch


class Rates:
    """Throughput of updates over a window.

    clu's `ReportProgress` includes evaluators in its window, and measures neither images, FLOPs nor waiting.
    """

    def __init__(self, images: int, flops: float = 0.0, peak: float = 0.0) -> None:
        """Images and FLOPs of an update, and the peak of all devices together in FLOP/s; 0: unknown."""
        self._images, self._flops, self._peak = images, flops, peak
        self.begin(0)

    def begin(self, step: int) -> None:
        """Starts a new window after this step."""
        self._since, self._step, self._waited = time.monotonic(), step, 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; measures the time spent waiting for it."""
        start = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - start
        return batch

    def until(self, step: int) -> dict[str, float]:
        """Images and FLOPs per second, and the fractions of the peak and of the time spent waiting for data."""
        seconds = time.monotonic() - self._since
        rate = (step - self._step) / seconds
        found = {"images_per_second": rate * self._images, "data_wait": self._waited / seconds}
        if self._flops:
            found["flops_per_second"] = rate * self._flops
        if self._flops and self._peak:
            found["mfu"] = rate * self._flops / self._peak
        self.begin(step)
        return found
