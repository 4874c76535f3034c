"""A process of a run that does little but wait for the others: `jax|bare ADDRESS PROCESSES INDEX TIMEOUT WHAT`.

It says `up` and waits for a line on its standard input; then it meets the others and says `ready`. With JAX it
connects the runtime too and reduces in a loop. WHAT is done then: `work` for ever, `end`, `end-late`, `fail:MESSAGE`,
`crash`, `stop` with status 75, `stop-late`, `wait` at a barrier that nobody else comes to, or `wrap`: work, and take
the runtime's error for a user's.
"""

import sys
import time

from bksdm_jax.base import peers
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.processes import ProcessConfig
from bksdm_jax.base.rendezvous import meet


def connect(runtime: str, address: str, processes: int, index: int, timeout: int) -> None:
    if runtime == "bare":
        peers.watch(index, meet(address, processes, index, timeout), timeout)
        return
    from bksdm_jax.base import distributed

    distributed.connect(ProcessConfig(address, processes, index, timeout))
    distributed.barrier("start")
    all_reduce()


def all_reduce() -> None:
    import numpy as np
    from jax.experimental import multihost_utils

    multihost_utils.process_allgather(np.ones(1, np.float32))


def work(runtime: str) -> None:
    while True:
        time.sleep(0.05)
        if runtime == "jax":
            all_reduce()


def act(runtime: str, what: str) -> None:
    what, _, message = what.partition(":")
    if what == "fail":
        raise InputError(message)
    if what == "crash":
        raise RuntimeError("a bug")
    if what == "wait":
        from bksdm_jax.base.distributed import barrier

        barrier("never")
    if what in ("work", "wrap"):
        with peers.before_leaving(lambda: print("hook", flush=True)):
            try:
                work(runtime)
            except ValueError as error:
                if what == "work":
                    raise
                raise InputError("is the disk full?") from error
    if what.endswith("-late"):
        time.sleep(3)
    if what.startswith("stop"):
        sys.exit(75)


def main(runtime: str, address: str, processes: str, index: str, timeout: str, what: str) -> None:
    with peers.ending_together():
        try:
            if runtime == "jax":
                from bksdm_jax.base import distributed  # noqa: F401
            print("up", flush=True)
            sys.stdin.readline()
            connect(runtime, address, int(processes), int(index), int(timeout))
            print("ready", flush=True)
            act(runtime, what)
        except InputError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
