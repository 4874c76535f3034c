"""A profiler trace of a few updates, for TensorBoard and XProf.

clu's `periodic_actions.Profile` won't do: it traces periodically, stops without waiting for the last update's result,
doesn't stop when the run ends first, and only logs that a trace couldn't start.
"""

from pathlib import Path
from typing import Any

import jax

from bksdm_jax.base.distributed import is_first

PROFILED = 3
"""Number of profiled updates."""


class Profile:
    """At most one trace, of the first process; use as a context manager, which stops it at its end."""

    def __init__(self) -> None:
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(None)

    def start(self, folder: Path) -> None:
        """Starts the trace."""
        if is_first():
            jax.profiler.start_trace(folder)
            self._running = True

    def stop(self, result: Any) -> None:
        """Waits for `result`, then writes the trace."""
        if self._running:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running = False
