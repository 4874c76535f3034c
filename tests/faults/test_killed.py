"""SIGKILL at random moments, half of them while a checkpoint is being written."""

from collections.abc import Callable

from tests.faults.moments import Moments
from tests.faults.training import LONG, Training
from tests.faults.trials import choices, trials

EVERY = 10


def test_kills(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    count, random = trials("kills"), choices("kills")
    training = begin("killed", checkpoint_every=EVERY)
    moments, while_saving, kinds = Moments(training, random), 0, []
    for _ in range(count):
        kind = random.choice(["starting", "compiling", "training"]) if len(kinds) % 2 else "saving"
        before = training.newest()
        victim = training.start(LONG)
        moments.wait(kind, victim)
        victim.kill()
        kinds.append(kind)
        while_saving += bool(training.unfinished())
        assert training.newest() >= before, kinds
        require_restored(training)
    steps = (max(training.rows(), training.newest()) // EVERY + 1) * EVERY
    training.finish(steps)
    require_restored(training)
    undisturbed = begin("undisturbed").finish(steps)
    training.require_same(undisturbed, steps)
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    figure(
        f"SIGKILL: {count} kills, {count} recoveries ({counted}; {while_saving} left a checkpoint half written); "
        f"after {steps} steps state, metrics and examples as undisturbed"
    )


def require_restored(training: Training) -> None:
    """What the last process began with is a checkpoint that is still there, bit for bit, or the initial state."""
    begun = [line for line in training.notes() if "begun" in line]
    if begun and begun[-1]["begun"] in training.steps():
        assert training.digest(begun[-1]["begun"]) == begun[-1]["state"]
