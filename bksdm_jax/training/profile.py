"""A profiler's trace of a few updates, for TensorBoard and XProf.

clu's `periodic_actions.Profile` can't replace it: it traces again every so many updates or seconds, stops without
waiting for the last update's result, never stops where the run ends first, and only logs that a trace couldn't start.
"""

from pathlib import Path
from typing import Any

import jax

from bksdm_jax.base.distributed import is_first

PROFILED = 3
"""Updates that the profiler watches."""


class Profile:
    """At most one trace, of the first process; use as a context manager, whose end ends it."""

    def __init__(self) -> None:
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(None)

    def start(self, folder: Path) -> None:
        """Begins to watch."""
        if is_first():
            jax.profiler.start_trace(folder)
            self._running = True

    def stop(self, result: Any) -> None:
        """Writes the trace, once `result` is there."""
        if self._running:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running = False
