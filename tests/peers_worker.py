"""A process of a run that does nothing but wait for the others: `JAX|bare ADDRESS PROCESSES INDEX TIMEOUT WHAT`.

With JAX it connects the runtime and reduces in a loop; bare, only what watches the others is there. WHAT is done once
the process has said `ready`: `work` for ever, `end`, `end-late`, `fail:MESSAGE`, `crash`, `stop` with status 75,
`stop-late`, `wait` at a barrier that nobody else comes to, `hook` (work, and write a line before leaving).
"""

import sys
import time

from bksdm_jax.base import peers
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.processes import ProcessConfig
from bksdm_jax.base.rendezvous import meet


def main(runtime: str, address: str, processes: int, index: int, timeout: int, what: str) -> None:
    try:
        if runtime == "jax":
            from bksdm_jax.base.distributed import all_reduce_max, barrier, connect

            connect(ProcessConfig(address, processes, index, timeout))
            barrier("start")
            all_reduce_max(1.0)
        else:
            peers.watch(index, meet(address, processes, index, timeout), timeout)
        print("ready", flush=True)
        if what in ("work", "hook"):
            with peers.before_leaving(lambda: print("hook", what, flush=True)):
                while True:
                    time.sleep(0.05)
                    if runtime == "jax":
                        all_reduce_max(1.0)
        if what == "wait":
            barrier("never")
        if what.endswith("-late"):
            time.sleep(3)
        if what.startswith("fail:"):
            raise InputError(what.removeprefix("fail:"))
        if what == "crash":
            raise RuntimeError("a bug")
        if what.startswith("stop"):
            sys.exit(75)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    given = sys.argv[1:]
    with peers.ending_together():
        main(given[0], given[1], int(given[2]), int(given[3]), int(given[4]), given[5])
