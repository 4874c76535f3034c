"""Which processes make up a run, as settings; nothing here imports JAX."""

import dataclasses
import re

from bksdm_jax.base.errors import InputError, whole_number

NONE, AUTO = "none", "auto"
_LONGEST = 7 * 24 * 3600  # seconds


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Which processes make up a run.

    Attributes:
        distributed: `none`: a single process; `auto`: as the cluster reports (TPU pods, SLURM, Kubernetes, MPI); or
            `HOST:PORT` of the first process.
        processes: with `HOST:PORT`: the number of processes.
        process_id: with `HOST:PORT`: the index of this one, from 0.
        timeout: seconds to wait for another process: to start, and to answer.
    """

    distributed: str = NONE
    processes: int = 0
    process_id: int = -1
    timeout: int = 300

    @property
    def explicit(self) -> bool:
        """Whether the first process is named."""
        return self.distributed not in (NONE, AUTO)


def require_processes(config: ProcessConfig) -> None:
    """Raises `InputError`, with the flag, for settings that can't be used."""
    whole_number("--timeout", "seconds", config.timeout, 1, _LONGEST)
    if not config.explicit:
        if (config.processes, config.process_id) != (0, -1):
            raise InputError(
                f"--distributed: {config.distributed} takes no --processes or --process_id; give HOST:PORT"
            )
        return
    if not re.fullmatch(r".+:\d+", config.distributed):
        raise InputError(f"--distributed: {config.distributed!r}; expected none, auto, or HOST:PORT")
    whole_number("--distributed", "the port", int(config.distributed.rpartition(":")[2][:9]), 1, 65535)
    whole_number("--distributed", "processes", config.processes)
    whole_number("--distributed", "process_id", config.process_id, 0, config.processes - 1)
