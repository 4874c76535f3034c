"""How many trials there are of each kind, and the random choices in them.

`FAULTS=kills=5,bits=20` asks for other numbers; `FAULTS_SEED=7` makes the choices of an earlier run, which printed it.
"""

import os
import random

DEFAULTS = {"kills": 50, "signals": 20, "bits": 200, "nans": 10, "full": 10, "saves": 20, "peers": 5, "twice": 3}
SEED = int(os.environ.setdefault("FAULTS_SEED", str(random.SystemRandom().randrange(10**6))))  # workers inherit it


def trials(kind: str) -> int:
    """The number of trials, at least 1."""
    asked = dict(pair.split("=") for pair in os.environ.get("FAULTS", "").split(",") if pair)
    assert asked.keys() <= DEFAULTS.keys(), f"FAULTS: {sorted(asked)}; expected some of {sorted(DEFAULTS)}"
    return int(asked.get(kind, DEFAULTS[kind]))


def choices(kind: str) -> random.Random:
    """The choices of a kind of trials, independent of the others."""
    return random.Random(f"{SEED} {kind}")
